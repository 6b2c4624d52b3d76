"""How much of a weight matrix is pruned: a share of its weights, or all but N of every M."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor


def is_share(value: object) -> bool:
    """Whether ``value`` is a number in [0, 1); True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < 1


@dataclass(frozen=True)
class Share:
    """The ``sparsity`` in [0, 1) is the share of weights that become zero, rounded to a whole number of them."""

    sparsity: float

    def __post_init__(self) -> None:
        if not is_share(self.sparsity):
            raise ValueError(
                f"sparsity={self.sparsity!r} must be in [0, 1): the share of weights that is pruned"
            )

    @property
    def label(self) -> str:
        return f"{100 * self.sparsity:g}%"

    def of(self, weights: int) -> int:
        """How many of so many weights are pruned."""
        return round(self.sparsity * weights)


@dataclass(frozen=True)
class Pattern:
    """Of every ``among`` neighbouring inputs of a row ``kept`` weights stay; sparse tensor cores take 2 of 4."""

    kept: int
    among: int

    @classmethod
    def parse(cls, pattern: str) -> Pattern:
        """``"2:4"`` or ``"4:8"``, or any other two numbers N < M."""
        parts = pattern.split(":") if isinstance(pattern, str) else []
        numbers = [int(part) for part in parts if part.isdecimal()]
        if len(parts) != 2 or len(numbers) != 2 or not 0 < numbers[0] < numbers[1]:
            raise ValueError(
                f"pattern={pattern!r} must be 'N:M' with 0 < N < M, such as '2:4' or '4:8': N of every M weights stay"
            )
        return cls(*numbers)

    @property
    def label(self) -> str:
        return f"{self.kept}:{self.among}"

    def check(self, inputs: int, name: str) -> None:
        """Raise ValueError if a matrix called ``name`` with so many inputs cannot be cut into groups."""
        if inputs % self.among:
            raise ValueError(
                f"pattern {self.label} needs inputs in multiples of {self.among}, but {name} has {inputs}; choose an M"
                " that divides them, or a sparsity"
            )


Amount = Share | Pattern


def pruned_mask(scores: Tensor, amount: Amount, *, per_row: bool) -> Tensor:
    """Which weights go, bool like ``scores`` [out, in]: those with the lowest scores.

    A :class:`Share` is taken of every row if ``per_row`` and of the whole matrix otherwise; a :class:`Pattern` always
    holds in every group of every row. Of equal scores the first goes. Raises ``ValueError`` where M does not divide
    ``in``.
    """
    if isinstance(amount, Pattern):
        amount.check(scores.shape[1], "a matrix")
        groups = scores.unflatten(1, (-1, amount.among))
        return _lowest(groups, amount.among - amount.kept).flatten(1)
    if per_row:
        return _lowest(scores, amount.of(scores.shape[1]))
    return _lowest(scores.flatten(), amount.of(scores.numel())).view_as(scores)


def _lowest(scores: Tensor, count: int) -> Tensor:
    """The ``count`` lowest along the last dimension, bool."""
    chosen = scores.argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)
