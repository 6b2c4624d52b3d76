"""Arrays per selection: the mean over all heads, the mean over each layer's heads, and every head itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from dlm_lens.explorer.budget import Plan
from dlm_lens.trace import Trace

# So much of a trace is in memory at a time while it is packed, before metrics take their own share.
_BLOCK_BYTES = 64 << 20


def with_samples(variable: xr.DataArray) -> xr.DataArray:
    """The variable with ``sample`` in front, also when the trace holds a single prompt."""
    return variable if "sample" in variable.dims else variable.expand_dims("sample")


def layer_blocks(trace: Trace, names: tuple[str, ...]) -> Iterator[slice]:
    """Slices of layers that together are all, each with as many as fit into a block of memory."""
    layers = len(trace.layers)
    held = [trace[name] for name in names if name in trace.dataset]
    per_layer = sum(math.prod(v.shape) * v.dtype.itemsize for v in held) // max(layers, 1)
    size = max(1, _BLOCK_BYTES // max(per_layer, 1))
    return (slice(first, min(first + size, layers)) for first in range(0, layers, size))


def gather(trace: Trace, name: str, plan: Plan, bar: tqdm) -> np.ndarray:
    """[sample, selection, step, …] float32 of a variable over (step, layer, head, …), for the packed selections.

    Read by blocks of layers, so that of a long trace on disk only what the plan keeps is in memory. The means are
    over all recorded heads, also those that the plan leaves out. ``bar`` is told of every layer.
    """
    variable = with_samples(trace[name]).isel(step=list(plan.steps))
    samples, steps, layers, heads, *rest = variable.shape
    out = np.zeros((samples, plan.selections, steps, *rest), np.float32)
    first_head = 1 + len(plan.layers)
    for block in layer_blocks(trace, (name,)):
        now = variable.isel(layer=block).values
        out[:, 0] += now.sum((2, 3)) / (layers * heads)
        for offset, layer in enumerate(range(block.start, block.stop)):
            if plan.resident == "all" or layer not in plan.layers:
                continue
            index, own = plan.layers.index(layer), now[:, :, offset]
            out[:, 1 + index] = own.mean(2)
            if plan.resident == "head":
                at = first_head + index * len(plan.heads)
                out[:, at : at + len(plan.heads)] = own[:, :, plan.heads].swapaxes(1, 2)
        bar.update(block.stop - block.start)
    return out


def gather_one(trace: Trace, name: str, plan: Plan, sample: int, layer: int, head: int | None) -> np.ndarray:
    """[1, 1, step, …] float32 of one head, or of the mean of a layer's heads, by indices into the trace."""
    variable = with_samples(trace[name]).isel(sample=[sample], step=list(plan.steps), layer=layer)
    values = variable.values.mean(2) if head is None else variable.isel(head=head).values
    return values[:, None].astype(np.float32)


def as_trace(trace: Trace, mass: np.ndarray, plan: Plan, samples: slice = slice(None)) -> Trace:
    """A trace whose "layers" are the selections and which has one head, so that metrics read it per selection.

    ``mass`` [sample, selection, step, position] is of the ``samples`` of the trace.
    """
    dims = ("sample", "step", "layer", "head", "position")
    steps = list(plan.steps)
    texts = {
        name: with_samples(trace.dataset[name]).isel(sample=samples) for name in ("tokens", "masked", "start")
    }
    dataset = xr.Dataset(
        {
            "column_mass": (dims, mass.swapaxes(1, 2)[:, :, :, None]),
            **{
                name: value.isel(step=steps) if "step" in value.dims else value
                for name, value in texts.items()
            },
        },
        coords={"step": trace.dataset["step"].values[steps]},
    )
    return Trace(dataset.assign_attrs(trace.attrs))


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
