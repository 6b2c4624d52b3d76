"""The memory of a run, told before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dlm_lens.denoising import sampler_of
from dlm_lens.measure.shapes import spec_of
from dlm_lens.memory import Demand, RunEstimate, run_estimate
from dlm_lens.models import DLM
from dlm_lens.models.load import dtype_of
from dlm_lens.policies import Dense, Policy
from dlm_lens.recording import Statistic, estimate_memory

if TYPE_CHECKING:
    from dlm_lens.models import Spec
    from dlm_lens.samplers import Sampler


def estimate(
    model: DLM | Spec | str,
    *,
    prompt_length: int,
    gen_length: int = 128,
    batch: int = 1,
    policy: Policy | None = None,
    sampler: Sampler | None = None,
    statistics: Sequence[Statistic] | None = None,
    cfg_scale: float = 0.0,
    dtype: torch.dtype | str = torch.bfloat16,
) -> RunEstimate:
    """The memory of a run of :func:`dlm_lens.denoise`, or of :func:`dlm_lens.capture`, before it.

    Parameters
    ----------
    model : a model, or the shape of one that is not loaded: a :class:`Spec`, ``"llada-8b"`` or ``"dream-7b"``. For a
        shape the run is one on a GPU in ``dtype``, not compiled, and nothing is known of free memory.
    prompt_length, gen_length, batch : tokens of the longest prompt, tokens generated, prompts at a time.
    policy, sampler, cfg_scale : as in ``denoise``; guidance doubles the rows.
    statistics : what a capture records, such as ``[dl.ColumnMass()]``; None for a run without recording.

    Returns
    -------
    RunEstimate
        which, printed, says what takes how much and what is free. All is what PyTorch allocates on the device; policies
        with budgets per head are taken to have equal ones. ``denoise`` and ``capture`` make the same estimate before
        their first step, and refuse what surely does not fit.
    """
    spec = spec_of(model)
    policy = Dense() if policy is None else policy
    on_gpu = model.device.type == "cuda" if isinstance(model, DLM) else True
    recorder = 0
    if statistics is not None:
        recorder = estimate_memory(
            statistics,
            batch=batch,
            length=prompt_length + gen_length,
            layers=spec.layers,
            heads=spec.heads,
            steps=1,
            on_gpu=on_gpu,
        ).on_device
    at = model if isinstance(model, DLM) else spec
    demand = Demand.of(
        at,
        rows=batch * (2 if cfg_scale else 1),
        length=prompt_length + gen_length,
        gen_length=gen_length,
        policy=policy,
        sampler=sampler_of(policy, spec, gen_length) if sampler is None else sampler,
        recorder=recorder,
        dtype=dtype_of(dtype),
    )
    return run_estimate(at, demand)
