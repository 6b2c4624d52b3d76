"""What context contributes to predictions, by its distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from dlm_lens.plots.spread import over_prompts
from dlm_lens.plots.style import axes_or_new, dress, palette_of

# What was left out: its name in the legend, colour and marker.
_LINES = {
    "far": ("undecided, farther than that", 0, "o"),
    "near": ("as many undecided, nearest first", 1, "s"),
    "decided": ("as many decided, at random", 2, "^"),
}
_VALUES = {"kl": "KL to dense, nats", "agreement": "predictions as dense, %"}


def influence_by_distance(table: pd.DataFrame, *, value: str = "kl", ax: Axes | None = None) -> Axes:
    """How predictions change without context beyond a distance, and without as much context of other kinds.

    ``table`` comes from :func:`dlm_lens.context_influence`. Points are means over prompts, bars their standard errors
    where there are several. ``value`` is ``"kl"`` (on a logarithmic axis) or ``"agreement"``. Distances are spaced
    evenly, as they are usually doubled.

    Raises ``ValueError`` for another value, or a table without what :func:`context_influence` returns.
    """
    if value not in _VALUES:
        raise ValueError(f"unknown value {value!r}: choose one of {', '.join(_VALUES)}")
    wanted = {"prompt", "left_out", "distance", value}
    if table.empty or wanted - set(table.columns):
        raise ValueError(
            f"influence_by_distance needs a table with {', '.join(sorted(wanted))}; got {len(table)} rows of"
            f" {list(table.columns)}"
        )
    ax = axes_or_new(ax, (6, 3.6))
    palette = palette_of(ax)
    distances = sorted(table["distance"].unique())
    means = over_prompts(table, ["left_out", "distance"], value)
    scale = 100 if value == "agreement" else 1
    for name, (label, colour, marker) in _LINES.items():
        if name not in means.index:
            continue
        line = means.loc[name].reindex(distances)
        style: dict[str, Any] = {
            "color": palette.series[colour],
            "marker": marker,
            "markersize": 4,
            "capsize": 2,
        }
        middle, error = scale * line["mean"].to_numpy(), scale * line["se"].fillna(0).to_numpy()
        ax.errorbar(np.arange(len(distances)), middle, yerr=error, label=label, **style)
    ax.set_xticks(range(len(distances)), [str(distance) for distance in distances])
    ax.xaxis.set_minor_locator(NullLocator())
    if value == "kl":
        ax.set_yscale("log", nonpositive="clip")
    dress(ax, "Influence of context left out", "distance beyond the predicted positions", _VALUES[value])
    ax.legend(fontsize="small", title="left out", title_fontsize="small")
    return ax
