"""How fast keys, values and hidden states come to rest after decoding."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from dlm_lens.plots.spread import over_prompts
from dlm_lens.plots.style import axes_or_new, dress, palette_of

_VALUES = {"relative_l2": "relative change in a step", "cosine_distance": "1 − cosine, in a step"}
_MARKERS = "osD^vPX*"
# Names and units of what lines can stand for.
_BY = {
    "tensor": "{}",
    "distance": "{} from new text",
    "remaining": "{:.0%} or more masked",
    "layer": "layer {}",
}


def kv_drift(
    table: pd.DataFrame,
    *,
    by: str = "tensor",
    tensor: str | None = None,
    value: str = "relative_l2",
    ax: Axes | None = None,
) -> Axes:
    """Change per step of decided positions by the steps since they were decided; masked and prompt ones to the right.

    ``table`` comes from :func:`dlm_lens.drift_since_decoding`; filter it to look at some layers only. Means are over
    positions, then over prompts, with a band of their standard error where there are several. A line per ``tensor``,
    ``"distance"`` from the nearest token that changed, share ``"remaining"`` masked, or ``"layer"``; for all but
    the first, name the ``tensor`` to be shown. ``value`` is ``"relative_l2"`` or ``"cosine_distance"``.

    The change of the token itself, age 0, is left out where lines stand for distances. Raises ``ValueError`` for
    unknown names and tables without what they need.
    """
    rows = _rows(table, by, tensor, value)
    ax = axes_or_new(ax, (7, 3.6))
    palette = palette_of(ax)
    oldest = int(rows["age"].max())
    for index, name in enumerate(rows[by].unique()):
        own = rows[rows[by] == name]
        colour, marker = palette.series[index % len(palette.series)], _MARKERS[index % len(_MARKERS)]
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "markersize": 3.5,
            "linestyle": ("-", "--")[index // 4 % 2],
        }
        decoded = over_prompts(own[own["kind"] == "decoded"], ["age"], value, "positions")
        ax.plot(decoded.index, decoded["mean"], label=_BY[by].format(name), **style)
        low, high = decoded["mean"] - decoded["se"], decoded["mean"] + decoded["se"]
        ax.fill_between(decoded.index, low, high, color=colour, alpha=0.18, linewidth=0)
        others = over_prompts(own[own["kind"] != "decoded"], ["kind"], value, "positions")
        for place, kind in enumerate(("masked", "prompt"), start=1):
            if kind in others.index:
                ax.errorbar(
                    oldest + _gap(oldest) * place,
                    others["mean"][kind],
                    yerr=others["se"].fillna(0)[kind],
                    color=colour,
                    marker=marker,
                    markersize=5,
                )
    _ticks(ax, oldest, int(table["age"].max()))
    ax.set_yscale("log", nonpositive="mask")
    title = "Drift since decoding" + (f", {tensor}" if tensor else "")
    dress(ax, title, "steps since the position was decided", _VALUES[value])
    if rows[by].nunique() > 4:
        ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    else:
        ax.legend(fontsize="small")
    return ax


def _rows(table: pd.DataFrame, by: str, tensor: str | None, value: str) -> pd.DataFrame:
    for name, given, known in (("by", by, _BY), ("value", value, _VALUES)):
        if given not in known:
            raise ValueError(f"unknown {name}={given!r}: choose one of {', '.join(known)}")
    wanted = {"prompt", "kind", "age", "tensor", "positions", by, value}
    if table.empty or wanted - set(table.columns):
        raise ValueError(
            f"kv_drift needs a table with {', '.join(sorted(wanted))}; got {len(table)} rows of {list(table.columns)}"
        )
    there = table["tensor"].unique().tolist()
    if tensor is None and by != "tensor" and len(there) > 1:
        raise ValueError(f"by={by!r} shows one tensor: name it, one of {', '.join(there)}")
    if tensor is not None and tensor not in there:
        raise ValueError(f"tensor={tensor!r} is not in the table: choose one of {', '.join(there)}")
    rows = table if tensor is None else table[table["tensor"] == tensor]
    if by == "distance":
        rows = rows[rows["distance"] > 0]
    return rows if by == "tensor" else rows.sort_values(by)


def _gap(oldest: int) -> float:
    """Between the oldest position and the masked ones, and between these and the prompt's, as ages."""
    return max(1.5, 0.22 * oldest)


def _ticks(ax: Axes, oldest: int, pooled: int) -> None:
    """Ages, the last of which stands for all from there on, then what has none."""
    every = max(1, oldest // 6)
    ages = [*range(0, oldest - every // 2, every), oldest]
    labels = [*map(str, ages[:-1]), f"{oldest}{'+' if oldest == pooled else ''}"]
    places = [*ages, oldest + _gap(oldest), oldest + 2 * _gap(oldest)]
    ax.set_xticks(places, [*labels, "masked", "prompt"])
    ax.axvline(oldest + _gap(oldest) / 2, color=palette_of(ax).line, linewidth=1)
