"""Random columns: the control that every claim about a chosen sparse pattern needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dlm_kernels.select_columns import select_columns
from torch import Tensor

from dlm_lens.policies.base import PolicyRun, RunInfo
from dlm_lens.policies.columns import ColumnPolicy, FixedColumnsRun, column_budget, refuse_causal

# Random scores of a layer are drawn for as many groups at a time as fit into this many bytes.
_DRAW_BYTES = 64 << 20


@dataclass(frozen=True)
class RandomColumns(ColumnPolicy):
    """PulseCol's budget spent on keys drawn at random, so that what choosing them adds can be told.

    Every (layer, head, group of ``group_size`` neighbouring queries) keeps its own round((1 − sparsity) ·
    L) keys, drawn uniformly without replacement at the first step and never changed; ``L`` counts a
    sample's valid positions, so that padding is never drawn. Every step is sparse, the first included. The
    draw depends on ``seed`` and on the seed of the run.
    """

    title = "Random columns"
    seed: int = 0

    def start(self, info: RunInfo) -> PolicyRun:
        refuse_causal(self, info)
        generator = torch.Generator(info.device).manual_seed(self.seed + info.seed)
        return FixedColumnsRun(lambda q: self._draw(q, generator), self.group_size)

    def _draw(self, q: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random lists for queries [rows, H, L, D], one of round((1 − sparsity) · L) keys for each group."""
        rows, heads, length, _ = q.shape
        budget = column_budget(self.sparsity, length)
        groups = -(-length // self.group_size)
        at_once = max(1, _DRAW_BYTES // (4 * rows * heads * length))
        pieces = []
        for first in range(0, groups, at_once):
            shape = rows, heads, min(at_once, groups - first), length
            scores = 1 - torch.rand(shape, generator=generator, device=q.device)  # a zero is never selected
            pieces.append(select_columns(scores, budget))
        columns, counts = zip(*pieces, strict=True)
        return torch.cat(columns, dim=2), torch.cat(counts, dim=2)
