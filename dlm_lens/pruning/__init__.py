"""Weight pruning without retraining: magnitude, Wanda and SparseGPT, plain and with attention sinks discounted."""

from dlm_lens.pruning.calibration import Calibration
from dlm_lens.pruning.prune import prune
from dlm_lens.pruning.report import PruningReport
from dlm_lens.pruning.sinks import SinkDiscount

__all__ = ["Calibration", "PruningReport", "SinkDiscount", "prune"]
