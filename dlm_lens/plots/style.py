"""How figures look: a light default, :func:`dark` for dark pages, and colours that do not rest on hue alone.

Plot functions take their colours from the face of the axes they draw on, so they also fit a style set elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb

# Luminance rises or falls steadily along both scales: they read without colour vision and in print.
SEQUENTIAL = {
    "light": ("#fcfcfa", "#e2f0e6", "#acdccb", "#63bcc0", "#2f8eb8", "#2b5fa3", "#2f3380", "#1d1147"),
    "dark": ("#15181f", "#1f2a4d", "#22507f", "#1f7a8c", "#35a37f", "#82c462", "#d3da56", "#fff3a8"),
}


@dataclass(frozen=True)
class Palette:
    """Colours of one theme. ``series`` is ordered; its members also differ in lightness."""

    text: str
    dim: str
    line: str
    face: str
    sink: str
    series: tuple[str, ...]
    sequential: LinearSegmentedColormap


LIGHT = Palette(
    text="#1c2230",
    dim="#5c6577",
    line="#d9dee7",
    face="#ffffff",
    sink="#d1440c",
    series=("#1f6fb2", "#d1440c", "#00875f", "#a8328f"),
    sequential=LinearSegmentedColormap.from_list("dlm-lens light", SEQUENTIAL["light"]),
)
DARK = Palette(
    text="#e8ebf2",
    dim="#a0a9ba",
    line="#2e3543",
    face="#11141a",
    sink="#ff8a4c",
    series=("#6db3f2", "#ff8a4c", "#4fd6a5", "#f08bdc"),
    sequential=LinearSegmentedColormap.from_list("dlm-lens dark", SEQUENTIAL["dark"]),
)


def _settings(palette: Palette) -> dict[Any, Any]:
    return {
        "figure.facecolor": palette.face,
        "savefig.facecolor": palette.face,
        "axes.facecolor": palette.face,
        "axes.edgecolor": palette.dim,
        "axes.labelcolor": palette.text,
        "axes.titlecolor": palette.text,
        "text.color": palette.text,
        "xtick.color": palette.dim,
        "ytick.color": palette.dim,
        "legend.frameon": False,
    }


@contextmanager
def light() -> Iterator[None]:
    """Figures made inside are for light pages, whatever is set outside."""
    with mpl.rc_context(_settings(LIGHT)):
        yield


@contextmanager
def dark() -> Iterator[None]:
    """Figures made inside are for dark pages: ``with dl.plots.dark(): dl.plots.sink_drift(trace)``."""
    with mpl.rc_context(_settings(DARK)):
        yield


def palette_of(ax: Axes) -> Palette:
    """The palette that reads on the face of these axes."""
    red, green, blue = to_rgb(ax.get_facecolor())
    return LIGHT if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.4 else DARK


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """``ax``, or the axes of a new figure of ``size`` inches."""
    return ax if ax is not None else plt.subplots(figsize=size, layout="constrained")[1]


def dress(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Title and labels, and no frame where nothing is read off."""
    ax.set_title(title, loc="left", fontsize="medium", fontweight="bold")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
