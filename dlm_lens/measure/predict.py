"""What a model predicts at one given state under a policy, outside any denoising run.

Scores of a text need predictions at states that no run passes through. What a policy does at such a state depends on
the steps before it; here it gets them at that very state, so that only its sparsity shows, not the age of a pattern.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm_lens.attention import Observer, StepContext
from dlm_lens.errors import DlmLensError
from dlm_lens.policies import Dense, Policy, RunInfo

if TYPE_CHECKING:
    from dlm_lens.models import DLM

# Among runs of so many steps, that is looked for in which a policy is sparse after the fewest.
_RUN_LENGTHS = (*range(1, 9), 16, 32, 64)
# Log-probabilities are taken of so many positions at a time: vocabularies are large.
_POSITIONS = 256


@dataclass(frozen=True)
class Prediction:
    """``logits`` [B, n, V] of the positions asked for, in the model's dtype, from a step of ``kind``."""

    logits: Tensor
    kind: str


def predict(
    dlm: DLM,
    tokens: Tensor,
    policy: Policy | None = None,
    *,
    start: Tensor | None = None,
    keep: range | None = None,
    seed: int = 0,
) -> Prediction:
    """The predictions of ``policy`` (dense by default) for the state ``tokens`` [B, L], masked anywhere.

    A fresh run of the policy is taken through its dense and refresh steps, all at this state, up to its first sparse
    one, whose predictions are returned: PulseCol's columns and SparseD's blocks are chosen at this very state. A
    policy that is never sparse predicts with its first step. No part of the sequence counts as a prompt.

    ``start`` int64 [B] is each row's first valid position (None: no padding), ``keep`` the positions wanted (None:
    all). ``seed`` is that of the run, for policies that draw at random.

    Raises ValueError for a policy that cannot work on this model, or that computes only some of the positions, and
    :class:`DlmLensError` if the model returns NaN.
    """
    policy = Dense() if policy is None else policy
    info = RunInfo(
        spec=dlm.spec,
        prompt_length=0,
        gen_length=tokens.shape[1],
        steps=1,
        batch=tokens.shape[0],
        start=start,
        device=tokens.device,
        seed=seed,
    )
    return first_sparse_step(dlm, tokens, policy, info, keep=keep)


def first_sparse_step(
    dlm: DLM,
    tokens: Tensor,
    policy: Policy,
    info: RunInfo,
    *,
    keep: range | None,
    observer: Observer | None = None,
) -> Prediction:
    """What a fresh run of ``policy``, as ``info`` describes it, predicts at its first sparse step; see :func:`predict`.

    ``info.steps`` does not matter: a run is as long as makes a sparse step come soonest. ``observer`` is shown every
    layer of every step up to there, the last time that of the sparse one.
    """
    start = info.start
    steps, last = _way_to_sparse(policy, info, tokens)
    run = policy.start(replace(info, steps=steps))
    for step in range(last + 1):
        plan = run.plan(step, tokens)
        if plan.queries is not None:
            raise ValueError(
                f"{policy.label} computes only {plan.queries.shape[1]} of {info.length} positions at a step, so it has"
                " no predictions for the others; measure it by its runs, with compare() or accuracy()"
            )
        wanted = keep if step == last else range(0)
        context = StepContext(step, plan, run, observer, start, dlm.spec.causal)
        logits = dlm.logits(tokens, start=start, keep=wanted, context=context)
    if logits.isnan().any():
        raise DlmLensError(
            f"under {policy.label} the model returned NaN logits; check its weights and dtype ({dlm.dtype})"
        )
    return Prediction(logits, plan.kind)


def _way_to_sparse(policy: Policy, info: RunInfo, tokens: Tensor) -> tuple[int, int]:
    """How many steps to give a run, and its first sparse step, for that to come soonest; (1, 0) if none comes."""
    found = []
    for steps in _RUN_LENGTHS:
        run = policy.start(replace(info, steps=steps))
        for step in range(steps):
            if run.plan(step, tokens).kind == "sparse":
                found.append((step, steps))
                break
    first, steps = min(found, default=(0, 1))
    return steps, first


def negative_log_likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """−log p in nats, float64 [N], of ``tokens`` int64 [N] under ``logits`` [N, V] of any dtype."""
    parts = zip(logits.split(_POSITIONS), tokens.split(_POSITIONS), strict=True)
    return torch.cat([F.cross_entropy(part.float(), of, reduction="none").double() for part, of in parts])


def mask_token(dlm: DLM, purpose: str) -> int:
    """The id of the model's mask token; raises ValueError, naming the ``purpose``, if it has none."""
    if dlm.spec.mask_id is None:
        raise ValueError(f"{dlm.spec.name!r} has no mask token: {purpose} needs a diffusion model")
    return dlm.spec.mask_id
