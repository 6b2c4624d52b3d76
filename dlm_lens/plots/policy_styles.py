"""How policies look: the same colour, marker and line in every figure, whatever their budget and the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import count, cycle
from typing import Any

import pandas as pd

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
# How markers are filled for the first pruned models; that of the dense one is full.
_FILLS = ("none", "left", "right", "bottom", "top")
_HATCHES = ("///", "...", "xxx", "---", "ooo")

Pruned = Mapping[str, tuple[str, str]]
"""By label of a pruned model's rows: the label of the policy alone, and the name of the model."""


def pruned_of(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """The labels of pruned models' rows in a table of :func:`dlm_lens.compare`; empty if there are none."""
    if "model" not in table:
        return {}
    found = {}
    for label, model in table[["policy", "model"]].drop_duplicates().itertuples(index=False):
        if str(label).endswith(end := f", {model}"):  # rows of the dense model do not name it
            found[label] = (str(label).removesuffix(end), str(model))
    return found


def hatches(labels: Iterable[str], pruned: Pruned) -> list[str]:
    """The hatch of the bar of each label: none for the dense model, one for each pruned one."""
    models = _models(pruned)
    return [
        "" if label not in pruned else _HATCHES[models.index(pruned[label][1]) % len(_HATCHES)]
        for label in labels
    ]


def family(label: str) -> str:
    """The label without its budget: ``"PulseCol"`` of ``"PulseCol 80%"``."""
    return re.sub(r" \d+(\.\d+)?%", "", label)


def styles(
    labels: Iterable[str], palette: Palette, pruned: Pruned | None = None
) -> dict[str, dict[str, Any]]:
    """Arguments of ``Axes.plot`` for each label, no two alike.

    Policies have their own; a second one of a kind, and anything else, takes what is free, but beside policies never
    the colour of the control. A policy on a pruned model looks as on the dense one, but its marker is not filled, or
    only half.
    """
    names, pruned = list(dict.fromkeys(labels)), pruned or {}
    alone = {name: pruned.get(name, (name, ""))[0] for name in names}
    looks = _of_policies(dict.fromkeys(alone.values()), palette)
    models = _models(pruned)
    return {
        name: looks[policy] if name not in pruned else _unfilled(looks[policy], models.index(pruned[name][1]))
        for name, policy in alone.items()
    }


def _models(pruned: Pruned) -> list[str]:
    return list(dict.fromkeys(model for _, model in pruned.values()))


def _unfilled(look: dict[str, Any], number: int) -> dict[str, Any]:
    """The look of a policy on the pruned model of this number; beyond five, lines are dashed ever longer."""
    marker = "X" if look["marker"] == "x" else look["marker"]  # a cross has nothing to fill
    again, fill = divmod(number, len(_FILLS))
    line = look["linestyle"] if again == 0 else (0, (1 + 2 * again, 1))
    return {**look, "marker": marker, "linestyle": line, "fillstyle": _FILLS[fill]}


def _of_policies(names: Iterable[str], palette: Palette) -> dict[str, dict[str, Any]]:
    names = list(names)
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
