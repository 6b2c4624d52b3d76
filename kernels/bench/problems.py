"""Random problems at the sizes of real models, and patterns whose lists overlap as real ones do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """One layer of attention: LLaDA-8B's heads on a GPU, few and short on a CPU."""

    length: int
    heads: int
    dim: int
    dtype: torch.dtype
    device: torch.device

    def flops(self, pairs: float) -> float:
        """Floating-point operations of attention over ``pairs`` of query and key per head: two products."""
        return 4.0 * self.heads * pairs * self.dim

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Random q, k, v [1, H, L, D]."""
        shape = (3, 1, self.heads, self.length, self.dim)
        return tuple(torch.randn(shape, dtype=self.dtype, device=self.device))  # type: ignore[return-value]


def random_lists(
    size: Size, groups: int, keys: int, density: float, share: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Lists ``[1, H, groups, K]`` of ``K = density · keys`` keys, ascending, and their counts.

    Neighbouring groups' lists have about ``share`` of their keys in common: the scores that they are the best of are
    mixed from those of the group before and fresh noise. With 0 every list is drawn alone.
    """
    width = max(1, round(density * keys))
    columns = torch.empty(1, size.heads, groups, width, dtype=torch.int32, device=size.device)
    keep = _correlation(share, density) if share else 0.0
    for head in range(size.heads):
        scores = torch.randn(groups, keys, device=size.device)
        for group in range(1, groups if share else 0):
            scores[group] = keep * scores[group - 1] + (1 - keep**2) ** 0.5 * scores[group]
        columns[0, head] = scores.topk(width, sorted=False).indices.sort(-1).values.int()
    counts = torch.full((1, size.heads, groups), width, dtype=torch.int32, device=size.device)
    return columns, counts


@cache
def _correlation(share: float, density: float) -> float:
    """Correlation of neighbouring groups' normal scores at which their best keys overlap by ``share``, by bisection."""
    generator = torch.Generator().manual_seed(0)
    first, fresh = torch.randn(2, 200_000, generator=generator)
    width = max(1, round(density * len(first)))
    best = torch.zeros(len(first), dtype=torch.bool)
    best[first.topk(width).indices] = True
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        mixed = middle * first + (1 - middle**2) ** 0.5 * fresh
        overlap = best[mixed.topk(width).indices].float().mean().item()
        low, high = (middle, high) if overlap < share else (low, middle)
    return (low + high) / 2


def measured_share(columns: Tensor) -> float:
    """Part of a list's keys that the next group lists too, over the first head's groups."""
    lists = columns[0, 0].long()
    member = torch.zeros(len(lists), int(lists.max()) + 1, dtype=torch.bool, device=lists.device)
    member.scatter_(1, lists, True)
    return float((member[1:] & member[:-1]).sum() / member[1:].sum())
