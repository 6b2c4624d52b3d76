"""How policies look: the same colour, marker and line in every figure, whatever their budget."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import count, cycle
from typing import Any

from dlm_lens.plots.style import Palette

CONTROL = "Random columns"

# How a label begins → index of the colour in a palette's series, marker, line. The first that fits.
_KNOWN: dict[str, tuple[int, str, str]] = {
    "PulseCol adaptive": (0, "^", ":"),
    "PulseCol": (0, "o", "-"),
    "SparseD": (2, "D", "-"),
    "Sink-aware KV, no transient": (3, "<", "--"),
    "Sink-aware KV": (3, "s", "-"),
    "Sink-aware heads": (3, "P", "--"),
    "StreamingLLM": (2, "v", ":"),
    "Sliding window": (3, ">", ":"),
    "Oracle columns": (0, "x", "--"),
    CONTROL: (1, "o", "-"),
    "Window-Diffusion": (2, "h", "-."),
    "Fast-dLLM": (0, "p", "-."),
}
_MARKERS = "oDs^vPX*"
_LINES = ("-", "--", ":")


def family(label: str) -> str:
    """The label without its budget: ``"PulseCol"`` of ``"PulseCol 80%"``."""
    return re.sub(r" \d+(\.\d+)?%", "", label)


def styles(labels: Iterable[str], palette: Palette) -> dict[str, dict[str, Any]]:
    """Arguments of ``Axes.plot`` for each label, no two alike.

    Policies have their own; a second one of a kind, and anything else, takes what is free, but beside policies never
    the colour of the control.
    """
    names = list(dict.fromkeys(labels))
    own = {
        name: next((look for start, look in _KNOWN.items() if name.startswith(start)), None) for name in names
    }
    known = {look for look in own.values() if look}
    control = _KNOWN[CONTROL][0]
    colours = [colour for colour in range(4) if not known or colour != control]
    colours = [colour for colour in colours if colour not in {look[0] for look in known}] or colours
    free = (
        (
            colours[number % len(colours)],
            _MARKERS[number % len(_MARKERS)],
            _LINES[number // len(colours) % len(_LINES)],
        )
        for number in count()
    )
    dense = cycle("d8H")
    taken: set[tuple[int, str, str]] = set()
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        if name.startswith("Dense"):
            found[name] = {"color": palette.dim, "marker": next(dense), "linestyle": "-"}
            continue
        look = own[name]
        if look is None or look in taken:
            look = next(other for other in free if other not in taken | known)
        taken.add(look)
        colour, marker, line = look
        found[name] = {"color": palette.series[colour], "marker": marker, "linestyle": line}
    return found
