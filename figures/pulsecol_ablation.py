"""What PulseCol's two choices are worth on the bundled model: columns or blocks, refreshing or dense early steps.

Reads ``figures/data/pulsecol-ablation-*.json``, which ``python -m dlm_lens.measure.ablation`` writes, those of a GPU if
there are any, or the files given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from common import run, stored
from matplotlib.figure import Figure

from dlm_lens.plots.style import dress, palette_of

CELLS = ("column + refresh", "column + skip", "block + refresh", "block + skip")
MARKERS = "osD^v"
Z = 1.96


def measure(*files: Path) -> pd.DataFrame:
    """A row per setting and variant: means over prompts with standard errors, KL also less that of columns with
    refreshes, prompt by prompt; and questions answered."""
    sources = files or stored("pulsecol-ablation*-nvidia-*.json", "pulsecol-ablation-*.json")
    stories = sorted((json.loads(source.read_text()) for source in sources), key=_order)
    table = pd.concat([_of_setting(story) for story in stories], ignore_index=True)
    table.attrs["provenance"] = stories[0]["provenance"] | {"files": [source.name for source in sources]}
    return table


def _order(story: dict[str, Any]) -> tuple[int, int]:
    return story["provenance"]["refreshes"], story["provenance"]["length"]


def _of_setting(story: dict[str, Any]) -> pd.DataFrame:
    about = story["provenance"]
    states, answers = pd.DataFrame(story["states"]), pd.DataFrame(story["answers"])
    kl = states.pivot(index="prompt", columns="variant", values="kl_late")
    more = kl.sub(kl[CELLS[0]], axis=0)
    by_variant = states.groupby("variant")
    table = pd.DataFrame(
        {
            "kl": kl.mean(),
            "kl_se": kl.sem().fillna(0.0),
            "kl_more": more.mean(),
            "kl_more_se": more.sem().fillna(0.0),
            "kept": by_variant["retained_late"].mean(),
            "worst_layer": by_variant["worst_layer"].mean(),
            "dense_steps": by_variant["dense_steps"].mean(),
        }
    )
    control = [name for name in table.index if name not in CELLS]
    table = table.join(answers.groupby("variant")[["right", "items"]].sum(), how="right")
    table = table.loc[[*CELLS, *control, "Dense"]].rename_axis("variant").reset_index()
    return table.assign(
        length=about["length"], refreshes=about["refreshes"], prompts=states["prompt"].nunique()
    )


def settings(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of every setting under its name."""
    fewest = table["refreshes"].min()
    return [
        (
            f"{length:,} tokens" + ("" if refreshes == fewest else f", {refreshes} refreshes"),
            rows.set_index("variant"),
        )
        for (refreshes, length), rows in table.groupby(["refreshes", "length"])
    ]


def draw(table: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained", sharey=True)
    kl, mass, right = axes
    named = settings(table)
    variants = [variant for variant in dict.fromkeys(table["variant"]) if variant != "Dense"]
    place, palette = np.arange(len(variants)), palette_of(kl)
    for number, (name, rows) in enumerate(named):
        rows = rows.loc[variants]
        lane = place + (number - (len(named) - 1) / 2) * 0.17
        how: dict[str, Any] = {
            "color": palette.series[number % len(palette.series)], "marker": MARKERS[number % len(MARKERS)],
            "linestyle": "", "markersize": 5, "capsize": 2, "label": name,
        }  # fmt: skip
        kl.errorbar(rows["kl"], lane, xerr=rows["kl_se"], **how)
        mass.errorbar(100 * rows["kept"], lane, **how)
        low, high = wilson(rows["right"].to_numpy(), rows["items"].to_numpy())
        share = rows["right"] / rows["items"]
        right.errorbar(100 * share, lane, xerr=100 * np.array([share - low, high - share]).clip(0), **how)
    kl.set_xscale("log")
    for ax in (mass, right):
        ax.set_xlim(-2, 103)
    kl.set_yticks(place, variants)
    kl.invert_yaxis()
    dress(kl, "KL to dense", "nats (log scale, lower is better)", "what is kept + when it is chosen")
    dress(mass, "Attention kept", "% (higher is better)", "")
    dress(right, "Questions answered", "% (higher is better)", "")
    handles, labels = kl.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(named), fontsize="small")
    return figure


def wilson(right: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% interval of a share."""
    share = right / items
    middle = (share + Z**2 / (2 * items)) / (1 + Z**2 / items)
    half = Z / (1 + Z**2 / items) * np.sqrt(share * (1 - share) / items + Z**2 / (4 * items**2))
    return middle - half, middle + half


def against(rows: pd.DataFrame, variant: str) -> str:
    """How the KL of a variant compares with that of columns with refreshes, prompt by prompt."""
    more, error = rows["kl_more"][variant], rows["kl_more_se"][variant]
    word = "higher" if more > Z * error else "lower" if more < -Z * error else "no different"
    return f"{word} ({more:+.3f} ± {error:.3f})"


def caption(table: pd.DataFrame) -> str:
    about, named = table.attrs["provenance"], settings(table)
    device = "a CPU" if about["device"] == "cpu" else about["device"]
    dense_steps = table.set_index("variant")["dense_steps"]["column + skip"].max()
    said = [
        f"PulseCol's ablation at {about['sparsity']:.0%} sparsity on the bundled tiny-dlm, on {device}: columns of"
        f" groups of 32 queries or blocks of 32 × 32, chosen at {about['refreshes']} early refreshes (where not said"
        f" otherwise) or once after {dense_steps:.0f} dense early steps. KL and kept attention of"
        f" {table['prompts'].min()} pieces of code in {about['steps']} steps, over the steps"
        " after every variant has made its last choice, ± one standard error;"
        f" {table['items'].min()} questions ({about['variant']}), 95% intervals."
    ]
    for name, rows in named:
        right = rows["right"]
        said.append(
            f"At {name}, KL against that of columns with refreshes is {against(rows, 'block + refresh')} for blocks and"
            f" {against(rows, 'column + skip')} for dense early steps; of {rows['items']['Dense']} questions dense"
            f" attention answers {right['Dense']}, columns {right[CELLS[0]]} refreshed and {right[CELLS[1]]} skipping,"
            f" blocks {right[CELLS[2]]} and {right[CELLS[3]]}."
        )
    said.append(verdict([rows for _, rows in named]))
    said.append(
        "Published for LLaDA-1.5, GSM8K and HumanEval: full attention 76.19 and 38.41, blocks with refreshes 58.00 and"
        " 33.54, columns with dense early steps 69.14 and 34.15."
    )
    return " ".join(said)


def verdict(found: list[pd.DataFrame]) -> str:
    """What of the paper's ablation holds here."""
    kept = all(rows["kept"]["column + refresh"] > rows["kept"]["block + refresh"] for rows in found)
    fewer = sum(map(_clearly_fewer, found))
    higher, lower = (
        sum(against(rows, "block + refresh").startswith(word) for rows in found)
        for word in ("higher", "lower")
    )
    columns = f"Columns keep {'more' if kept else 'not always more'} of the attention than blocks"
    said = (
        f"{columns} and answer clearly more questions in {fewer} of {len(found)} settings, as the paper says; the KL of"
        f" blocks is clearly higher in {higher} and clearly lower in {lower}"
    )
    said += "." if higher > lower else ", which contradicts it: attention kept does not settle fidelity."
    early = [rows for rows in found if against(rows, "column + skip").startswith("higher")]
    dear = [rows["dense_steps"]["column + refresh"] >= rows["dense_steps"]["column + skip"] for rows in early]
    said += f" Refreshing is clearly better than dense early steps in {len(early)}"
    if all(dear):
        said += ", but nowhere with fewer dense steps of its own, unlike in the paper"
    return f"{said}."


def _clearly_fewer(rows: pd.DataFrame) -> bool:
    """Whether the intervals of blocks and of columns, both with refreshes, do not meet."""
    right, items = rows["right"].to_numpy(), rows["items"].to_numpy()
    low, high = (pd.Series(bound, rows.index) for bound in wilson(right, items))
    return bool(high["block + refresh"] < low["column + refresh"])


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
