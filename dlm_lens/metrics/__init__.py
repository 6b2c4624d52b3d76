"""Pure functions from a :class:`dlm_lens.Trace` to labelled arrays; a batch keeps its ``sample`` dimension.

To add one: a function in the file of its subject, its name here, and a test that mirrors the file by plain loops.
"""

from dlm_lens.metrics.sinks import (
    received_mass,
    sink_centroid,
    sink_lifetime,
    sink_variance,
    sinks,
    spatial_variance,
    temporal_variance,
)
from dlm_lens.metrics.sparsity import column_recall, effective_columns

__all__ = [
    "column_recall",
    "effective_columns",
    "received_mass",
    "sink_centroid",
    "sink_lifetime",
    "sink_variance",
    "sinks",
    "spatial_variance",
    "temporal_variance",
]
