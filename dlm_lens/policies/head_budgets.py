"""Budgets of columns that differ between heads: what each needs for a retained mass, at the total of equal budgets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from dlm_kernels.column_scores import column_scores
from dlm_kernels.select_columns import select_columns
from torch import Tensor

from dlm_lens.policies.columns import Span, column_budget, select_best


def mass_of_budget(budget: str) -> float | None:
    """p of ``"mass:p"``, None for ``"uniform"``; ValueError for anything else."""
    if budget == "uniform":
        return None
    kind, _, share = budget.partition(":")
    try:
        mass = float(share)
    except ValueError:
        mass = 0.0
    if kind != "mass" or not 0 < mass <= 1:
        raise ValueError(
            f'budget={budget!r} must be "uniform", or "mass:p" such as "mass:0.95" with p in (0, 1]:'
            " the retained mass that decides how much each head needs"
        )
    return mass


def best_columns_by_need(
    span: Span,
    q: Tensor,
    k: Tensor,
    group_size: int,
    sparsity: float,
    mass: float,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`best_columns`, with a number of columns for each head of a sample instead of one for all.

    A group needs the fewest columns whose scores sum to ``mass``, a head the mean of its groups' needs; the
    H · round((1 − sparsity) · L) columns of a group of queries over all heads are divided in proportion
    (:func:`share_out`). Groups of a head have equal budgets. Lists are as wide as the largest budget, at worst L,
    so that they can take several times the memory of equal ones; scores are made twice, first to tell the needs.
    """
    q, k, lse = span.of(q), span.of(k), None if lse is None else span.of(lse)
    (rows, heads, length, _), keys = q.shape, k.shape[2]
    total = heads * column_budget(sparsity, keys)
    needs = columns_needed(q, k, group_size, mass, lse)
    budgets = [share_out(of_heads, total, keys) for of_heads in needs.tolist()]
    shape = rows, heads, -(-length // group_size), max(map(max, budgets))
    columns = torch.zeros(shape, dtype=torch.int32, device=q.device)
    for groups, scores in column_scores(q, k, group_size=group_size, lse=lse):
        now = slice(groups.start, groups.stop)
        for row, of_heads in enumerate(budgets):
            for head, budget in enumerate(of_heads):
                columns[row, head, now, :budget], _ = select_best(scores[row, head], budget)
    counts = torch.tensor(budgets, dtype=torch.int32, device=q.device)[..., None]
    return columns, counts.repeat(1, 1, shape[2])


def columns_needed(q: Tensor, k: Tensor, group_size: int, mass: float, lse: Tensor | None = None) -> Tensor:
    """Fewest columns whose scores sum to ``mass``, summed over the groups of each head: int64 [B, H].

    Arguments as for :func:`dlm_kernels.column_scores`.
    """
    needs = torch.zeros(q.shape[:2], dtype=torch.long, device=q.device)
    for _, scores in column_scores(q, k, group_size=group_size, lse=lse):
        needs += select_columns(scores, top_p=mass)[1].sum(-1)
    return needs


def share_out(needs: Sequence[int], total: int, most: int) -> list[int]:
    """``total`` divided in proportion to ``needs`` ≥ 1: whole parts of 1 … ``most`` that sum to it exactly.

    What a part may not exceed or fall short of goes to or comes from the others in proportion. Parts are rounded
    down, and what then is missing goes one each to the largest remainders, ties to the first.
    """

    def parts(scale: float) -> list[float]:
        return [min(max(scale * need, 1.0), most) for need in needs]

    low, high = 0.0, most / min(needs)
    for _ in range(100):  # the sum of parts grows with the scale: bisect, to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if sum(parts(middle)) < total else (low, middle)
    exact = parts(high)
    whole = [int(part) for part in exact]
    by_remainder = sorted(range(len(needs)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole
