"""How far a mean can be trusted where measurements are grouped, as seeds are within texts."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr


def bootstrap_interval(
    values: xr.DataArray,
    over: str | Sequence[str],
    *,
    statistic: Callable[[xr.DataArray], xr.DataArray] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> xr.DataArray:
    """Percentile interval of a mean over grouped measurements, by drawing groups and then measurements anew.

    Parameters
    ----------
    values : measurements; NaN is left out of every mean, and where there is nothing else the interval is NaN
    over : the dimensions to take the mean over, outermost first. With ``("text", "seed")`` every draw takes as many
        texts with replacement and, for each of them anew, as many of its seeds; the mean is that of the texts' means,
        so that a text counts once however many of its seeds have a value. All other dimensions are drawn together,
        which keeps pairs paired: measurements of two models on the same text stay beside each other.
    statistic : a function of the means, without the dimensions ``over``, whose interval is wanted: the ratio of two
        models' means, say. The means themselves by default.
    level : probability that the interval covers; draws, seed : how many draws, and of which generator

    Returns float64 (``bound``, remaining dimensions), where ``bound`` is "low", "estimate" (of the measurements as they
    are) and "high". Raises ValueError for dimensions that ``values`` has not and arguments out of range.
    """
    over = (over,) if isinstance(over, str) else tuple(over)
    if not over or not set(over) <= set(values.dims):
        raise ValueError(f"over={over} must name dimensions of the values, which have {tuple(values.dims)}")
    if not 0 < level < 1:
        raise ValueError(f"level={level} must be between 0 and 1, such as 0.95")
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    statistic = statistic or (lambda means: means)
    ordered = values.astype(np.float64).transpose(*over, ...)
    kept = ordered.isel(dict.fromkeys(over, 0), drop=True)
    generator = np.random.default_rng(seed)
    drawn = [_redrawn(ordered.values, len(over), generator) for _ in range(draws)]
    means = kept.expand_dims(draw=draws).copy(data=np.stack(drawn))
    found = statistic(means)
    estimate = statistic(kept.copy(data=_mean(ordered.values, len(over))))
    tail = (1 - level) / 2
    with warnings.catch_warnings():
        # Where nothing was measured there is no interval: NaN says so.
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        low, high = (found.quantile(q, "draw").drop_vars("quantile") for q in (tail, 1 - tail))
    return xr.concat([low, estimate, high], xr.Variable("bound", ["low", "estimate", "high"]))


def _redrawn(values: np.ndarray, levels: int, generator: np.random.Generator) -> np.ndarray:
    """The mean of a draw: groups with replacement, then what is within each of them."""
    index: tuple[np.ndarray, ...] = ()
    for level in range(levels):
        drawn = generator.integers(0, values.shape[level], size=values.shape[: level + 1])
        index = (*(outer[..., None] for outer in index), drawn)
    return _mean(values[index], levels)


def _mean(values: np.ndarray, levels: int) -> np.ndarray:
    """The mean over the last of the leading dimensions, then over the one before it, and so on; NaN left out."""
    for level in reversed(range(levels)):
        there = ~np.isnan(values)
        count = there.sum(level)
        total = np.where(there, values, 0.0).sum(level)
        values = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return values
