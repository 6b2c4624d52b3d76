"""One number per (step, layer, head): what the grids of heads show, with its name, unit and meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from dlm_lens import metrics
from dlm_lens.trace import Trace


@dataclass(frozen=True)
class HeadMetric:
    """A metric of heads.

    ``label`` names it on controls and axes, ``unit`` is "%" for shares, ``description`` says what it means,
    ``needs`` is the variable of the trace it is computed from, and ``compute`` gives it over
    ([sample,] step, layer, head).
    """

    label: str
    unit: str
    description: str
    needs: str
    compute: Callable[[Trace], xr.DataArray]


def _sink_mass(trace: Trace) -> xr.DataArray:
    sinks = metrics.sinks(trace, per_head=True)
    return xr.dot(trace["column_mass"], sinks.astype(np.float32), dim="position")


def _row_entropy(trace: Trace) -> xr.DataArray:
    """Mean over the query bins that hold a valid query."""
    entropy = trace["row_entropy"]
    bins, length = entropy.sizes["query_bin"], trace.length
    last = xr.DataArray([((b + 1) * length - 1) // bins for b in range(bins)], dims="query_bin")
    return entropy.where(last >= trace["start"]).mean("query_bin")


def _temporal_variance(trace: Trace) -> xr.DataArray:
    """A number of the whole run, repeated at every step."""
    steps = xr.ones_like(trace["step_ms"], dtype=float)
    return metrics.temporal_variance(trace, per_head=True) * steps


def _recall(trace: Trace) -> xr.DataArray:
    return metrics.column_recall(trace, (RECALL_BUDGET,)).isel(budget=0, drop=True)


def _step_similarity(trace: Trace) -> xr.DataArray:
    """Cosine of a step's column mass and that of the recorded step before it; NaN at the first."""
    mass = trace["column_mass"]
    values = np.moveaxis(mass.values, mass.get_axis_num("step"), 0)
    norms = np.sqrt(np.vecdot(values, values))
    cosine = np.full(norms.shape, np.nan, np.float32)
    cosine[1:] = np.vecdot(values[1:], values[:-1]) / (norms[1:] * norms[:-1])
    return mass.isel(position=0, drop=True).copy(data=np.moveaxis(cosine, 0, mass.get_axis_num("step")))


RECALL_BUDGET = 0.2

HEAD_METRICS = {
    "sink_mass": HeadMetric(
        "sink mass share",
        "%",
        "Share of the head's attention that goes to its sinks",
        "column_mass",
        _sink_mass,
    ),
    "temporal_variance": HeadMetric(
        "sink temporal variance",
        "positions²",
        "How far the centroid of the head's sinks moves over the whole run; the same at every step",
        "column_mass",
        _temporal_variance,
    ),
    "effective_columns": HeadMetric(
        "effective columns",
        "keys",
        "Number of keys that share the head's attention: exponential of the entropy of the column mass",
        "column_mass",
        metrics.effective_columns,
    ),
    "recall": HeadMetric(
        f"recall at {RECALL_BUDGET:.0%} of the keys",
        "%",
        "Share of the head's attention that the best keys of that number keep, one list for all its queries",
        "column_mass",
        _recall,
    ),
    "step_similarity": HeadMetric(
        "similarity to the step before",
        "cosine",
        "Cosine of the attention that the keys receive at this step and at the recorded step before",
        "column_mass",
        _step_similarity,
    ),
    "row_entropy": HeadMetric(
        "row entropy",
        "nats",
        "How widely a single query of the head looks, averaged over the queries",
        "row_entropy",
        _row_entropy,
    ),
    "retained_mass": HeadMetric(
        "retained mass",
        "%",
        "Share of the dense attention that lies on the keys which the sparse policy kept",
        "retained_mass",
        lambda trace: trace["retained_mass"],
    ),
}


def head_metric(trace: Trace, name: str) -> xr.DataArray:
    """A metric over ([sample,] step, layer, head).

    Raises ``ValueError`` for an unknown name and ``TraceError`` if the trace did not record what it needs.
    """
    if name not in HEAD_METRICS:
        raise ValueError(f"unknown metric {name!r}; choose one of {', '.join(HEAD_METRICS)}")
    metric = HEAD_METRICS[name]
    _ = trace[metric.needs]
    values = metric.compute(trace)
    return values.rename(name).assign_attrs(long_name=metric.label, units=metric.unit)
