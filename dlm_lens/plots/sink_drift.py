"""Where the sinks are at every step."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from dlm_lens import metrics
from dlm_lens.plots.selection import select, selection_text
from dlm_lens.plots.style import axes_or_new, dress, palette_of
from dlm_lens.trace import Trace


def sink_moments(mass: np.ndarray, sinks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroid and standard deviation of the sinks' positions, weighted by mass.

    ``mass`` and ``sinks`` (bool) are [..., position]; both results [...], in positions, NaN without a sink.
    """
    weights = np.where(sinks, mass, 0.0)
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.full_like(weights, np.nan), where=total > 0)
    position = np.arange(mass.shape[-1])
    centroid = (weights * position).sum(-1)
    return centroid, np.sqrt((weights * (position - centroid[..., None]) ** 2).sum(-1))


def sink_drift(
    trace: Trace,
    layer: int | None = None,
    head: int | None = None,
    *,
    sample: int = 0,
    kappa: float = 2.0,
    ax: Axes | None = None,
) -> Axes:
    """Centroid of the sinks over the steps, in a band of their spread, with both variances written beside it.

    Autoregressive models keep their sinks (temporal variance near zero); in diffusion models they wander.
    Definitions: Sink-Aware Pruning, arXiv 2602.17664, and :func:`dlm_lens.metrics.sink_variance`.

    Parameters
    ----------
    layer, head : numbers of the selection; by default the mean of all heads
    sample : which sample of a batch
    kappa : a sink receives more than mean + ``kappa`` standard deviations
    """
    part = select(trace, layer, head, sample)
    mass = part["column_mass"].mean(("layer", "head")).values
    sinks = metrics.sinks(part, kappa=kappa).transpose("step", "position").values
    centroid, spread = sink_moments(mass, sinks)
    variance = metrics.sink_variance(part, kappa=kappa)
    spatial, temporal = float(variance["spatial"]), float(variance["temporal"])

    ax = axes_or_new(ax, (8, 3))
    palette = palette_of(ax)
    steps = np.array(part.steps)
    ax.fill_between(steps, centroid - spread, centroid + spread, color=palette.sink, alpha=0.18, linewidth=0)
    ax.plot(steps, centroid, color=palette.sink, marker="o", markersize=3)
    ax.axhline(trace.prompt_length - 0.5, color=palette.dim, linestyle="--", linewidth=1)
    ax.set_ylim(trace.length - 0.5, int(part["start"]) - 0.5)
    dress(ax, f"Sink drift, {selection_text(layer, head)}", "step", "position of the sinks")
    numbers = f"spatial variance {spatial:.3g} even shares²\ntemporal variance {temporal:,.4g} positions²"
    ax.annotate(
        numbers, (1, 1), xytext=(0, 4), xycoords="axes fraction", textcoords="offset points",
        ha="right", va="bottom", fontsize="small", color=palette.dim,
    )  # fmt: skip
    return ax
