"""How much of the work left out is time saved."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from dlm_lens.plots.policy_styles import styles
from dlm_lens.plots.style import axes_or_new, dress, palette_of


def efficiency_by_sparsity(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Efficiency of sparse attention against the share of keys left out, a line per kernel.

    Efficiency is the speed-up over the best dense kernel times the density: 1 where leaving out work saves exactly its
    share of the time. ``table`` has a row per point: ``kernel``, ``sparsity`` (share left out, 0 to 1) and
    ``efficiency``. Rows whose ``published`` is True are other people's figures and drawn as single grey marks.

    Raises ``ValueError`` for a table that lacks a column, is empty, or mixes lengths, which must not share a line.
    """
    missing = {"kernel", "sparsity", "efficiency"} - set(table.columns)
    if missing or table.empty:
        raise ValueError(
            "efficiency_by_sparsity needs a table with kernel, sparsity and efficiency;"
            f" got {len(table)} rows of {list(table.columns)}"
        )
    published = table["published"].astype(bool) if "published" in table else pd.Series(False, table.index)
    ours = table[~published]
    if "length" in table and ours["length"].nunique() > 1:
        lengths = sorted(ours["length"].unique())
        raise ValueError(f"the table mixes the lengths {lengths}; choose one, such as {lengths[-1]}")

    ax = axes_or_new(ax, (6.5, 4.5))
    palette = palette_of(ax)
    ax.axhline(1, color=palette.dim, linewidth=1, linestyle="--", zorder=0)
    for kernel, look in styles(ours["kernel"], palette).items():
        own = ours[ours["kernel"] == kernel].sort_values("sparsity")
        ax.plot(100 * own["sparsity"], own["efficiency"], label=kernel, markersize=6, **look)
    for number, (name, own) in enumerate(table[published].groupby("kernel", sort=False)):
        ax.scatter(
            100 * own["sparsity"], own["efficiency"], marker="x+*1"[number % 4], s=45, color=palette.dim,
            linewidths=1.5, zorder=3, label=f"{name} (published)",
        )  # fmt: skip
    ax.set_ylim(bottom=0)
    dress(ax, "Efficiency by sparsity", "keys left out, %", "speed-up over best dense × density")
    return ax
