"""Do keys and values of decided tokens stay put except just after decoding (Window-Diffusion, arXiv 2601.20332)?
Measured on the bundled model by age, and by nearness to new text, which goes with age and is not the same.

``python figures/window_kv_drift.py`` measures, draws and explains; see ``common.py`` for its options.
"""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from common import run
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dlm_lens as dl
from dlm_lens.plots.spread import over_prompts
from dlm_lens.plots.style import dress, palette_of

PROMPTS, PROMPT_LENGTH, GEN_LENGTH, STEPS, AGES = 4, 96, 128, 32, 16
SAMPLERS = {
    "blocks of 32": dl.LowConfidence(block_length=32),
    "no blocks": dl.LowConfidence(block_length=GEN_LENGTH),
}
# Lower ends of bins.
AGE_BINS = (1, 2, 4, 8)
NEAR_BINS = (1, 4, 16)

# Where float32 rounds otherwise, a commitment flips now and then, and the states after it with it.
TOLERANCE = {"positions": (0.6, 60.0), "relative_l2": (0.5, 0.02)}


def measure(prompts: int = PROMPTS) -> pd.DataFrame:
    """:func:`dlm_lens.drift_since_decoding`, mean over layers, in the three parts that are drawn."""
    dlm = dl.load("tiny", device="cpu")
    ids = dlm.encode(dl.tasks.held_out_text()).tokens[0]
    passages = torch.stack([part[:PROMPT_LENGTH] for part in ids.chunk(PROMPTS)])[:prompts]
    tables = []
    for name, sampler in SAMPLERS.items():
        drift = dl.drift_since_decoding(
            dlm, passages, gen_length=GEN_LENGTH, steps=STEPS, sampler=sampler, ages=AGES, progress=False
        )
        tables.append(drift.assign(sampler=name))
    table = pd.concat(tables, ignore_index=True)
    table["late"] = table["remaining"] == 0
    table["relative_l2"] *= table["positions"]
    keys = ["sampler", "prompt", "late", "tensor", "kind", "age", "distance"]
    sums = table.groupby(keys, as_index=False)[["positions", "relative_l2"]].sum()
    sums["relative_l2"] /= sums["positions"]
    sums["positions"] //= dlm.spec.layers
    return parts(sums)


def parts(table: pd.DataFrame) -> pd.DataFrame:
    """By age, all tensors; by age and nearness, keys; by age and before or in the last quarter, keys."""
    early = table[~table["late"]]
    keys = table[(table["tensor"] == "key") & (table["kind"] == "decoded") & (table["age"] > 0)]
    keys = keys.assign(
        age=_lower_end(keys["age"], AGE_BINS), distance=_lower_end(keys["distance"], NEAR_BINS)
    )
    found = {
        "age": _means(early.assign(distance=0)),
        "nearness": _means(keys[~keys["late"]], ages=AGE_BINS, distances=NEAR_BINS),
        "end": _means(keys.assign(distance=0), ages=AGE_BINS, late=(False, True)),
    }
    whole = pd.concat([part.assign(part=name) for name, part in found.items()], ignore_index=True)
    return whole[["part", *whole.columns.difference(["part"], sort=False)]]


def _lower_end(values: pd.Series, edges: tuple[int, ...]) -> np.ndarray:
    """The largest of ``edges`` that each value reaches."""
    return np.array(edges)[np.searchsorted(edges, values, side="right") - 1]


def _means(
    table: pd.DataFrame,
    ages: tuple[int, ...] | None = None,
    distances: tuple[int, ...] = (0,),
    late: tuple[bool, ...] = (False,),
) -> pd.DataFrame:
    """Weighted means; with ``ages``, of every combination: where nothing was found, 0 of 0 positions."""
    keys = ["sampler", "prompt", "late", "tensor", "kind", "age", "distance"]
    table = table.assign(relative_l2=table["relative_l2"] * table["positions"])
    sums = table.groupby(keys)[["positions", "relative_l2"]].sum()
    if ages is not None:
        levels = [SAMPLERS, table["prompt"].unique(), late, ["key"], ["decoded"], ages, distances]
        sums = sums.reindex(pd.MultiIndex.from_product(levels, names=keys), fill_value=0)
    sums["relative_l2"] /= sums["positions"].clip(lower=1)
    return sums.reset_index()


def draw(table: pd.DataFrame) -> Figure:
    """Drift without blocks: by age; of keys by age and nearness; of keys by age, before the last quarter and in it."""
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4), layout="constrained", width_ratios=(1.3, 1, 1))
    free = table[table["sampler"] == "no blocks"]
    dl.plots.kv_drift(free[free["part"] == "age"], ax=axes[0])
    axes[0].set_title("By age", loc="left", fontsize="medium", fontweight="bold")
    near = free[free["part"] == "nearness"]
    lines = {f"{label} from a new token": near[near["distance"] == low] for low, label in _labels(NEAR_BINS)}
    _lines(axes[1], lines, 0)
    dress(axes[1], "Keys, by nearness to new tokens", "steps since the position was decided", "")
    end = free[free["part"] == "end"]
    _lines(axes[2], {"last quarter of the run": end[end["late"]], "before": end[~end["late"]]}, 2)
    dress(axes[2], "Keys, by part of the run", "steps since the position was decided", "")
    axes[2].sharey(axes[1])
    return figure


def _labels(edges: tuple[int, ...]) -> list[tuple[int, str]]:
    """The lower end of every bin and its name."""
    inner = [(low, f"{low}–{high - 1}" if high - low > 1 else str(low)) for low, high in pairwise(edges)]
    return [*inner, (edges[-1], f"{edges[-1]} or more")]


def _lines(ax: Axes, lines: dict[str, pd.DataFrame], first: int) -> None:
    """A line per table over the bins of ages, in the colours from ``first`` on."""
    colours = palette_of(ax).series
    for index, (label, rows) in enumerate(lines.items(), start=first):
        own = over_prompts(rows, ["age"], "relative_l2", "positions")
        style = {
            "color": colours[index % len(colours)],
            "marker": "osD^v"[index],
            "markersize": 4,
            "capsize": 2,
        }
        ax.errorbar(range(len(own)), own["mean"].to_numpy(), yerr=own["se"].to_numpy(), label=label, **style)
    ax.set_xticks(range(len(AGE_BINS)), [label for _, label in _labels(AGE_BINS)])
    ax.set_yscale("log")
    ax.legend(fontsize="small")


def caption(table: pd.DataFrame) -> str:
    said = [
        f"tiny-dlm, {PROMPTS} passages of held-out code of {PROMPT_LENGTH} tokens, {GEN_LENGTH} tokens in {STEPS}"
        " steps; relative L2 change from one state of the dense run to the next, mean over layers, with standard"
        " errors over passages; drawn without blocks, which force new text to be near; before the last"
        " quarter of the run unless it says otherwise."
    ]
    said += [f"With {name}, {_by_age(table[table['sampler'] == name])}" for name in SAMPLERS]
    return " ".join([*said, _verdict(table[table["sampler"] == "no blocks"])])


def _mean(rows: pd.DataFrame) -> float:
    """Over positions, then over prompts."""
    return float(over_prompts(rows.assign(all=0), ["all"], "relative_l2", "positions")["mean"][0])


def _by_age(table: pd.DataFrame) -> str:
    rows = table[(table["part"] == "age") & (table["tensor"] == "key")]
    first, old = rows[rows["age"] == 1], rows[rows["age"] >= 8]
    masked, prompt = (rows[rows["kind"] == kind] for kind in ("masked", "prompt"))
    return (
        f"a decided position's key changes by {_mean(first):.1%} in the first step after and by {_mean(old):.1%} a step"
        f" from the eighth on; keys still masked change by {_mean(masked):.1%}, the prompt's by {_mean(prompt):.1%}."
    )


def _verdict(table: pd.DataFrame) -> str:
    """Whether age or nearness makes the difference, and whether it lasts to the end of the run."""
    near, end = table[table["part"] == "nearness"], table[table["part"] == "end"]
    young, old = near[near["age"] == 1], near[near["age"] >= 4]
    beside = [rows[rows["distance"] == NEAR_BINS[0]] for rows in (young, old)]
    whole, alone = _mean(young) / _mean(old), _mean(beside[0]) / _mean(beside[1])
    nearness = _mean(beside[1]) / _mean(old[old["distance"] == NEAR_BINS[-1]])
    kind = "is a transient, as the paper says" if whole > 2 else "is no clear transient, against the paper"
    share = np.log(max(alone, 1)) / np.log(whole) if whole > 1 else 0.0
    cause = "most of that is nearness, not age" if share < 0.5 else "age itself makes most of it"
    old_end = end[end["age"] == AGE_BINS[-1]]
    late, before = _mean(old_end[old_end["late"]]), _mean(old_end[~old_end["late"]])
    rest = "does not last" if late > 1.5 * before else "lasts"
    return (
        f"Without blocks drift after decoding {kind}: from age 1 to 4 and more it falls {whole:.1f}-fold. But {cause}:"
        f" within 3 positions of a new token it falls {alone:.1f}-fold over the same ages, and at age 4 and more it is"
        f" {nearness:.1f} times as large there as 16 or more positions away. The rest {rest} to the end of the run: in"
        f" its last quarter keys decided 8 or more steps ago change by {late:.1%} a step, before that by {before:.1%}."
    )


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
