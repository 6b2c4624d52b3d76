"""Speed-up of whole denoising schedules at LLaDA-8B's shape: by context, and where few positions are computed.

Reads every ``figures/data/schedules-*-<device>.json``, which ``python -m dlm_lens.measure.full_schedules`` writes, or
the files given. Totals are sums over the kinds of step at the median of each; where a schedule was really run beside
it, the two agree within a per cent. Weights are random: this tells of speed only.
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

import dlm_lens as dl
from dlm_lens.plots import speedup_by_context
from dlm_lens.plots.style import dress, palette_of

# How the parameters of a policy begin → label, and a policy with the same steps and density, for its bound.
LONG: dict[str, tuple[str, dl.policies.Policy | None]] = {
    "Dense(backend='flash'": ("Dense (FlashAttention-2)", None),
    "PulseCol(sparsity=0.8, group_size=32,": ("PulseCol 80%, groups of 32", dl.PulseCol.llada(0.8)),
    "PulseCol(sparsity=0.8, group_size=128,": ("PulseCol 80%, groups of 128", dl.PulseCol.llada(0.8)),
    "SparseD(select=0.3,": ("SparseD 70%", dl.SparseD.long()),
}
GENERATED = 1024
# What the papers report over FlashAttention-2 at 64k tokens and 1,024 steps, with the parameters that they used.
PUBLISHED = {"PulseCol 80%, groups of 32": (1.95, "RTX PRO 6000"), "SparseD 70%": (1.50, "A800")}

Row = dict[str, Any]


def measure(*files: Path) -> pd.DataFrame:
    """Part ``schedule``: a row per policy and context. Part ``few positions``: a row per policy, its steps in ms."""
    files = files or tuple(stored("schedules-*-nvidia-h200.json", "schedules-*.json"))
    found = [json.loads(file.read_text()) for file in files]
    rows = [row for file in found for row in file["rows"] if row["compiled"]]
    contexts = sorted({row["context"] for row in rows if row["projected"]})
    table = pd.DataFrame([entry for context in contexts for entry in whole(rows, context)])
    stream = next(file["replays"][0]["stream_ms"] for file in found if file["replays"])
    few = [row for row in rows if "schedule" not in row]
    table = pd.concat([table, pd.DataFrame(list(positions(few, stream)))], ignore_index=True)
    about = {key: value for key, value in found[0]["provenance"].items() if key != "note"}
    table.attrs["provenance"] = about | {"command": [file["provenance"]["command"] for file in found]}
    return table


def whole(rows: list[Row], context: int) -> list[Row]:
    """Speed-ups of the schedules at one context, over the best dense backend and over FlashAttention-2."""
    here = [row for row in rows if row["context"] == context and row["projected"]]
    # Dense was measured at both ends of a session: the faster of the two is the baseline.
    best = min(total(row) for row in here if row["policy"] == "Dense")
    named = {label: (pick(here, start), policy) for start, (label, policy) in LONG.items()}
    flash = total(named["Dense (FlashAttention-2)"][0])
    return [
        {
            "part": "schedule",
            "policy": label,
            "context": context,
            "steps": row["steps"],
            "seconds": total(row),
            "speedup": best / total(row),
            "speedup_vs_flash2": flash / total(row),
            "amdahl_bound": bound(policy, row["steps"], context) if policy else 1.0,
        }
        for label, (row, policy) in named.items()
    ]


def pick(rows: list[Row], start: str) -> Row:
    return next(row for row in rows if row["parameters"].startswith(start))


def bound(policy: dl.policies.Policy, steps: int, context: int) -> float:
    """Amdahl's bound over dense attention."""
    shape = {"prompt_length": context - GENERATED, "gen_length": GENERATED}
    return dl.schedule(policy, steps, "llada-8b", **shape).bound


def total(row: Row) -> float:
    """Seconds of the schedule at the medians of its kinds of step."""
    counts = row.get("schedule") or {kind: ms["steps"] for kind, ms in row["ms"].items()}
    return sum(count * row["ms"][kind]["median"] for kind, count in counts.items()) / 1000


def positions(rows: list[Row], stream: float) -> list[Row]:
    """Steps of policies that compute few positions, and what reading all weights once takes."""
    dense = total(next(row for row in rows if row["policy"] == "Dense"))
    return [
        {
            "part": "few positions",
            "policy": row["policy"].replace(", no early stop", ""),
            "context": row["context"],
            "steps": row["steps"],
            "seconds": total(row),
            "speedup": dense / total(row),
            "step_ms": row["ms"]["cached" if "cached" in row["ms"] else "dense"]["median"],
            "weights_read_ms": stream,
        }
        for row in rows
    ]


def draw(table: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", width_ratios=(3, 2))
    long = table[table["part"] == "schedule"]
    speedup_by_context(long, ax=axes[0])
    title = f"Whole schedules of {long['steps'].iloc[0]:,} steps; short strokes: bounds"
    dress(axes[0], title, "context, tokens", "speed-up, ×")
    handles, labels = axes[0].get_legend_handles_labels()
    labels = [
        label if "over" in label or "Dense" in label else f"{label}, over best dense" for label in labels
    ]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    draw_positions(axes[1], table[table["part"] == "few positions"])
    return figure


def draw_positions(ax: Axes, table: pd.DataFrame) -> None:
    """Milliseconds of a dense or cached step, beside reading all weights once."""
    palette = palette_of(ax)
    widest = table["step_ms"].max()
    for at, row in enumerate(table.itertuples()):
        ax.barh(
            at, row.step_ms, height=0.6, color=palette.dim if row.policy == "Dense" else palette.series[0]
        )
        ratio = "" if row.policy == "Dense" else f", whole run {row.speedup:.1f}×"
        ax.text(
            row.step_ms + 0.01 * widest, at, f"{row.step_ms:.1f} ms{ratio}",
            va="center", fontsize="small", color=palette.text,
        )  # fmt: skip
    floor = table["weights_read_ms"].iloc[0]
    ax.axvline(floor, color=palette.series[1], linewidth=1.5)
    ax.annotate(
        "all weights read once", (floor, -0.55), xytext=(4, 0), textcoords="offset points",
        fontsize="small", color=palette.series[1], va="center",
    )  # fmt: skip
    ax.set_yticks(range(len(table)), table["policy"], fontsize="small")
    ax.set_xlim(0, 1.4 * widest)
    ax.set_ylim(len(table) - 0.5, -0.9)
    context, steps = table["context"].iloc[0], table["steps"].iloc[0]
    dress(ax, f"Prompt of {context - steps:,}, {steps:,} generated", "ms of a dense or cached step", "")


def caption(table: pd.DataFrame) -> str:
    about = table.attrs["provenance"]
    long = table[(table["part"] == "schedule") & ~table["policy"].str.startswith("Dense")]
    nearest, farthest = int(long["context"].min()), int(long["context"].max())
    far = long[long["context"] == farthest]
    near = long[long["context"] == nearest].sort_values("speedup").iloc[-1]
    each = "; ".join(
        f"{row.policy} {row.speedup:.2f}× ({row.speedup_vs_flash2:.2f}×)" for row in far.itertuples()
    )
    said = [
        "Whole denoising schedules at the shape of LLaDA-8B with random weights (speed only, no quality) on"
        f" {about['device']}, PyTorch {about['torch']}, put together from the medians of their dense, refresh and"
        " sparse steps.",
        f"At {farthest:,} tokens over the best dense backend (over FlashAttention-2): {each}.",
        f"At {nearest:,} tokens the best, {near['policy']}, gains {near['speedup']:.2f}× of a bound of"
        f" {near['amdahl_bound']:.2f}×.",
        *(beside_paper(name, far) for name in PUBLISHED if farthest == 65536),
    ]
    few = table[(table["part"] == "few positions") & (table["policy"] != "Dense")]
    best = few.loc[few["speedup"].idxmax()]
    times = few["step_ms"].min() / few["weights_read_ms"].iloc[0]
    said.append(
        f"Right, policies that compute few positions: {best['policy']} gains most, {best['speedup']:.1f}× over the"
        f" whole run; the fastest of these steps still takes {times:.1f} times what reading all weights once would."
    )
    return " ".join(said)


def beside_paper(name: str, far: pd.DataFrame) -> str:
    """What a paper reports at 64k tokens and what is measured here."""
    ratio, gpu = PUBLISHED[name]
    ours = far.set_index("policy").loc[name]
    best, flash = ours["speedup"], ours["speedup_vs_flash2"]
    verdict = "does not hold" if best < ratio else "holds"
    return (
        f"{name}: the paper reports {ratio:.2f}× over FlashAttention-2 on an {gpu}; here it is {flash:.2f}× over that;"
        f" a gain of {ratio:.2f}× {verdict} over the best dense backend ({best:.2f}×)."
    )


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
