"""What part of a step attention takes, and what leaving keys out can gain at best."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dlm_lens.measure.schedule import Schedule
from dlm_lens.plots.policy_styles import pruned_of, styles
from dlm_lens.plots.style import dress, palette_of


def amdahl(
    steps: pd.DataFrame | Sequence[Schedule],
    reached: pd.DataFrame | None = None,
    *,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Time of a dense step by part, and the bound on the speed-up by sparsity, 1 / (1 − a·s) for attention of share a.

    ``steps`` has a row per kind of run: ``run`` (its name, such as ``"64k tokens"``), ``attention`` and ``rest``, both
    in one unit, milliseconds or operations. Points beside the curves come from ``reached``: ``run``, ``policy``,
    ``sparsity`` (share of the keys left out, 0 to 1) and ``speedup``; ``model``, if there, tells pruned models apart,
    as in tables of :func:`dlm_lens.compare`. Schedules from :func:`dlm_lens.schedule` do for both: their operations,
    and the bound of each whole run with its dense and refresh steps.

    Returns two axes: shares on the left, bounds on the right. Raises ``ValueError`` for missing columns, no rows,
    schedules without sparse steps, or another number of axes.
    """
    if not isinstance(steps, pd.DataFrame):
        steps, reached = _of_schedules(steps)
    _check(steps, {"run", "attention", "rest"}, "steps")
    if reached is not None:
        _check(reached, {"run", "policy", "sparsity", "speedup"}, "reached")
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(2, 3))[1]
    if len(axes) != 2:
        raise ValueError(f"amdahl draws on 2 axes, got {len(axes)}")
    left, right = axes
    share = steps["attention"] / (steps["attention"] + steps["rest"])
    _shares(left, list(steps["run"]), share.to_numpy())
    _bounds(right, list(steps["run"]), share.to_numpy(), reached)
    return np.array([left, right])


def _shares(ax: Axes, runs: list[str], share: np.ndarray) -> None:
    palette = palette_of(ax)
    rows = np.arange(len(runs))
    ax.barh(rows, 100 * share, height=0.6, color=palette.series[0], label="attention")
    ax.barh(
        rows, 100 * (1 - share), left=100 * share, height=0.6, color=palette.line, label="everything else"
    )
    for row, value in zip(rows, share, strict=True):
        ax.annotate(
            f"{value:.0%}", (100 * value, row), xytext=(3, 0), textcoords="offset points", va="center",
            color=palette.text, fontsize="small",
        )  # fmt: skip
    ax.set_yticks(rows, runs)
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize="small")
    dress(ax, "A dense step", "share of its time, %", "")


def _bounds(ax: Axes, runs: list[str], share: np.ndarray, reached: pd.DataFrame | None) -> None:
    palette = palette_of(ax)
    sparsity = np.linspace(0, 1, 101)
    for run, part in zip(runs, share, strict=True):
        # Attention that is all of a step has no bound at sparsity 1.
        bound = 1 / np.maximum(1 - part * sparsity, 1e-9)
        ax.plot(100 * sparsity, bound, color=palette.dim, linewidth=1.2)
        ax.annotate(
            run, (100, bound[-1]), xytext=(4, 0), textcoords="offset points", va="center",
            color=palette.dim, fontsize="small", annotation_clip=False,
        )  # fmt: skip
    if reached is not None:
        for policy, look in styles(reached["policy"], palette, pruned_of(reached)).items():
            own = reached[reached["policy"] == policy]
            ax.plot(100 * own["sparsity"], own["speedup"], label=policy, **{**look, "linestyle": "none"})
        ax.legend(loc="upper left", fontsize="small")
    ax.set_xlim(0, 100)
    ax.set_ylim(bottom=0.8)
    dress(ax, "Bound on the speed-up", "keys left out, %", "speed-up of a step, ×")


def _of_schedules(schedules: Sequence[Schedule]) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs: dict[str, dict[str, float | str]] = {}
    points = []
    for found in schedules:
        run = f"{found.model}, {found.length:,} tokens"
        runs[run] = {"run": run, "attention": found.attention_share, "rest": 1 - found.attention_share}
        sparse = next((entry for entry in found.by_kind if entry.kind == "sparse"), None)
        if sparse is None:
            raise ValueError(
                f"{found.label} has no sparse steps but {', '.join(found.kinds)}: its bound does not rest on"
                " the share of keys left out; print the schedule instead"
            )
        sparsity = 1 - sparse.keys / found.length
        points.append({"run": run, "policy": found.label, "sparsity": sparsity, "speedup": found.bound})
    if not points:
        raise ValueError("amdahl needs at least one schedule, got none")
    return pd.DataFrame(list(runs.values())), pd.DataFrame(points)


def _check(table: pd.DataFrame, columns: set[str], name: str) -> None:
    if columns - set(table.columns) or table.empty:
        raise ValueError(
            f"{name} needs rows with {', '.join(sorted(columns))}; got {len(table)} of {list(table.columns)}"
        )
