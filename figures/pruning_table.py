"""Does discounting attention sinks help pruning? The table of Sink-Aware Pruning on the bundled model.

Reads ``figures/data/pruning-study-*.json``, which ``python -m dlm_lens.measure.pruning_study`` writes, that of a GPU if
there is one, or the file given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from common import run, stored
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from dlm_lens.measure.pruning_gains import AGAINST, MEASURES, gains, growth, interval
from dlm_lens.plots import pruning_gain
from dlm_lens.plots.pruning_gain import amount_title
from dlm_lens.plots.style import dress, palette_of

NAMES = {"magnitude": "Magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT"}
MARKERS = {"plain": "o", "sinks": "^", "random": "D"}
LEVELS = ("ppl", *MEASURES, "error", "sparsity", "discounted")
# Where more is pruned in the same way.
PAIRS = (("0.5", "0.75"), ("structured-0.3", "structured-0.5"))
KAPPA = 2.0


def measure(*files: Path) -> pd.DataFrame:
    """Every number a row: ``value`` with its interval over calibrations. ``against`` is "itself" for the level of a
    model, the control for what sinks gain over it, and "growth over …" for what they gain more at ``amount`` than where
    less is pruned."""
    (source,) = files or stored("pruning-study-nvidia-*.json", "pruning-study-*.json")[:1]
    found: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    rows = found["rows"]
    gained = gains(rows).rename(columns={"gain": "value"}).assign(discount="sinks")
    more = growth(rows, PAIRS).rename(columns={"gain": "value", "more": "amount"}).drop(columns="less")
    more = more.assign(
        discount="sinks", kappa=KAPPA, measure="nats", against="growth over " + more["against"]
    )
    table = pd.concat([levels(rows), gained, more], ignore_index=True)
    table = table[
        [
            "method", "discount", "amount", "kappa", "measure", "against", "seeds",
            "value", "low", "high", "p", "adjusted", "asked_error",
        ]
    ]  # fmt: skip
    table.attrs["provenance"] = found["provenance"] | found["settings"]
    return table


def levels(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """What every model is by itself, over its calibrations."""
    table = pd.DataFrame(rows).fillna({"method": "dense"}).replace({"amount": {"": "0"}})
    found = []
    for key, own in table.groupby(["method", "discount", "amount", "kappa"], sort=False):
        about = dict(zip(("method", "discount", "amount", "kappa"), key, strict=True))
        for name in LEVELS:
            values = own[name].astype(float).dropna().tolist()
            if values:
                over = interval(values)
                over = {
                    "value": over["gain"],
                    "low": over["low"],
                    "high": over["high"],
                    "seeds": over["seeds"],
                }
                found.append(about | {"measure": name, "against": "itself"} | over)
    return pd.DataFrame(found)


def draw(table: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    default = table[table["kappa"] == KAPPA]
    perplexities(axes[0, 0], default)
    gained = default[default["against"].isin(AGAINST)].rename(columns={"value": "gain"})
    for ax, name in zip(axes.flat[1:], MEASURES, strict=True):
        pruning_gain(gained, name, ax=ax)
        ax.get_legend().remove()
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, fontsize="small",
        title="gained by discounting sinks; whiskers: 95% over calibrations; pale: ±2 standard errors over items asked",
        title_fontsize="small",
    )  # fmt: skip
    for ax in axes[1]:
        ax.set_xlabel("how much is pruned")
    return figure


def perplexities(ax: Axes, table: pd.DataFrame) -> None:
    """Perplexity of every model, on a logarithmic axis."""
    own = table[(table["measure"] == "ppl") & (table["against"] == "itself")]
    palette = palette_of(ax)
    pruned = own[own["method"] != "dense"]
    amounts = list(dict.fromkeys(pruned["amount"]))
    amounts.sort(key=lambda amount: amount not in gained_amounts(table))
    # Colours of the other panels; magnitude is none of theirs.
    colours = dict(zip(("wanda", "sparsegpt", "magnitude"), palette.series, strict=False))
    ax.axhline(
        own.loc[own["method"] == "dense", "value"].iloc[0], color=palette.dim, linestyle="--", label="dense"
    )
    series = list(pruned.groupby(["method", "discount"], sort=False))
    for number, ((method, discount), one) in enumerate(series):
        place = [amounts.index(amount) + (number - (len(series) - 1) / 2) * 0.1 for amount in one["amount"]]
        spread = [(one["value"] - one["low"]).fillna(0), (one["high"] - one["value"]).fillna(0)]
        hollow = discount == "random"
        ax.errorbar(
            place, one["value"], yerr=spread, linestyle="none", color=colours[method], marker=MARKERS[discount],
            markerfacecolor=palette.face if hollow else colours[method], markersize=5, capsize=2,
            label=f"{NAMES[method]}" + {"plain": "", "sinks": ", sinks", "random": ", random"}[discount],
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set_ylim(top=12 * own["value"].max())  # room for the legend
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks([20, 50, 100, 200, 500], ["20", "50", "100", "200", "500"])
    ax.minorticks_off()
    ax.set_ylim(top=3 * own[["value", "high"]].max().max())  # room for the legend
    ax.set_xticks(range(len(amounts)), [amount_title(amount) for amount in amounts], fontsize="small")
    ax.legend(fontsize="small", ncols=3, loc="upper left")
    dress(ax, "Perplexity of held-out code", "", "perplexity (log scale, lower is better)")


def gained_amounts(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table.loc[table["against"].isin(AGAINST), "amount"]))


def caption(table: pd.DataFrame) -> str:
    about = table.attrs["provenance"]
    device = "a CPU" if about["device"] == "cpu" else about["device"]
    seeds = int(table["seeds"].max())
    dense = table[(table["method"] == "dense")].set_index("measure")["value"]
    gained = table[table["against"].isin(AGAINST) & (table["kappa"] == KAPPA)]
    said = [
        f"The bundled tiny-dlm on {device}, pruned with {seeds} calibrations of {about['samples']} windows, each at ten"
        f" noise levels; differences are paired by calibration. Asked are {about['pieces']} pieces of held-out code"
        f" (dense: perplexity {dense['ppl']:.1f}), {about['questions']} retrieval questions"
        f" ({dense['retrieval']:.0%} right) and {about['holes']} holes of {about['span']} tokens"
        f" ({dense['infilling']:.0%} filled exactly). Magnitude looks at no activations and has no sink-aware form.",
        *(counted(gained[gained["against"] == against], against) for against in AGAINST),
        nothing_answered(table),
        nats_by_amount(gained),
        more_when_pruned_more(table),
        how_strong(table),
        verdict(gained, table),
    ]
    return " ".join(part for part in said if part)


def counted(gained: pd.DataFrame, against: str) -> str:
    """How many differences there are by their own intervals, and how many are left when their number is thought of."""
    title = {"plain": "plain pruning", "random": "as much discounted at random tokens"}[against]
    # Where neither answers anything no difference can show.
    told = gained[(gained["low"] != 0) | (gained["high"] != 0)]
    none = len(gained) - len(told)
    sure = {
        word: told[clearly(told) & (told["value"] * sign > 0)]
        for word, sign in (("better", 1), ("worse", -1))
    }
    said = (
        f"Against {title} the 95% intervals of {len(told)} differences"
        + (f" ({none} more are exactly none, as both answer nothing or the same)" if none else "")
        + f" lie above zero (better) in {(told['low'] > 0).sum()} and below in {(told['high'] < 0).sum()}, where chance"
        f" alone gives {0.05 * len(told):.1f}; corrected for their number (Holm), and beyond two standard errors over"
        f" what is asked, better in {len(sure['better'])}{named(sure['better'])} and"
        f" worse in {len(sure['worse'])}{named(sure['worse'])}."
    )
    return said


def named(rows: pd.DataFrame) -> str:
    """Which differences these are, in brackets."""
    parts = [
        f"{name} of {NAMES[method]} at {', '.join(map(plainly, own['amount']))}"
        for (name, method), own in rows.groupby(["measure", "method"], sort=False)
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def nothing_answered(table: pd.DataFrame) -> str:
    """Where no difference in answers could show, since there are none."""
    own = table[
        (table["measure"] == "retrieval") & (table["against"] == "itself") & (table["discount"] == "plain")
    ]
    lost = own[(own["value"] < 0.005) & own["method"].isin(["wanda", "sparsegpt"])]
    if lost.empty:
        return ""
    where = "; ".join(
        f"{NAMES[str(method)]} {', '.join(map(plainly, rows['amount']))}"
        for method, rows in lost.groupby("method", sort=False)
    )
    return f"Retrieval tells nothing where pruning has lost it all ({where})."


def clearly(gained: pd.DataFrame) -> pd.Series:
    """Differences that neither their number nor what happens to be asked explains."""
    return (gained["adjusted"] < 0.05) & (gained["value"].abs() > 2 * gained["asked_error"])


def plainly(amount: str) -> str:
    return amount_title(amount).replace("\n", " ")


def nats_by_amount(gained: pd.DataFrame) -> str:
    """The gains in nats over plain pruning."""
    own = gained[(gained["measure"] == "nats") & (gained["against"] == "plain")]
    parts = [
        f"{NAMES[str(method)]} "
        + ", ".join(f"{row.value:+.4f} ({plainly(row.amount)})" for row in rows.itertuples())
        for method, rows in own.groupby("method", sort=False)
    ]
    return f"Nats per token gained over plain pruning: {'; '.join(parts)}."


def more_when_pruned_more(table: pd.DataFrame) -> str:
    """Whether the gain grows with what is pruned."""
    own = table[table["against"].str.startswith("growth")]
    more, less = (own["low"] > 0).sum(), (own["high"] < 0).sum()
    return (
        f"From 50% to 75% and from structured 30% to 50% the gain grows in {more} and shrinks in {less} of {len(own)}"
        " comparisons, by their own intervals."
    )


def how_strong(table: pd.DataFrame) -> str:
    """How much is discounted, and what comes of it when it is more."""
    shares = table[(table["measure"] == "discounted") & (table["discount"] == "sinks")]
    parts = []
    for kappa, own in shares.groupby("kappa", sort=False):
        amounts = (
            own["amount"].unique()
            if kappa != KAPPA
            else table.loc[table["kappa"] != KAPPA, "amount"].unique()
        )
        nats = table[
            (table["kappa"] == kappa) & (table["measure"] == "nats") & (table["against"] == "random")
            & table["amount"].isin(amounts)
        ]  # fmt: skip
        each = ", ".join(
            f"{NAMES[row.method]} {row.value:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"
            for row in nats.itertuples()
        )
        at = " and ".join(plainly(amount) for amount in amounts)
        told = f"; nats gained over random tokens at {at}: {each}" if each else ""
        parts.append(
            f"κ = {kappa:g} discounts {own['value'].mean():.0%} of the activations on average{told}."
        )
    more = table[(table["kappa"] != KAPPA) & (table["measure"] == "nats") & (table["against"] == "random")]
    if len(more):
        parts.append(
            "By these intervals stronger discounts of sinks are better than of random tokens in"
            f" {(more['low'] > 0).sum()} and worse in {(more['high'] < 0).sum()} of {len(more)}."
        )
    return " ".join(parts)


def verdict(gained: pd.DataFrame, table: pd.DataFrame) -> str:
    """What of the paper's claims holds here."""
    sure = gained[clearly(gained)]
    helps = {
        against: set(_cells(sure[(sure["against"] == against) & (sure["value"] > 0)])) for against in AGAINST
    }
    hurts = len(sure[(sure["value"] < 0) & (sure["against"] == "plain")])
    both, alone = len(helps["plain"] & helps["random"]), len(helps["plain"])
    grows = table[table["against"].str.startswith("growth")]
    if both and not hurts:
        said = (
            f"Discounting sinks helps, and more than discounting random tokens, in {both} of"
            f" {len(gained) // len(AGAINST)} comparisons, as the paper says"
        )
        if (grows["low"] > 0).sum() > len(grows) / 2:
            return f"{said}, and more where more is pruned."
        return f"{said}; that it helps more where more is pruned does not show here, unlike in the paper."
    if both:
        return (
            f"Discounting sinks helps in {both} comparisons and hurts in {hurts}: the paper's claim that it helps holds"
            " here only in part."
        )
    if hurts:
        return f"Discounting sinks hurts in {hurts} comparisons, which contradicts the paper."
    if alone:
        return (
            "What is gained over plain pruning"
            f"{named(sure[(sure['against'] == 'plain') & (sure['value'] > 0)])} is not clearly more than random tokens"
            " give: that it is the sinks that matter, and more where more is pruned, does not show here, unlike in the"
            " paper."
        )
    return (
        "That discounting sinks helps, as the paper says (LLaDA-8B at 50%: +0.48 points with Wanda, +0.02 with"
        " SparseGPT), does not show here."
    )


def _cells(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(zip(table["method"], table["amount"], table["measure"], strict=True))


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
