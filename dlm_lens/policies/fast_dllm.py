"""Fast-dLLM: keys and values outside the current block are kept, and confident tokens committed together
(arXiv 2505.22618)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_lens.attention import StepContext
from dlm_lens.policies.base import CachedPlan, Policy, PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.columns import refuse_causal
from dlm_lens.policies.held import Held, RunSize, held_cache
from dlm_lens.policies.key_value_cache import KeyValueCache, RowPlan
from dlm_lens.samplers import Sampler, Threshold


@dataclass(frozen=True)
class FastDLLM(Policy):
    """Block by block: the first step of a block computes everything, the others only what is not kept.

    The generation is decoded in blocks of ``block`` positions from left to right. With the prefix cache
    (``dual=False``) the other steps of a block compute the block and all that follows it, and attend to the kept keys
    and values of what precedes it; with the ``dual`` cache those of what follows are kept too, and only the block is
    computed.

    ``threshold`` τ brings the parallel decoding that the caches were published with (:class:`Threshold`: every
    prediction of the block more probable than τ is committed at once), used unless a run asks for another sampler.
    None leaves the model's own sampler, whose blocks must then be as long as ``block`` or shorter and divide it.
    Published with blocks of 32 and τ = 0.9.

    The rows of a batch move from block to block on their own; in a step in which one of them begins a block, the
    others still compute what they would alone. In the last step of a run everything is computed.

    Source: arXiv 2505.22618, sections on block-wise approximate caches and on confidence-aware parallel decoding.
    """

    block: int = 32
    dual: bool = True
    threshold: float | None = 0.9

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block={self.block} must be at least 1 position")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be in (0, 1], a probability, or None")

    @property
    def label(self) -> str:
        cache = "dual" if self.dual else "prefix"
        return f"Fast-dLLM {cache}" + ("" if self.threshold is None else f", τ {self.threshold:g}")

    @property
    def sampler(self) -> Sampler | None:
        return None if self.threshold is None else Threshold(self.threshold, self.block)

    def held(self, size: RunSize) -> Held:
        return held_cache(size)

    def start(self, info: RunInfo) -> PolicyRun:
        refuse_causal(self, info)
        return _FastDLLMRun(self, info)


class _FastDLLMRun(PolicyRun):
    def __init__(self, policy: FastDLLM, info: RunInfo) -> None:
        assert info.spec.mask_id is not None
        self._policy, self._info, self._mask_id = policy, info, info.spec.mask_id
        starts = [0] * info.batch if info.start is None else info.start.tolist()
        self._valid = [torch.arange(first, info.length) for first in starts]
        self._cache = KeyValueCache(info.length, info.device)
        self._blocks = [-1] * info.batch

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        before = list(self._blocks)
        masked = tokens.eq(self._mask_id).cpu()
        last = step == self._info.steps - 1
        rows = [self._row(row, masked[row], last) for row in range(len(masked))]
        refreshed = last or before != self._blocks
        return self._cache.plan(step, "refresh" if refreshed else "cached", rows)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        assert isinstance(context.plan, CachedPlan)
        return self._cache.attend(layer, q, k, v, context.plan)

    def _row(self, row: int, masked: Tensor, last: bool) -> RowPlan:
        """What the row computes: all of it where its block is new, otherwise its block and what is not kept."""
        prompt, size = self._info.prompt_length, self._policy.block
        valid = self._valid[row]
        undecided = prompt + masked[prompt:].nonzero()[:, 0]
        if not len(undecided):
            return RowPlan(valid, undecided, undecided)
        if last:
            return RowPlan(valid, valid, undecided)
        block = int(undecided[0] - prompt) // size
        begin, end = prompt + block * size, prompt + (block + 1) * size
        candidates = undecided[undecided < end]
        if block != self._blocks[row]:
            self._blocks[row] = block
            return RowPlan(valid, valid, candidates)
        # Models that read a prediction to the left of its position need the state there, too.
        first = begin - int(self._info.spec.logit_shift)
        computed = valid[(valid >= first) & ((valid < end) | (not self._policy.dual))]
        return RowPlan(valid, computed, candidates)
