"""One number per head, as a grid of layers × heads."""

from __future__ import annotations

import seaborn as sns
from matplotlib.axes import Axes

from dlm_lens.plots.head_metrics import HEAD_METRICS, head_metric
from dlm_lens.plots.style import axes_or_new, dress, palette_of
from dlm_lens.trace import Trace


def head_grid(
    trace: Trace,
    metric: str = "sink_mass",
    step: int | None = None,
    *,
    sample: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """A metric of every head, layers downwards.

    Parameters
    ----------
    metric : ``"sink_mass"``, ``"temporal_variance"`` of the sinks, ``"effective_columns"``, ``"recall"`` of the best
        20% of the keys, ``"step_similarity"`` to the step before, ``"row_entropy"`` or ``"retained_mass"``
    step : number of a recorded step; by default the mean over all steps
    sample : which sample of a batch

    Raises ``ValueError`` for an unknown metric, step or sample, ``TraceError`` if the trace did not record
    what the metric needs.
    """
    if step is not None and step not in trace.steps:
        raise ValueError(f"step={step} is not in the trace; it holds {trace.steps[0]} … {trace.steps[-1]}")
    if sample not in range(trace.samples):
        raise ValueError(f"sample={sample} is not in the trace; it holds {list(range(trace.samples))}")
    values = head_metric(trace, metric)
    if "sample" in values.dims:
        values = values.isel(sample=sample)
    values = values.mean("step") if step is None else values.sel(step=step)
    described = HEAD_METRICS[metric]
    scale = 100 if described.unit == "%" else 1

    rows, columns = len(trace.layers), len(trace.heads)
    ax = axes_or_new(ax, (1.8 + 0.45 * min(columns, 16), 1.2 + 0.4 * min(rows, 16)))
    sns.heatmap(
        values.transpose("layer", "head").values * scale,
        ax=ax,
        cmap=palette_of(ax).sequential,
        square=True,
        linewidths=1 if columns <= 16 else 0,
        linecolor=palette_of(ax).line,
        xticklabels=_thinned(trace.heads),
        yticklabels=_thinned(trace.layers),
        cbar_kws={"label": f"{described.label}, {described.unit}"},
    )
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    when = "mean over steps" if step is None else f"step {step}"
    dress(ax, f"{described.label.capitalize()}, {when}", "head", "layer")
    return ax


def _thinned(labels: tuple[int, ...]) -> list[str]:
    every = 1 if len(labels) <= 16 else 4
    return [str(label) if index % every == 0 else "" for index, label in enumerate(labels)]
