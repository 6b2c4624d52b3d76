"""Checkpoints of LLaDA-8B's and Dream-7B's layout at long context: milliseconds of a step, memory and its estimate.

Reads every ``figures/data/checkpoints-*-<device>.json``, which ``python -m dlm_lens.measure.checkpoints`` writes, or
the files given. The weights are random: this tells of speed and memory only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from common import run, stored
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dlm_lens.plots.style import dress, palette_of

# How the parameters of a policy begin → label; in the order of the legend.
LABELS = {
    "Dense()": "dense, fastest backend",
    "Dense(backend='flash'": "dense, FlashAttention-2",
    "SparseD(": "SparseD 70%",
    "PulseCol(sparsity=0.8, group_size=32": "PulseCol 80%, groups of 32",
    "PulseCol(sparsity=0.8, group_size=128": "PulseCol 80%, groups of 128",
    "RandomColumns(sparsity=0.8, group_size=128": "random columns 80%, groups of 128",
    "NoAttention(": "everything but attention",
}
SHAPES = {"llada-8b": "LLaDA-8B", "dream-7b": "Dream-7B"}
BEST, NOTHING = LABELS["Dense()"], LABELS["NoAttention("]
DENSE_KINDS = ("dense", "refresh")

Row = dict[str, Any]


def measure(*files: Path) -> pd.DataFrame:
    """A row per shape, context, policy and kind of step: milliseconds, peak and estimate of memory in GB."""
    files = files or tuple(stored("checkpoints-*-nvidia-h200.json", "checkpoints-*.json"))
    found = [json.loads(file.read_text()) for file in files]
    entries = [entry for file in found for row in file["rows"] if "ms" in row for entry in kinds(file, row)]
    table = pd.DataFrame(entries)
    dense = table[(table["policy"] == BEST) & (table["job"] == "denoise")]
    best = dense.groupby(["shape", "context"])["ms"].min().rename("dense_ms")
    table = table.join(best, on=["shape", "context"])
    table["speedup"] = table["dense_ms"] / table["ms"]
    about = {key: value for key, value in found[0]["provenance"].items() if key not in ("shape", "finished")}
    about |= {"model": ", ".join(file["provenance"]["model"] for file in found)}
    checkpoints = {file["checkpoint"]["shape"]: file["checkpoint"] for file in found}
    about |= {"command": [file["provenance"]["command"] for file in found], "checkpoints": checkpoints}
    about["errors"] = [missed(file, row) for file in found for row in file["rows"] if "error" in row]
    table.attrs["provenance"] = about
    return table


def missed(file: Row, row: Row) -> str:
    """What ran out of memory, and under which setting the same run did not."""
    shape = file["checkpoint"]["shape"]
    text = f"{named(row)} at {row['context']:,} on {SHAPES.get(shape, shape)}"
    again = [
        other["environment"]
        for other in file["rows"]
        if "environment" in other and (named(other), other["context"]) == (named(row), row["context"])
    ]
    for name, value in again[0].items() if again else ():
        text += f", whose memory was in pieces; measured with {name}={value} instead"
    return text


def kinds(file: Row, row: Row) -> list[Row]:
    """An entry for every kind of step in a row; memory is that of the whole run."""
    return [
        {
            "shape": file["checkpoint"]["shape"],
            "context": row["context"],
            "policy": named(row),
            "job": row["job"],
            "compiled": bool(row["compiled"]),
            "kind": kind,
            "steps": ms["steps"],
            "run_steps": row["steps"],
            "run_ms": row["total_ms"],
            "ms": ms["median"],
            "low": ms["low"],
            "high": ms["high"],
            "peak_gb": row["peak_gb"],
            "estimate_gb": row["estimate_gb"],
            "compile_s": row.get("compile_s", float("nan")),
        }
        for kind, ms in row["ms"].items()
    ]


def named(row: Row) -> str:
    return next(label for start, label in LABELS.items() if row["parameters"].startswith(start))


def lasting(table: pd.DataFrame) -> pd.DataFrame:
    """The kind of step that most of a schedule consists of: sparse under a sparse policy, else dense."""
    sparse = table[(table["kind"] == "sparse") & table["compiled"]]
    dense = table[table["policy"].isin([BEST, LABELS["Dense(backend='flash'"], NOTHING]) & table["compiled"]]
    both = pd.concat([dense[dense["job"] == "denoise"], sparse])
    keys = ["shape", "policy", "context"]
    return both.sort_values("ms").drop_duplicates(keys).sort_values(keys)


def draw(table: pd.DataFrame) -> Figure:
    shapes = [shape for shape in SHAPES if shape in set(table["shape"])] or sorted(set(table["shape"]))
    figure, axes = plt.subplots(
        len(shapes), 2, figsize=(11, 1 + 3.7 * len(shapes)), layout="constrained", squeeze=False
    )
    for (left, right), shape in zip(axes, shapes, strict=True):
        here = table[table["shape"] == shape]
        draw_steps(left, here, SHAPES.get(shape, shape))
        draw_memory(right, here, SHAPES.get(shape, shape))
    palette = palette_of(axes[0, 0])
    handles = [
        Line2D(
            [],
            [],
            color=colour(palette, label),
            marker="o",
            markersize=5,
            linestyle=stroke(label),
            label=label,
        )
        for label in LABELS.values()
        if label in set(table["policy"])
    ]
    handles.append(Line2D([], [], color=palette.text, marker="x", linestyle="", label="captured dense step"))
    handles.append(Line2D([], [], color=palette.text, linestyle="--", label="estimated before the run"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def colour(palette: Any, label: str) -> str:
    at = list(LABELS.values()).index(label)
    return palette.text if label in (BEST, NOTHING) else (*palette.series, palette.dim)[at - 1]


def stroke(label: str) -> str:
    return ":" if label == NOTHING else "-"


def draw_steps(ax: Axes, table: pd.DataFrame, shape: str) -> None:
    """Milliseconds of a step by context."""
    palette = palette_of(ax)
    for label, rows in lasting(table).groupby("policy", sort=False):
        ax.plot(
            rows["context"], rows["ms"], color=colour(palette, str(label)), linestyle=stroke(str(label)), marker="o",
            markersize=4,
        )  # fmt: skip
    captured = table[table["job"] == "capture"]
    ax.plot(captured["context"], captured["ms"], color=palette.text, marker="x", linestyle="")
    by_context(ax, table)
    dress(ax, f"{shape}: dense or sparse steps", "context, tokens", "ms a step")


def draw_memory(ax: Axes, table: pd.DataFrame, shape: str) -> None:
    """Peaks of memory, and lines through their estimates."""
    palette = palette_of(ax)
    told = table[table["compiled"] & (table["policy"] != NOTHING) & (table["job"] == "denoise")]
    for label, rows in told.groupby("policy", sort=False):
        rows = rows.drop_duplicates("context").sort_values("context")
        ax.plot(
            rows["context"],
            rows["peak_gb"],
            color=colour(palette, str(label)),
            marker="o",
            markersize=5,
            linestyle="",
        )
        ax.plot(
            rows["context"],
            rows["estimate_gb"],
            color=colour(palette, str(label)),
            linestyle="--",
            linewidth=1,
        )
    by_context(ax, table)
    dress(ax, f"{shape}: peak memory", "context, tokens", "GB")


def by_context(ax: Axes, table: pd.DataFrame) -> None:
    contexts = sorted(set(table["context"]))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(
        contexts, [f"{context // 1024}k" if context >= 1024 else str(context) for context in contexts]
    )
    ax.minorticks_off()
    low, high = ax.get_ylim()
    ticks = [
        factor * 10**power
        for power in range(-2, 6)
        for factor in (1, 2, 5)
        if low <= factor * 10**power <= high
    ]
    ax.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])


def caption(table: pd.DataFrame) -> str:
    about = table.attrs["provenance"]
    said = [
        "Checkpoints in the published layouts with random weights (speed and memory only, no quality), written to disk,"
        f" loaded and denoised on {about['device']}, PyTorch {about['torch']}; layers compiled."
    ]
    said += [
        of_shape(table[table["shape"] == shape], shape, about)
        for shape in SHAPES
        if shape in set(table["shape"])
    ]
    ratio = (table["estimate_gb"] / table["peak_gb"] - 1) * 100
    said.append(
        f"The estimates made before the runs are {ratio.min():+.0f}% to {ratio.max():+.0f}% off the peaks measured."
    )
    if about["errors"]:
        said.append(f"Out of memory: {'; '.join(about['errors'])}.")
    return " ".join(said)


def of_shape(table: pd.DataFrame, shape: str, about: dict[str, Any]) -> str:
    """What the table says of one shape, at the context that most of it was measured at."""
    stored_as = about["checkpoints"][shape]
    steps = lasting(table)
    sparse = steps[steps["kind"] == "sparse"]
    far = int(sparse[sparse["policy"] == LABELS["SparseD("]]["context"].max())
    dense = steps[(steps["policy"] == BEST) & (steps["context"] == far)]["ms"].item()
    each = "; ".join(
        f"{row.policy} {dense / row.ms:.2f}×" for row in sparse[sparse["context"] == far].itertuples()
    )
    text = (
        f"{SHAPES[shape]}, {stored_as['gb']:.1f} GB in {stored_as['shards']} shards, is written in"
        f" {stored_as['write_s']:.0f} s and loaded in {stored_as['load_s']:.0f} s; a dense step at {far:,} tokens takes"
        f" {dense:,.0f} ms, and sparse ones are faster by: {each}. {whole(table, far)}"
    )
    return " ".join([text, *compiling(table, far), *captured(table), *longest(steps, far)])


def whole(table: pd.DataFrame, far: int) -> str:
    """The totals of the longest runs at a context, with their dense and refresh steps."""
    runs = table[(table["context"] == far) & table["compiled"] & (table["job"] == "denoise")]
    runs = runs[runs["run_steps"] == runs["run_steps"].max()].drop_duplicates("policy")
    dense = runs[runs["policy"] == BEST]["run_ms"].item()
    each = "; ".join(
        f"{row.policy} {row.run_ms / 1000:.1f} s ({dense / row.run_ms:.2f}×)" for row in runs.itertuples()
    )
    steps = runs["run_steps"].max()
    return f"Whole runs of {steps} steps, hardly long enough to make up for their dense and refresh steps: {each}."


def compiling(table: pd.DataFrame, far: int) -> list[str]:
    """What compiling gains of everything but attention, and how long it takes."""
    rest = table[(table["policy"] == NOTHING) & (table["context"] == far)]
    eager, compiled = rest[~rest["compiled"]]["ms"], rest[rest["compiled"]]["ms"]
    took = table.dropna(subset="compile_s").sort_values("context", kind="stable")["compile_s"]
    if eager.empty or compiled.empty:
        return []
    times = ", ".join(f"{seconds:.0f}" for seconds in took)
    return [
        f"Of it everything but attention is {compiled.min():,.0f} ms, {eager.min():,.0f} ms without compiling, which"
        f" took {times} s at the first step of each length in turn."
    ]


def captured(table: pd.DataFrame) -> list[str]:
    """What a captured step costs."""
    rows = table[table["job"] == "capture"]
    return [
        f"A captured step there takes {1 / row.speedup:.2f} times a dense one (aim: 1.6)."
        for row in rows.itertuples()
    ]


def longest(steps: pd.DataFrame, far: int) -> list[str]:
    beyond = steps[(steps["context"] > far) & (steps["policy"] != NOTHING)]
    if beyond.empty:
        return []
    each = "; ".join(f"{row.policy} {row.ms:,.0f} ms" for row in beyond.itertuples())
    return [f"At {int(beyond['context'].max()):,}: {each}."]


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
