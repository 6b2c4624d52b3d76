"""The attention map at the resolution of bins."""

from dataclasses import dataclass

from torch import Tensor

from dlm_lens.recording.base import BinnedStatistic, LayerAttention


@dataclass(frozen=True)
class PooledMap(BinnedStatistic):
    """Mass from a bin of queries to a bin of keys, [query_bin, key_bin], mean over the bin's valid queries.

    Rows sum to 1; a row whose queries are all padding is 0. ``bins`` is capped at the length.
    """

    variable = "pooled_map"
    of_windows = True

    def shape(self, length: int) -> tuple[int, ...]:
        return (min(self.bins, length),) * 2

    def __call__(self, attention: LayerAttention) -> Tensor:
        pooled = attention.reduced.pooled_map
        assert pooled is not None
        return pooled
