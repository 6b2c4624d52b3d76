"""How fast a choice of columns goes stale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from dlm_lens import metrics
from dlm_lens.plots.selection import select, selection_text
from dlm_lens.plots.style import axes_or_new, dress, palette_of
from dlm_lens.trace import Trace

_DASHES = ("-", "--", "-.", ":")


def pattern_age(
    trace: Trace,
    layer: int | None = None,
    head: int | None = None,
    *,
    budget: float = 0.2,
    made: Sequence[int] | None = None,
    sample: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Attention kept by columns chosen at one step and used at all later ones, beside columns chosen anew.

    See :func:`dlm_lens.metrics.stale_recall`.

    Parameters
    ----------
    layer, head : numbers of the selection; by default the mean of all heads
    budget : share of the keys that a choice keeps
    made : up to four numbers of the steps that choose; by default the first and those at 15%, 30% and 60% of the
        recorded ones
    sample : which sample of a batch

    Raises ``ValueError`` for steps that were not recorded, and for more than four.
    """
    part = select(trace, layer, head, sample)
    if made is None:
        count = len(part.steps)
        made = list(dict.fromkeys(part.steps[int(share * count)] for share in (0, 0.15, 0.3, 0.6)))
    if (missing := [step for step in made if step not in part.steps]) or len(made) > len(_DASHES):
        raise ValueError(
            f"made must be at most {len(_DASHES)} recorded steps, got {list(made)}; not recorded: {missing}"
        )
    recall = 100 * metrics.stale_recall(part, budget)["recall"].mean(("layer", "head"))
    steps = np.array(part.steps)

    ax = axes_or_new(ax, (8.5, 3.2))
    palette = palette_of(ax)
    ax.plot(
        steps, np.diagonal(recall.values), color=palette.text, linewidth=1, label="chosen anew at every step"
    )
    for step, colour, dashes in zip(made, palette.series, _DASHES, strict=False):
        line = recall.sel(step_made=step)
        ax.plot(steps, line, color=colour, linestyle=dashes, label=f"chosen at step {step}")
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    title = f"Columns as they age, {100 * budget:g}% of the keys, {selection_text(layer, head)}"
    dress(ax, title, "step at which they are used", "attention kept, %")
    return ax
