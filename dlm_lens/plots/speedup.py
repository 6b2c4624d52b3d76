"""What policies save and what they cost, side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dlm_lens.plots.policy_styles import Pruned, hatches, pruned_of
from dlm_lens.plots.style import Palette, axes_or_new, dress, palette_of

# Quality of a policy as shares of 1, and the marker of each.
_QUALITIES = {
    "token_agreement": ("tokens as dense", "o"),
    "retained_mass": ("attention kept", "s"),
    "accuracy": ("tasks answered", "D"),
}
_UNDERNEATH: dict[str, Any] = {
    "loc": "upper center",
    "ncols": 3,
    "fontsize": "small",
    "handletextpad": 0.2,
    "columnspacing": 1.0,
}


def speedup(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Speed-up over dense per policy and model, and beside every bar the quality that it leaves.

    ``table`` comes from :func:`dlm_lens.compare`; bars are medians over prompt sets and repetitions, whiskers
    go from the lowest to the highest, the stroke beyond a bar is its Amdahl bound. Bars of pruned models are hatched,
    each model's in its own way. ``ax`` keeps the left part of its place; the qualities get axes of their own in the
    right part.

    A speed-up is never drawn without its quality: a table that has none of the columns ``token_agreement``,
    ``retained_mass`` and ``accuracy`` raises ``ValueError``; so do a table without ``policy`` and ``speedup``,
    an empty one, and one that mixes measured with projected rows.
    """
    missing = {"policy", "speedup"} - set(table.columns)
    qualities = [name for name in _QUALITIES if name in table and table[name].notna().any()]
    if missing or table.empty or not qualities:
        wanted = f"policy, speedup and one of {', '.join(_QUALITIES)}"
        raise ValueError(
            f"speedup needs a table with {wanted}; got {len(table)} rows of {list(table.columns)}"
        )
    if "projected" in table and table["projected"].nunique() > 1:
        raise ValueError("the table mixes measured and projected rows; plot them apart")
    groups = table.groupby("policy", sort=False)
    middle = groups.median(numeric_only=True)

    longest = max(len(str(label)) for label in middle.index)  # as labels of pruned models are
    ax = axes_or_new(ax, (9 + 0.1 * max(0, longest - 28), 1.6 + 0.42 * len(middle)))
    palette = palette_of(ax)
    _bars(
        ax,
        groups["speedup"].agg(["min", "median", "max"]),
        middle.get("amdahl_bound"),
        pruned_of(table),
        palette,
    )
    _markers(_beside(ax), middle[qualities], palette)
    return ax


def _beside(ax: Axes) -> Axes:
    """New axes in the right part of the place of ``ax``, which keeps the left part."""
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError("speedup splits the place of its axes; give it axes made by subplots or add_subplot")
    parts = place.subgridspec(1, 2, width_ratios=(10, 8))
    ax.set_subplotspec(parts[0])
    return ax.figure.add_subplot(parts[1], sharey=ax)


def _bars(ax: Axes, speed: pd.DataFrame, bound: pd.Series | None, pruned: Pruned, palette: Palette) -> None:
    rows = np.arange(len(speed))
    whiskers = np.abs(speed[["min", "max"]].sub(speed["median"], axis=0).T.values)
    colours = [
        palette.dim if str(policy).startswith("Dense") else palette.series[0] for policy in speed.index
    ]
    ax.barh(
        rows, speed["median"], xerr=whiskers, color=colours, height=0.6,
        hatch=hatches(speed.index, pruned), edgecolor=ax.get_facecolor(), linewidth=0,
        error_kw={"ecolor": palette.text, "elinewidth": 1, "capsize": 2},
    )  # fmt: skip
    ends = float(speed["max"].max())
    if bound is not None:
        ends = max(ends, float(bound.fillna(0).max()))
        ax.scatter(bound, rows, marker="|", s=180, color=palette.text, label="Amdahl bound")
        ax.legend(**_UNDERNEATH, bbox_to_anchor=(0.5, -1.4 / (len(speed) + 1)))
    ax.axvline(1, color=palette.dim, linestyle="--", linewidth=1, zorder=0)
    for row, (value, high, colour) in enumerate(zip(speed["median"], speed["max"], colours, strict=True)):
        inside = value > 0.2 * ends  # a shorter bar has no room for its number
        beyond = high if bound is None else np.fmax(high, bound.iloc[row])
        ax.annotate(
            f"{value:.2f}×", (0 if inside else beyond, row), xytext=(6, 0), textcoords="offset points",
            va="center", fontweight="bold", color=ax.get_facecolor() if inside else palette.text,
            bbox={"facecolor": colour if inside else "none", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    ax.set_yticks(rows, list(speed.index))
    ax.invert_yaxis()
    ax.set_xlim(0, 1.06 * ends)
    dress(ax, "Speed-up over dense", "× dense, whole run (higher is faster)", "")


def _markers(ax: Axes, quality: pd.DataFrame, palette: Palette) -> None:
    rows = np.arange(len(quality))
    ax.hlines(rows, 0, 100, color=palette.line, linewidth=1, zorder=0)
    # Side by side within a row: good policies would otherwise hide one marker behind another.
    lanes = (np.arange(len(quality.columns)) - (len(quality.columns) - 1) / 2) * 0.24
    for lane, colour, name in zip(lanes, palette.series, quality.columns, strict=False):
        label, marker = _QUALITIES[name]
        ax.scatter(100 * quality[name], rows + lane, marker=marker, s=30, color=colour, label=label)
    ax.set_xlim(-3, 103)
    ax.tick_params(labelleft=False, left=False)
    ax.spines["left"].set_visible(False)
    dress(ax, "What is left of the quality", "% (higher is better)", "")
    ax.legend(**_UNDERNEATH, bbox_to_anchor=(0.5, -1.4 / (len(quality) + 1)))
