"""What discounting sinks is worth in pruning: differences to its controls, with how sure they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dlm_lens.plots.style import axes_or_new, dress, palette_of

_UNITS = {
    "nats": ("Perplexity: nats gained", "nats per token (linear within ±0.01)", 1.0),
    "retrieval": ("Retrieval: answers gained", "percentage points", 100.0),
    "infilling": ("Infilling: exact holes gained", "percentage points", 100.0),
}
_LINEAR = 0.01
_LINEAR = 0.01
_NAMES = {"wanda": "Wanda", "sparsegpt": "SparseGPT"}
_MARKERS = {"plain": "o", "random": "D"}
_TITLES = {"plain": "over plain", "random": "over random tokens discounted"}


def pruning_gain(
    gains: pd.DataFrame, measure: str = "nats", *, kappa: float = 2.0, ax: Axes | None = None
) -> Axes:
    """How much better models are whose sinks were discounted in calibration; above zero it helped.

    A mark for every amount, method and control: what was gained over plain pruning, and over as much discounted at
    random tokens. Whiskers with caps are the intervals over calibrations, each by itself and not corrected for how many
    there are; pale bars are two standard errors over what was asked. Nats are on a logarithmic axis beyond ±0.01.

    Parameters
    ----------
    gains : :func:`dlm_lens.measure.pruning_gains.gains` of a study
    measure : ``"nats"``, of the diffusion bound per token, ``"retrieval"`` or ``"infilling"``, shares right
    kappa : the discount of which the gains are
    """
    if measure not in _UNITS:
        raise ValueError(f"measure={measure!r} must be one of {', '.join(map(repr, _UNITS))}")
    shown = gains[(gains["measure"] == measure) & (gains["kappa"] == kappa)]
    if shown.empty:
        raise ValueError(f"there are no gains of {measure!r} with kappa={kappa:g} to draw")
    ax = axes_or_new(ax, (6.5, 3.6))
    palette = palette_of(ax)
    title, unit, factor = _UNITS[measure]
    amounts = list(dict.fromkeys(shown["amount"]))
    series = [
        (str(method), str(against), own)
        for (method, against), own in shown.groupby(["method", "against"], sort=False)
    ]
    methods = list(dict.fromkeys(shown["method"]))
    ax.axhline(0, color=palette.dim, linewidth=1)
    for number, (method, against, own) in enumerate(series):
        colour = palette.series[methods.index(method) % len(palette.series)]
        place = np.array([amounts.index(amount) for amount in own["amount"]])
        place = place + (number - (len(series) - 1) / 2) * 0.17
        gain, asked = factor * own["gain"], factor * own["asked_error"]
        ax.bar(place, 4 * asked, 0.14, gain - 2 * asked, color=colour, alpha=0.2, linewidth=0)
        over_seeds = factor * np.array([own["gain"] - own["low"], own["high"] - own["gain"]])
        ax.errorbar(
            place, gain, yerr=over_seeds, linestyle="none", color=colour, capsize=3, markersize=5,
            marker=_MARKERS.get(against, "s"), markerfacecolor=colour if against == "plain" else palette.face,
            label=f"{_NAMES.get(method, method)}, {_TITLES.get(against, against)}",
        )  # fmt: skip
    if measure == "nats":  # a model that is pruned to pieces varies a hundred times as much as one that works
        ax.set_yscale("symlog", linthresh=_LINEAR)
        ax.set_yticks([-0.1, -_LINEAR, 0, _LINEAR, 0.1], ["−0.1", "−0.01", "0", "0.01", "0.1"])
        ax.minorticks_off()
    ax.set_xticks(range(len(amounts)), [amount_title(amount) for amount in amounts], fontsize="small")
    ax.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    dress(ax, title, "", unit)
    return ax


def amount_title(amount: str) -> str:
    """An amount as it is read: 50%, 2:4, structured 30% in two lines."""
    kind, _, share = amount.rpartition("-")
    percent = amount if ":" in amount else f"{100 * float(share):g}%"
    return f"{kind}\n{percent}" if kind else percent
