"""What a statistic is: parameters, the shape of its result, and how it reads the attention of one layer.

To add one: a file with a frozen dataclass deriving from :class:`Statistic`, its variable's dimensions in
``dlm_lens/trace_store.py``, an export line in ``recording/__init__.py`` and in ``dlm_lens/__init__.py``, and a
test that mirrors the file. Statistics of the same pass belong into ``dlm_kernels.attention_statistics``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from dlm_kernels import AttentionStatistics, attention_statistics
from torch import Tensor

from dlm_lens.recording.masked import Positions, masked_statistics


@dataclass(frozen=True)
class LayerAttention:
    """Queries and keys of one layer at one step, after the rotary embedding, of the recorded heads only.

    ``q`` [B, H, L, D]; ``k`` [B, Hkv, L, D], Hkv dividing H; ``start`` LongTensor [B], the first valid position
    of each sample, or None; ``causal`` for autoregressive models; ``bins`` shared by all binned statistics; ``lse``
    float32 [B, H, L], the log-sum-exp of the scores where the forward pass has told it.

    ``mask`` bool [B, 1, L, L] is what a layer with a window may attend to, None where it is everything. Where queries
    are a block of the sequence, ``place`` says which, and ``q`` and ``k`` are as long as it says. ``scale`` is the
    factor of the scores, 1/√D by default.
    """

    q: Tensor
    k: Tensor
    start: Tensor | None
    causal: bool
    bins: int | None
    entropy: bool
    lse: Tensor | None = None
    mask: Tensor | None = None
    place: Positions | None = None
    scale: float | None = None

    def of_heads(self, heads: Sequence[int]) -> "LayerAttention":
        """The same of some heads only."""
        if len(heads) == self.q.shape[1]:
            return self
        repeat = self.q.shape[1] // self.k.shape[1]
        lse = None if self.lse is None else self.lse[:, list(heads)]
        q, k = self.q[:, list(heads)], self.k[:, [head // repeat for head in heads]]
        return replace(self, q=q, k=k, lse=lse)

    @cached_property
    def reduced(self) -> AttentionStatistics:
        """The base statistics, made together in one pass when the first of them is asked for."""
        if self.mask is not None or self.place is not None:
            everywhere = range(self.q.shape[2])
            return masked_statistics(
                self.q,
                self.k,
                self.mask,
                self.place or Positions(everywhere, everywhere, len(everywhere)),
                scale=self.q.shape[3] ** -0.5 if self.scale is None else self.scale,
                start=self.start,
                bins=self.bins,
                entropy=self.entropy,
            )
        return attention_statistics(
            self.q,
            self.k,
            start=self.start,
            causal=self.causal,
            bins=self.bins,
            entropy=self.entropy,
            lse=self.lse,
        )


class Statistic(ABC):
    """One reduction of the attention of every recorded layer and head; stateless, so any run may use it."""

    variable: ClassVar[str]
    of_windows: ClassVar[bool] = False
    """Whether it is also defined for layers that attend within a window, or from a block of queries."""

    @abstractmethod
    def shape(self, length: int) -> tuple[int, ...]:
        """Shape per layer and head for a sequence of ``length`` positions."""

    @property
    def labels(self) -> Mapping[str, Sequence[str | float]]:
        """Labels of those dimensions of the shape that have any."""
        return {}

    def workspace(self, on_gpu: bool) -> int:
        """Bytes that reducing a layer takes besides the tiles that all statistics share."""
        return 0

    @abstractmethod
    def __call__(self, attention: LayerAttention) -> Tensor:
        """Values of one layer, float32 [B, H, *shape]."""


@dataclass(frozen=True)
class BinnedStatistic(Statistic):
    """A statistic over bins of positions, ``position · bins // length``."""

    bins: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.bins, int) or self.bins < 1:
            raise ValueError(f"{type(self).__name__}: bins must be a positive integer, got {self.bins!r}")
