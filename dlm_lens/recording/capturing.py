"""Capture: denoise once and record what attention did."""

import os
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from dlm_lens.byte_sizes import parse_bytes
from dlm_lens.denoising import denoise, sampler_of
from dlm_lens.errors import OutOfMemoryError
from dlm_lens.policies import Dense, Policy
from dlm_lens.progress import Progress
from dlm_lens.recording.base import Statistic
from dlm_lens.recording.column_mass import ColumnMass
from dlm_lens.recording.memory import check_budget, estimate_memory
from dlm_lens.recording.pooled_map import PooledMap
from dlm_lens.recording.provenance import provenance
from dlm_lens.recording.recorder import Recorder, Selection
from dlm_lens.recording.row_entropy import RowEntropy
from dlm_lens.samplers import Sampler
from dlm_lens.trace import Trace
from dlm_lens.trace_store import check_path

if TYPE_CHECKING:
    from dlm_lens.models import DLM


def capture(
    dlm: "DLM",
    prompt: Any,
    *,
    gen_length: int = 128,
    steps: int | None = None,
    policy: Policy | None = None,
    sampler: Sampler | None = None,
    statistics: Sequence[Statistic] | None = None,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    record_steps: Iterable[int] | None = None,
    path: str | PathLike | None = None,
    memory_budget: int | str = "2 GB",
    cfg_scale: float = 0.0,
    seed: int = 0,
    progress: bool | Progress = True,
    overwrite: bool = False,
) -> Trace:
    """Denoise ``prompt`` once and record statistics of every attention map, none of which is ever made.

    ``prompt``, ``gen_length``, ``steps``, ``policy``, ``sampler``, ``cfg_scale`` and ``seed`` are those of
    :func:`dlm_lens.denoise`, and the tokens are the same as without recording. Under a sparse policy the
    statistics still describe dense attention, at the states that the policy leads to, and ``retained_mass``
    tells how much of it the policy kept. With guidance the guided pass is recorded, not the unconditional one.
    Layers that attend within a window (``dlm.spec.windowed``) are recorded as they attend; no policy replaces them.

    Parameters
    ----------
    statistics : what to record; ``[ColumnMass(), PooledMap(bins=64), RowEntropy(bins=64)]`` by default
    layers, heads, record_steps : which to record, as numbers from 0; all by default
    path : folder to write the trace to, step by step; in memory if None
    memory_budget : bytes, or a text such as ``"2 GB"``, that trace and workspace may take together
    progress : show the estimate of memory and a progress bar; a function is told instead, as by :func:`denoise`
    overwrite : replace a trace that is at ``path``

    Ctrl-C returns the trace of the finished steps; after a kill, ``open_trace(path)`` does.

    Raises ``MemoryBudgetError`` if the trace would not fit, ``TraceError`` if ``path`` is taken, and ``ValueError``
    or ``TypeError`` for arguments that cannot work, all before anything is run or written. Out of memory midway is an
    ``OutOfMemoryError`` whose ``trace`` holds the finished steps, as does the one at ``path``.
    """
    steps = gen_length if steps is None else steps
    policy = Dense() if policy is None else policy
    if sampler is None and isinstance(policy, Policy):
        sampler = sampler_of(policy, dlm.spec, gen_length)
    chosen = Selection(
        statistics=chosen_statistics(statistics),
        steps=chosen_numbers("record_steps", record_steps, steps),
        layers=chosen_numbers("layers", layers, dlm.spec.layers),
        heads=chosen_numbers("heads", heads, dlm.spec.heads),
        retained_mass=isinstance(policy, Policy) and policy.density < 1,
    )
    _check_windows(chosen, dlm.spec.windowed)
    if path is not None:
        check_path(path, overwrite)
    encoded = dlm.encode(prompt)
    batch, prompt_length = encoded.tokens.shape
    estimate = estimate_memory(
        chosen.statistics,
        batch=batch,
        length=prompt_length + gen_length,
        layers=len(chosen.layers),
        heads=len(chosen.heads),
        steps=len(chosen.steps),
        retained_mass=chosen.retained_mass,
        on_gpu=dlm.device.type == "cuda",
    )
    check_budget(estimate, parse_bytes(memory_budget), chosen.statistics, len(chosen.steps))
    if progress is True:
        print(f"capture: {estimate}")

    run = {
        "policy": repr(policy),
        "sampler": repr(sampler),
        "seed": seed,
        "cfg_scale": cfg_scale,
        "prompt_length": prompt_length,
        "gen_length": gen_length,
        "steps": steps,
    }
    recorder = Recorder(
        chosen,
        start=encoded.start,
        prompt_length=prompt_length,
        token_texts=dlm.token_texts,
        attrs=provenance(dlm) | run,
        path=path,
        overwrite=overwrite,
        device_bytes=estimate.on_device,
    )
    try:
        done = denoise(
            dlm,
            prompt,
            gen_length=gen_length,
            steps=steps,
            policy=policy,
            sampler=sampler,
            cfg_scale=cfg_scale,
            seed=seed,
            recorder=recorder,
            progress=progress,
        )
    except OutOfMemoryError as error:
        if error.step:
            error.trace = recorder.finish(error.result.tokens, error.result.committed_at, interrupted=True)
            if path is not None:
                error.add_note(f"The trace of the finished steps is kept: dl.open_trace({os.fspath(path)!r})")
        raise
    return recorder.finish(done.tokens, done.committed_at, done.interrupted)


def _check_windows(chosen: Selection, windowed: Sequence[int]) -> None:
    """Raise ``ValueError`` if a statistic is not defined for a layer that is to be recorded."""
    narrow = [layer for layer in chosen.layers if layer in windowed]
    for statistic in chosen.statistics:
        if narrow and not statistic.of_windows:
            wide = [layer for layer in chosen.layers if layer not in windowed]
            raise ValueError(
                f"{statistic} describes attention to all positions, but layers {narrow} attend within a window;"
                f" record layers={wide}"
            )


def chosen_statistics(statistics: Sequence[Statistic] | None) -> tuple[Statistic, ...]:
    """The statistics asked for, the default ones if None; ``TypeError`` for what is none."""
    if statistics is None:
        return (ColumnMass(), PooledMap(), RowEntropy())
    for statistic in statistics:
        if not isinstance(statistic, Statistic):
            raise TypeError(
                f"statistics must be objects such as ColumnMass() or PooledMap(bins=64), got {statistic!r}"
            )
    return tuple(statistics)


def chosen_numbers(name: str, numbers: Iterable[int] | None, count: int) -> tuple[int, ...]:
    """The chosen numbers in ascending order, each once; all if None."""
    if numbers is None:
        return tuple(range(count))
    if isinstance(numbers, int):
        raise TypeError(f"{name} must be several numbers such as [{numbers}], got {numbers!r}")
    chosen = sorted({int(number) for number in numbers})
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise ValueError(f"{name} must be numbers in 0 … {count - 1}, at least one, got {chosen}")
    return tuple(chosen)
