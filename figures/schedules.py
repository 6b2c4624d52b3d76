"""Draw what whole denoising schedules of LLaDA-8B's shape take: long contexts, and policies that compute few positions.

``python figures/schedules.py`` reads ``figures/data/schedules-{16k,64k}-<device>.json``, made by
``python -m dlm_lens.measure.full_schedules``, and writes ``figures/schedules.png`` and ``figures/schedules-dark.png``.
All totals are the sum over the kinds of step at the median of each; where a schedule was really run beside it, the two
agree within a per cent.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from dlm_lens.plots.style import dark, dress, light, palette_of

HERE = Path(__file__).parent
DEVICE = "nvidia-h200"

LONG = {
    "Dense(backend=None)": "dense, best backend",
    "Dense(backend='flash')": "dense, FlashAttention-2",
    "group_size=32": "PulseCol 80%, groups of 32",
    "group_size=128": "PulseCol 80%, groups of 128",
    "SparseD": "SparseD 70%",
}

Row = dict[str, Any]


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else DEVICE
    files = [json.loads((HERE / "data" / f"schedules-{n}-{device}.json").read_text()) for n in ("16k", "64k")]
    rows = [row for file in files for row in file["rows"]]
    for theme, name in ((light, "schedules.png"), (dark, "schedules-dark.png")):
        with theme():
            figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(3, 2))
            draw_long(axes[0], rows)
            draw_window(axes[1], rows, files[0]["replays"])
            about = files[0]["provenance"]
            note = f"{about['device']}, PyTorch {about['torch']}, random weights: speed only, {about['date'][:10]}"
            figure.supxlabel(note, fontsize="x-small", color=palette_of(axes[0]).dim, x=0.995, ha="right")
            figure.savefig(HERE / name, dpi=150)
            plt.close(figure)
        print(f"wrote {HERE / name}")


def total(row: Row) -> float:
    """Seconds of the schedule at the medians of its kinds."""
    if "schedule" not in row:
        return sum(ms["steps"] * ms["median"] for ms in row["ms"].values()) / 1000
    return sum(count * row["ms"][kind]["median"] for kind, count in row["schedule"].items()) / 1000


def draw_long(ax: Axes, rows: list[Row]) -> None:
    """Speed-ups of 1,024 steps over the best dense backend and over FlashAttention-2."""
    palette = palette_of(ax)
    place, labels = 0.0, []
    for length in (16384, 65536):
        here = [row for row in rows if row["context"] == length and row["compiled"] and row["projected"]]
        named = {label: next(r for r in here if mark in r["parameters"]) for mark, label in LONG.items()}
        best, flash = total(named["dense, best backend"]), total(named["dense, FlashAttention-2"])
        for label, row in list(named.items())[2:]:
            for base, colour, shift, name in (
                (best, 0, 0.2, "best dense"),
                (flash, 1, -0.2, "FlashAttention-2"),
            ):
                ratio = base / total(row)
                ax.barh(place + shift, ratio, height=0.38, color=palette.series[colour], label=f"over {name}")
                ax.text(
                    ratio + 0.03,
                    place + shift,
                    f"{ratio:.2f}×",
                    va="center",
                    fontsize="small",
                    color=palette.text,
                )
            labels.append((place, f"{label}\n{length // 1024}k tokens"))
            place -= 1
        place -= 0.4
    ax.axvline(1, color=palette.dim, linewidth=1, linestyle=(0, (2, 3)))
    ax.set_yticks([at for at, _ in labels], [label for _, label in labels], fontsize="small")
    handles, names = ax.get_legend_handles_labels()
    ax.legend(handles[:2], names[:2], loc="upper right", fontsize="small")
    ax.set_xlim(0, 3.9)
    dress(ax, "Speed-up of a whole schedule of 1,024 steps", "× (refreshes and dense steps included)", "")


def draw_window(ax: Axes, rows: list[Row], replays: list[Row]) -> None:
    """Milliseconds of the steps of policies that compute few positions, beside reading all weights once."""
    palette = palette_of(ax)
    here = [row for row in rows if row["context"] == 1536]
    dense = total(here[0])
    for at, row in enumerate(here):
        ms = row["ms"]["dense" if "dense" in row["ms"] else "cached"]["median"]
        ax.barh(-at, ms, height=0.6, color=palette.series[0] if at else palette.dim)
        ratio = "" if at == 0 else f", whole run {dense / total(row):.1f}×"
        ax.text(ms + 0.5, -at, f"{ms:.1f} ms{ratio}", va="center", fontsize="small", color=palette.text)
    floor = replays[0]["stream_ms"]
    ax.axvline(floor, color=palette.series[1], linewidth=1.5)
    ax.text(
        floor + 0.6, 0.55, "all weights read once", fontsize="small", color=palette.series[1], va="bottom"
    )
    names = [row["policy"].replace(", no early stop", "") for row in here]
    ax.set_yticks([-at for at in range(len(here))], names, fontsize="small")
    ax.set_xlim(0, 62)
    ax.set_ylim(-len(here) + 0.4, 1.1)
    dress(ax, "Prompt of 512, 1,024 generated", "ms of a dense or cached step", "")


if __name__ == "__main__":
    main()
