"""The attention that every position receives at every step."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator

from dlm_lens import metrics
from dlm_lens.plots.selection import select, selection_text, step_edges
from dlm_lens.plots.style import axes_or_new, dress, palette_of
from dlm_lens.trace import Trace

FLOOR = 1.0  # × even share: what gets no more than that is drawn as background


def column_raster(
    trace: Trace,
    layer: int | None = None,
    head: int | None = None,
    *,
    sample: int = 0,
    kappa: float = 2.0,
    ax: Axes | None = None,
) -> Axes:
    """Column mass, position × step, as multiples of an even share, with the sinks marked.

    A dashed line parts prompt and generation; white (or black) dots mark where tokens were committed.

    Parameters
    ----------
    layer, head : numbers of the selection; by default the mean of all heads
    sample : which sample of a batch
    kappa : a sink receives more than mean + ``kappa`` standard deviations
    """
    part = select(trace, layer, head, sample)
    start = int(part["start"])
    mass = part["column_mass"].mean(("layer", "head")).transpose("position", "step").values
    shares = mass[start:] * (trace.length - start)
    sinks = metrics.sinks(part, kappa=kappa).transpose("position", "step").values

    ax = axes_or_new(ax, (8, 4))
    palette = palette_of(ax)
    steps = step_edges(part.steps)
    positions = np.arange(start, trace.length + 1) - 0.5
    norm = LogNorm(FLOOR, max(2 * FLOOR, float(shares.max())), clip=True)
    image = ax.pcolormesh(
        steps, positions, np.maximum(shares, FLOOR), cmap=palette.sequential, norm=norm, rasterized=True
    )
    lines = [
        [(steps[column], position), (steps[column + 1], position)] for position, column in np.argwhere(sinks)
    ]
    ax.add_collection(LineCollection(lines, colors=palette.sink, linewidths=1.2, label="sinks"))
    _committed(ax, part, palette.text)
    ax.axhline(trace.prompt_length - 0.5, color=palette.dim, linestyle="--", linewidth=1)
    ax.set_ylim(trace.length - 0.5, start - 0.5)
    dress(ax, f"Attention received, {selection_text(layer, head)}", "step", "position")
    # An inset, so that the axes keep the width of those they share their steps with.
    bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.012, 0, 0.018, 1)))
    bar.set_label("× even share")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.minorticks_off()
    bar.outline.set_visible(False)
    return ax


def _committed(ax: Axes, part: Trace, colour: str) -> None:
    at = part["committed_at"].values
    positions = np.flatnonzero(at >= 0)
    ax.scatter(at[positions], positions, s=2, marker=".", color=colour, linewidths=0, label="committed")
