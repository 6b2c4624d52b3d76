"""What the sinks of denoising, and of a text that grows, look like when they are read in several ways.

Readings are what mass is looked at, and with which threshold:

* ``all keys``: the definition of Sink-Aware Pruning (arXiv 2602.17664), with κ = 2; ``κ = 1`` and ``κ = 3`` the same
  with other thresholds;
* ``without the first key``: the same but for the first token's;
* ``over even attention``: in multiples of what even attention would give under the model's mask;
* ``given keys``: mass of the given keys from queries in the rest, which all see all of them in both models. The text
  of these keys never changes, and there is no effect of the mask;
* ``given keys, newest queries``: the same from those queries only that predict the tokens of the step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from dlm_lens import metrics
from dlm_lens.trace import Trace

PAPER, EVEN = "all keys", "over even attention"
GIVEN, NEWEST = "given keys", "given keys, newest queries"
READINGS = (PAPER, "κ = 1", "κ = 3", "without the first key", EVEN, GIVEN, NEWEST)
AVERAGES = ("mean of heads", "head by head")
READ: dict[str, tuple[str, ...]] = {
    "spatial": tuple(name for name in READINGS if "κ" not in name),  # which does not depend on it
    "temporal": READINGS,
    "persistence": (PAPER, GIVEN, NEWEST),
    **dict.fromkeys(("centroid", "lifetime", "count", "first"), (PAPER,)),
}
"""Of which readings a variable is taken; in all others it is NaN."""


def of_denoising(trace: Trace, given: int) -> dict[str, np.ndarray]:
    """Mass [step, layer, head, key] by the kind of keys and queries, from the maps of a diffusion model's run."""
    maps, committed = trace["full_map"].values, trace["committed_at"].values
    newest = [maps[index, ..., committed == step, :given].sum(0) for index, step in enumerate(trace.steps)]
    return {
        PAPER: maps.sum(-2),
        GIVEN: _shares(maps[..., given:, :given].sum(-2)),
        NEWEST: _shares(np.stack(newest)),
    }


def of_growing(maps: np.ndarray, given: int, bounds: list[int]) -> dict[str, np.ndarray]:
    """The same of an autoregressive decoder whose text grows, from maps of all of the text [layer, head, L, L].

    A causal query attends the same way however the text goes on, so these maps hold every step: the queries and keys
    that are there by then; other keys are NaN. A query in the rest is one that predicts a token of it.
    """
    received = np.full((len(bounds) - 1, *maps.shape[:-1]), np.nan)
    for step, there in enumerate(bounds[:-1]):
        received[step, ..., :there] = maps[..., :there, :there].sum(-2)
    later = [maps[..., given - 1 : there, :given].sum(-2) for there in bounds[:-1]]
    newest = [maps[..., there - 1 : then - 1, :given].sum(-2) for there, then in pairwise(bounds)]
    return {PAPER: received, GIVEN: _shares(np.stack(later)), NEWEST: _shares(np.stack(newest))}


def _shares(mass: np.ndarray) -> np.ndarray:
    """Mass in even shares of what these keys receive together."""
    return mass / mass.mean(-1, keepdims=True)


def stacked(runs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Masses of several runs, as samples."""
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def read(masses: Mapping[str, np.ndarray], causal: bool) -> xr.Dataset:
    """All readings of mass [sample, step, layer, head, key]: what :func:`sink_movement` returns of every sample.

    ``temporal_of_heads`` (sample, reading, layer, head) is there besides.
    """
    every = masses[PAPER]
    ways: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        PAPER: (every, {}),
        "κ = 1": (every, {"kappa": 1.0}),
        "κ = 3": (every, {"kappa": 3.0}),
        "without the first key": (every[..., 1:], {}),
        EVEN: (every, {"over_even": True}),
        GIVEN: (masses[GIVEN], {}),
        NEWEST: (masses[NEWEST], {}),
    }
    parts, heads = [], []
    for name, (mass, how) in ways.items():
        trace = _trace_of(mass, causal)
        wanted = [variable for variable, readings in READ.items() if name in readings]
        merged = _described(trace, wanted, how, per_head=False)
        apart = _described(trace, wanted, how, per_head=True)
        middle = apart.map(_over_heads)
        parts.append(xr.concat([merged, middle], "average").assign_coords(average=list(AVERAGES)))
        heads.append(apart)
    readings = {"reading": list(READINGS)}
    own = {f"heads_{name}": heads[0][name] for name in ("spatial", "temporal", "persistence")}
    temporal = xr.concat([apart["temporal"] for apart in heads], "reading").assign_coords(readings)
    found = xr.concat(parts, "reading").assign_coords(readings)
    return found.assign(own).assign(temporal_of_heads=temporal)


def _over_heads(values: xr.DataArray) -> xr.DataArray:
    """The median of variances, which differ by orders of magnitude, and the mean of all else."""
    both = ("layer", "head")
    return values.median(both) if values.name in ("spatial", "temporal") else values.mean(both)


def _described(trace: Trace, wanted: list[str], how: dict[str, Any], per_head: bool) -> xr.Dataset:
    """The variables ``wanted``, each by its metric."""
    how = how | {"per_head": per_head}
    spatial = {name: value for name, value in how.items() if name != "kappa"}
    makers: dict[str, Callable[[], xr.DataArray]] = {
        "spatial": lambda: metrics.spatial_variance(trace, **spatial),
        "temporal": lambda: metrics.temporal_variance(trace, **how),
        "persistence": lambda: metrics.sink_persistence(trace, **how),
        "centroid": lambda: metrics.sink_centroid(trace, **how).mean("step"),
        "lifetime": lambda: metrics.sink_lifetime(trace, **how).mean("position"),
        "count": lambda: metrics.sinks(trace, **how).sum("position").mean("step"),
        "first": lambda: metrics.sinks(trace, **how).isel(position=0, drop=True).mean("step"),
    }
    return xr.Dataset({name: makers[name]() for name in wanted})


def _trace_of(mass: np.ndarray, causal: bool) -> Trace:
    """A trace of nothing but the mass that keys receive, [sample, step, layer, head, key]."""
    dims = ("sample", "step", "layer", "head", "position")
    dataset = xr.Dataset(
        {"column_mass": (dims, mass / mass.shape[-1]), "start": ("sample", np.zeros(len(mass), dtype=int))},
        {dim: range(size) for dim, size in zip(dims[1:], mass.shape[1:], strict=True)},
        {"spec": json.dumps({"causal": causal})},
    )
    return Trace(dataset)
