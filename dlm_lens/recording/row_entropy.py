"""How widely queries spread their attention."""

from dataclasses import dataclass

from torch import Tensor

from dlm_lens.recording.base import BinnedStatistic, LayerAttention


@dataclass(frozen=True)
class RowEntropy(BinnedStatistic):
    """Entropy of a query's probabilities in nats, [query_bin], mean over the bin's valid queries.

    Between 0 (all on one key) and the logarithm of the number of valid keys. ``bins`` is capped at the length.
    """

    variable = "row_entropy"
    of_windows = True

    def shape(self, length: int) -> tuple[int, ...]:
        return (min(self.bins, length),)

    def __call__(self, attention: LayerAttention) -> Tensor:
        entropy = attention.reduced.row_entropy
        assert entropy is not None
        return entropy
