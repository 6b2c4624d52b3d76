"""Does far undecided context matter, and where are tokens committed? The two observations behind Window-Diffusion
(arXiv 2601.20332), measured on the bundled model, with and without LLaDA's blocks, which force locality by themselves.

``python figures/window_locality.py`` measures, draws and explains; see ``common.py`` for its options.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from common import run
from matplotlib.figure import Figure

import dlm_lens as dl
from dlm_lens.plots.spread import over_prompts
from dlm_lens.plots.style import dress, palette_of

# Prompts of as many tokens as are generated: the control can then leave out as many decided positions everywhere.
PROMPTS, PROMPT_LENGTH, GEN_LENGTH, STEPS = 4, 128, 128, 24
DISTANCES = (0, 8, 16, 32, 64)
WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128)
SAMPLERS = {
    "blocks of 32": dl.LowConfidence(block_length=32),
    "no blocks": dl.LowConfidence(block_length=GEN_LENGTH),
}

COLUMNS = ["quantity", "sampler", "prompt", "left_out", "distance", "count", "kl", "agreement", "share"]

# Where float32 rounds otherwise, a commitment flips now and then, and the states after it with it.
TOLERANCE = {"kl": (0.6, 0.01), "agreement": (0.0, 0.2), "count": (0.0, 8.0), "share": (0.0, 0.3)}


def passages_of(dlm: dl.DLM) -> torch.Tensor:
    """LongTensor [PROMPTS, PROMPT_LENGTH]: passages of held-out code at even distances."""
    ids = dlm.encode(dl.tasks.held_out_text()).tokens[0]
    return torch.stack([part[:PROMPT_LENGTH] for part in ids.chunk(PROMPTS)])


def measure(prompts: int = PROMPTS) -> pd.DataFrame:
    """:func:`dlm_lens.context_influence`, mean over states, and by window size the share committed within it."""
    dlm = dl.load("tiny", device="cpu")
    passages = passages_of(dlm)[:prompts]
    tables = []
    for name, sampler in SAMPLERS.items():
        settings = {"gen_length": GEN_LENGTH, "steps": STEPS, "sampler": sampler, "progress": False}
        influence = dl.context_influence(dlm, passages, distances=DISTANCES, states=2, **settings)
        rows = []
        for number, passage in enumerate(passages):
            trace = dl.capture(dlm, passage, statistics=[], **settings)
            rank = dl.metrics.committed_distance(trace)["rank"].dropna("position")
            rows += [
                {"prompt": number, "distance": window, "share": float((rank < window).mean())}
                for window in WINDOWS
            ]
        committed = pd.DataFrame(rows).assign(left_out="nothing")
        tables += [
            over_states(influence).assign(sampler=name, quantity="influence"),
            committed.assign(sampler=name, quantity="committed"),
        ]
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def over_states(influence: pd.DataFrame) -> pd.DataFrame:
    """Means over the states of every run."""
    groups = influence.groupby(["prompt", "left_out", "distance"], as_index=False)
    return groups[["count", "kl", "agreement"]].mean()


def draw(table: pd.DataFrame) -> Figure:
    """Influence by distance under both samplers, and the share of commitments within a window."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", width_ratios=(1, 1, 0.9))
    influence = table[table["quantity"] == "influence"]
    for ax, name in zip(axes, SAMPLERS, strict=False):
        dl.plots.influence_by_distance(influence[influence["sampler"] == name], ax=ax)
        ax.set_title(f"Context left out, {name}", loc="left", fontsize="medium", fontweight="bold")
    axes[1].sharey(axes[0])
    axes[1].set_ylabel("")
    axes[1].get_legend().remove()
    _committed(axes[2], table[table["quantity"] == "committed"])
    return figure


def _committed(ax: plt.Axes, table: pd.DataFrame) -> None:
    palette = palette_of(ax)
    for index, name in enumerate(SAMPLERS):
        share = over_prompts(table[table["sampler"] == name], ["distance"], "share")
        places = np.arange(len(share))
        style = {"marker": "os"[index], "markersize": 4, "capsize": 2, "color": palette.series[3 * index]}
        mean, error = 100 * share["mean"].to_numpy(), 100 * share["se"].to_numpy()
        ax.errorbar(places, mean, yerr=error, label=name, **style)
    ax.set_xticks(places, [str(window) for window in share.index])
    ax.set_ylim(0, 103)
    dress(ax, "Where tokens are committed", "window, first masked positions", "committed inside, %")
    ax.legend(fontsize="small")


def caption(table: pd.DataFrame) -> str:
    influence = table[table["quantity"] == "influence"]
    committed = table[table["quantity"] == "committed"]
    parts = [
        f"tiny-dlm, {PROMPTS} passages of held-out code of {PROMPT_LENGTH} tokens, {GEN_LENGTH} tokens in"
        f" {STEPS} steps; the 16 first masked positions predicted at two early states of every dense run; means and"
        " standard errors over passages."
    ]
    for name in SAMPLERS:
        kl = over_prompts(influence[influence["sampler"] == name], ["left_out", "distance"], "kl")["mean"]
        share = over_prompts(committed[committed["sampler"] == name], ["distance"], "share")["mean"]
        far, near, decided = kl["far"], kl["near"], kl["decided"]
        parts.append(
            f"With {name}: without any other undecided context KL is {far[0]:.2g} nats, without what is farther than"
            f" 16 positions {far[16]:.2g} ({far[16] / far[0]:.0%} of that), without as many of the nearest"
            f" {near[16]:.2g}, without as many decided positions {decided[16]:.2g};"
            f" {share[16]:.0%} of tokens are committed among the 16 first masked positions."
        )
    return " ".join([*parts, _verdict(influence, committed)])


def _verdict(influence: pd.DataFrame, committed: pd.DataFrame) -> str:
    """Whether this is what the paper says; without blocks, where nothing forces it."""
    free = influence[influence["sampler"] == "no blocks"]
    kl = over_prompts(free, ["left_out", "distance"], "kl")["mean"]
    by_passage = free[free["distance"] == 16].pivot(index="prompt", columns="left_out", values="kl")
    gap = by_passage["near"] - by_passage["far"]
    commitments = committed[committed["sampler"] == "no blocks"]
    share = over_prompts(commitments, ["distance"], "share")["mean"][16]
    far, decided = kl["far"][16], kl["decided"][16]
    undecided = kl["far"][0] / kl["decided"][0]
    nearer = (
        "nearer context matters more" if gap.mean() > 2 * gap.sem() else "nearness makes no clear difference"
    )
    whether = "as the paper says" if far < 0.1 * decided else "against what the paper says"
    verdict = (
        f"Far undecided context matters {decided / far:,.0f} times less than as much decided context, {whether}, and"
        f" {nearer}; but then all undecided context together matters {undecided:.1%} as much as so many decided"
        " positions."
    )
    active = "lie there by themselves" if share > 0.9 else "do not all lie there by themselves"
    return f"{verdict} Without blocks the positions that are committed {active}: {share:.0%} within the first 16."


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
