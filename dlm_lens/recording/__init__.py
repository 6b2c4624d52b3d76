"""Recording: what of attention to keep, the recorder that keeps it, and capture, which runs both."""

from dlm_lens.recording.base import BinnedStatistic, LayerAttention, Statistic
from dlm_lens.recording.capturing import capture
from dlm_lens.recording.column_mass import ColumnMass
from dlm_lens.recording.full_maps import FullMaps
from dlm_lens.recording.generation import capture_generate
from dlm_lens.recording.memory import MemoryEstimate, estimate_memory
from dlm_lens.recording.pooled_map import PooledMap
from dlm_lens.recording.recall import Recall
from dlm_lens.recording.recorder import Recorder, Selection
from dlm_lens.recording.row_entropy import RowEntropy

__all__ = [
    "BinnedStatistic",
    "ColumnMass",
    "FullMaps",
    "LayerAttention",
    "MemoryEstimate",
    "PooledMap",
    "Recall",
    "Recorder",
    "RowEntropy",
    "Selection",
    "Statistic",
    "capture",
    "capture_generate",
    "estimate_memory",
]
