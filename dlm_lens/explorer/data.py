"""A trace as the browser gets it: a JSON manifest that describes arrays, and one compressed buffer with them."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlm_lens import metrics
from dlm_lens.errors import TraceError
from dlm_lens.explorer.budget import Plan, describe, full_plan, plans, raw_bytes
from dlm_lens.explorer.quantise import Buffer, log_scale
from dlm_lens.explorer.selection import as_trace, coarser_maps, gather, with_samples
from dlm_lens.plots.head_metrics import HEAD_METRICS, head_metric
from dlm_lens.plots.sink_drift import sink_moments
from dlm_lens.trace import Trace

KAPPA = 2.0
_STATISTICS = ("column_mass", "pooled_map", "row_entropy", "retained_mass")
_OPTIMISM = 4  # plans whose raw size exceeds the budget by more than what compression may save are not tried
_VARIANCE_UNITS = ("even shares²", "positions²")
_LEVEL = 4  # of compression: 6 takes four times as long for 6% less
_STEP = 2  # axis of the steps in arrays [sample, selection, step, …]


@dataclass(frozen=True)
class Packed:
    """``manifest`` (JSON) describes the arrays in ``payload`` (their buffer, deflated)."""

    manifest: dict[str, Any]
    payload: bytes

    def manifest_json(self) -> str:
        # A lone surrogate, which a broken tokenizer could bring, has no UTF-8 form: replaced.
        text = json.dumps(self.manifest, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8", "replace").decode("utf-8")


def pack(trace: Trace, *, title: str | None = None, max_bytes: int = 25_000_000) -> Packed:
    """Reduce a trace to at most ``max_bytes`` of payload.

    Column mass and pooled maps are packed per selection (mean of all heads, of a layer's heads, each head) on
    a logarithmic scale over the five decades below their maximum: off by at most half a quantum, 2.3%.
    Confidence is linear in [0, 1], off by at most 0.002. Sinks are exact bits, metrics float32. When all of
    it does not fit, maps become coarser and heads, steps and layers fewer; ``manifest["notes"]`` says which.

    Raises ``TraceError`` if the trace holds nothing to show, ``ValueError`` if nothing fits.
    """
    if not trace.steps:
        raise TraceError("the trace has no finished step, so there is nothing to explore")
    if not set(trace.statistics) & set(_STATISTICS):
        raise TraceError(
            f"the trace has none of {', '.join(_STATISTICS)}, so there is nothing to explore;"
            " capture it with statistics=[ColumnMass(), PooledMap(), RowEntropy()]"
        )
    full = full_plan(trace)
    smallest = 0
    for plan in plans(trace):
        if raw_bytes(plan, trace) > _OPTIMISM * max_bytes:
            continue
        packed = _pack(trace, plan, title)
        smallest = len(packed.payload)
        if smallest <= max_bytes:
            notes = describe(plan, full)
            return replace(packed, manifest=packed.manifest | {"notes": notes}) if notes else packed
    needs = (
        f"the smallest reduction of it takes {smallest:,} bytes" if smallest else "no reduction of it fits"
    )
    raise ValueError(f"max_bytes={max_bytes:,} is too small for this trace: {needs}")


def _pack(trace: Trace, plan: Plan, title: str | None) -> Packed:
    buffer = Buffer()
    words = _add_text(buffer, trace, plan)
    if "column_mass" in trace.dataset:
        _add_mass(buffer, trace, plan)
    if plan.bins:
        maps = gather(trace["pooled_map"], plan)
        maps = coarser_maps(maps, plan.bins, _starts(trace), trace.length)
        buffer.add("map", maps, log_scale(maps), along=_STEP)
    described = _add_metrics(buffer, trace, plan)
    dataset = trace.dataset
    steps = list(plan.steps)
    manifest = {
        "title": title or str(trace.attrs.get("model", "Trace")),
        "facts": _facts(trace),
        "steps": [trace.steps[i] for i in steps],
        "total_steps": int(trace.attrs.get("steps", trace.steps[-1] + 1)),
        "kinds": dataset["kind"].values[steps].tolist(),
        "step_ms": [float(ms) if np.isfinite(ms) else None for ms in dataset["step_ms"].values[steps]],
        "layers": [trace.layers[i] for i in plan.layers],
        "heads": [trace.heads[i] for i in plan.heads],
        "positions": trace.length,
        "prompt_length": trace.prompt_length,
        "start": _starts(trace).tolist(),
        "words": words,
        "metrics": described,
        "kappa": KAPPA,
        "variance_units": _VARIANCE_UNITS,
        "notes": [],
        "arrays": buffer.arrays,
    }
    return Packed(manifest, zlib.compress(buffer.tobytes(), _LEVEL))


def _starts(trace: Trace) -> np.ndarray:
    return np.atleast_1d(trace["start"].values).astype(int)


def _add_text(buffer: Buffer, trace: Trace, plan: Plan) -> list[str]:
    """Tokens as indices into the returned words: the state entering each step, and last the final one."""
    steps = list(plan.steps)
    entering = with_samples(trace["tokens"]).values[:, steps]
    final = with_samples(trace["final_tokens"]).values[:, None]
    ids, index = np.unique(np.concatenate([entering, final], axis=1), return_inverse=True)
    small = np.uint16 if len(ids) <= 1 << 16 else np.uint32
    buffer.add("tokens", index.reshape(len(final), len(steps) + 1, -1).astype(small))
    buffer.add_bits("masked", with_samples(trace["masked"]).values[:, steps])
    buffer.add("committed_at", with_samples(trace["committed_at"]).values.astype(np.int32))
    confidence = with_samples(trace["confidence"]).values[:, steps]
    buffer.add("confidence", confidence, {"kind": "linear", "lo": 0.0, "hi": 1.0})
    vocabulary = trace.vocabulary
    return [vocabulary.get(int(token), f"‹{int(token)}›") for token in ids]


def _add_mass(buffer: Buffer, trace: Trace, plan: Plan) -> None:
    """Column mass, sinks, their centroid, spread and variances, all per selection."""
    mass = gather(trace["column_mass"], plan)
    per_selection = as_trace(trace, mass, plan)
    order = ("sample", "layer", "step", "position")
    sinks = metrics.sinks(per_selection, kappa=KAPPA, per_head=True).isel(head=0).transpose(*order).values
    centroid, spread = sink_moments(mass, sinks)
    variance = metrics.sink_variance(per_selection, kappa=KAPPA, per_head=True).isel(head=0)
    both = [variance[name].transpose("sample", "layer").values for name in ("spatial", "temporal")]
    buffer.add("mass", mass, log_scale(mass), along=_STEP)
    buffer.add_bits("sinks", sinks)
    buffer.add("centroid", centroid.astype(np.float32))
    buffer.add("spread", spread.astype(np.float32))
    buffer.add("variance", np.stack(both, axis=-1).astype(np.float32))


def _add_metrics(buffer: Buffer, trace: Trace, plan: Plan) -> list[dict[str, Any]]:
    """The metrics that this trace allows, [sample, metric, step, layer, head], and their descriptions."""
    kept = {"step": list(plan.steps), "layer": list(plan.layers), "head": list(plan.heads)}
    part = Trace(trace.dataset.isel(kept))
    described = []
    values = []
    for key, metric in HEAD_METRICS.items():
        if metric.needs not in trace.dataset:
            continue
        value = with_samples(head_metric(part, key)).transpose("sample", "step", "layer", "head").values
        values.append(value)
        finite = np.where(np.isfinite(value), value, np.nan).reshape(len(value), -1)
        described.append(
            {
                "key": key,
                "label": metric.label,
                "unit": metric.unit,
                "unit_label": f"{metric.label}, {metric.unit}" if metric.unit != "%" else metric.label,
                "description": metric.description,
                "range": [
                    {"lo": float(lo), "hi": float(hi)}
                    for lo, hi in zip(np.nanmin(finite, 1), np.nanmax(finite, 1), strict=True)
                ],
            }
        )
    if values:
        buffer.add("metrics", np.stack(values, axis=1).astype(np.float32))
    return described


def _facts(trace: Trace) -> list[tuple[str, str]]:
    """What the header says about the run."""
    attrs = trace.attrs
    generated = trace.length - trace.prompt_length
    facts = [(name, str(attrs[name])) for name in ("policy", "sampler", "seed") if name in attrs]
    return [("tokens", f"{trace.prompt_length} prompt + {generated} generation"), *facts]
