"""One number per (step, layer, head): what the grids of heads show, with its name, unit and meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    return trace["column_mass"].where(metrics.sinks(trace, per_head=True), 0).sum("position")


def _row_entropy(trace: Trace) -> xr.DataArray:
    """Mean over the query bins that hold a valid query."""
    entropy = trace["row_entropy"]
    bins, length = entropy.sizes["query_bin"], trace.length
    last = xr.DataArray([((b + 1) * length - 1) // bins for b in range(bins)], dims="query_bin")
    return entropy.where(last >= trace["start"]).mean("query_bin")


HEAD_METRICS = {
    "sink_mass": HeadMetric(
        "sink mass share",
        "%",
        "Share of the head's attention that goes to its sinks",
        "column_mass",
        _sink_mass,
    ),
    "effective_columns": HeadMetric(
        "effective columns",
        "keys",
        "Number of keys that share the head's attention: exponential of the entropy of the column mass",
        "column_mass",
        metrics.effective_columns,
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
