"""What pruned weights gain in time at LLaDA-8B's shape: 2:4 on sparse tensor cores, and smaller matrices.

Reads ``figures/data/pruned-speed-llada-8b-<device>.json``, which ``python -m dlm_lens.measure.pruned_speed`` writes, or
the file given. The weights are random: this tells of speed and memory only.
"""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from common import run, stored
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlm_lens.measure.shapes import SHAPES
from dlm_lens.plots.style import dress, palette_of

DENSE, SPARSE = "dense", "2:4"
MODELS = (DENSE, SPARSE, "structured 30%", "structured 50%")
# How the parameters of a policy begin, and the kind of its lasting steps → label, in the order of the figure.
STEPS = {
    ("Dense()", "dense"): "dense",
    ("RandomColumns(", "sparse"): "random columns",
    ("PulseCol(sparsity=0.8, group_size=128", "sparse"): "PulseCol, groups of 128",
    ("PulseCol(sparsity=0.8, group_size=32", "sparse"): "PulseCol, groups of 32",
}
ATTENTION = STEPS["Dense()", "dense"]
CALLED, GRAPH = "as called", "in a graph"

Row = dict[str, Any]


def measure(*files: Path) -> pd.DataFrame:
    """A row per context, model and either all matrices of a layer or a kind of step: milliseconds, and how many times
    as fast as dense weights under the same heading (steps: and dense attention)."""
    (file,) = files or stored("pruned-speed-llada-8b-*.json")
    found = json.loads(file.read_text())
    entries = [entry for row in found["rows"] for entry in entries_of(row)]
    table = pd.DataFrame(entries).drop_duplicates(
        ["part", "context", "label", "model"]
    )  # the last tells the drift
    base = table[table["model"] == DENSE].set_index(["part", "context", "label"])["ms"]
    table["speedup"] = [
        base[row.part, row.context, ATTENTION if row.part == "step" else row.label] / row.ms
        for row in table.itertuples()
    ]
    about = found["provenance"] | {
        key: found[key] for key in ("check", "algorithms", "skipped") if key in found
    }
    about["drift"] = drift(entries)
    table.attrs["provenance"] = about
    return table.reset_index(drop=True)


def entries_of(row: Row) -> list[Row]:
    """What the figure needs of a row: all matrices together, and the lasting kind of step of a policy."""
    common = {"context": row.get("context"), "model": row.get("model")}
    if row["job"] == "matrices" and row["matrices"] == "all":
        label = GRAPH if row["graph"] else CALLED
        times = {name: row["ms"][name] for name in ("median", "low", "high")}
        return [entry("matrices", common, label, times, row["ms"]["rounds"], tflops=row["tflops"])]
    if row["job"] == "denoise" and "ms" in row:
        memory = {name: row[name] for name in ("peak_gb", "estimate_gb")}
        return [
            entry("step", common, label, row["ms"][kind], row["ms"][kind]["steps"], **memory)
            for (start, kind), label in STEPS.items()
            if row["parameters"].startswith(start) and kind in row["ms"]
        ]
    return []


def entry(part: str, common: Row, label: str, times: Row, count: int, **more: float) -> Row:
    empty = dict.fromkeys(("tflops", "peak_gb", "estimate_gb"), float("nan"))
    ms = {"ms": times["median"], "low": times["low"], "high": times["high"]}
    return {"part": part, **common, "label": label, **ms, "times": count, **(empty | more)}


def drift(entries: list[Row]) -> float:
    """How many times as long the last dense step at the longest context took as the first; 1 if measured once."""
    steps = [
        row for row in entries if (row["part"], row["model"], row["label"]) == ("step", DENSE, ATTENTION)
    ]
    far = [row["ms"] for row in steps if row["context"] == max(row["context"] for row in steps)]
    return far[-1] / far[0]


def draw(table: pd.DataFrame) -> Figure:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12.5, 4.6), layout="constrained", gridspec_kw={"width_ratios": [2, 3]}
    )
    matrices = table[(table["part"] == "matrices") & (table["model"] != DENSE)]
    places = [
        (context, label)
        for context in sorted(set(table["context"]))
        for label in (CALLED, GRAPH)
        if ((matrices["context"] == context) & (matrices["label"] == label)).any()
    ]
    bars(left, matrices, places, [f"{short(context)}\n{label}" for context, label in places])
    dress(left, "matrices alone", "tokens", "speed-up over dense weights")
    steps = table[table["part"] == "step"]
    places = [
        (context, label)
        for label in STEPS.values()
        for context in sorted(set(steps["context"]))
        if ((steps["context"] == context) & (steps["label"] == label)).any()
    ]
    bars(right, steps, places, [f"{fill(label, 13)}\n{short(context)}" for context, label in places])
    dress(right, "whole steps", "attention and tokens", "speed-up over dense weights and attention")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(
        handles, [f"{label} weights" if label == DENSE else label for label in labels],
        loc="outside lower center", ncols=len(labels),
    )  # fmt: skip
    return figure


def bars(ax: Axes, table: pd.DataFrame, places: list[tuple[int, str]], ticks: list[str]) -> None:
    """A group of bars at each of the places, a bar for each model there, with its value above."""
    palette = palette_of(ax)
    colours = dict(zip(MODELS, (palette.dim, *palette.series), strict=False))
    drawn = [model for model in MODELS if model in set(table["model"])]
    at = dict(zip(places, range(len(places)), strict=True))
    width = 0.8 / len(drawn)
    for number, model in enumerate(drawn):
        rows = table[table["model"] == model]
        x = [
            at[place] + (number - (len(drawn) - 1) / 2) * width
            for place in zip(rows["context"], rows["label"], strict=True)
        ]
        ax.bar(x, rows["speedup"], 0.92 * width, color=colours[model], label=model)
        for place, value in zip(x, rows["speedup"], strict=True):
            ax.annotate(
                f"{value:.2f}", (place, value), (0, 2), textcoords="offset points", ha="center", va="bottom",
                fontsize=7, color=palette.text, rotation=90,
            )  # fmt: skip
    ax.axhline(1, color=palette.text, linewidth=0.8, linestyle=":")
    ax.set_xticks(range(len(places)), ticks, fontsize="small")
    ax.set_ylim(0, 1.16 * table["speedup"].max())


def short(context: int) -> str:
    return f"{context // 1024}k" if context >= 1024 else str(context)


def caption(table: pd.DataFrame) -> str:
    about = table.attrs["provenance"]
    said = [
        f"A model of random weights at the shape of {about['shape'].replace('llada-8b', 'LLaDA-8B')} in"
        f" {about['dtype']} on {about['device']}, PyTorch {about['torch']}, pruned by magnitude: speed and memory only."
        " What pruning costs in quality is measured on the bundled model by dlm_lens.measure.pruning_study."
    ]
    matrices = table[table["part"] == "matrices"].sort_values("context")
    for label in (CALLED, GRAPH):
        here = matrices[(matrices["label"] == label) & (matrices["model"] == SPARSE)]
        if len(here):
            said.append(
                f"The layers' matrices at 2:4 by cuSPARSELt, {label}: {speedups(here)} ({spread(here)})."
            )
    slower = matrices[
        (matrices["label"] == CALLED) & (matrices["model"] == SPARSE) & (matrices["speedup"] < 1)
    ]
    if len(slower):
        said.append(
            f"As called they lose at {short(int(slower['context'].max()))}, since the host takes longer to launch a"
            " 2:4 product than the GPU to compute it; dense steps of up to 16,384 positions therefore run as CUDA"
            " graphs."
        )
    dense = table[(table["part"] == "step") & (table["label"] == ATTENTION)].sort_values("context")
    for model in MODELS[1:]:
        if len(here := dense[dense["model"] == model]):
            shares = f" ({share_of_matrices(table)})" if model == SPARSE else ""
            said.append(f"Whole steps of dense attention, {model}: {speedups(here)}{shares}.")
    said += together(table)
    steps = table[table["part"] == "step"]
    if steps.groupby(["label", "context"])["model"].nunique().lt(len(MODELS)).any():
        said.append("Bars that are missing were not measured.")
    memory = table.dropna(subset=["peak_gb"])
    off = (memory["estimate_gb"] / memory["peak_gb"] - 1).abs().max() * 100
    said.append(f"Estimates of memory are at most {off:.0f}% off the peaks.")
    if "check" in about:
        check = about["check"]
        said.append(
            f"Outputs of a 2:4 matrix are {check['error']:.2g} from those in float64, of the same weights multiplied as"
            f" dense ones {check['dense_error']:.2g}."
        )
    said.append(f"A dense step at the end took {about['drift']:.3f} times as long as at first.")
    return " ".join(said)


def speedups(rows: pd.DataFrame) -> str:
    return ", ".join(f"{row.speedup:.2f}× at {short(row.context)}" for row in rows.itertuples())


def share_of_matrices(table: pd.DataFrame) -> str:
    """The matrices' share of dense steps on dense weights: all that weights which are 2:4 can make faster."""
    layers = SHAPES[table.attrs["provenance"]["shape"]].layers
    dense = table[table["model"] == DENSE]
    steps = dense[dense["label"] == ATTENTION].set_index("context")["ms"].sort_index()
    # In a graph where there is one: what is computed, without the launches.
    matrices = dense[dense["part"] == "matrices"].sort_values("label").groupby("context")["ms"].last()
    shares = [
        f"{100 * layers * matrices[context] / ms:.0f}% at {short(context)}"
        for context, ms in steps.items()
        if context in matrices
    ]
    return f"matrices are {', '.join(shares)} of a step on dense weights, and only they become faster"


def spread(rows: pd.DataFrame) -> str:
    """How far single rounds are from the medians, at most."""
    off = max((rows["high"] / rows["ms"]).max() - 1, 1 - (rows["low"] / rows["ms"]).min())
    return f"rounds within {100 * off:.0f}%"


def together(table: pd.DataFrame) -> list[str]:
    """Sparse steps on each kind of weights, beside dense ones on dense weights; of 2:4, which leaves attention as it
    is, also beside the same steps on dense weights."""
    steps = table[table["part"] == "step"]
    far = steps[steps["context"] == steps["context"].max()].set_index(["label", "model"])["ms"]
    dense = far[ATTENTION, DENSE]
    said = []
    for label in STEPS.values():
        if label == ATTENTION or (label, DENSE) not in far:
            continue
        each = [f"{dense / far[label, DENSE]:.2f}× on dense weights"]
        for model in MODELS[1:]:
            if (label, model) in far:
                alone = (
                    f" ({far[label, DENSE] / far[label, model]:.2f}× by the weights)"
                    if model == SPARSE
                    else ""
                )
                each.append(f"{dense / far[label, model]:.2f}× on {model}{alone}")
        said.append(f"{label[0].upper()}{label[1:]}: {', '.join(each)}.")
    where = short(int(steps["context"].max()))
    first = (
        f"Sparse steps at {where}, 80% of the keys left out, without the refreshes between them, beside dense steps on"
        " dense weights:"
    )
    return [f"{first} {' '.join(said)}"] if said else []


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
