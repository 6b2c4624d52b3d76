"""SparseD: block-sparse attention whose blocks are chosen once, after dense early steps (arXiv 2509.24014)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dlm_kernels.column_scores import column_scores
from torch import Tensor
from torch.nn.functional import pad

from dlm_lens.attention import StepContext, dense_attention, dense_attention_and_lse
from dlm_lens.policies.base import Policy, PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.columns import ColumnPattern, Span, refuse_causal, select_best
from dlm_lens.policies.held import Held, RunSize, held_lists


@dataclass(frozen=True)
class SparseD(Policy):
    """Every head keeps, for each block of queries, a share of the key blocks, chosen once and for the rest of the run.

    Steps 0 … int(T · ``skip``) + 1 of T are dense, for early steps are critical; the last of them chooses the blocks,
    all later steps are sparse. The score of a pair of blocks is the mean of the dense attention A over its tile.

    With ``isolated`` selection prompt and generation are chosen apart. Of nb key blocks the int(nb · ``select``) + 1
    best under the softmax over all keys are taken, and those of the prompt kept; of the nb' blocks of the generation
    the int(nb' · ``select``) + 1 best under a softmax over the generation's keys alone. The generation begins with
    the first block that lies wholly in it, or with the last block if none does. Without it the int(nb · ``select``) + 1
    best of all are kept.

    Published with blocks of 128 and a ratio of 0.3 for long contexts (:meth:`long`), 32 and 0.5 for short ones
    (:meth:`short`), and ``skip`` 0.2.

    Left open by the paper and chosen here: ties go to the lower block; where a tile is cut off at the end of the
    sequence its mean is over what there is; with left padding, blocks and the prompt's length count from a sample's
    first valid position. ``reference_scale`` divides the scores by √H, as the public code for LLaDA does, instead of
    the model's own √D.

    Source: arXiv 2509.24014, sections on isolated selection and on skipping early steps.
    """

    select: float = 0.3
    skip: float = 0.2
    block_size: int = 128
    isolated: bool = True
    reference_scale: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.select <= 1:
            raise ValueError(
                f"select={self.select} must be in (0, 1]: the share of the key blocks that is kept"
            )
        if not 0 <= self.skip <= 1:
            raise ValueError(f"skip={self.skip} must be in [0, 1]: the share of the steps that runs dense")
        if self.block_size not in (16, 32, 64, 128):
            raise ValueError(f"block_size={self.block_size} must be 16, 32, 64 or 128")

    @classmethod
    def long(cls, select: float = 0.3) -> SparseD:
        """The published settings for long contexts: blocks of 128, 30% of them."""
        return cls(select=select, block_size=128)

    @classmethod
    def short(cls, select: float = 0.5) -> SparseD:
        """The published settings for short contexts: blocks of 32, 50% of them."""
        return cls(select=select, block_size=32)

    @property
    def label(self) -> str:
        return f"SparseD {100 * (1 - self.select):g}%"

    @property
    def density(self) -> float:
        return self.select

    def held(self, size: RunSize) -> Held:
        blocks = -(-size.length // self.block_size)
        width = min(blocks, int(blocks * self.select) + 2)  # isolated selection rounds up twice
        return held_lists(size, group_size=self.block_size, width=width, block=self.block_size)

    def selecting_step(self, steps: int) -> int:
        """The step, counted from 0, that chooses the blocks in a run of ``steps``; the earlier ones are dense."""
        return int(self.skip * steps + 1e-9) + 1  # 0.3 · 10 must not become 2

    def start(self, info: RunInfo) -> PolicyRun:
        refuse_causal(self, info)
        return _SparseDRun(self, info)


class _SparseDRun(PolicyRun):
    def __init__(self, policy: SparseD, info: RunInfo) -> None:
        self._policy = policy
        self._prompt_length = info.prompt_length
        self._selecting = policy.selecting_step(info.steps)
        self._step = 0
        self._patterns: dict[int, ColumnPattern] = {}

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        self._step = step
        kind = "dense" if step < self._selecting else "refresh" if step == self._selecting else "sparse"
        return StepPlan(step, kind)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        if self._step > self._selecting:
            return self._patterns[layer].attend(q, k, v)
        if self._step < self._selecting and context.recorder is None:
            return dense_attention(q, k, v, start=context.start)
        out, lse = dense_attention_and_lse(q, k, v, start=context.start)
        context.lse = lse
        if self._step == self._selecting:
            self._patterns[layer] = ColumnPattern.build(
                lambda span: self._choose(span, q, k, lse),
                start=context.start,
                group_size=self._policy.block_size,
                block_size=self._policy.block_size,
                length=k.shape[2],
            )
        return out

    def pattern(self, layer: int) -> ColumnPattern | None:
        return self._patterns[layer] if self._step > self._selecting else None

    def _choose(self, span: Span, q: Tensor, k: Tensor, lse: Tensor | None) -> tuple[Tensor, Tensor]:
        """Lists of key blocks int32 [rows, H, blocks, K] and their counts."""
        policy, size = self._policy, self._policy.block_size
        q, k = span.of(q), span.of(k)
        known = None if lse is None or policy.reference_scale else span.of(lse)
        scores = self._block_scores(q, k, known)
        kept = _best(scores, policy.select)
        if policy.isolated:
            blocks = kept.shape[-1]
            begin = min(-(-(self._prompt_length - span.first) // size), blocks - 1)
            kept[..., begin:] = _best(self._block_scores(q, k[:, :, begin * size :], None), policy.select)
        return _lists(kept)

    def _block_scores(self, q: Tensor, k: Tensor, lse: Tensor | None) -> Tensor:
        """Mean attention of every block of queries to every block of keys, float32 [rows, H, blocks, key blocks]."""
        size, keys = self._policy.block_size, k.shape[2]
        blocks = -(-keys // size)
        scale = q.shape[1] ** -0.5 if self._policy.reference_scale else None
        there = torch.full((blocks,), size, device=q.device)
        there[-1] -= blocks * size - keys
        missing = blocks * size - keys
        means = [
            # Padding by nothing would copy all scores.
            (pad(scores, (0, missing)) if missing else scores).view(*scores.shape[:3], blocks, size).sum(-1)
            / there
            for _, scores in column_scores(q, k, group_size=size, scale=scale, lse=lse)
        ]
        return torch.cat(means, dim=2)


def _best(scores: Tensor, share: float) -> Tensor:
    """bool like ``scores``: the int(n · share) + 1 highest of n along the last dimension."""
    blocks = scores.shape[-1]
    chosen, _ = select_best(scores, min(int(blocks * share + 1e-9) + 1, blocks))
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen.long(), True)


def _lists(kept: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending lists int32 [..., K] of what is kept along the last dimension, and their counts int32 [...]."""
    counts = kept.sum(-1)
    place = torch.arange(kept.shape[-1], dtype=torch.int32, device=kept.device)
    listed = torch.where(kept, place, kept.shape[-1]).sort(-1).values[..., : int(counts.max())]
    return torch.where(listed < kept.shape[-1], listed, 0).int(), counts.int()
