"""Keys and values kept from step to step, and the plans of steps that compute few positions and attend to the kept.

Each row of a batch has a list of positions, ascending, that it attends to; the i-th of them is kept in slot i of the
cache. A step computes some of them, writes their fresh keys and values into their slots, and attends to all slots. A
row that is refreshed gets a new list and computes all of it. One slot more than a list can have takes what belongs to
no position: the filling of rows that compute fewer than others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dlm_kernels.cached_attention import cached_attention, store_in_cache
from torch import Tensor

from dlm_lens.attention import dense_attention
from dlm_lens.policies.base import CachedPlan

# Rows of cached steps are filled up to a multiple of this, so that few CUDA graphs serve a whole run.
_MULTIPLE = 16


@dataclass(frozen=True)
class RowPlan:
    """What one step does with one row: LongTensors of positions on the CPU, ascending.

    ``attended`` [m] are the positions kept, ``computed`` [n] those of them that the step computes, and ``candidates``
    those of the computed whose tokens may be committed.
    """

    attended: Tensor
    computed: Tensor
    candidates: Tensor


class KeyValueCache:
    """The kept keys and values of all layers for sequences of ``length`` positions."""

    def __init__(self, length: int, device: torch.device) -> None:
        self._length, self._device = length, device
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def plan(self, step: int, kind: str, rows: Sequence[RowPlan]) -> CachedPlan:
        """One plan for all rows, each filled up to the size of the largest."""
        whole = all(torch.equal(row.attended, rows[0].attended) for row in rows) and all(
            len(row.computed) == len(row.attended) for row in rows
        )
        multiple = 1 if whole else _MULTIPLE
        queries = self._filled([row.computed for row in rows], multiple, self._length)
        slots = [torch.searchsorted(row.attended, row.computed) for row in rows]
        lengths = torch.tensor([len(row.attended) for row in rows], dtype=torch.int32)
        return CachedPlan(
            step=step,
            kind=kind,
            queries=queries,
            candidates=self._filled([row.candidates for row in rows], multiple, self._length),
            keys=int(lengths.max()),
            slots=self._filled(slots, multiple, self._length),
            lengths=lengths.to(self._device),
            whole=whole,
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, plan: CachedPlan) -> Tensor:
        """Keep ``k, v`` [B, Hkv, n, D] of the positions computed; attention of ``q`` [B, H, n, D] to all kept."""
        assert plan.slots is not None
        assert plan.lengths is not None
        keys, values = self._kept(layer, k)
        store_in_cache(keys, values, plan.slots, k, v)
        if plan.whole:  # the same as below, by the fastest backend
            return dense_attention(q, k, v)
        return cached_attention(q, keys, values, plan.lengths)

    def _kept(self, layer: int, k: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._layers:
            shape = (*k.shape[:2], self._length + 1, k.shape[3])
            self._layers[layer] = k.new_zeros(shape), k.new_zeros(shape)
        return self._layers[layer]

    def _filled(self, rows: Sequence[Tensor], multiple: int, filling: int) -> Tensor:
        """LongTensor [B, n] on the device, n the length of the longest row rounded up to a multiple, at least one."""
        longest = max(1, *(len(row) for row in rows), 0)
        table = torch.full((len(rows), -(-longest // multiple) * multiple), filling)
        for row, values in zip(table, rows, strict=True):
            row[: len(values)] = values
        return table.to(self._device)
