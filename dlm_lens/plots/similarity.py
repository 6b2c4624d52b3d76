"""How alike attention is from step to step, and from head to head."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from dlm_lens import metrics
from dlm_lens.plots.selection import select, selection_text, step_edges
from dlm_lens.plots.style import axes_or_new, dress, palette_of
from dlm_lens.trace import Trace

_OF = {"column_mass": "attention received", "pooled_map": "pooled maps"}
_MEASURES = {"cosine": "cosine similarity", "overlap": "overlap (Jaccard)"}


def step_similarity(
    trace: Trace,
    layer: int | None = None,
    head: int | None = None,
    *,
    of: str = "column_mass",
    measure: str = "cosine",
    budget: float = 0.2,
    sample: int = 0,
    lowest: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Similarity of every step with every other, as a heat map: see :func:`dlm_lens.metrics.step_similarity`.

    Parameters
    ----------
    layer, head : numbers of the selection; by default the mean of the similarities of all heads
    of, measure, budget : what is compared, and how
    sample : which sample of a batch
    lowest : value at the lower end of the colours, by default the lowest that is drawn; give several maps the same
    """
    part = select(trace, layer, head, sample)
    values = metrics.step_similarity(part, of, measure, budget, per_head=False).values
    ax = axes_or_new(ax, (4.6, 3.8))
    edges = step_edges(part.steps)
    low = float(values.min()) if lowest is None else lowest
    image = ax.pcolormesh(
        edges, edges, values, cmap=palette_of(ax).sequential, vmin=low, vmax=1, rasterized=True
    )
    ax.set_aspect("equal")
    ax.invert_yaxis()
    _bar(ax, image, measure)
    dress(ax, f"{_OF[of].capitalize()}, {selection_text(layer, head)}", "step", "step")
    return ax


def head_similarity(
    trace: Trace,
    *,
    of: str = "pooled_map",
    measure: str = "cosine",
    budget: float = 0.2,
    sample: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Similarity of every head with every other, mean over steps: see :func:`dlm_lens.metrics.head_similarity`.

    Heads are in the order of their layers, which lines part. ``of``, ``measure`` and ``budget`` say what is compared
    and how; ``sample`` is which sample of a batch.
    """
    part = select(trace, None, None, sample)
    grid = metrics.head_similarity(part, of, measure, budget)
    layers, heads = len(part.layers), len(part.heads)
    values = grid.values.reshape(layers * heads, layers * heads)
    ax = axes_or_new(ax, (5.4, 4.6))
    palette = palette_of(ax)
    image = ax.pcolormesh(values, cmap=palette.sequential, vmin=float(values.min()), vmax=1, rasterized=True)
    for layer in range(1, layers):
        ax.axhline(layer * heads, color=palette.face, linewidth=0.8)
        ax.axvline(layer * heads, color=palette.face, linewidth=0.8)
    centres = (np.arange(layers) + 0.5) * heads
    every = 1 if layers <= 16 else 4
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(centres[::every], [str(layer) for layer in part.layers[::every]])
        axis.set_tick_params(length=0)
    ax.set_aspect("equal")
    ax.invert_yaxis()
    _bar(ax, image, measure)
    unit = f"heads of layer ({heads} each)"
    dress(ax, f"{_OF[of].capitalize()}, head by head, mean over steps", unit, unit)
    return ax


def _bar(ax: Axes, image: object, measure: str) -> None:
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.85)  # type: ignore[arg-type]
    bar.set_label(_MEASURES[measure])
    bar.outline.set_visible(False)
