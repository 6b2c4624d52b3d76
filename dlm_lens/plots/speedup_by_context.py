"""How the speed-up of policies grows with the context."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from dlm_lens.plots.policy_styles import pruned_of, styles
from dlm_lens.plots.style import axes_or_new, dress, palette_of


def speedup_by_context(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Speed-up against the number of positions, a line per policy and model.

    ``table`` is tidy, as :func:`dlm_lens.compare` returns it for prompt sets of several lengths: ``policy``,
    ``context`` (positions) and ``speedup`` (× the fastest dense backend). Lines go through medians. If there,
    ``speedup_vs_flash2`` of the dense model is drawn dashed with open markers, for papers quote that baseline, and
    ``amdahl_bound`` as a short stroke at each point, which efficiency at its best would reach.

    Raises ``ValueError`` for a table that lacks a column, is empty, or mixes measured with projected rows.
    """
    missing = {"policy", "context", "speedup"} - set(table.columns)
    if missing or table.empty:
        raise ValueError(
            "speedup_by_context needs a table with policy, context and speedup;"
            f" got {len(table)} rows of {list(table.columns)}"
        )
    if "projected" in table and table["projected"].nunique() > 1:
        raise ValueError("the table mixes measured and projected rows; plot them apart")
    middle = table.groupby(["policy", "context"], sort=False).median(numeric_only=True).reset_index()

    ax = axes_or_new(ax, (6.5, 4))
    palette = palette_of(ax)
    ax.axhline(1, color=palette.dim, linestyle="--", linewidth=1, zorder=0)
    pruned = pruned_of(table)
    looks = styles(middle["policy"], palette, pruned)
    flash = middle.get("speedup_vs_flash2")
    bound = middle.get("amdahl_bound")
    for policy, look in looks.items():
        own = middle[middle["policy"] == policy].sort_values("context")
        look = {**look, "markersize": 6}
        ax.plot(own["context"], own["speedup"], label=policy, **look)
        if policy.startswith("Dense") and policy not in pruned:
            continue
        if policy not in pruned and flash is not None and own["speedup_vs_flash2"].notna().any():
            other = {**look, "linestyle": (0, (2, 2)), "markerfacecolor": "none", "linewidth": 1}
            ax.plot(
                own["context"], own["speedup_vs_flash2"], label=f"{policy}, over FlashAttention-2", **other
            )
        if bound is not None:
            ax.scatter(own["context"], own["amdahl_bound"], marker="_", s=160, color=look["color"], zorder=3)
    lengths = sorted(middle["context"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [_thousands(length) for length in lengths])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    dress(ax, "Speed-up by context", "context, tokens", "speed-up, × (higher is faster)")
    return ax


def _thousands(length: float) -> str:
    """``"16k"`` where that is exact."""
    length = int(length)
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length:,}"
