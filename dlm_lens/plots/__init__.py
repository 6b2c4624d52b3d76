"""Figures of traces and tables, one file each; every function draws on given axes or makes its own.

To add one: a file with a function ``name(trace_or_table, …, *, ax=None) -> Axes`` that selects, computes with
``dlm_lens.metrics`` and draws with the palette of ``style.py``; its name here; a test of what it draws.
"""

from dlm_lens.plots.amdahl import amdahl
from dlm_lens.plots.column_raster import column_raster
from dlm_lens.plots.efficiency_by_sparsity import efficiency_by_sparsity
from dlm_lens.plots.head_grid import head_grid
from dlm_lens.plots.influence import influence_by_distance
from dlm_lens.plots.kv_drift import kv_drift
from dlm_lens.plots.pareto import pareto
from dlm_lens.plots.pattern_age import pattern_age
from dlm_lens.plots.pooled_maps import pooled_maps
from dlm_lens.plots.pruning_gain import pruning_gain
from dlm_lens.plots.pruning_layers import pruning_layers
from dlm_lens.plots.recall_by_budget import recall_by_budget
from dlm_lens.plots.similarity import head_similarity, step_similarity
from dlm_lens.plots.sink_drift import sink_drift
from dlm_lens.plots.sink_variance import sink_variance
from dlm_lens.plots.speedup import speedup
from dlm_lens.plots.speedup_by_context import speedup_by_context
from dlm_lens.plots.style import dark, light

__all__ = [
    "amdahl",
    "column_raster",
    "dark",
    "efficiency_by_sparsity",
    "head_grid",
    "head_similarity",
    "influence_by_distance",
    "kv_drift",
    "light",
    "pareto",
    "pattern_age",
    "pooled_maps",
    "pruning_gain",
    "pruning_layers",
    "recall_by_budget",
    "sink_drift",
    "sink_variance",
    "speedup",
    "speedup_by_context",
    "step_similarity",
]
