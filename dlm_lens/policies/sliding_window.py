"""A sliding window, alone or behind the first keys of the sequence: baselines that choose by place only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_lens.policies.base import PolicyRun, RunInfo
from dlm_lens.policies.columns import ColumnPolicy, FixedColumnsRun, column_budget, refuse_causal


@dataclass(frozen=True)
class SlidingWindow(ColumnPolicy):
    """The keys nearest to each group of queries: what locality alone is worth.

    Every group of ``group_size`` neighbouring queries keeps the round((1 − sparsity) · L) consecutive keys centred on
    it, moved inwards at both ends of the sequence; ``L`` counts a sample's valid positions. All heads, layers and
    steps keep the same. Unlike a causal window it looks both ways.
    """

    title = "Sliding window"

    def start(self, info: RunInfo) -> PolicyRun:
        refuse_causal(self, info)
        return FixedColumnsRun(lambda q: windows(q, self.group_size, self.sparsity, 0), self.group_size)


@dataclass(frozen=True)
class StreamingLLM(ColumnPolicy):
    """The first ``sinks`` keys and a sliding window, at the same budget (arXiv 2309.17453).

    As :class:`SlidingWindow`, but of every group's round((1 − sparsity) · L) keys the first ``sinks`` of the sequence
    are always some, for autoregressive models gather their sinks there. Diffusion models mostly do not: the
    comparison shows what a fixed set of sinks is worth to them. The paper's cache is causal and keeps a window of
    fixed size; here the budget decides, so that policies compare at equal cost.
    """

    title = "StreamingLLM"
    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks < 0:
            raise ValueError(f"sinks={self.sinks} must not be negative")

    def start(self, info: RunInfo) -> PolicyRun:
        refuse_causal(self, info)
        return FixedColumnsRun(
            lambda q: windows(q, self.group_size, self.sparsity, self.sinks), self.group_size
        )


def windows(q: Tensor, group_size: int, sparsity: float, sinks: int) -> tuple[Tensor, Tensor]:
    """Lists int32 [rows, H, groups, K] of the first ``sinks`` keys and of consecutive ones around each group, for
    queries ``q`` [rows, H, L, D], and their counts int32 [rows, H, groups]."""
    rows, heads, length, _ = q.shape
    budget = column_budget(sparsity, length)
    sinks = min(sinks, budget)
    window = budget - sinks
    first = window_starts(twice_middles(length, group_size, q.device), window, length, lowest=sinks)
    around = first[:, None] + torch.arange(window, device=q.device)
    always = torch.arange(sinks, device=q.device).expand(len(first), sinks)
    columns = torch.cat([always, around], dim=1).int().expand(rows, heads, -1, -1).contiguous()
    counts = torch.full(columns.shape[:3], budget, dtype=torch.int32, device=q.device)
    return columns, counts


def twice_middles(length: int, group_size: int, device: torch.device) -> Tensor:
    """First plus last position of each group of queries, int64 [groups]: twice its middle."""
    begin = torch.arange(0, length, group_size, device=device)
    return begin + (begin + group_size - 1).clamp_max(length - 1)


def window_starts(twice_middle: Tensor, window: int, length: int, lowest: int = 0) -> Tensor:
    """First key of the ``window`` consecutive ones from ``lowest`` on whose middle is nearest to each of
    ``twice_middle`` / 2; ties go to the lower window. int64 like ``twice_middle``."""
    return ((twice_middle - window + 1) // 2).clamp(lowest, length - window)
