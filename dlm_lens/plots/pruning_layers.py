"""What pruning did to each layer, for one way of pruning or several side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dlm_lens.plots.style import axes_or_new, dress, palette_of

if TYPE_CHECKING:
    from dlm_lens.pruning import PruningReport

_MARKERS = "osD^v"


def pruning_layers(
    reports: PruningReport | Mapping[str, PruningReport], *, log: bool = False, ax: Axes | None = None
) -> Axes:
    """Error of every pruned layer, a line for each report; its name says what share of the weights is gone.

    The error is that of :class:`~dlm_lens.pruning.PruningReport`: how far the pruned layer's output is from the whole
    one's, over what the layer adds, both fed with what the pruned layers before it give. 100% is what removing the
    layer would cost.

    Parameters
    ----------
    reports : one, or several by the names to show
    log : whether errors are on a logarithmic axis, where methods differ by an order of magnitude
    """
    named = dict(reports) if isinstance(reports, Mapping) else {reports.label: reports}
    if not named:
        raise ValueError("pruning_layers needs at least one report, got none")
    ax = axes_or_new(ax, (6.5, 3.4))
    palette = palette_of(ax)
    for number, (name, report) in enumerate(named.items()):
        marker, line = _MARKERS[number % len(_MARKERS)], "-" if number < len(palette.series) else "--"
        colour = palette.series[number % len(palette.series)]
        label = f"{name} ({_gone(report)} gone)"
        layers, errors = report.table["layer"], 100 * report.table["error"]
        ax.plot(layers, errors, linestyle=line, marker=marker, markersize=4, color=colour, label=label)
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
    else:
        ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    dress(ax, "What pruning does to each layer", "layer", "error, % of what the layer adds")
    return ax


def _gone(report: PruningReport) -> str:
    """The share of the weights that is gone, or its range over the layers where it is not the same in all."""
    shares = 100 * report.table["sparsity"]
    low, high = f"{shares.min():.3g}", f"{shares.max():.3g}"
    return f"{low}%" if low == high else f"{low}–{high}%"
