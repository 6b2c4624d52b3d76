"""Do sinks move? Spatial and temporal variance of a diffusion model and of its autoregressive twin, on the same texts.

Both models see the same held-out code, ``LENGTH`` tokens a text, of which the first half is given at the first step and
the rest arrives in ``STEPS`` steps. Four runs:

* ``diffusion, denoising``: the model writes the second half itself, in its own order, which is what a user sees;
* ``diffusion, same text``: the second half of the text itself replaces the masks, from left to right;
* ``autoregressive, same text``: the twin reads that text, which grows by the same tokens at each step. Keys that are
  not there yet are left out, and so are queries after them: an autoregressive decoder has neither;
* ``even, causal mask``: no model. Every query attends evenly to itself and all before it, over the same growing text.

The last one matters: under a causal mask early keys are seen by more queries than late ones, whatever a model learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from common import run
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import dlm_lens as dl
from dlm_lens.measure.environment import provenance
from dlm_lens.measure.policy_table import code_prompts
from dlm_lens.plots import sink_variance
from dlm_lens.plots.sink_variance import sink_variance_table
from dlm_lens.plots.style import dress, palette_of
from dlm_lens.samplers import Candidates, Commitment, Sampler

TEXTS, LENGTH, STEPS = 8, 192, 12
GIVEN = LENGTH // 2
SHARE = (LENGTH - GIVEN) // STEPS
DENOISING, REVEALED = "diffusion, denoising", "diffusion, same text"
CAUSAL, EVEN = "autoregressive, same text", "even, causal mask"
# On another CPU a key may just become a sink or just not, and a token now and then be committed a step later.
TOLERANCE = {"spatial": (0.05, 0.01), "temporal": (0.25, 25.0), "centroid": (0.05, 2.0), "error": (0.25, 2.0)}


@dataclass(frozen=True)
class Reveal(Sampler):
    """Puts a known text [B, n] in place of the masks, an equal share from left to right at every step."""

    text: Tensor

    def commit(self, at: Candidates) -> Commitment:
        due = at.positions < (at.step + 1) * at.gen_length // at.steps
        return Commitment(self.text.gather(1, at.positions), at.open & due)


def growing(trace: dl.Trace, maps: np.ndarray) -> dl.Trace:
    """What an autoregressive decoder attends to while the text grows, from maps of it all [sample, layer, head, L, L].

    A causal query attends the same way however the text goes on, so the maps of the whole text hold every step: the
    queries and keys that are there by then. Their mean over queries is the mass that would be recorded; keys that are
    not there yet are NaN. ``trace`` lends all that is not attention.
    """
    steps = []
    for step in range(STEPS):
        there = GIVEN + step * SHARE
        mass = np.full((*maps.shape[:3], LENGTH), np.nan)
        # Metrics multiply by the length, where only ``there`` keys share the mass.
        mass[..., :there] = maps[..., :there, :there].mean(-2) * there / LENGTH
        steps.append(mass)
    samples, layers, heads = (range(count) for count in maps.shape[:3])
    kept = trace.dataset.drop_vars(list(trace.statistics)).isel(
        sample=samples, layer=layers, head=heads, step=[0] * STEPS
    )
    dims = ("sample", "step", "layer", "head", "position")
    return dl.Trace(kept.assign_coords(step=np.arange(STEPS)).assign(column_mass=(dims, np.stack(steps, 1))))


def measure() -> pd.DataFrame:
    """Part ``variance``: a row per head, and per text for the mean of heads. Part ``centroid``: a row per step."""
    diffusion, causal = dl.load("tiny"), dl.load("tiny-ar")
    texts = torch.stack(code_prompts(diffusion, TEXTS, LENGTH))
    given, rest = texts[:, :GIVEN], texts[:, GIVEN:]
    masses = {
        "statistics": [dl.ColumnMass()],
        "gen_length": LENGTH - GIVEN,
        "steps": STEPS,
        "progress": False,
    }
    whole = dl.capture(
        causal, texts[:, :-1], gen_length=1, steps=1, statistics=[dl.FullMaps()], progress=False
    )
    even = np.tril(np.ones((LENGTH, LENGTH))) / np.arange(1, LENGTH + 1)[:, None]
    traces = {
        DENOISING: dl.capture(diffusion, given, **masses),
        REVEALED: dl.capture(diffusion, given, sampler=Reveal(rest), **masses),
        CAUSAL: growing(whole, whole["full_map"].isel(step=0).values),
        EVEN: growing(whole, even[None, None, None]),
    }
    variances = sink_variance_table(traces)
    variances = variances[(variances["trace"] != EVEN) | (variances["layer"] < 0)]
    table = pd.concat(
        [variances.assign(part="variance", step=-1), centroids(traces)], ignore_index=True
    ).astype({"layer": "Int64", "head": "Int64", "sample": "Int64"})
    table = table[
        ["part", "trace", "layer", "head", "sample", "step", "spatial", "temporal", "centroid", "error"]
    ]
    table.attrs["provenance"] = provenance(diffusion, seed=0) | {"models": "tiny, tiny-ar", "texts": TEXTS}
    return table


def centroids(traces: Mapping[str, dl.Trace]) -> pd.DataFrame:
    """Where the sinks of the mean of heads are: mean over texts and its standard error."""
    parts = []
    for name, trace in traces.items():
        where = dl.metrics.sink_centroid(trace)
        error = where.std("sample", ddof=1) / np.sqrt(trace.samples) if trace.samples > 1 else 0 * where[0]
        parts.append(
            pd.DataFrame({"step": trace.steps, "centroid": where.mean("sample"), "error": error}).assign(
                trace=name, part="centroid"
            )
        )
    return pd.concat(parts, ignore_index=True)


def draw(table: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    ax = sink_variance(table[table["part"] == "variance"], ax=axes[0])
    ax.get_legend().remove()
    ax.set_title("Dots: heads. Large: mean of heads", loc="left", fontsize="medium", fontweight="bold")
    draw_centroids(axes[1], table[table["part"] == "centroid"])
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


def draw_centroids(ax: Axes, table: pd.DataFrame) -> None:
    palette = palette_of(ax)
    for number, (_, own) in enumerate(table.groupby("trace", sort=False)):
        colour, marker = palette.series[number], "osD^"[number]
        low, high = own["centroid"] - 2 * own["error"], own["centroid"] + 2 * own["error"]
        ax.fill_between(own["step"], low, high, color=colour, alpha=0.18, linewidth=0)
        ax.plot(own["step"], own["centroid"], color=colour, marker=marker, markersize=4)
    ax.axhline(GIVEN - 0.5, color=palette.dim, linestyle="--", linewidth=1)
    ax.annotate(
        "given above, to come below", (0, GIVEN), xytext=(2, -3), textcoords="offset points", va="top",
        color=palette.dim, fontsize="small",
    )  # fmt: skip
    ax.set_ylim(LENGTH, 0)
    dress(ax, "Where the sinks are", f"step ({SHARE} tokens each)", "centroid of the sinks, position")


def caption(table: pd.DataFrame) -> str:
    variance = table[table["part"] == "variance"]
    means = variance[variance["layer"] < 0].groupby("trace")[["spatial", "temporal"]].agg(["mean", "sem"])
    heads = variance[variance["layer"] >= 0]
    middle = heads.groupby("trace")[["spatial", "temporal"]].median()

    def told(name: str, side: str) -> str:
        mean, error = means.loc[name, (side, "mean")], means.loc[name, (side, "sem")]
        digits = ",.0f" if mean >= 10 else ".2f"
        return f"{mean:{digits}} ± {2 * error:{digits}}" if error == error else f"{mean:{digits}}"

    claim = all(
        means.loc[CAUSAL, ("spatial", "mean")] > means.loc[name, ("spatial", "mean")]
        and means.loc[CAUSAL, ("temporal", "mean")] < 0.1 * means.loc[name, ("temporal", "mean")]
        for name in (DENOISING, REVEALED)
    )
    mask = means.loc[EVEN, ("spatial", "mean")] >= means.loc[CAUSAL, ("spatial", "mean")]
    restless = heads[(heads["trace"] == CAUSAL) & (heads["temporal"] > middle.loc[REVEALED, "temporal"])]
    count = len(heads[heads["trace"] == CAUSAL])
    return (
        f"Sinks of the bundled tiny-dlm and its twin tiny-ar on the same {int(variance['sample'].max()) + 1} pieces of"
        f" held-out code of {LENGTH} tokens, the second half arriving in {STEPS} steps (2 standard errors over texts)."
        f" Averaged over heads, spatial variance is {told(CAUSAL, 'spatial')} for the autoregressive model,"
        f" {told(REVEALED, 'spatial')} for the diffusion model on the same text and {told(DENOISING, 'spatial')}"
        f" when it writes itself; temporal variance is {told(CAUSAL, 'temporal')}, {told(REVEALED, 'temporal')} and"
        f" {told(DENOISING, 'temporal')} positions². The claim of Sink-Aware Pruning (autoregressive: uneven and still;"
        f" diffusion: more even and restless) {'holds' if claim else 'does not hold'} for this average."
        f" But even attention under a causal mask, without any model, has {told(EVEN, 'spatial')} and"
        f" {told(EVEN, 'temporal')}: the mask alone is"
        f" {'enough to give that picture' if mask else 'not enough to explain how uneven the twin is'}."
        f" Single heads differ less: their median temporal variance is {middle.loc[CAUSAL, 'temporal']:,.0f} against"
        f" {middle.loc[REVEALED, 'temporal']:,.0f}, and {len(restless)} of the twin's {count} heads are more restless"
        " than the diffusion model's median head on the same text."
    )


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
