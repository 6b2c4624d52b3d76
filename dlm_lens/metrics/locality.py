"""Where attention goes and where tokens are committed, by distance (the observations of Window-Diffusion,
arXiv 2601.20332)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

from dlm_lens.trace import Trace

KINDS = ("prompt", "decoded", "masked")


def attention_by_distance(
    trace: Trace, queries: Literal["all", "prompt", "decoded", "masked"] = "all"
) -> xr.Dataset:
    """Attention of queries to keys by signed distance, key minus query, and by what the key is at that step.

    From ``pooled_map``, thus at the resolution of its bins: a distance is that between the middles of two bins, a
    multiple of L / bins positions, rounded. A bin that holds keys of several kinds is shared out by what each receives
    in ``column_mass``, and one that holds queries of several kinds counts by how many are of the kind asked for; with
    as many bins as positions both are exact.

    ``mass`` ([sample,] step, layer, head, key, distance) is the share of an average query's attention; it sums to 1
    over ``key`` (``"prompt"``, ``"decoded"``, ``"masked"``) and ``distance``. ``keys`` ([sample,] step, key, distance)
    is how many keys an average query has there, summing to the number of valid positions: ``mass / keys`` is the
    attention per key. Both are NaN at steps that have no such query. float64.

    Raises ``ValueError`` for unknown ``queries``, ``TraceError`` if ``pooled_map`` or ``column_mass`` was not recorded.
    """
    if queries not in ("all", *KINDS):
        raise ValueError(f"unknown queries {queries!r}: choose one of all, {', '.join(KINDS)}")
    pooled, column_mass = trace["pooled_map"], trace["column_mass"]
    if "sample" in pooled.dims:
        parts = [Trace(trace.dataset.isel(sample=sample)) for sample in range(trace.samples)]
        return xr.concat([attention_by_distance(part, queries) for part in parts], dim="sample")

    bins = pooled.sizes["query_bin"]
    member = _membership(trace.length, bins)
    of_kind = _kinds(trace)
    chosen = of_kind.any(0) if queries == "all" else of_kind[KINDS.index(queries)]
    weights = chosen @ member
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.full(weights.shape, np.nan), where=total > 0)

    received = column_mass.values.astype(np.float64)
    by_kind = np.stack([(received * kind[:, None, None]) @ member for kind in of_kind], axis=-2)
    whole = by_kind.sum(-2, keepdims=True)
    share = np.divide(by_kind, whole, out=np.zeros_like(by_kind), where=whole > 0)
    weighted = pooled.values.astype(np.float64) * weights[:, None, None, :, None]
    counts = np.stack([kind @ member for kind in of_kind], axis=-2)

    offsets = range(1 - bins, bins)
    mass = np.stack([_diagonal(weighted, share, offset) for offset in offsets], axis=-1)
    everywhere = np.broadcast_to(weights[..., None], (*weights.shape, bins))
    keys = np.stack([_diagonal(everywhere, counts, offset) for offset in offsets], axis=-1)
    return xr.Dataset(
        {
            "mass": (("step", "layer", "head", "key", "distance"), mass),
            "keys": (("step", "key", "distance"), keys),
        },
        coords={
            "step": pooled["step"].values,
            "layer": pooled["layer"].values,
            "head": pooled["head"].values,
            "key": list(KINDS),
            "distance": [round(offset * trace.length / bins) for offset in offsets],
        },
    )


def _diagonal(weighted: np.ndarray, share: np.ndarray, offset: int) -> np.ndarray:
    """Σ over query bins i of ``weighted[…, i, i + offset] · share[…, kind, i + offset]``, for every kind.

    ``weighted`` is [..., query_bin, key_bin], ``share`` [..., kind, key_bin].
    """
    bins = share.shape[-1]
    query = np.arange(max(0, -offset), min(bins, bins - offset))
    key = query + offset
    return (weighted[..., None, query, key] * share[..., key]).sum(-1)


def _membership(length: int, bins: int) -> np.ndarray:
    """float64 [length, bins]: 1 where a position lies in a bin."""
    return (np.arange(length)[:, None] * bins // length == np.arange(bins)).astype(np.float64)


def _kinds(trace: Trace) -> np.ndarray:
    """bool [kind, step, position]: what each valid position is at each step."""
    masked = trace["masked"].values
    position = np.arange(trace.length)
    prompt = np.broadcast_to(position < trace.prompt_length, masked.shape)
    valid = position >= int(trace["start"])
    return np.stack([prompt, ~prompt & ~masked, ~prompt & masked]) & valid


def committed_distance(trace: Trace) -> xr.Dataset:
    """How far beyond the decoding frontier each position lay when it was committed.

    The frontier is the first position still masked as the step begins. ``distance`` is how many positions lie from
    there to the one committed, 0 at the frontier itself; ``rank`` how many of them are masked: a window of W active
    positions, as in Window-Diffusion, would have allowed the commitment if rank < W. ``step`` is that of the
    commitment. All float64 ([sample,] position), NaN for the prompt and where nothing was decided.
    """
    committed_at = trace["committed_at"]
    found = np.stack([_behind(row, trace.prompt_length) for row in np.atleast_2d(committed_at.values)])
    found = found.reshape(*committed_at.shape[:-1], 3, trace.length)
    names = ("distance", "rank", "step")
    return xr.Dataset(
        {name: (committed_at.dims, found[..., index, :]) for index, name in enumerate(names)},
        coords={"position": trace.dataset["position"].values},
    )


def _behind(committed_at: np.ndarray, prompt_length: int) -> np.ndarray:
    """Distance, rank and step of every position's commitment, [3, L], from the step of each, int [L]."""
    result = np.full((3, len(committed_at)), np.nan)
    for step in np.unique(committed_at[committed_at >= 0]):
        masked = (committed_at >= step) | (committed_at < -1)
        masked[:prompt_length] = False
        now = (committed_at == step).nonzero()[0]
        result[0, now] = now - masked.argmax()
        result[1, now] = masked.cumsum()[now] - 1
        result[2, now] = step
    return result
