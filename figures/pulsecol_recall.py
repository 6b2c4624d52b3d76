"""How much attention columns and blocks can keep at a budget of keys, in early and late denoising steps (PulseCol)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from common import capture_code, run
from matplotlib.figure import Figure

import dlm_lens as dl
from dlm_lens.measure.environment import provenance
from dlm_lens.plots import recall_by_budget
from dlm_lens.plots.style import palette_of

LENGTH, GENERATED, STEPS = 384, 320, 40
EARLY = 0.3  # of the steps: PulseCol's refresh window
# A token that flips on another CPU changes later states a little; means over heads, steps and prompts bear it.
TOLERANCE = {"recall": (0.02, 0.01)}


def measure() -> pd.DataFrame:
    """Recall by time, layer, granularity and budget: means over heads, steps and two pieces of held-out code."""
    dlm = dl.load("tiny")
    trace = capture_code(
        dlm, LENGTH, GENERATED, STEPS, statistics=[dl.Recall()], record_steps=range(0, STEPS, 4)
    )
    recall = trace["recall"].mean(("sample", "head"))
    early = recall["step"] < EARLY * STEPS
    parts = [
        recall.sel(step=where).mean("step").to_dataframe("recall").reset_index().assign(time=time)
        for time, where in (("early", early), ("late", ~early))
    ]
    table = pd.concat(parts, ignore_index=True)[["time", "layer", "granularity", "budget", "recall"]]
    table["budget"] = table["budget"].map("{:g}".format)
    table.attrs["provenance"] = provenance(dlm, seed=0)
    return table


def by_budget(table: pd.DataFrame, time: str) -> pd.DataFrame:
    """Recall of one time with a numeric budget."""
    return table[table["time"] == time].astype({"budget": float})


def draw(table: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained", sharey=True)
    for ax, time in zip(axes, ("early", "late"), strict=True):
        here = by_budget(table, time).set_index(["layer", "granularity", "budget"])["recall"].to_xarray()
        order = list(dict.fromkeys(table["granularity"]))
        recall_by_budget(here.sel(granularity=order), ax=ax)
        span = "first 30% of the steps" if time == "early" else "later steps"
        ax.set_title(span.capitalize(), loc="left", fontsize="medium", fontweight="bold")
        ax.axvline(20, color=palette_of(ax).line, linewidth=1, zorder=0)
    axes[1].set_ylabel("")
    axes[0].get_legend().remove()
    return figure


def caption(table: pd.DataFrame) -> str:
    mean = {
        time: by_budget(table, time).groupby(["granularity", "budget"])["recall"].mean()
        for time in ("early", "late")
    }
    at = {time: mean[time].xs(0.2, level="budget") for time in mean}
    worst = by_budget(table, "early").query("granularity == 'columns 32' and budget == 0.2")["recall"].min()
    early, late = at["early"], at["late"]
    return (
        "Best share of the attention that columns (a list for every 32 or 128 queries, or one for all) and square"
        f" blocks can keep at a budget of keys, on the bundled tiny-dlm ({LENGTH} tokens of code, {GENERATED} of them"
        f" generated in {STEPS} steps; mean over heads and layers). With 20% of the keys, columns of 32 queries keep"
        f" {early['columns 32']:.0%} in early steps and {late['columns 32']:.0%} later, blocks of 32"
        f" {early['blocks 32']:.0%} and {late['blocks 32']:.0%}; columns of 128 keep {early['columns 128']:.0%} and"
        f" {late['columns 128']:.0%}, blocks of 128 {early['blocks 128']:.0%} and {late['blocks 128']:.0%}."
        f" {verdict(early, late)} The layer that keeps least keeps {worst:.0%} with columns of 32. All choices are made"
        " with full knowledge of the step; none has aged."
    )


def verdict(early: pd.Series, late: pd.Series) -> str:
    """What of PulseCol's claim on early steps holds, at one budget."""
    change = early["columns 32"] - late["columns 32"]
    sparse = (
        f"Early steps are as column-sparse as later ones ({change:+.1%} of the attention), as PulseCol says"
        if change > -0.02
        else f"Early steps are less column-sparse than later ones ({change:+.1%} of the attention), against PulseCol"
    )
    small, large = (early[f"columns {size}"] - early[f"blocks {size}"] for size in (32, 128))
    if small <= 0:
        return f"{sparse}; that blocks are too coarse for them does not hold here for blocks of 32."
    which = "both" if small > 0.1 * early["columns 32"] else "large ones; small ones come close to columns"
    return (
        f"{sparse}. Blocks are coarser by {small:.1%} of the attention at size 32 and {large:.1%} at 128: its claim"
        f" that they are too coarse holds for {which}."
    )


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
