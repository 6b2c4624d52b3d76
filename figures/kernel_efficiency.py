"""What the kernels save: efficiency against sparsity, and speed-up against length, ours beside peers'.

Reads ``figures/data/kernels-<device>.json``, which ``python kernels/bench/run.py`` writes, or the file given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from common import run, stored
from matplotlib.figure import Figure

from dlm_lens.plots import efficiency_by_sparsity, speedup_by_context
from dlm_lens.plots.style import dress, palette_of

# Label → operation, peer, and whether the lists of neighbouring groups overlap by more than 84% (None: all).
KERNELS: dict[str, tuple[str, str, bool | None]] = {
    "columns, groups of 128": ("columns, groups of 128", "dlm_kernels", None),
    "columns of 32, 88% overlap": ("columns, groups of 32", "dlm_kernels, shared lists", True),
    "columns of 32, 78% overlap": ("columns, groups of 32", "dlm_kernels, shared lists", False),
    "columns of 32, no sharing": ("columns, groups of 32", "dlm_kernels, private lists", False),
    "blocks of 128": ("blocks of 128", "dlm_kernels", None),
    "blocks of 128, FlexAttention": ("blocks of 128", "FlexAttention", None),
}
# Efficiencies that others published for an H100: sparsity and speed-up over the best dense kernel × density.
PUBLISHED = {
    "Chipmunk, columns of 192, H100": (0.93, 0.65),
    "VSA, blocks of 64, H100": (0.875, 0.87),
    "FlexAttention, blocks of 64, H100": (0.875, 0.25),
}
SPARSITY = 0.8


def measure(*files: Path) -> pd.DataFrame:
    """A row per kernel, length and sparsity."""
    (source,) = files or stored("kernels-nvidia-h200.json", "kernels-*.json")[:1]
    found: dict[str, Any] = json.loads(source.read_text())
    rows = pd.DataFrame(found["rows"])
    columns = ["length", "sparsity", "density", "ms", "low", "high", "speedup", "efficiency", "dense_backend"]
    parts = [
        pick(rows, *which)[columns].assign(kernel=kernel, published=False)
        for kernel, which in KERNELS.items()
    ]
    dense = rows[(rows["op"] == "dense") & (rows["peer"] == "FlashAttention-2 (PyTorch)")].assign(
        sparsity=0.0
    )
    parts.append(dense[columns].assign(kernel="Dense (FlashAttention-2)", published=False))
    others = [
        {"kernel": kernel, "sparsity": sparsity, "density": 1 - sparsity,
         "efficiency": efficiency, "speedup": efficiency / (1 - sparsity), "published": True}
        for kernel, (sparsity, efficiency) in PUBLISHED.items()
    ]  # fmt: skip
    table = pd.concat([*parts, pd.DataFrame(others)], ignore_index=True)
    table = table[["kernel", "published", *columns]].astype(
        {"length": "Int64"}
    )  # published ones do not say theirs
    table.attrs["provenance"] = found["provenance"]
    return table


def pick(rows: pd.DataFrame, op: str, peer: str, overlapping: bool | None) -> pd.DataFrame:
    """Rows of one kernel; of lists that overlap, those that do so by more or by less than 84%."""
    chosen = rows[(rows["op"] == op) & (rows["peer"] == peer)]
    return chosen if overlapping is None else chosen[(chosen["share"] >= 0.84) == overlapping]


def draw(table: pd.DataFrame) -> Figure:
    longest = int(table["length"].max())
    sparse = table[table["published"] | (table["length"] == longest)]
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    efficiency_by_sparsity(sparse[sparse["sparsity"] > 0], ax=axes[0])
    axes[0].set_title(f"{longest:,} tokens", loc="left", fontsize="medium", fontweight="bold")
    axes[0].set_ylim(0, 1.1)
    lengths = at_length(table).rename(columns={"kernel": "policy", "length": "context"})
    speedup_by_context(lengths, ax=axes[1])
    ideal, dim = 1 / (1 - SPARSITY), palette_of(axes[1]).dim
    axes[1].set_ylim(0, 1.1 * ideal)
    axes[1].axhline(ideal, color=dim, linewidth=1, linestyle=":")
    axes[1].annotate(
        "all that is left out", (0, ideal), xycoords=("axes fraction", "data"), xytext=(4, 3),
        textcoords="offset points", color=dim, fontsize="small",
    )  # fmt: skip
    dress(axes[1], f"{SPARSITY:.0%} left out", "context, tokens", "speed-up over best dense, ×")
    handles, labels = axes[0].get_legend_handles_labels()
    more, names = axes[1].get_legend_handles_labels()
    new = [at for at, name in enumerate(names) if name not in labels]
    figure.legend(
        handles + [more[at] for at in new],
        labels + [names[at] for at in new],
        loc="outside lower center",
        ncols=3,
        fontsize="small",
    )
    return figure


def at_length(table: pd.DataFrame) -> pd.DataFrame:
    """Measured kernels at the sparsity of the right panel, and the dense ones."""
    ours = table[~table["published"]]
    return ours[(ours["sparsity"] - SPARSITY).abs().lt(1e-6) | ours["sparsity"].eq(0)]


def caption(table: pd.DataFrame) -> str:
    about = table.attrs["provenance"]
    ours = at_length(table).query("sparsity > 0")
    shortest, longest = int(ours["length"].min()), int(ours["length"].max())
    at_longest = ours[ours["length"] == longest].set_index("kernel")
    best, worst = at_longest["efficiency"].idxmax(), at_longest["efficiency"].idxmin()
    speed = at_longest["speedup"]
    said = [
        f"Sparse attention kernels on {about['device']} (PyTorch {about['torch']}, Triton {about['triton']}),"
        " 32 heads of dimension 128, bf16.",
        "Efficiency is speed-up over the best dense kernel times density.",
        f"At {longest:,} tokens and {SPARSITY:.0%} left out it runs from"
        f" {at_longest['efficiency'][worst]:.2f} ({worst}) to {at_longest['efficiency'][best]:.2f} ({best});"
        f" at {shortest:,} tokens none is above {ours.loc[ours['length'] == shortest, 'efficiency'].max():.2f}.",
    ]
    if {"blocks of 128", "blocks of 128, FlexAttention"} <= set(speed.index):
        said.append(
            f"Of blocks of 128, ours run {speed['blocks of 128']:.2f}× as fast as dense,"
            f" FlexAttention's {speed['blocks of 128, FlexAttention']:.2f}×."
        )
    said.append("Published figures are of another GPU. Choosing the keys is not in these times.")
    return " ".join(said)


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
