"""A trace as the browser gets it: a JSON manifest that describes arrays, and one compressed buffer with them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from dlm_lens import metrics
from dlm_lens.errors import TraceError
from dlm_lens.explorer.budget import Plan, describe, full_plan, plans, raw_bytes
from dlm_lens.explorer.quantise import Buffer
from dlm_lens.explorer.selection import as_trace, coarser_maps, gather, gather_one, with_samples
from dlm_lens.explorer.survey import BUDGETS, Survey, kept, survey
from dlm_lens.plots.sink_drift import sink_moments
from dlm_lens.trace import Trace

KAPPA = 2.0
_STATISTICS = ("column_mass", "pooled_map", "row_entropy", "retained_mass")
# Plans whose raw size exceeds the budget by more than what compression may save are not tried: at first by this
# factor, after the first attempt by what it saved, and a bit.
_OPTIMISM = 6.0
_VARIANCE_UNITS = ("even shares²", "positions²")
_LEVEL = 4  # of compression: 6 takes four times as long for 6% less
_STEP = 2  # axis of the steps in arrays [sample, selection, step, …]
_QUICK = 64 << 20  # bytes of statistics that are packed before anybody would look at a progress bar


@dataclass(frozen=True)
class Packed:
    """``manifest`` (JSON) describes the arrays in ``payload`` (their buffer, deflated).

    What the plan left to be asked for comes from :meth:`selection`.
    """

    manifest: dict[str, Any]
    payload: bytes
    trace: Trace
    plan: Plan
    scales: dict[str, dict[str, Any]]

    def selection(self, sample: int, layer: int, head: int | None) -> tuple[dict[str, Any], bytes]:
        """The arrays of one selection, [1, 1, step, …] each: their description and their buffer, deflated.

        ``layer`` and ``head`` are indices into the plan's; ``head=None`` means the mean of the layer's heads.
        """
        plan, buffer = self.plan, Buffer()
        layer, head = plan.layers[layer], None if head is None else plan.heads[head]
        if "column_mass" in self.trace.dataset:
            mass = gather_one(self.trace, "column_mass", plan, sample, layer, head)
            _add_mass(buffer, self.trace, mass, plan, self.scales, slice(sample, sample + 1))
        if plan.bins:
            maps = gather_one(self.trace, "pooled_map", plan, sample, layer, head)
            maps = coarser_maps(maps, plan.bins, _starts(self.trace)[sample : sample + 1], self.trace.length)
            buffer.add("map", maps, self.scales["pooled_map"], along=_STEP)
        return buffer.arrays, zlib.compress(buffer.tobytes(), 1)  # it goes a short way


def pack(
    trace: Trace,
    *,
    title: str | None = None,
    max_bytes: int = 25_000_000,
    on_demand: bool = False,
    progress: bool = False,
) -> Packed:
    """Reduce a trace to at most ``max_bytes`` of payload.

    Column mass and pooled maps are packed per selection (mean of all heads, of a layer's heads, each head) on
    a logarithmic scale over the five decades below their maximum: off by at most half a quantum, 2.3%.
    Confidence is linear in [0, 1], off by at most 0.002. Sinks are exact bits, metrics float32. When all of
    it does not fit, heads and then layers are left to be asked for if that is possible (``on_demand``); else
    maps become coarser and heads, steps and layers fewer; ``manifest["notes"]`` says which.

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
    quick = raw_bytes(full, trace) < _QUICK
    with tqdm(desc="Packing", unit="layer", disable=quick or not progress) as bar:
        found, smallest, saved = survey(trace, bar), 0, _OPTIMISM
        for plan in plans(trace, on_demand):
            raw = raw_bytes(plan, trace)
            if raw > saved * max_bytes:
                continue
            buffer = Buffer()
            manifest = _fill(buffer, trace, plan, found, bar) | {"notes": describe(plan, full)}
            manifest["title"] = title or str(trace.attrs.get("model", "Trace"))
            payload = zlib.compress(buffer.tobytes(), _LEVEL)
            if len(payload) <= max_bytes:
                return Packed(manifest, payload, trace, plan, found.scales)
            smallest, saved = len(payload), 1.1 * raw / len(payload)
    needs = (
        f"the smallest reduction of it takes {smallest:,} bytes" if smallest else "no reduction of it fits"
    )
    raise ValueError(f"max_bytes={max_bytes:,} is too small for this trace: {needs}")


def _fill(buffer: Buffer, trace: Trace, plan: Plan, found: Survey, bar: tqdm) -> dict[str, Any]:
    """Put the arrays of a plan into the buffer; returns the manifest that describes them."""
    words = _add_text(buffer, trace, plan)
    if "column_mass" in trace.dataset:
        _add_mass(buffer, trace, gather(trace, "column_mass", plan, bar), plan, found.scales)
    if plan.bins:
        maps = gather(trace, "pooled_map", plan, bar)
        maps = coarser_maps(maps, plan.bins, _starts(trace), trace.length)
        buffer.add("map", maps, found.scales["pooled_map"], along=_STEP)
    _add_metrics(buffer, found, plan)
    dataset = trace.dataset
    steps = list(plan.steps)
    return {
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
        "metrics": found.described(plan),
        "budgets": BUDGETS,
        "kappa": KAPPA,
        "variance_units": _VARIANCE_UNITS,
        "resident": plan.selections,
        "arrays": buffer.arrays,
    }


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


def _add_mass(
    buffer: Buffer,
    trace: Trace,
    mass: np.ndarray,
    plan: Plan,
    scales: dict[str, dict[str, Any]],
    samples: slice = slice(None),
) -> None:
    """Column mass [sample, selection, step, position], its sinks, their centroid, spread and variances."""
    per_selection = as_trace(trace, mass, plan, samples)
    order = ("sample", "layer", "step", "position")
    sinks = metrics.sinks(per_selection, kappa=KAPPA, per_head=True).isel(head=0).transpose(*order).values
    centroid, spread = sink_moments(mass, sinks)
    variance = metrics.sink_variance(per_selection, kappa=KAPPA, per_head=True).isel(head=0)
    both = [variance[name].transpose("sample", "layer").values for name in ("spatial", "temporal")]
    buffer.add("mass", mass, scales["column_mass"], along=_STEP)
    buffer.add_bits("sinks", sinks)
    buffer.add("centroid", centroid.astype(np.float32))
    buffer.add("spread", spread.astype(np.float32))
    buffer.add("variance", np.stack(both, axis=-1).astype(np.float32))


def _add_metrics(buffer: Buffer, found: Survey, plan: Plan) -> None:
    """Metrics of heads, [sample, metric, step, layer, head]; recall by budget [sample, step, layer, head, budget]."""
    if found.metrics:
        buffer.add("metrics", np.stack([found.part(key, plan) for key in found.metrics], axis=1))
    if found.recall is not None:
        buffer.add("recall", kept(found.recall, plan), {"kind": "linear", "lo": 0.0, "hi": 1.0})


def _facts(trace: Trace) -> list[tuple[str, str]]:
    """What the header says about the run."""
    attrs = trace.attrs
    generated = trace.length - trace.prompt_length
    facts = [(name, str(attrs[name])) for name in ("policy", "sampler", "seed") if name in attrs]
    return [("tokens", f"{trace.prompt_length} prompt + {generated} generation"), *facts]
