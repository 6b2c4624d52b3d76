"""How much attention columns and blocks can keep at a budget of keys."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr
from matplotlib.axes import Axes

from dlm_lens.plots.style import axes_or_new, dress, palette_of
from dlm_lens.trace import Trace

_MARKERS = "osD^v"


def recall_by_budget(
    data: Trace | xr.DataArray,
    *,
    steps: Sequence[int] | None = None,
    sample: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Best share of the attention that every granularity can keep, against the budget of keys.

    Columns are solid, blocks dashed. A dotted line is what keys at random keep: their number's share. Parameters:

    ``data`` is a trace that recorded :class:`dlm_lens.Recall`, or its ``recall`` with at least the dimensions
    granularity and budget, which are kept; the mean over all others is drawn. ``steps`` are numbers of the steps
    that enter it, by default all; ``sample`` is which sample of a batch.
    """
    recall = data["recall"] if isinstance(data, Trace) else data
    if "sample" in recall.dims:
        recall = recall.isel(sample=sample)
    if steps is not None:
        recall = recall.sel(step=list(steps))
    mean = recall.mean([dim for dim in recall.dims if dim not in ("granularity", "budget")])
    mean = mean.transpose("granularity", "budget")

    ax = axes_or_new(ax, (6.5, 3.6))
    palette = palette_of(ax)
    budgets = 100 * mean["budget"].values
    ax.plot(budgets, budgets, color=palette.dim, linestyle=":", linewidth=1, label="random keys")
    labels = [str(label) for label in mean["granularity"].values]
    sizes = list(dict.fromkeys(label.split()[1] for label in labels))
    for label, kept in zip(labels, mean.values, strict=True):
        shape, size = label.split()
        place = sizes.index(size)
        ax.plot(
            budgets, 100 * kept, label=label, color=palette.series[place % len(palette.series)],
            linestyle="-" if shape == "columns" else "--", marker=_MARKERS[place % len(_MARKERS)], markersize=4,
        )  # fmt: skip
    ax.set_ylim(0, 102)
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    dress(ax, "What a budget of keys can keep", "keys kept, %", "attention kept at best, %")
    return ax
