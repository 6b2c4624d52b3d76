"""Draw what the kernels save: efficiency against sparsity, ours and peers', from the benchmark's file.

``python figures/kernels.py [figures/data/kernels-<device>.json]`` writes ``figures/kernels.png`` and
``figures/kernels-dark.png``. Efficiency is speed-up over the best dense backend times density; 1 would mean that
leaving out work saves exactly its share of the time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from dlm_lens.plots.style import dark, dress, light, palette_of

HERE = Path(__file__).parent
DEFAULT = HERE / "data" / "kernels-nvidia-h200.json"

# (operation, peer, least overlap of lists) → label, index of the colour, marker, line.
CURVES = {
    ("columns, groups of 128", "dlm_kernels", None): ("columns, groups of 128", 0, "o", "-"),
    ("columns, groups of 32", "dlm_kernels, shared lists", 0.84): (
        "columns of 32, 88% overlap",
        0,
        "s",
        "--",
    ),
    ("columns, groups of 32", "dlm_kernels, shared lists", 0.0): ("columns of 32, 78% overlap", 0, "^", ":"),
    ("blocks of 128", "dlm_kernels", None): ("blocks of 128", 2, "D", "-"),
    ("blocks of 128", "FlexAttention", None): ("blocks of 128, FlexAttention", 1, "D", "-"),
    ("columns, groups of 32", "dlm_kernels, private lists", 0.0): ("columns of 32, no sharing", 3, "v", ":"),
}
# Efficiencies that others published for an H100.
PUBLISHED = {
    "Chipmunk, columns of 192 (published, H100)": (0.93, 0.65, "x"),
    "VSA, blocks of 64 (published, H100)": (0.875, 0.87, "+"),
    "FlexAttention, blocks of 64 (published, H100)": (0.875, 0.25, "*"),
}


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    stored = json.loads(source.read_text())
    rows, about = pd.DataFrame(stored["rows"]), stored["provenance"]
    for theme, name in ((light, "kernels.png"), (dark, "kernels-dark.png")):
        with theme():
            figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
            draw_sparsity(axes[0], rows)
            draw_length(axes[1], rows)
            figure.legend(
                *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small"
            )
            note = (
                f"{about['device']}, PyTorch {about['torch']}, Triton {about['triton']}, {about['date'][:10]}"
            )
            figure.text(
                0.995, 0.985, note, fontsize="x-small", color=palette_of(axes[0]).dim, ha="right", va="top"
            )
            figure.savefig(HERE / name, dpi=150)
            plt.close(figure)
        print(f"wrote {HERE / name}")


def draw_sparsity(ax: Axes, rows: pd.DataFrame) -> None:
    """Efficiency against sparsity at the greatest length."""
    palette = palette_of(ax)
    longest = rows[rows["length"] == rows["length"].max()]
    ax.axhline(1.0, color=palette.dim, linewidth=1, linestyle=(0, (2, 3)))
    for curve, (label, colour, marker, line) in CURVES.items():
        chosen = pick(longest, *curve).sort_values("sparsity")
        style = {"color": palette.series[colour], "marker": marker, "linestyle": line}
        ax.plot(100 * chosen["sparsity"], chosen["efficiency"], label=label, **style)
    for label, (sparsity, efficiency, marker) in PUBLISHED.items():
        ax.scatter(
            100 * sparsity,
            efficiency,
            marker=marker,
            color=palette.dim,
            zorder=3,
            label=label,
            linewidths=1.5,
        )
    dense = longest[longest["op"] == "dense"].set_index("peer")["efficiency"]
    flash = dense.filter(like="FlashAttention-2")
    if len(flash):
        ax.axhline(flash.iloc[0], color=palette.dim, linewidth=1, label="dense FlashAttention-2")
    dress(
        ax,
        f"{longest['length'].iloc[0]:,} tokens",
        "keys left out, %",
        "efficiency: speed-up over best dense × density",
    )
    ax.set_ylim(0, 1.1)


def draw_length(ax: Axes, rows: pd.DataFrame) -> None:
    """Efficiency against length at 80%."""
    palette = palette_of(ax)
    at = rows[(rows["sparsity"] - 0.8).abs() < 1e-9]
    ax.axhline(1.0, color=palette.dim, linewidth=1, linestyle=(0, (2, 3)))
    for curve, (_, colour, marker, line) in CURVES.items():
        chosen = pick(at, *curve).sort_values("length")
        ax.plot(
            chosen["length"],
            chosen["efficiency"],
            color=palette.series[colour],
            marker=marker,
            linestyle=line,
        )
    ax.set_xscale("log", base=2)
    lengths = sorted(at["length"].unique())
    ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
    dress(ax, "80% left out", "tokens", "")


def pick(rows: pd.DataFrame, op: str, peer: str, overlap: float | None) -> pd.DataFrame:
    """Rows of one curve; of lists that overlap, those whose overlap is the first at or above ``overlap``."""
    chosen = rows[(rows["op"] == op) & (rows["peer"] == peer)]
    if overlap is None or chosen.empty:
        return chosen
    return chosen[(chosen["share"] >= 0.84) == (overlap >= 0.84)]


if __name__ == "__main__":
    main()
