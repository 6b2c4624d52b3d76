"""Rotary position embeddings as configurations name them, and how they are stretched to longer contexts."""

from __future__ import annotations

import math
from typing import Any

# What transformers computes from the configuration alone. Others change with the length of the input, or need lists
# of factors that no published checkpoint of these families has.
KINDS = ("default", "linear", "yarn", "llama3")
_NEEDED = {
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


def read_rope(published: dict[str, Any], *, theta: float, positions: int) -> dict[str, Any]:
    """transformers' ``rope_parameters`` from ``rope_theta`` and ``rope_scaling`` of a ``config.json``.

    ``theta`` is the base where the configuration names none, ``positions`` the length it was published for, from
    which scaled kinds count where they do not say. A configuration that already has ``rope_parameters`` keeps them.

    Raises ``ValueError`` for a kind of scaling that is not computed, or that lacks a number it needs, naming it.
    """
    given = published.get("rope_parameters") or published.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ValueError(f"rope_scaling={given!r} is not a table of parameters")
    parameters = {name: value for name, value in given.items() if name != "type"}
    kind = parameters.setdefault("rope_type", given.get("type", "default"))
    if kind not in KINDS:
        raise ValueError(
            f"rope_scaling is of type {kind!r}, which dlm-lens does not compute; it knows"
            f" {', '.join(map(repr, KINDS))}"
        )
    needed = _NEEDED.get(kind, ())
    if lacking := [name for name in needed if not isinstance(parameters.get(name), (int, float))]:
        raise ValueError(
            f"rope_scaling of type {kind!r} needs a number as {', '.join(lacking)}; it is {given}"
        )
    base = parameters.get("rope_theta") or published.get("rope_theta") or theta
    parameters["rope_theta"] = float(base)
    if kind in ("yarn", "llama3"):
        parameters.setdefault("original_max_position_embeddings", positions)
    return parameters


def write_rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """``rope_theta``, and ``rope_scaling`` where there is one: the inverse of :func:`read_rope`."""
    published = {"rope_theta": parameters["rope_theta"]}
    if parameters["rope_type"] != "default":
        published["rope_scaling"] = {
            name: value for name, value in parameters.items() if name != "rope_theta"
        }
    return published


def ntk_theta(theta: float, *, head_dim: int, trained: int, length: int) -> float:
    """The base with which a model trained on ``trained`` positions is stretched to ``length`` without training.

    The base is multiplied by λ = (length / 2π)^(d / d′) / θ, rounded up to a whole number, where
    d′ = 2 ⌈d/2 · log_θ(trained / 2π)⌉ counts the dimensions whose full turn was seen in training. For LLaDA-8B this
    gives λ = 4, 14 and 55 for 8k, 16k and 32k positions.

    Source: LongLLaDA (arXiv 2506.14429), section on NTK-based extrapolation; the scaling laws are those of
    arXiv 2310.05209.
    """
    seen = 2 * math.ceil(head_dim / 2 * math.log(trained / (2 * math.pi), theta))
    return theta * math.ceil((length / (2 * math.pi)) ** (head_dim / seen) / theta)
