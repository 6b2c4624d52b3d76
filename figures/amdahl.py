"""What part of a dense step attention takes, and how close sparse steps come to the bound that this sets.

Reads the stored measurements of one GPU: the dense kernel (``kernels-<device>.json``) and whole steps of LLaDA-8B's
shape (``schedules-*-<device>.json``). Lengths that only one of them has are left out.
"""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import pandas as pd
from common import DATA, run, stored
from matplotlib.figure import Figure

from dlm_lens.measure.shapes import SHAPES
from dlm_lens.plots import amdahl

DEVICE = "nvidia-h200"
# How the parameters of a policy begin → label and share of the keys that a sparse step leaves out.
SPARSE = {
    "PulseCol(sparsity=0.8, group_size=32,": ("PulseCol 80%, groups of 32", 0.8),
    "PulseCol(sparsity=0.8, group_size=128,": ("PulseCol 80%, groups of 128", 0.8),
    "SparseD(select=0.3,": ("SparseD 70%", 0.7),
}


def measure() -> pd.DataFrame:
    """Per length a row of the dense step and the attention in it, and a row per policy of its sparse steps, in ms."""
    kernels = json.loads((DATA / f"kernels-{DEVICE}.json").read_text())
    attention = {
        row["length"]: SHAPES["llada-8b"].layers * row["dense_ms"]
        for row in kernels["rows"]
        if row["op"] == "dense"
    }
    rows = []
    for file in stored(f"schedules-*-{DEVICE}.json"):
        found = [row for row in json.loads(file.read_text())["rows"] if row["compiled"] and row["projected"]]
        context = found[0]["context"]
        if context not in attention:
            continue
        dense = min(row["ms"]["dense"]["median"] for row in found if row["policy"] == "Dense")
        rows.append(
            {"context": context, "policy": "Dense", "step_ms": dense, "attention_ms": attention[context]}
        )
        for start, (label, sparsity) in SPARSE.items():
            step = next(row for row in found if row["parameters"].startswith(start))["ms"]["sparse"]["median"]
            rows.append(
                {
                    "context": context,
                    "policy": label,
                    "step_ms": step,
                    "sparsity": sparsity,
                    "speedup": dense / step,
                }
            )
    table = pd.DataFrame(rows)
    table.attrs["provenance"] = kernels["provenance"]
    return table


def parts(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Dense steps and sparse ones, as the plot takes them."""
    named = table.assign(run=[f"{context // 1024}k tokens" for context in table["context"]])
    dense = named[named["policy"] == "Dense"]
    dense = dense.assign(attention=dense["attention_ms"], rest=dense["step_ms"] - dense["attention_ms"])
    return dense, named[named["policy"] != "Dense"]


def draw(table: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(2, 3))
    amdahl(*parts(table), axes=axes)
    return figure


def caption(table: pd.DataFrame) -> str:
    about = table.attrs["provenance"]
    dense, sparse = parts(table)
    share = (dense["attention"] / dense["step_ms"]).to_numpy()
    shares = ", ".join(f"{part:.0%} at {name}" for part, name in zip(share, dense["run"], strict=True))
    longest = sparse[sparse["context"] == sparse["context"].max()]
    bounds = 1 / (1 - share[-1] * longest["sparsity"])
    reached = "; ".join(
        f"{policy} {speedup:.2f}× of {bound:.2f}×"
        for policy, speedup, bound in zip(longest["policy"], longest["speedup"], bounds, strict=True)
    )
    curve = dict(zip(dense["run"], share, strict=True))
    beyond = max(
        row.speedup * (1 - curve[row.run] * row.sparsity) - 1 for row in sparse.itertuples(index=False)
    )
    above = (
        f" Points above their curve, by {beyond:.1%} at most, tell how well the two timings agree."
        if beyond > 0
        else ""
    )
    return (
        f"A dense step at the shape of LLaDA-8B on {about['device']}: attention, the best dense kernel times 32 layers,"
        f" takes {shares}. Right: the bound on the speed-up of a step by the share of keys left out, if sparse"
        " attention is as efficient as dense, and what sparse steps reach without the refreshes between them; at"
        f" {longest['run'].iloc[0]}: {reached}. Kernel and steps were timed in different sessions.{above}"
    )


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
