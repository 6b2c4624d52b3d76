"""A made-up trace with the traits of real ones, for tests, examples and trying out plots without a model."""

import json

import numpy as np
import xarray as xr

from dlm_lens.trace import Trace

_WORDS = (
    "the",
    " quick",
    " brown",
    " fox",
    " jumps",
    " over",
    " a",
    " lazy",
    " dog",
    ".",
    "\n",
    " </script>",
)
_MASK = len(_WORDS)


def synthetic_trace(
    steps: int = 8,
    layers: int = 2,
    heads: int = 4,
    length: int = 64,
    prompt_length: int = 32,
    seed: int = 0,
    bins: int = 16,
    causal: bool = False,
    samples: int = 1,
) -> Trace:
    """Attention made of locality, noise and a few sinks; all statistics come from the same probabilities.

    As in diffusion models the sinks wander with the steps; with ``causal=True`` queries see no later keys and
    the sink stays on the first position, as in autoregressive ones. Tokens are committed left to right,
    evenly over the steps. Of several ``samples`` the n-th (from 0) has n positions of left padding. The token
    texts include ``</script>``, which every view must escape.

    Holds ``column_mass``, ``pooled_map`` and ``row_entropy`` for all layers and heads; float32.
    """
    if min(steps, layers, heads, bins, samples) < 1 or not samples <= prompt_length < length:
        raise ValueError(
            "steps, layers, heads, bins and samples must be positive and samples <= prompt_length < length,"
            f" got {steps=}, {layers=}, {heads=}, {bins=}, {samples=}, {prompt_length=}, {length=}"
        )
    rng = np.random.default_rng(seed)
    bins = min(bins, length)
    parts = [
        _sample(rng, steps, layers, heads, length, prompt_length, bins, causal, n) for n in range(samples)
    ]
    dataset = xr.concat(parts, dim="sample") if samples > 1 else parts[0]
    dataset = dataset.assign(
        kind=("step", np.full(steps, "dense")),
        step_ms=("step", rng.uniform(10, 12, steps).astype(np.float32)),
    )
    return Trace.from_dataset(
        dataset.assign_attrs(_attributes(steps, layers, heads, length, prompt_length, causal, seed))
    )


def _sample(
    rng: np.random.Generator,
    steps: int,
    layers: int,
    heads: int,
    length: int,
    prompt_length: int,
    bins: int,
    causal: bool,
    start: int,
) -> xr.Dataset:
    """One sample whose first ``start`` positions are padding."""
    bin_of = np.arange(length) * bins // length
    members = (bin_of[:, None] == np.arange(bins)) & (np.arange(length) >= start)[:, None]
    weights = members / np.maximum(members.sum(0), 1)
    by_step: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for step in range(steps):
        attention = _attention(rng, layers, heads, length, step / steps, causal, start)
        entropy = -(attention * np.log(np.maximum(attention, 1e-30))).sum(-1)
        pooled = np.einsum("qa,lhqk,kb->lhab", weights, attention, members.astype(float), optimize=True)
        by_step.append((attention[..., start:, :].mean(-2), pooled, entropy @ weights))
    column_mass, pooled_map, row_entropy = (
        np.stack(part).astype(np.float32) for part in zip(*by_step, strict=True)
    )

    final = rng.integers(0, _MASK, length)
    generation = np.arange(length - prompt_length)
    committed_at = np.full(length, -1)
    committed_at[prompt_length:] = generation * steps // len(generation)
    masked = committed_at >= np.arange(steps)[:, None]
    confidence = np.where(np.arange(length) >= prompt_length, rng.uniform(0.2, 1, (steps, length)), np.nan)
    return xr.Dataset(
        {
            "tokens": (("step", "position"), np.where(masked, _MASK, final).astype(np.int32)),
            "masked": (("step", "position"), masked),
            "confidence": (("step", "position"), confidence.astype(np.float32)),
            "start": ((), np.int32(start)),
            "committed_at": (("position",), committed_at.astype(np.int32)),
            "final_tokens": (("position",), final.astype(np.int32)),
            "column_mass": (("step", "layer", "head", "position"), column_mass),
            "pooled_map": (("step", "layer", "head", "query_bin", "key_bin"), pooled_map),
            "row_entropy": (("step", "layer", "head", "query_bin"), row_entropy),
        }
    )


def _attention(
    rng: np.random.Generator, layers: int, heads: int, length: int, progress: float, causal: bool, start: int
) -> np.ndarray:
    """Probabilities [layers, heads, length, length] at a moment of the run; padded keys get none."""
    position = np.arange(length)
    reach = rng.uniform(0.05, 0.3, (layers, heads, 1, 1)) * length
    scores = rng.normal(0, 0.7, (layers, heads, length, length))
    scores -= np.abs(position[:, None] - position) / reach
    # The run's sinks start at places of their own per layer and drift to the right.
    home = start if causal else (start + (0.15 + 0.6 * progress + 0.1 * np.arange(layers)) * (length - start))
    sinks = np.broadcast_to(np.asarray(home).astype(int) % length, layers)
    scores[np.arange(layers), ..., sinks] += 4.0
    scores[..., :start] = -np.inf
    if causal:
        scores[..., position[:, None] < position] = -np.inf
        scores[..., :start, :] = 0.0  # rows of padding see nothing valid; they are excluded from every mean
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _attributes(
    steps: int, layers: int, heads: int, length: int, prompt_length: int, causal: bool, seed: int
) -> dict[str, str | int]:
    texts = {**dict(enumerate(_WORDS)), _MASK: "[MASK]"}
    spec = {
        "name": "synthetic",
        "family": "ar" if causal else "llada",
        "mask_id": _MASK,
        "causal": causal,
        "layers": layers,
        "heads": heads,
    }
    return {
        "model": "synthetic",
        "spec": json.dumps(spec),
        "policy": "Dense()",
        "sampler": "LeftToRight()",
        "seed": seed,
        "prompt_length": prompt_length,
        "gen_length": length - prompt_length,
        "steps": steps,
        "complete": True,
        "vocabulary": json.dumps(texts, ensure_ascii=False),
    }
