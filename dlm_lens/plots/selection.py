"""Picking one sample and a mean over heads, a layer's heads or one head from a trace."""

from __future__ import annotations

from itertools import pairwise

from dlm_lens.trace import Trace


def select(trace: Trace, layer: int | None, head: int | None, sample: int) -> Trace:
    """The part of a trace that a plot of one selection reads; ``None`` keeps all layers or heads.

    Raises ``ValueError`` for a layer, head or sample that was not recorded, or a head without a layer.
    """
    if head is not None and layer is None:
        raise ValueError(f"head={head} needs a layer: a head's number means something within its layer only")
    for name, value, known in (
        ("layer", layer, trace.layers),
        ("head", head, trace.heads),
        ("sample", sample, range(trace.samples)),
    ):
        if value is not None and value not in known:
            raise ValueError(f"{name}={value} is not in the trace; it holds {list(known)}")
    dataset = trace.dataset
    if "sample" in dataset.dims:
        dataset = dataset.isel(sample=sample)
    chosen = {dim: [value] for dim, value in (("layer", layer), ("head", head)) if value is not None}
    return Trace(dataset.sel(chosen))


def selection_text(layer: int | None, head: int | None) -> str:
    """How titles name a selection."""
    if layer is None:
        return "mean of all heads"
    return f"layer {layer}, mean of its heads" if head is None else f"layer {layer}, head {head}"


def step_edges(steps: tuple[int, ...]) -> list[float]:
    """Edges of the columns of an image over steps, which may have been recorded with gaps."""
    inner = [(before + after) / 2 for before, after in pairwise(steps)]
    first = steps[0] - (inner[0] - steps[0] if inner else 0.5)
    last = steps[-1] + (steps[-1] - inner[-1] if inner else 0.5)
    return [first, *inner, last]
