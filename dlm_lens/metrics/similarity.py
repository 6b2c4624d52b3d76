"""How alike attention is from step to step and from head to head, and how a choice of keys ages.

SparseD (arXiv 2509.24014) rests on two observations: patterns differ between heads, and a head's pattern is very
similar from step to step. Both are measured here on what a trace holds: ``column_mass``, the attention every key
receives, or ``pooled_map``, which also tells who gives it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from dlm_lens.trace import Trace

SOURCES = ("column_mass", "pooled_map")
MEASURES = ("cosine", "overlap")


def step_similarity(
    trace: Trace,
    of: str = "column_mass",
    measure: str = "cosine",
    budget: float = 0.2,
    per_head: bool = True,
) -> xr.DataArray:
    """How alike the attention of a head is at two steps, in [0, 1].

    Parameters
    ----------
    of : ``"column_mass"`` or ``"pooled_map"``
    measure : ``"cosine"`` of the two arrays, or ``"overlap"``: the Jaccard index |A ∩ B| / |A ∪ B| of their supports,
        the ``round(budget · n)`` largest of n valid keys, at least one. Of a pooled map every bin of queries has a
        support of its own, of bins of keys, and the overlap is the mean over those bins
    budget : share of the keys in a support, in (0, 1]; a cosine has none
    per_head : False for the mean over layers and heads

    float64 ([sample,] step, step_other, [layer, head]), both labelled with the numbers of recorded steps. Raises
    ``ValueError`` for an unknown ``of`` or ``measure`` and an impossible budget.
    """
    _check(of, measure, budget)
    values = _rows(trace, of)

    def of_sample(part: xr.DataArray, valid: int) -> np.ndarray:
        layers = [
            part.isel(layer=i).transpose("head", "row", "step", "key").values
            for i in range(part.sizes["layer"])
        ]
        return np.stack([_similarity(layer, measure, budget, valid) for layer in layers])

    dims = ("layer", "head", "step", "step_other")
    steps = trace.dataset["step"].values
    found = _by_sample(values, of_sample, dims, {"step": steps, "step_other": steps}, trace, of)
    found = found.transpose(..., "step", "step_other", "layer", "head").rename("step_similarity")
    return found if per_head else found.mean(("layer", "head"))


def head_similarity(
    trace: Trace, of: str = "pooled_map", measure: str = "cosine", budget: float = 0.2
) -> xr.DataArray:
    """How alike the attention of two heads is at the same step, mean over the recorded steps, in [0, 1].

    ``of``, ``measure`` and ``budget`` are those of :func:`step_similarity`. float64
    ([sample,] layer, head, layer_other, head_other).
    """
    _check(of, measure, budget)
    values = _rows(trace, of)
    layers, heads = trace.dataset["layer"].values, trace.dataset["head"].values
    grid = (len(layers), len(heads))

    def of_sample(part: xr.DataArray, valid: int) -> np.ndarray:
        steps = part.sizes["step"]
        total = np.zeros((len(layers) * len(heads),) * 2)
        for step in range(steps):
            now = part.isel(step=step).transpose("row", "layer", "head", "key").values
            total += _similarity(now.reshape(1, len(now), -1, now.shape[-1]), measure, budget, valid)[0]
        return (total / steps).reshape(*grid, *grid)

    labels = {"layer_other": layers, "head_other": heads}
    dims = ("layer", "head", "layer_other", "head_other")
    return _by_sample(values, of_sample, dims, labels, trace, of).rename("head_similarity")


def stale_recall(trace: Trace, budget: float = 0.2) -> xr.Dataset:
    """Share of the attention of one step that the columns chosen at an earlier one keep.

    The ``round(budget · L)`` keys of a head with the most ``column_mass`` at ``step_made``, of L valid ones and at
    least one, keep ``recall`` of the attention at ``step_used``, in [0, 1]; ``relative`` is that divided by what
    columns chosen at ``step_used`` itself keep, so 1 for a pattern that has not aged. NaN where it would be used before
    it is made. One list of keys serves all queries of a head; lists for groups of queries, as policies have them, keep
    more and may age otherwise.

    Both float64 ([sample,] step_made, step_used, layer, head). Raises ``ValueError`` for a budget outside (0, 1].
    """
    _check("column_mass", "overlap", budget)
    values = _rows(trace, "column_mass")

    def of_sample(part: xr.DataArray, valid: int) -> np.ndarray:
        kept = []
        for layer in range(part.sizes["layer"]):
            mass = part.isel(layer=layer, row=0).transpose("head", "step", "key").values.astype(np.float64)
            kept.append(_support(mass, budget, valid) @ mass.swapaxes(-1, -2))
        return np.stack(kept)

    steps = trace.dataset["step"].values
    labels = {"step_made": steps, "step_used": steps}
    dims = ("layer", "head", "step_made", "step_used")
    recall = _by_sample(values, of_sample, dims, labels, trace, "column_mass")
    recall = recall.transpose(..., "step_made", "step_used", "layer", "head")
    fresh = xr.concat(
        [recall.sel(step_made=step, step_used=step, drop=True) for step in steps], dim="step_used"
    ).assign_coords(step_used=steps)
    recall = recall.where(recall["step_used"] >= recall["step_made"])
    return xr.Dataset({"recall": recall, "relative": (recall / fresh).transpose(*recall.dims)})


def _check(of: str, measure: str, budget: float) -> None:
    if of not in SOURCES:
        raise ValueError(f"of={of!r} cannot be compared; choose one of {', '.join(SOURCES)}")
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}; choose one of {', '.join(MEASURES)}")
    if not 0 < budget <= 1:
        raise ValueError(f"budget={budget} must be a share of the keys in (0, 1]")


def _rows(trace: Trace, of: str) -> xr.DataArray:
    """The variable as rows over keys: ([sample,] step, layer, head, row, key); column mass has one row."""
    values = trace[of]
    if of == "column_mass":
        return values.rename(position="key").expand_dims("row").drop_vars("key", errors="ignore")
    return values.rename(query_bin="row", key_bin="key")


def _by_sample(
    values: xr.DataArray,
    compute: Callable[[xr.DataArray, int], np.ndarray],
    dims: Sequence[str],
    labels: Mapping[str, np.ndarray],
    trace: Trace,
    of: str,
) -> xr.DataArray:
    """``compute(part, valid keys)`` of every sample, with dimensions and labels."""
    keys, parts = values.sizes["key"], []
    coordinates = {name: trace.dataset[name].values for name in ("layer", "head")} | dict(labels)
    for sample, start in enumerate(np.atleast_1d(trace["start"].values)):
        part = values.isel(sample=sample) if "sample" in values.dims else values
        padding = int(start) if of == "column_mass" else int(start) * keys // trace.length
        parts.append(xr.DataArray(compute(part, keys - padding), dims=dims, coords=coordinates))
    return xr.concat(parts, dim="sample") if "sample" in values.dims else parts[0]


def _similarity(values: np.ndarray, measure: str, budget: float, valid: int) -> np.ndarray:
    """Of [..., row, n, key] between all pairs of the n, [..., n, n]."""
    values = values.astype(np.float64)
    if measure == "cosine":
        products = (values @ values.swapaxes(-1, -2)).sum(-3)
        norms = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
        return products / (norms[..., :, None] * norms[..., None, :])
    total, rows = np.zeros((*values.shape[:-3], *(values.shape[-2],) * 2)), 0
    for row in range(values.shape[-3]):
        if not values[..., row, :, :].any():
            continue  # bins that hold padding only
        chosen = _support(values[..., row, :, :], budget, valid)
        common = chosen @ chosen.swapaxes(-1, -2)
        total += common / (2 * chosen.sum(-1).max() - common)
        rows += 1
    return total / rows


def _support(values: np.ndarray, budget: float, valid: int) -> np.ndarray:
    """1 at the ``round(budget · valid)`` largest along the last dimension, at least one, 0 elsewhere; float64."""
    kept = max(1, round(budget * valid))
    best = np.argsort(-values, axis=-1, kind="stable")[..., :kept]
    chosen = np.zeros(values.shape)
    np.put_along_axis(chosen, best, 1.0, axis=-1)
    return chosen
