"""How few keys attention needs."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dlm_lens.trace import Trace


def effective_columns(trace: Trace) -> xr.DataArray:
    """Number of keys that share a head's attention: the exponential of the entropy of ``column_mass``.

    Between 1 (all queries look at one key) and the number of valid positions (all keys receive the same).
    float64 ([sample,] step, layer, head).
    """
    mass = trace["column_mass"].astype(np.float64)
    entropy = -(mass * np.log(mass.where(mass > 0, 1.0))).sum("position")
    return xr.apply_ufunc(np.exp, entropy).rename("effective_columns")


def column_recall(trace: Trace, budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.5)) -> xr.DataArray:
    """Best share of the attention that columns can keep: ``column_mass`` of its ``round(budget · L)`` largest.

    One list of keys per head serves all queries here. Lists of their own for groups of queries, as PulseCol
    has them, keep at least as much, so this is a lower bound for them. ``L`` counts valid positions; at least
    one key is kept. float64 ([sample,] step, layer, head, budget).

    Raises ``ValueError`` for budgets outside (0, 1].
    """
    if not budgets or not all(0 < budget <= 1 for budget in budgets):
        raise ValueError(f"budgets must be shares of the keys in (0, 1], at least one, got {list(budgets)}")
    share = xr.DataArray(list(budgets), dims="budget", coords={"budget": list(budgets)})
    kept = np.maximum(1, np.round(share * (trace.length - trace["start"]))).astype(int)
    largest_first = xr.apply_ufunc(
        lambda mass: np.cumsum(-np.sort(-mass, axis=-1), axis=-1),
        trace["column_mass"].astype(np.float64),
        input_core_dims=[["position"]],
        output_core_dims=[["rank"]],
    )
    recall = largest_first.isel(rank=kept - 1)
    return recall.transpose(..., "step", "layer", "head", "budget").rename("column_recall")
