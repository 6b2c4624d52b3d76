"""What quality is left at which speed, and which policies no other one beats in both."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dlm_lens.plots.policy_styles import CONTROL, Pruned, family, pruned_of, styles
from dlm_lens.plots.style import axes_or_new, dress, palette_of

# Column → label of the axis, factor to its unit, whether more of it is better.
QUALITIES: dict[str, tuple[str, float, bool]] = {
    "kl": ("KL to dense, nats (lower is better)", 1.0, False),
    "token_agreement": ("tokens as dense, %", 100.0, True),
    "argmax_agreement": ("predictions as dense, %", 100.0, True),
    "retained_mass": ("dense attention kept, %", 100.0, True),
    "accuracy": ("questions answered, %", 100.0, True),
}
_SPEEDS = {
    "speedup": "speed-up over dense, × (measured)",
    "amdahl_bound": "speed-up over dense, × (bound, not measured)",
}


def pareto(
    table: pd.DataFrame,
    quality: str = "kl",
    *,
    speed: Literal["speedup", "amdahl_bound"] = "speedup",
    ax: Axes | None = None,
) -> Axes:
    """Quality against speed-up, a line per policy and model through its budgets, better towards the upper right.

    ``table`` comes from :func:`dlm_lens.compare`; points are medians over prompt sets and repetitions. The wide grey
    line is the Pareto front: the policies than which no other is faster without being worse. The oracle is left out of
    it, for it computes all scores to know which to leave out. ``quality`` is ``"kl"`` (drawn upside down),
    ``"token_agreement"``, ``"argmax_agreement"``, ``"retained_mass"`` or ``"accuracy"``. ``speed`` is ``"speedup"``, as
    measured, or ``"amdahl_bound"`` for tables without times.

    The control of random columns must be in the table, for without it nothing says that choosing keys was worth
    anything: ``ValueError`` if it is not, as for a missing or empty column, several contexts, or measured rows mixed
    with projected ones.
    """
    _check(table, quality, speed)
    known = table.dropna(subset=[quality, speed])
    points = known.groupby("policy", sort=False)[[speed, quality]].median().reset_index()
    label, factor, more_is_better = QUALITIES[quality]
    points["value"] = factor * points[quality]

    ax = axes_or_new(ax, (6.5, 4.5))
    palette = palette_of(ax)
    real = points[~points["policy"].str.startswith("Oracle")]
    _front(ax, real[speed].to_numpy(), real["value"].to_numpy(), more_is_better, palette.line)
    pruned = pruned_of(known)
    families = {label: _family(label, pruned) for label in points["policy"]}
    points["family"] = points["policy"].map(families)
    kinds = {families[label]: (family(policy), model) for label, (policy, model) in pruned.items()}
    for name, look in styles(points["family"], palette, kinds).items():
        own = points[points["family"] == name].sort_values(speed)
        strong = (
            {"linewidth": 2.2, "zorder": 4} if name.startswith(CONTROL) else {"linewidth": 1.3, "zorder": 3}
        )
        ax.plot(own[speed], own["value"], label=name, markersize=6, **{**look, **strong})
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    if not more_is_better:
        positive = points.loc[points["value"] > 0, "value"]
        floor = 10.0 ** np.floor(np.log10(positive.min())) if len(positive) else 1.0
        ax.set_yscale("symlog", linthresh=floor)  # dense attention has a KL of 0
        ax.set_ylim(2 * float(points["value"].max()), -0.3 * floor)
    dress(ax, "Quality against speed", _SPEEDS[speed], label)
    return ax


def _family(label: str, pruned: Pruned) -> str:
    """A label without the policy's budget; what a model was pruned by stays."""
    policy, *model = pruned.get(label, (label,))
    return ", ".join([family(policy), *model])


def pareto_front(speed: np.ndarray, value: np.ndarray, *, more_is_better: bool) -> np.ndarray:
    """Which points are on the front, bool [n]: no other is at least as fast and as good, and better in one of them."""
    good = value if more_is_better else -value
    faster, better = speed[None] >= speed[:, None], good[None] >= good[:, None]
    truly = (speed[None] > speed[:, None]) | (good[None] > good[:, None])
    return np.logical_not(np.any(faster & better & truly, axis=1))


def _front(ax: Axes, speed: np.ndarray, value: np.ndarray, more_is_better: bool, colour: str) -> None:
    """Steps: what is to be had at each speed is what the next faster point of the front leaves."""
    on = pareto_front(speed, value, more_is_better=more_is_better)
    order = np.argsort(speed[on], kind="stable")
    x, y = speed[on][order], value[on][order]
    x, y = np.insert(x, 0, speed.min()), np.insert(y, 0, y[0])
    ax.step(
        x, y, where="pre", color=colour, linewidth=7, solid_capstyle="round", zorder=1, label="Pareto front"
    )


def _check(table: pd.DataFrame, quality: str, speed: str) -> None:
    if quality not in QUALITIES:
        raise ValueError(f"unknown quality {quality!r}; choose one of {', '.join(QUALITIES)}")
    if speed not in _SPEEDS:
        raise ValueError(f"unknown speed {speed!r}; choose one of {', '.join(_SPEEDS)}")
    empty = [
        name for name in ("policy", quality, speed) if name not in table or not table[name].notna().any()
    ]
    if empty:
        raise ValueError(
            f"pareto needs {', '.join(empty)}, which the table of {len(table)} rows does not hold;"
            f" it has {list(table.columns)}"
        )
    if not table["policy"].str.startswith(CONTROL).any():
        raise ValueError(f"the table lacks the control {CONTROL!r}; compare(…, control=True) measures it")
    if "context" in table and table["context"].nunique() > 1:
        contexts = sorted(int(context) for context in table["context"].unique())
        raise ValueError(f"the table mixes the contexts {contexts}; draw each by itself")
    if "projected" in table and table["projected"].nunique() > 1:
        raise ValueError("the table mixes measured and projected rows; plot them apart")
