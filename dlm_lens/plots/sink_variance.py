"""How unevenly attention is spread, and how far its sinks move: the signatures of models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dlm_lens import metrics
from dlm_lens.plots.style import axes_or_new, dress, palette_of
from dlm_lens.trace import Trace

_MARKERS = "osD^"


def sink_variance(
    traces: Mapping[str, Trace] | pd.DataFrame, *, kappa: float = 2.0, ax: Axes | None = None
) -> Axes:
    """Spatial against temporal variance of the sinks: a dot per head, a large mark for the mean of all heads.

    ``traces`` maps names to traces, of a diffusion model and its autoregressive twin say, or is the table that
    :func:`sink_variance_table` makes of them. Dots are means over the samples of a trace. Large marks describe the
    attention averaged over heads first; where a trace has several samples, whiskers are 95% intervals of the mean over
    them (2 standard errors). Heads of which no step has a sink, or whose sinks stay at one place, have no
    temporal variance to draw on a logarithmic axis: they lie on its lower edge.

    Definitions: Sink-Aware Pruning, arXiv 2602.17664, and :func:`dlm_lens.metrics.sink_variance`. Its claim is that
    autoregressive models lie at the lower right, diffusion models at the upper left.
    """
    table = traces if isinstance(traces, pd.DataFrame) else sink_variance_table(traces, kappa=kappa)
    if table.empty:
        raise ValueError("sink_variance needs at least one trace, got none")
    ax = axes_or_new(ax, (6.5, 4.5))
    palette = palette_of(ax)
    drawn = table.groupby(["trace", "layer", "head"])["temporal"].mean()
    positive = drawn[drawn > 0]
    floor = 10 ** np.floor(np.log10(max(float(positive.min()), 1e-3))) if len(positive) else 1e-3
    for number, name in enumerate(table["trace"].unique()):
        own = table[table["trace"] == name]
        marker, colour = _MARKERS[number % 4], palette.series[number % 4]
        heads = own[own["layer"] >= 0]
        if len(heads):
            height = heads["temporal"].fillna(0).clip(lower=floor)
            ax.scatter(heads["spatial"], height, s=14, marker=marker, color=colour, alpha=0.35, linewidths=0)
        _mean(ax, own[own["layer"] < 0], floor, name, marker, colour)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.8 * floor)
    ax.legend(fontsize="small")
    dress(ax, "Sinks: uneven or restless?", "spatial variance, even shares²", "temporal variance, positions²")
    return ax


def sink_variance_table(traces: Mapping[str, Trace], *, kappa: float = 2.0) -> pd.DataFrame:
    """What :func:`sink_variance` draws, tidy: ``trace``, ``layer``, ``head``, ``sample``, ``spatial``, ``temporal``.

    A row per head, averaged over samples (``sample`` −1), and a row per sample of the attention averaged over all heads
    (``layer`` and ``head`` −1).
    """
    rows = []
    for name, trace in traces.items():
        heads = metrics.sink_variance(trace, kappa=kappa, per_head=True)
        heads = heads.mean("sample") if "sample" in heads.dims else heads
        for layer in trace.layers:
            for head in trace.heads:
                one = heads.sel(layer=layer, head=head)
                rows.append((name, layer, head, -1, float(one["spatial"]), float(one["temporal"])))
        means = metrics.sink_variance(trace, kappa=kappa)
        means = means if "sample" in means.dims else means.expand_dims("sample")
        for sample in range(means.sizes["sample"]):
            one = means.isel(sample=sample)
            rows.append((name, -1, -1, sample, float(one["spatial"]), float(one["temporal"])))
    return pd.DataFrame(rows, columns=["trace", "layer", "head", "sample", "spatial", "temporal"])


def _mean(ax: Axes, samples: pd.DataFrame, floor: float, name: str, marker: str, colour: str) -> None:
    """The mean over samples, with whiskers that end above the lower edges of logarithmic axes."""
    x, y = float(samples["spatial"].mean()), max(float(samples["temporal"].mean()), floor)
    whiskers: dict[str, Any] = {}
    if len(samples) > 1:
        errors = 2 * samples[["spatial", "temporal"]].std() / np.sqrt(len(samples))
        dx, dy = float(errors["spatial"]), float(errors["temporal"])
        whiskers = {"xerr": [[min(dx, 0.9 * x)], [dx]], "yerr": [[min(dy, y - floor)], [dy]]}
    ax.errorbar(
        x, y, **whiskers, marker=marker, markersize=9, color=colour,
        linestyle="none", capsize=3, zorder=4, label=name,
    )  # fmt: skip
