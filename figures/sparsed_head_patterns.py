"""Patterns differ between heads (SparseD): pooled maps of some heads, and how alike any two are."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from common import capture_code, run
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import dlm_lens as dl
from dlm_lens import metrics
from dlm_lens.measure.environment import provenance
from dlm_lens.plots.pooled_maps import RANGE
from dlm_lens.plots.style import dress, palette_of

LENGTH, GENERATED, STEPS, BINS = 256, 64, 32, 32
HEADS = ((0, 1), (2, 4), (5, 3), (7, 0))
# Maps are of the first step, before anything is sampled: a token that flips elsewhere changes only similarities.
TOLERANCE = {"value": (0.1, 0.1)}


def measure() -> pd.DataFrame:
    """Maps are multiples of an even share, of one piece of code at the first step; ``heads`` are cosines of the
    pooled maps of two heads, numbered layer by layer, mean over steps and two pieces of held-out code."""
    dlm = dl.load("tiny")
    trace = capture_code(
        dlm, LENGTH, GENERATED, STEPS, statistics=[dl.PooledMap(bins=BINS)], record_steps=range(0, STEPS, 4)
    )
    pooled = trace["pooled_map"].isel(sample=0, step=0) * BINS
    alike = metrics.head_similarity(trace).mean("sample")
    heads = len(trace.heads)
    matrix = alike.values.reshape(len(trace.layers) * heads, -1)
    rows = [
        (f"layer {layer}, head {head}", query, key, value)
        for layer, head in HEADS
        for (query, key), value in np.ndenumerate(pooled.sel(layer=layer, head=head).values)
    ]
    rows += [
        (f"heads, {heads} per layer", a, b, matrix[a, b])
        for a, b in zip(*np.triu_indices(len(matrix), 1), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["what", "row", "column", "value"]).astype({"value": float})
    table.attrs["provenance"] = provenance(dlm, seed=0)
    return table


def square(table: pd.DataFrame, what: str) -> np.ndarray:
    """The matrix of one panel."""
    return table[table["what"] == what].pivot(index="row", columns="column", values="value").to_numpy()


def similarities(table: pd.DataFrame) -> tuple[np.ndarray, int]:
    """The symmetric matrix of heads, ones on its diagonal, and how many heads a layer has."""
    what = table["what"].iloc[-1]
    rows = table[table["what"] == what]
    matrix = np.eye(int(rows["column"].max()) + 1)
    matrix[rows["row"], rows["column"]] = matrix[rows["column"], rows["row"]] = rows["value"]
    return matrix, int(what.split()[1])


def draw(table: pd.DataFrame) -> Figure:
    figure = plt.figure(figsize=(10.5, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1))
    axes = left.subplots(2, 2, sharex=True, sharey=True).ravel()
    edges = np.arange(BINS + 1) * LENGTH // BINS
    for place, (ax, (layer, head)) in enumerate(zip(axes, HEADS, strict=True)):
        values = np.clip(square(table, f"layer {layer}, head {head}"), *RANGE)
        palette = palette_of(ax)
        image = ax.pcolormesh(
            edges, edges, values, cmap=palette.sequential, norm=LogNorm(*RANGE), rasterized=True
        )
        for line in (ax.axhline, ax.axvline):
            line(LENGTH - GENERATED, color=palette.sink, linestyle="--", linewidth=1)
        ax.set_ylim(LENGTH, 0)
        ax.set_aspect("equal")
        dress(ax, f"Layer {layer}, head {head}", "key" if place > 1 else "", "" if place % 2 else "query")
    bar = left.colorbar(image, ax=list(axes), shrink=0.8, extend="both")
    bar.set_label("× even share")
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.outline.set_visible(False)
    _heads(right.subplots(), *similarities(table))
    return figure


def _heads(ax: plt.Axes, matrix: np.ndarray, heads: int) -> None:
    palette = palette_of(ax)
    image = ax.pcolormesh(matrix, cmap=palette.sequential, vmin=0, vmax=1, rasterized=True)
    for edge in range(heads, len(matrix), heads):
        ax.axhline(edge, color=palette.face, linewidth=0.8)
        ax.axvline(edge, color=palette.face, linewidth=0.8)
    centres = np.arange(heads / 2, len(matrix), heads)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(centres, [str(layer) for layer in range(len(centres))])
        axis.set_tick_params(length=0)
    ax.set_aspect("equal")
    ax.set_ylim(len(matrix), 0)
    dress(ax, "Head by head", f"layer ({heads} heads each)", f"layer ({heads} heads each)")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label("cosine of pooled maps")
    bar.outline.set_visible(False)


def caption(table: pd.DataFrame) -> str:
    matrix, heads = similarities(table)
    layer = np.arange(len(matrix)) // heads
    same = (layer[:, None] == layer) & ~np.eye(len(matrix), dtype=bool)
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    median, low, high = np.quantile(pairs, (0.5, 0.05, 0.95))
    verdict = (
        "That agrees with SparseD: patterns differ between heads."
        if low < 0.5
        else "SparseD says that patterns differ between heads; here they differ little."
    )
    return (
        f"Pooled attention maps of four heads of the bundled tiny-dlm at the first step (left; {LENGTH} tokens of code,"
        f" the last {GENERATED} of them still masked, beyond the dashed lines) and cosine similarity of the maps of any"
        f" two heads at the same step, mean over the run (right). The median pair has {median:.2f}, nine pairs in ten"
        f" lie between {low:.2f} and {high:.2f}; two heads of one layer are {matrix[same].mean():.2f} alike on average,"
        f" of different layers {matrix[layer[:, None] != layer].mean():.2f}. {verdict}"
    )


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
