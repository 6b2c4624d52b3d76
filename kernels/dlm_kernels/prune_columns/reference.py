"""Pruning columns in plain PyTorch, all rows at a time."""

import torch
from torch import Tensor


def prune(
    weight: Tensor, factor: Tensor, gone: Tensor | None, pattern: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """See :func:`dlm_kernels.prune_columns`."""
    weight = weight.clone()
    errors = torch.zeros_like(weight)
    diagonal = factor.diagonal()
    mask = torch.zeros_like(weight, dtype=torch.bool) if gone is None else gone
    for column in range(weight.shape[1]):
        if pattern is not None and column % pattern[1] == 0:
            kept, among = pattern
            turn = slice(column, column + among)
            scores = (weight[:, turn] / diagonal[turn]) ** 2
            lowest = scores.argsort(dim=1, stable=True)[:, : among - kept]
            mask[:, turn].scatter_(1, lowest, True)
        error = weight[:, column].masked_fill(~mask[:, column], 0) / diagonal[column]
        weight[:, column:] -= error[:, None] * factor[column, column:]
        errors[:, column] = error
    return weight.masked_fill_(mask, 0), errors
