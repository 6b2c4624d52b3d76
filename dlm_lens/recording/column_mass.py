"""Attention received by each key."""

from dataclasses import dataclass

from torch import Tensor

from dlm_lens.recording.base import LayerAttention, Statistic


@dataclass(frozen=True)
class ColumnMass(Statistic):
    """Mean over the valid queries of the probability given to each key, [position]; sums to 1, padding gets 0.

    Times the number of valid queries this is ``m_t(i) = Σ_j A_{j,i}``, from which sinks are told
    (Sink-Aware Pruning, arXiv 2602.17664).
    """

    variable = "column_mass"
    of_windows = True

    def shape(self, length: int) -> tuple[int, ...]:
        return (length,)

    def __call__(self, attention: LayerAttention) -> Tensor:
        return attention.reduced.column_mass
