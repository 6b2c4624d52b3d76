"""Arrays per selection: the mean over all heads, the mean over each layer's heads, and every head itself."""

from __future__ import annotations

import numpy as np
import xarray as xr

from dlm_lens.explorer.budget import Plan
from dlm_lens.trace import Trace


def with_samples(variable: xr.DataArray) -> xr.DataArray:
    """The variable with ``sample`` in front, also when the trace holds a single prompt."""
    return variable if "sample" in variable.dims else variable.expand_dims("sample")


def gather(variable: xr.DataArray, plan: Plan) -> np.ndarray:
    """[sample, selection, step, …] float32 of a variable over (step, layer, head, …).

    Read step by step, so that of a long trace on disk only what the plan keeps is in memory. The means are
    over all recorded heads, also those that the plan leaves out.
    """
    variable = with_samples(variable)
    rest = variable.shape[4:]
    out = np.empty((variable.sizes["sample"], plan.selections, len(plan.steps), *rest), np.float32)
    first_head = 1 + len(plan.layers)
    for index, step in enumerate(plan.steps):
        now = variable.isel(step=step).values
        layers = now[:, plan.layers]
        out[:, 0, index] = now.mean((1, 2))
        out[:, 1:first_head, index] = layers.mean(2)
        out[:, first_head:, index] = layers[:, :, plan.heads].reshape(len(now), -1, *rest)
    return out


def as_trace(trace: Trace, mass: np.ndarray, plan: Plan) -> Trace:
    """A trace whose "layers" are the selections and which has one head, so that metrics read it per selection."""
    dims = ("sample", "step", "layer", "head", "position")
    dataset = xr.Dataset(
        {
            "column_mass": (dims, mass.swapaxes(1, 2)[:, :, :, None]),
            **{name: trace.dataset[name].isel(step=list(plan.steps)) for name in ("tokens", "masked")},
        },
        coords={"step": trace.dataset["step"].values[list(plan.steps)]},
    )
    return Trace(dataset.assign(start=with_samples(trace.dataset["start"])).assign_attrs(trace.attrs))


def coarser_maps(maps: np.ndarray, bins: int, start: np.ndarray, length: int) -> np.ndarray:
    """Pooled maps [sample, selection, step, query_bin, key_bin] with fewer bins; rows still sum to 1.

    Keys add up; queries are averaged, weighted by how many valid positions each bin holds.
    """
    fine = maps.shape[-1]
    if bins == fine:
        return maps
    position = np.arange(length)
    bin_of = position * fine // length
    counts = np.stack([np.bincount(bin_of[position >= s], minlength=fine) for s in start]).astype(np.float32)
    keys = maps.reshape(*maps.shape[:-1], bins, fine // bins).sum(-1)
    weights = counts[:, None, None, :, None]
    folded = (*maps.shape[:3], bins, fine // bins)
    total = (keys * weights).reshape(*folded, bins).sum(-2)
    return total / np.maximum(weights.reshape(len(start), 1, 1, bins, -1).sum(-1), 1)[..., None]
