"""Do sinks move? A diffusion model and its autoregressive twin on the same texts, read in seven ways.

Reads ``figures/data/sink-movement-cpu.json``, which ``python -m dlm_lens.measure.sink_movement`` writes, or the file
given. What runs, seeds and readings are is said there and in ``dlm_lens/measure/sink_readings.py``; even attention
under a causal mask, without any model, is computed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from common import run, stored
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlm_lens.measure.sink_movement import (
    ORDERED,
    PAIRS,
    RUNS,
    WRITING,
    WRITTEN,
    even_movement,
    open_movement,
)
from dlm_lens.measure.sink_readings import AVERAGES, EVEN, GIVEN, NEWEST, PAPER, READ, READINGS
from dlm_lens.metrics import bootstrap_interval
from dlm_lens.plots.style import dress, palette_of

MASK = "even attention, causal mask"
NAMES = {
    WRITING: "diffusion model, writing",
    WRITTEN: "autoregressive twin, reading it",
    MASK: "the mask alone, no model",
}
COMPARED = {WRITING: "text the diffusion model wrote", ORDERED: "held-out text, left to right"}
LABELS = {
    PAPER: "all keys, κ = 2\n(as in the paper)",
    "κ = 1": "all keys, κ = 1",
    "κ = 3": "all keys, κ = 3",
    "without the first key": "without the\nfirst key",
    EVEN: "over even attention\nunder the mask",
    GIVEN: "given keys:\nno mask, same text",
    NEWEST: "given keys,\nnewest queries",
}
SINGLE, MERGED = "head by head", "mean of heads"
FLOOR = 0.03  # of the first picture's axis: sinks that move less lie on it
COLUMNS = ["part", "run", "reading", "average", "quantity", "layer", "head", "value", "low", "high"]


def measure(*files: Path) -> pd.DataFrame:
    """Long: part ``heads`` (means of every head), and with 95% intervals ``mean`` of every run, ``ratio`` and
    ``difference`` of the twin to the diffusion model, and ``restless``, the share of pairs of heads."""
    (source,) = files or stored("sink-movement-cpu.json", "sink-movement-*.json")[:1]
    found = open_movement(source)
    about = found.attrs
    parts = [_heads(found)]
    for quantity, readings in READ.items():
        values = found[quantity].sel(reading=list(readings))
        parts.append(_rows("mean", quantity, values.sel(run=list(RUNS)), name="run"))
        for moving, still in PAIRS:
            both = values.sel(run=[moving, still])
            parts.append(_rows("difference", quantity, both, moving, _difference))
            if quantity in ("spatial", "temporal"):
                parts.append(_rows("ratio", quantity, both, moving, _ratio))
    for (moving, _), values in zip(PAIRS, found["restless"], strict=True):
        parts.append(_rows("restless", "temporal", values, moving))
    even = even_movement(about["length"], about["given"], about["steps"]).sel(average=MERGED)
    for quantity in ("spatial", "temporal", "persistence", "lifetime", "first"):
        value = float(even[quantity].sel(reading=PAPER))
        parts.append(_frame("mean", MASK, quantity, reading=PAPER, average=MERGED, value=[value]))
    table = pd.concat(parts, ignore_index=True).astype({"layer": "Int64", "head": "Int64"})
    table.attrs["provenance"] = about
    return table


def _difference(at: xr.DataArray) -> xr.DataArray:
    return at.isel(run=1, drop=True) - at.isel(run=0, drop=True)


def _ratio(at: xr.DataArray) -> xr.DataArray:
    return at.isel(run=1, drop=True) / at.isel(run=0, drop=True)


def _rows(
    part: str,
    quantity: str,
    values: xr.DataArray,
    run: str = "",
    statistic: Any = None,
    name: str | None = None,
) -> pd.DataFrame:
    """The intervals of all there is, long."""
    found = bootstrap_interval(values, ("text", "seed"), statistic=statistic, draws=1000)
    wide = found.to_dataset("bound").to_dataframe().reset_index()
    wide = wide.rename(columns={"estimate": "value"}).dropna(subset="value")
    if name is None:
        wide["run"] = run
    if "average" not in wide:
        wide["average"] = SINGLE
    return wide.assign(part=part, quantity=quantity).reindex(columns=COLUMNS)


def _frame(part: str, run: str, quantity: str, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns).assign(part=part, run=run, quantity=quantity).reindex(columns=COLUMNS)


def _heads(found: xr.Dataset) -> pd.DataFrame:
    frames = []
    for name in (WRITING, WRITTEN):
        for quantity in ("spatial", "temporal"):
            values = found[f"heads_{quantity}"].sel(run=name)
            layer, head = (axis.ravel() for axis in np.indices(values.shape))
            one = {"layer": layer, "head": head, "value": values.values.ravel()}
            frames.append(_frame("heads", name, quantity, reading=PAPER, average=SINGLE, **one))
    return pd.concat(frames, ignore_index=True)


def draw(table: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(
        1, 3, figsize=(13, 5.6), layout="constrained", gridspec_kw={"width_ratios": (1.05, 1.1, 1)}
    )
    draw_heads(axes[0], table)
    draw_ratios(
        axes[1], table, "temporal", "How far they move: twin ÷ diffusion model", "ratio of temporal variances"
    )
    draw_ratios(axes[2], table, "spatial", "How uneven: twin ÷ diffusion model", "ratio of spatial variances")
    axes[2].set_yticklabels([])
    axes[0].legend(fontsize="small", loc="lower left")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def draw_heads(ax: Axes, table: pd.DataFrame) -> None:
    """A dot per head, and what the attention averaged over heads has, with its interval."""
    palette = palette_of(ax)
    for number, (name, shown) in enumerate(NAMES.items()):
        colour, marker = (*palette.series[:2], palette.text)[number], "os*"[number]
        heads = table[(table["part"] == "heads") & (table["run"] == name)]
        if len(heads):
            at = heads.pivot(index=["layer", "head"], columns="quantity", values="value")
            ax.scatter(
                at["spatial"], at["temporal"].fillna(0).clip(lower=FLOOR),
                s=16, marker=marker, color=colour, alpha=0.4, linewidths=0,
            )  # fmt: skip
        x, y = (told(table, "mean", name, PAPER, MERGED, quantity) for quantity in ("spatial", "temporal"))
        errors = (
            [[[value - low], [high - value]] for value, low, high in (x, y)] if number < 2 else [None, None]
        )
        ax.errorbar(
            x[0], y[0], xerr=errors[0], yerr=errors[1], marker=marker, markersize=11 if number < 2 else 15,
            color=colour, markeredgecolor=palette.face, linestyle="none", capsize=3, zorder=4, label=shown,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(0.8 * FLOOR, 6000)
    dress(
        ax, "As in the paper. Small: heads, large: mean", "spatial variance, even shares²",
        "temporal variance, positions²",
    )  # fmt: skip


def draw_ratios(ax: Axes, table: pd.DataFrame, quantity: str, title: str, label: str) -> None:
    """A line per reading: below 1 the twin has less."""
    palette = palette_of(ax)
    place = np.arange(len(READINGS))
    ax.axvline(1, color=palette.dim, linestyle="--", linewidth=1)
    for number, moving in enumerate(COMPARED):
        for other, average in enumerate(AVERAGES):
            rows = [told(table, "ratio", moving, reading, average, quantity) for reading in READINGS]
            value, low, high = np.array(rows).T
            ax.errorbar(
                value, place + (2 * number + other - 1.5) * 0.16, xerr=[value - low, high - value],
                marker="os"[number], markersize=5, linestyle="none", capsize=2,
                color=palette.series[2 + other], markerfacecolor=palette.series[2 + other] if number else palette.face,
                label=f"{average}, {COMPARED[moving]}",
            )  # fmt: skip
    for line, reading in enumerate(READINGS):
        if reading not in READ[quantity]:
            ax.annotate(
                "does not depend on κ", (0.5, line), xycoords=ax.get_yaxis_transform(), ha="center", va="center",
                color=palette.dim, fontsize="small",
            )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yticks(place, [LABELS.get(reading, reading) for reading in READINGS])
    ax.set_ylim(len(READINGS) - 0.4, -0.6)
    dress(ax, title, label, "")


def told(
    table: pd.DataFrame, part: str, run: str, reading: str, average: str, quantity: str
) -> tuple[float, float, float]:
    """Value, lower and upper end of a row; NaN if there is none."""
    found = table[
        (table["part"] == part) & (table["run"] == run) & (table["reading"] == reading)
        & (table["average"] == average) & (table["quantity"] == quantity)
    ]  # fmt: skip
    return tuple(found[["value", "low", "high"]].iloc[0]) if len(found) else (np.nan,) * 3


def caption(table: pd.DataFrame) -> str:
    about = table.attrs["provenance"]

    def number(part: str, run: str, reading: str, average: str, quantity: str) -> float:
        return told(table, part, run, reading, average, quantity)[0]

    def mean(run: str, quantity: str) -> str:
        return interval(*told(table, "mean", run, PAPER, MERGED, quantity))

    def ratio(reading: str, average: str, quantity: str = "temporal", run: str = WRITING) -> str:
        return interval(*told(table, "ratio", run, reading, average, quantity))

    mask, twin = (
        {quantity: told(table, "mean", run, PAPER, MERGED, quantity) for quantity in ("spatial", "temporal")}
        for run in (MASK, WRITTEN)
    )
    enough = mask["spatial"][0] >= twin["spatial"][1] and mask["temporal"][0] <= twin["temporal"][2]
    moving = [number("mean", WRITING, reading, SINGLE, "temporal") for reading in (GIVEN, PAPER)]
    staying = [number("mean", run, NEWEST, SINGLE, "persistence") for run in (WRITTEN, WRITING)]
    first = [number("mean", run, PAPER, MERGED, "first") for run in (WRITTEN, WRITING)]
    said = [
        f"Sinks of the bundled tiny-dlm and its twin tiny-ar on the same {about['finished_texts']} pieces of held-out"
        f" code, {about['seeds']} seeds each: {about['length']} tokens, of which {about['length'] - about['given']}"
        f" arrive in {about['steps']} steps; 95% intervals by drawing texts, then seeds, anew.",
        "As the paper reads them, averaged over heads, temporal variance is"
        f" {mean(WRITTEN, 'temporal')} positions² for the twin and {mean(WRITING, 'temporal')} for the diffusion model"
        f" whose text it reads, spatial variance {mean(WRITTEN, 'spatial')} and {mean(WRITING, 'spatial')}; a sink"
        f" lasts {mean(WRITTEN, 'lifetime')} and {mean(WRITING, 'lifetime')} of {about['steps']} steps. The claim of"
        " Sink-Aware Pruning (autoregressive: uneven and still; diffusion: more even and restless)"
        f" {holds(table, PAPER)} there, {holds(table, 'κ = 1', 'κ = 3')} with κ = 1 and 3, and"
        f" {holds(table, 'without the first key')} without the first key, a sink in {first[0]:.0%} of the twin's steps"
        f" and {first[1]:.0%} of the other's.",
        f"Single heads differ less: the twin's median head has {ratio(PAPER, SINGLE)} times the other's temporal"
        " variance; of a head of each, the diffusion model's moves more in"
        f" {number('restless', WRITING, PAPER, SINGLE, 'temporal'):.0%} of all pairs.",
        f"But even attention under a causal mask, without any model, has {mask['temporal'][0]:.2f} and"
        f" {mask['spatial'][0]:.2f}: the mask alone is {'enough' if enough else 'not enough'} to give the twin's"
        " average.",
        "Where it plays no part, among given keys that all queries of the rest see and whose text stays, the twin's"
        f" temporal variance is {ratio(GIVEN, MERGED)} times the other's, {verdict(table, GIVEN, MERGED)}; its median"
        f" head's {ratio(GIVEN, SINGLE)}, {verdict(table, GIVEN, SINGLE)}; its spatial variance"
        f" {ratio(GIVEN, MERGED, 'spatial')} and {ratio(GIVEN, SINGLE, 'spatial')}. The diffusion model's median head"
        f" has {short(moving[0])} of its {short(moving[1])} positions² there, where half of the keys would give a"
        f" quarter: {'most' if moving[0] < 0.125 * moving[1] else 'not all'} of its movement comes with text that"
        " arrives.",
        f"From the newest queries alone the ratios are {ratio(NEWEST, MERGED)}, {verdict(table, NEWEST, MERGED)}, and"
        f" {ratio(NEWEST, SINGLE)}, {verdict(table, NEWEST, SINGLE)}; of a head's sinks {staying[0]:.0%} and"
        f" {staying[1]:.0%} are sinks at the next step.",
        f"Over even attention the twin's median head moves {ratio(EVEN, SINGLE)} times as much, but there keys that"
        " few queries see yet are read from those few.",
        f"On held-out text, from left to right for both, the ratios are {ratio(PAPER, MERGED, run=ORDERED)} as the"
        f" paper reads it, {ratio(GIVEN, MERGED, run=ORDERED)} among given keys,"
        f" {ratio(NEWEST, MERGED, run=ORDERED)} from the newest queries.",
    ]
    return " ".join(said)


def holds(table: pd.DataFrame, *readings: str) -> str:
    return "holds" if all(claimed(table, reading, MERGED) for reading in readings) else "does not hold"


def interval(value: float, low: float, high: float) -> str:
    return f"{short(value)} ({short(low)} to {short(high)})"


def claimed(table: pd.DataFrame, reading: str, average: str) -> bool:
    """Whether the twin clearly moves less, by both pairs, and is clearly more uneven where that is asked."""
    stiller = all(told(table, "ratio", run, reading, average, "temporal")[2] < 1 for run in COMPARED)
    uneven = [told(table, "ratio", run, reading, average, "spatial")[1] for run in COMPARED]
    return stiller and all(low > 1 for low in uneven if low == low)


def verdict(table: pd.DataFrame, reading: str, average: str) -> str:
    _, low, high = told(table, "ratio", WRITING, reading, average, "temporal")
    return "clearly less" if high < 1 else "clearly more" if low > 1 else "no clear difference"


def short(value: float) -> str:
    """Two significant digits, whole numbers above ten."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
