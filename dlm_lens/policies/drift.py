"""When a sample's pattern of columns has aged: what it has lost since it was chosen, and refreshes that follow.

Measured on a few groups of queries, so that it costs little: per layer one pass over all keys for their log-sum-exp,
one that the kernel makes for column sums along with it, and one over the kept keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dlm_kernels.retained_mass import retained_mass
from torch import Tensor


def spread(groups: int, sample: int) -> list[int]:
    """``sample`` of ``groups`` at even distances, the last among them, for there the generation is; at most all."""
    sample = min(sample, groups)
    return [(i + 1) * groups // sample - 1 for i in range(sample)]


@dataclass(frozen=True)
class SampledLists:
    """The lists of some ``groups`` of one sample: ``columns`` int32 [1, H, n, K], ``counts`` int32 [1, H, n]."""

    columns: Tensor
    counts: Tensor
    groups: list[int]
    group_size: int

    @classmethod
    def of(cls, columns: Tensor, counts: Tensor, group_size: int, sample: int) -> SampledLists:
        """``sample`` of the groups of complete lists [1, H, groups, K], which need not be kept for it."""
        groups = spread(columns.shape[2], sample)
        return cls(columns[:, :, groups], counts[:, :, groups], groups, group_size)

    def retained_mass(self, q: Tensor, k: Tensor) -> Tensor:
        """Share of the dense attention of the groups' queries that falls on their keys, mean over heads and queries.

        ``q`` [1, H, L, D] and ``k`` [1, Hkv, L, D] hold the whole sample. A float32 scalar, on their device.
        """
        size = self.group_size
        queries = torch.cat([q[:, :, g * size : (g + 1) * size] for g in self.groups], dim=2)
        mean, _ = retained_mass(queries, k, self.columns, self.counts, group_size=size)
        return mean.mean()


class DriftWatch:
    """Decides at which steps one sample refreshes, from what its patterns were seen to lose in the step before.

    ``drift`` is the loss of retained mass that triggers a refresh, ``most`` the number of refreshes, the first step's
    included, after which nothing is measured any more.
    """

    def __init__(self, drift: float, most: int, group_size: int, sample: int) -> None:
        self._drift, self._most = drift, most
        self._group_size, self._sample = group_size, sample
        self._refreshes = 0
        self._fresh: dict[int, tuple[SampledLists, Tensor]] = {}
        self._losses: list[Tensor] = []
        self.refreshing = False

    def begin_step(self) -> bool:
        """Whether the step that begins refreshes; ``refreshing`` says so until the next begins."""
        drifted = bool(self._losses) and float(torch.stack(self._losses).mean()) > self._drift
        self.refreshing = self._refreshes == 0 or (drifted and self._watching)
        self._refreshes += self.refreshing
        self._losses = []
        return self.refreshing

    def chosen(self, layer: int, columns: Tensor, counts: Tensor, q: Tensor, k: Tensor) -> None:
        """Note the new lists [1, H, groups, K] of a layer, and what they hold of the attention they come from."""
        self._fresh.pop(layer, None)
        if self._watching:
            lists = SampledLists.of(columns, counts, self._group_size, self._sample)
            self._fresh[layer] = lists, lists.retained_mass(q, k)

    def look(self, layer: int, q: Tensor, k: Tensor) -> None:
        """Measure what the lists of a layer have lost by now."""
        if self._watching:
            lists, fresh = self._fresh[layer]
            loss = fresh - lists.retained_mass(q, k)
            # Layers may lie on several devices; the mean over them is taken on the first one's.
            self._losses.append(loss.to(self._losses[0].device) if self._losses else loss)

    @property
    def _watching(self) -> bool:
        return self._refreshes < self._most
