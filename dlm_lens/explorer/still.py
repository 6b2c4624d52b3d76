"""What stands in for the explorer where nothing runs: a picture, and a line saying how to make it live.

JupyterLab answers a widget whose kernel is gone with an error and no picture, whatever else the output offers.
The picture is therefore an output of its own beside the widget, which the living widget hides.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from dlm_lens.plots import column_raster, sink_drift
from dlm_lens.trace import Trace

# The rule takes JupyterLab's "model not found" away: an output with the widget's class, but without any element.
_FIGURE = """<figure id="{id}" class="dl-still" style="margin: 0">
{image}<figcaption>{caption}</figcaption>
</figure>
<style>
.jp-OutputArea-child:has(+ .jp-OutputArea-child #{id}) > .jupyter-widgets:not(:has(*)) {{ display: none }}
</style>"""
_IMAGE = '<img alt="{alt}" src="data:image/png;base64,{data}" style="max-width: 100%">\n'


def still(traces: Sequence[Trace], identifier: str, title: str) -> dict[str, Any]:
    """The output as a MIME bundle: HTML with the picture, and the picture alone for who shows no HTML.

    ``identifier`` becomes the ``id`` of the element that a living widget hides.
    """
    png = picture(traces)
    caption = (
        f"<b>{html.escape(title)}</b> · A still of the explorer: run the cell again for the interactive view."
        " <code>.save_html(path)</code> or <code>.embed()</code> keep it without a kernel."
    )
    data: dict[str, Any] = {}
    image = ""
    if png:
        encoded = base64.b64encode(png).decode()
        alt = html.escape(_alternative(traces), quote=True)
        image = _IMAGE.format(alt=alt, data=encoded)
        data["image/png"] = encoded
    return {"text/html": _FIGURE.format(id=identifier, image=image, caption=caption), **data}


def picture(traces: Sequence[Trace]) -> bytes:
    """PNG of the column raster above the sink drift, one trace beside the other; empty without column mass."""
    traces = _with_mass(traces)
    if not traces:
        return b""
    figure = Figure(figsize=(8 * len(traces), 5), dpi=80, layout="constrained")
    axes = figure.subplots(2, len(traces), sharex="col", height_ratios=(3, 2), squeeze=False)
    for trace, (above, below) in zip(traces, axes.T, strict=True):
        column_raster(trace, ax=above)
        sink_drift(trace, ax=below)
    file = io.BytesIO()
    figure.savefig(file, format="png", pil_kwargs={"optimize": True})
    return file.getvalue()


def _with_mass(traces: Sequence[Trace]) -> list[Trace]:
    return [trace for trace in traces if "column_mass" in trace.dataset]


def _alternative(traces: Sequence[Trace]) -> str:
    """What the picture shows, for who cannot see it."""
    sizes = " and ".join(
        f"{trace.length} positions at {len(trace.steps)} steps" for trace in _with_mass(traces)
    )
    return f"Attention that each position receives ({sizes}), and below it the centroid of the sinks over the steps"
