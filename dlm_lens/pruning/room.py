"""Whether a pruning can fit into the memory of its GPUs, told before anything is copied."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from dlm_lens.byte_sizes import format_bytes
from dlm_lens.errors import MemoryBudgetError
from dlm_lens.models.placement import free_bytes

if TYPE_CHECKING:
    from dlm_lens.models import DLM


def check_room(dlm: DLM, device: torch.device | None, *, hessians: bool) -> None:
    """Raise ``MemoryBudgetError`` where a pruning surely does not fit.

    The copy of a model takes as much as the model, where that lies. Where a layer is computed, on ``device`` or where
    it lies, there must be room for it and, with ``hessians``, for those of a layer and the inverse of the largest. The
    hidden states are not counted, for they make way to the CPU, nor the activations of a chunk.
    """
    copies: Counter[torch.device] = Counter()
    work: Counter[torch.device] = Counter()
    for parameter in dlm.model.parameters():
        copies[parameter.device] += parameter.numel() * parameter.element_size()
    for layer in dlm.layers:
        lies = next(layer.parameters()).device
        where = device or lies
        brought = 0 if where == lies else sum(p.numel() * p.element_size() for p in layer.parameters())
        work[where] = max(work[where], brought + (_hessians(layer) if hessians else 0))
    for where in copies | work:
        needed, free = copies[where] + work[where], free_bytes(where)
        if free is not None and needed > free:
            raise MemoryBudgetError(
                f"pruning {dlm.spec.name!r} needs at least {format_bytes(needed)} more on {where},"
                f" {format_bytes(copies[where])} for the pruned copy and {format_bytes(work[where])} for work on a"
                f" layer, but {format_bytes(free)} are free there. {_advice(copies[where], hessians)}"
            )


def _hessians(layer: nn.Module) -> int:
    """Bytes at least: a Hessian in float32 for each width of inputs, and three like the widest in float64."""
    widths = {module.in_features for module in layer.modules() if isinstance(module, nn.Linear)}
    return 4 * sum(width**2 for width in widths) + 3 * 8 * max(widths) ** 2


def _advice(copied: int, hessians: bool) -> str:
    ways = []
    if copied:
        ways.append('keep the model on the CPU, dl.load(…, device="cpu"), and prune with device="cuda"')
    if hessians:
        ways.append('method="wanda" keeps no Hessians')
    return f"To fit: {'; '.join(ways)}" if ways else "Free what others hold there"
