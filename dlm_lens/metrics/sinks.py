"""Attention sinks: which keys they are, where, and how they move (Sink-Aware Pruning, arXiv 2602.17664).

All functions read ``column_mass``. With ``per_head=False`` they describe the mean over the recorded layers and
heads, with ``per_head=True`` every (layer, head) by itself. Variances are of the population (ddof 0).
"""

import numpy as np
import xarray as xr

from dlm_lens.trace import Trace


def received_mass(trace: Trace, per_head: bool = False) -> xr.DataArray:
    """Attention that each key receives, ``m_t(i) = Σ_j A_{j,i}`` summed over the valid queries.

    That is ``column_mass`` times the number of valid positions: 1 on average, whatever the length. float64
    ([sample,] step, [layer, head,] position); NaN on padding.
    """
    column_mass, start = trace["column_mass"], trace["start"]
    mass = (column_mass if per_head else column_mass.mean(("layer", "head"), dtype=np.float64)).astype(
        np.float64
    )
    return (mass * (trace.length - start)).where(_position(trace) >= start).rename("received_mass")


def sinks(trace: Trace, kappa: float = 2.0, per_head: bool = False) -> xr.DataArray:
    """Which keys are sinks: ``S_t = {i : m_t(i) > mean + κ · std}``, over the valid positions of a step.

    bool ([sample,] step, [layer, head,] position); padding is never a sink.
    """
    return _members(received_mass(trace, per_head), kappa).rename("sinks")


def _members(mass: xr.DataArray, kappa: float) -> xr.DataArray:
    return mass > mass.mean("position") + kappa * mass.std("position")


def spatial_variance(trace: Trace, per_head: bool = False) -> xr.DataArray:
    """How unevenly mass is spread over the keys: ``Var_i(mean_t m_t(i))`` over the recorded steps.

    In units of ``received_mass`` squared; ([sample,] [layer, head]). High where the same few keys receive
    everything at all steps, as in autoregressive models.
    """
    return received_mass(trace, per_head).mean("step").var("position").rename("spatial_variance")


def sink_centroid(trace: Trace, kappa: float = 2.0, per_head: bool = False) -> xr.DataArray:
    """Where the sinks are: ``c_t = Σ_{S_t} m_t(i) · i / Σ_{S_t} m_t(i)``, as a position.

    ([sample,] step, [layer, head]); NaN at steps without a sink.
    """
    mass = received_mass(trace, per_head)
    mass = mass.where(_members(mass, kappa), 0.0)
    total = mass.sum("position")
    moment = xr.dot(mass, _position(trace).astype(np.float64), dim="position")
    return (moment / total.where(total > 0)).rename("sink_centroid")


def temporal_variance(trace: Trace, kappa: float = 2.0, per_head: bool = False) -> xr.DataArray:
    """How far the sinks move: ``Var_t(c_t)`` over the recorded steps that have a sink, in positions squared.

    ([sample,] [layer, head]); NaN if no step has a sink. Near zero in autoregressive models.
    """
    return sink_centroid(trace, kappa, per_head).var("step").rename("temporal_variance")


def sink_variance(trace: Trace, kappa: float = 2.0, per_head: bool = False) -> xr.Dataset:
    """``spatial`` and ``temporal`` variance of the sinks together, the signature of a model's kind."""
    return xr.Dataset(
        {
            "spatial": spatial_variance(trace, per_head),
            "temporal": temporal_variance(trace, kappa, per_head),
        }
    )


def sink_lifetime(trace: Trace, kappa: float = 2.0, per_head: bool = False) -> xr.DataArray:
    """For how many recorded steps in a row a key stays a sink once it has become one, on average.

    ([sample,] [layer, head,] position); NaN for keys that never are sinks. Equals the number of recorded steps
    for a sink that never leaves and 1 for one that comes and goes.
    """
    members = sinks(trace, kappa, per_head)
    arrivals = members & ~members.shift(step=1, fill_value=False)
    lives = arrivals.sum("step")
    return (members.sum("step") / lives.where(lives > 0)).rename("sink_lifetime")


def _position(trace: Trace) -> xr.DataArray:
    return xr.DataArray(
        np.arange(trace.length), dims="position", coords={"position": trace.dataset["position"]}
    )
