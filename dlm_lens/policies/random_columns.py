"""Random columns: the control that every claim about a chosen sparse pattern needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_lens.policies.base import PolicyRun, RunInfo
from dlm_lens.policies.columns import (
    ColumnPolicy,
    FixedColumnsRun,
    column_budget,
    refuse_causal,
    select_in_pieces,
)
from dlm_lens.policies.held import RANDOM


@dataclass(frozen=True)
class RandomColumns(ColumnPolicy):
    """PulseCol's budget spent on keys drawn at random, so that what choosing them adds can be told.

    Every (layer, head, group of ``group_size`` neighbouring queries) keeps its own round((1 − sparsity) ·
    L) keys, drawn uniformly without replacement at the first step and never changed; ``L`` counts a
    sample's valid positions, so that padding is never drawn. Every step is sparse, the first included. The
    draw depends on ``seed`` and on the seed of the run.
    """

    title = "Random columns"
    union = RANDOM
    seed: int = 0

    def start(self, info: RunInfo) -> PolicyRun:
        refuse_causal(self, info)
        generator = torch.Generator(info.device).manual_seed(self.seed + info.seed)
        return FixedColumnsRun(lambda q: self._draw(q, generator), self.group_size)

    def _draw(self, q: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random lists for queries [rows, H, L, D], one of round((1 − sparsity) · L) keys for each group."""
        rows, heads, length, _ = q.shape

        def score(first: int, end: int) -> Tensor:
            shape = rows, heads, end - first, length
            draw = torch.rand(shape, generator=generator, device=generator.device)
            return (1 - draw).to(q.device)  # a zero is never selected

        groups, budget = -(-length // self.group_size), column_budget(self.sparsity, length)
        return select_in_pieces(score, groups, 4 * rows * heads * length, budget)
