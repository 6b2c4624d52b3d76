"""Attention sinks: which keys they are, where, and how they move (Sink-Aware Pruning, arXiv 2602.17664).

All functions read ``column_mass``. With ``per_head=False`` they describe the mean over the recorded layers and
heads, with ``per_head=True`` every (layer, head) by itself. Variances are of the population (ddof 0).

Under a causal mask early keys are seen by more queries than late ones, and by the first queries, which have few keys to
share their attention among: even attention is uneven there. With ``over_even=True`` all functions read mass in
multiples of :func:`even_mass`, so that attention which is even under the mask is 1 everywhere and has no sinks. Keys
that few queries see are read from those few alone. Without a causal mask it changes nothing.
"""

import numpy as np
import xarray as xr

from dlm_lens.trace import Trace


def received_mass(trace: Trace, per_head: bool = False, over_even: bool = False) -> xr.DataArray:
    """Attention that each key receives, ``m_t(i) = Σ_j A_{j,i}`` summed over the valid queries.

    That is ``column_mass`` times the number of valid positions: 1 on average, whatever the length; with ``over_even``
    divided by :func:`even_mass`. float64 ([sample,] step, [layer, head,] position); NaN on padding.
    """
    column_mass, start = trace["column_mass"], trace["start"]
    mass = (column_mass if per_head else column_mass.mean(("layer", "head"), dtype=np.float64)).astype(
        np.float64
    )
    mass = (mass * (trace.length - start)).where(_position(trace) >= start)
    return (mass / even_mass(trace) if over_even else mass).rename("received_mass")


def even_mass(trace: Trace) -> xr.DataArray:
    """What each key would receive if every query attended evenly to all keys that it may see, in ``received_mass``.

    1 everywhere without a causal mask; ``Σ_{j ≥ i} 1 / (j + 1)`` with one, counted from the first valid position to
    the last one there is at a step. float64 ([sample,] step, position); NaN on padding and on keys that are not there.
    Raises ValueError for layers that attend within a window, of which the mask alone does not tell the queries.
    """
    if narrow := sorted({*trace.spec.get("windowed", ())} & {*trace.layers}):
        raise ValueError(
            f"layers {narrow} of {trace.attrs.get('model', 'this model')} attend within a window, where the mass of"
            " even attention is not known; take a trace of other layers"
        )
    place = _position(trace) - trace["start"]
    there = trace["column_mass"].isel(layer=0, head=0, drop=True).notnull() & (place >= 0)
    if not trace.spec.get("causal", False):
        return there.astype(np.float64).where(there).rename("even_mass")
    shares = (1.0 / (place + 1).where(there)).fillna(0.0)
    later = (
        shares.isel(position=slice(None, None, -1)).cumsum("position").isel(position=slice(None, None, -1))
    )
    return later.where(there).rename("even_mass")


def sinks(trace: Trace, kappa: float = 2.0, per_head: bool = False, over_even: bool = False) -> xr.DataArray:
    """Which keys are sinks: ``S_t = {i : m_t(i) > mean + κ · std}``, over the valid positions of a step.

    bool ([sample,] step, [layer, head,] position); padding is never a sink.
    """
    return _members(received_mass(trace, per_head, over_even), kappa).rename("sinks")


def _members(mass: xr.DataArray, kappa: float) -> xr.DataArray:
    # Even mass has no sinks, though rounding leaves some keys above the mean.
    return mass > (1 + 1e-9) * (mass.mean("position") + kappa * mass.std("position"))


def spatial_variance(trace: Trace, per_head: bool = False, over_even: bool = False) -> xr.DataArray:
    """How unevenly mass is spread over the keys: ``Var_i(mean_t m_t(i))`` over the recorded steps.

    In units of ``received_mass`` squared; ([sample,] [layer, head]). High where the same few keys receive
    everything at all steps, as in autoregressive models.
    """
    mass = received_mass(trace, per_head, over_even)
    return mass.mean("step").var("position").rename("spatial_variance")


def sink_centroid(
    trace: Trace, kappa: float = 2.0, per_head: bool = False, over_even: bool = False
) -> xr.DataArray:
    """Where the sinks are: ``c_t = Σ_{S_t} m_t(i) · i / Σ_{S_t} m_t(i)``, as a position.

    ([sample,] step, [layer, head]); NaN at steps without a sink.
    """
    mass = received_mass(trace, per_head, over_even)
    mass = mass.where(_members(mass, kappa), 0.0)
    total = mass.sum("position")
    moment = xr.dot(mass, _position(trace).astype(np.float64), dim="position")
    return (moment / total.where(total > 0)).rename("sink_centroid")


def temporal_variance(
    trace: Trace, kappa: float = 2.0, per_head: bool = False, over_even: bool = False
) -> xr.DataArray:
    """How far the sinks move: ``Var_t(c_t)`` over the recorded steps that have a sink, in positions squared.

    ([sample,] [layer, head]); NaN if no step has a sink. Near zero in autoregressive models.
    """
    return sink_centroid(trace, kappa, per_head, over_even).var("step").rename("temporal_variance")


def sink_variance(
    trace: Trace, kappa: float = 2.0, per_head: bool = False, over_even: bool = False
) -> xr.Dataset:
    """``spatial`` and ``temporal`` variance of the sinks together, the signature of a model's kind."""
    return xr.Dataset(
        {
            "spatial": spatial_variance(trace, per_head, over_even),
            "temporal": temporal_variance(trace, kappa, per_head, over_even),
        }
    )


def sink_lifetime(
    trace: Trace, kappa: float = 2.0, per_head: bool = False, over_even: bool = False
) -> xr.DataArray:
    """For how many recorded steps in a row a key stays a sink once it has become one, on average.

    ([sample,] [layer, head,] position); NaN for keys that never are sinks. Equals the number of recorded steps
    for a sink that never leaves and 1 for one that comes and goes.
    """
    members = sinks(trace, kappa, per_head, over_even)
    arrivals = members & ~members.shift(step=1, fill_value=False)
    lives = arrivals.sum("step")
    return (members.sum("step") / lives.where(lives > 0)).rename("sink_lifetime")


def sink_persistence(
    trace: Trace, kappa: float = 2.0, per_head: bool = False, over_even: bool = False
) -> xr.DataArray:
    """Which share of the sinks are sinks at the next recorded step as well: ``|S_t ∩ S_{t+1}| / |S_t|``.

    Mean over the recorded steps that have sinks and a next step; ([sample,] [layer, head]), NaN if there is none. 1 for
    sinks that stay. Unlike the centroid it is not moved by the mass of sinks that stay, and unlike the lifetime not
    shortened by keys that come late: it is what keys chosen at one step are worth at the next.
    """
    members = sinks(trace, kappa, per_head, over_even)
    now, then = members.isel(step=slice(-1)), members.shift(step=-1, fill_value=False).isel(step=slice(-1))
    count = now.sum("position")
    return ((now & then).sum("position") / count.where(count > 0)).mean("step").rename("sink_persistence")


def _position(trace: Trace) -> xr.DataArray:
    return xr.DataArray(
        np.arange(trace.length), dims="position", coords={"position": trace.dataset["position"]}
    )
