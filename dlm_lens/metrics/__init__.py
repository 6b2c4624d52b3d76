"""Pure functions from a :class:`dlm_lens.Trace` to labelled arrays; a batch keeps its ``sample`` dimension.

To add one: a function in the file of its subject, its name here, and a test that mirrors the file by plain loops.
"""

from dlm_lens.metrics.intervals import bootstrap_interval
from dlm_lens.metrics.locality import attention_by_distance, committed_distance
from dlm_lens.metrics.similarity import head_similarity, stale_recall, step_similarity
from dlm_lens.metrics.sinks import (
    even_mass,
    received_mass,
    sink_centroid,
    sink_lifetime,
    sink_persistence,
    sink_variance,
    sinks,
    spatial_variance,
    temporal_variance,
)
from dlm_lens.metrics.sparsity import column_recall, effective_columns

__all__ = [
    "attention_by_distance",
    "bootstrap_interval",
    "column_recall",
    "committed_distance",
    "effective_columns",
    "even_mass",
    "head_similarity",
    "received_mass",
    "sink_centroid",
    "sink_lifetime",
    "sink_persistence",
    "sink_variance",
    "sinks",
    "spatial_variance",
    "stale_recall",
    "step_similarity",
    "temporal_variance",
]
