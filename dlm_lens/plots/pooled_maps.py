"""What a head attends to at several steps, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from dlm_lens.plots.selection import select, selection_text
from dlm_lens.plots.style import dress, palette_of
from dlm_lens.trace import Trace

RANGE = (0.1, 30.0)  # × even share: below and beyond, colours are those of the ends


def pooled_maps(
    trace: Trace,
    layer: int | None = None,
    head: int | None = None,
    *,
    steps: Sequence[int] | None = None,
    sample: int = 0,
    ax: Sequence[Axes] | None = None,
) -> np.ndarray:
    """The pooled map of one selection at several steps, as multiples of an even share, on a logarithmic scale.

    Queries go down and keys to the right, both in positions; dashed lines part prompt and generation, padding is
    left out.

    Parameters
    ----------
    layer, head : numbers of the selection; by default the mean of all heads
    steps : numbers of recorded steps; by default four at even distances, the first and the last among them
    sample : which sample of a batch
    ax : as many axes as steps; by default a row of new ones

    Returns the axes, an array of them. Raises ``ValueError`` for steps that were not recorded.
    """
    part = select(trace, layer, head, sample)
    if steps is None:
        chosen = np.unique(np.linspace(0, len(part.steps) - 1, min(4, len(part.steps))).round().astype(int))
        steps = [part.steps[index] for index in chosen]
    if missing := [step for step in steps if step not in part.steps]:
        raise ValueError(f"steps {missing} are not in the trace; it holds {part.steps[0]} … {part.steps[-1]}")
    if ax is None:
        size = (2.5 * len(steps) + 1, 3)
        ax = plt.subplots(1, len(steps), figsize=size, layout="constrained", squeeze=False)[1][0]
    axes = np.asarray(ax, dtype=object).reshape(-1)
    if len(axes) != len(steps):
        raise ValueError(f"{len(steps)} steps need as many axes, got {len(axes)}")
    maps = part["pooled_map"].mean(("layer", "head"))
    for here, step in zip(axes, steps, strict=True):
        image = _draw(here, part, maps.sel(step=step).values)
        first = here is axes[0]
        title = f"{selection_text(layer, head)}, step {step}" if first else f"step {step}"
        dress(here, title, "key position", "query position" if first else "")
        here.tick_params(labelleft=first)
    bar = axes[0].figure.colorbar(image, ax=list(axes), shrink=0.85, extend="both")
    bar.set_label("× even share")
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.outline.set_visible(False)
    return axes


def _draw(ax: Axes, part: Trace, values: np.ndarray) -> object:
    start, length, bins = int(part["start"]), part.length, len(values)
    edges = -(
        -np.arange(bins + 1) * length // bins
    )  # bin b begins with the first position of floor(p · bins / L) = b
    keys = np.maximum(edges[1:], start) - np.maximum(edges[:-1], start)  # valid ones in each bin
    shares = values * (length - start) / np.maximum(keys, 1)
    palette = palette_of(ax)
    image = ax.pcolormesh(
        edges - 0.5,
        edges - 0.5,
        np.clip(shares, *RANGE),
        cmap=palette.sequential,
        norm=LogNorm(*RANGE),
        rasterized=True,
    )
    for line in (ax.axhline, ax.axvline):
        line(part.prompt_length - 0.5, color=palette.sink, linestyle="--", linewidth=1)
    ax.set_xlim(start - 0.5, length - 0.5)
    ax.set_ylim(length - 0.5, start - 0.5)
    ax.set_aspect("equal")
    return image
