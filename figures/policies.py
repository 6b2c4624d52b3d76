"""Draw what every policy loses on the bundled model, by the share of keys left out and by length.

``python figures/policies.py`` reads ``figures/data/policies-cpu.json``, made by
``python -m dlm_lens.measure.policy_table``, and writes ``figures/policies.png`` and ``figures/policies-dark.png``.
KL is a mean over all steps: of the 8 there (4 at 2,048 tokens), PulseCol refreshes in 2 (1), SparseD is dense in 3 (2).
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

# How a label begins → index of the colour, marker, line. The first that fits.
STYLES = {
    "PulseCol adaptive": (0, "^", ":"),
    "PulseCol": (0, "o", "-"),
    "SparseD": (2, "D", "-"),
    "Sink-aware KV": (3, "s", "-"),
    "StreamingLLM": (3, "v", ":"),
    "Sliding window": (2, "v", ":"),
    "Oracle columns": (0, "x", "--"),
    "Random columns": (1, "o", "-"),
}


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "data" / "policies-cpu.json"
    stored = json.loads(source.read_text())
    rows, about = pd.DataFrame(stored["rows"]), stored["provenance"]
    rows = rows[~rows["policy"].str.contains("transient") & (rows["density"] < 0.6)]
    rows["left out"] = 100 * (1 - rows["density"])
    lengths = sorted(rows["context"].unique())
    for theme, name in ((light, "policies.png"), (dark, "policies-dark.png")):
        with theme():
            figure, axes = plt.subplots(
                2, len(lengths), figsize=(11, 6), layout="constrained", sharex=True, sharey="row"
            )
            for column, length in enumerate(lengths):
                here = rows[rows["context"] == length]
                draw(axes[0, column], here, "kl", f"{length:,} tokens")
                draw(axes[1, column], here, "accuracy", "")
            axes[0, 0].set(ylabel="KL to dense, nats", yscale="log")
            axes[1, 0].set(ylabel="retrieval questions right, %")
            figure.legend(
                *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small"
            )
            questions = about["items"].values()
            note = f"tiny-dlm; held-out code; {min(questions)} to {max(questions)} questions; {about['date'][:10]}"
            figure.suptitle(note, fontsize="x-small", color=palette_of(axes[0, 0]).dim, x=0.995, ha="right")
            figure.savefig(HERE / name, dpi=150)
            plt.close(figure)
        print(f"wrote {HERE / name}")


def draw(ax: Axes, rows: pd.DataFrame, column: str, title: str) -> None:
    """One quantity against the share of keys left out, a line per policy."""
    palette = palette_of(ax)
    for name, (colour, marker, line) in STYLES.items():
        own = rows[
            rows["policy"].map(lambda label: next((s for s in STYLES if label.startswith(s)), "")) == name
        ]
        own = own.sort_values("left out")
        values = own[column] * (100 if column == "accuracy" else 1)
        style = {"color": palette.series[colour], "marker": marker, "linestyle": line, "markersize": 5}
        ax.plot(own["left out"], values, label=name, **style)
    ax.set_xticks([50, 80, 90])
    dress(ax, title, "keys left out, %" if column == "accuracy" else "", "")


if __name__ == "__main__":
    main()
