"""One pass over a trace before it is packed: the metrics of every head, and the ranges of what will be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from dlm_lens import metrics
from dlm_lens.explorer.budget import Plan
from dlm_lens.explorer.quantise import Extent
from dlm_lens.explorer.selection import layer_blocks, with_samples
from dlm_lens.plots.head_metrics import HEAD_METRICS, RECALL_BUDGET, HeadMetric, head_metric
from dlm_lens.trace import Trace
from dlm_lens.trace_store import BASE

# Recall is packed at these shares of the keys; between them the browser interpolates.
BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
RECALL_LABEL = "recall at a budget"  # which the page lets one choose
_READ = ("column_mass", "pooled_map", "row_entropy", "retained_mass")
_PIECE = 1 << 21  # values of column mass
_ORDER = ("sample", "step", "layer", "head")


@dataclass(frozen=True)
class Survey:
    """``metrics`` [sample, step, layer, head] float32 by key; ``recall`` the same with a last axis of ``BUDGETS``,
    None without column mass; ``scales`` of the shares in ``column_mass`` and ``pooled_map``."""

    metrics: dict[str, np.ndarray]
    recall: np.ndarray | None
    scales: dict[str, dict[str, Any]]

    def described(self, plan: Plan) -> list[dict[str, Any]]:
        """What the page says of each metric, with its range over the plan for every sample."""
        return [self._described(key, HEAD_METRICS[key], plan) for key in self.metrics]

    def _described(self, key: str, metric: HeadMetric, plan: Plan) -> dict[str, Any]:
        label = RECALL_LABEL if key == "recall" else metric.label
        return {
            "key": key,
            "label": label,
            "unit": metric.unit,
            "unit_label": f"{label}, {metric.unit}" if metric.unit != "%" else label,
            "description": metric.description,
            "range": [_range(sample) for sample in self.part(key, plan)],
        }

    def part(self, key: str, plan: Plan) -> np.ndarray:
        """The steps, layers and heads of a metric that a plan keeps."""
        return kept(self.metrics[key], plan)


def survey(trace: Trace, bar: tqdm) -> Survey:
    """Read the whole trace once, by blocks of layers; ``bar`` is told of every layer."""
    keys = [key for key, metric in HEAD_METRICS.items() if metric.needs in trace.dataset and key != "recall"]
    names = [name for name in (*BASE, *_READ) if name in trace.dataset]
    extents = {name: Extent() for name in ("column_mass", "pooled_map") if name in trace.dataset}
    by_layer: list[dict[str, np.ndarray]] = []
    for block in layer_blocks(trace, _READ):
        part = Trace(trace.dataset[names].isel(layer=block).load())
        for name, extent in extents.items():
            extent.include(part[name].values)
        pieces = [_per_head(piece, keys) for piece in _pieces(part)]
        by_layer.append({key: np.concatenate([piece[key] for piece in pieces], axis=3) for key in pieces[0]})
        bar.update(block.stop - block.start)
    found = {key: np.concatenate([block[key] for block in by_layer], axis=2) for key in by_layer[0]}
    recall = found.pop("budgets", None)
    if recall is not None:
        found["recall"] = recall[..., BUDGETS.index(RECALL_BUDGET)]
    return Survey(
        {key: found[key] for key in HEAD_METRICS if key in found},
        recall,
        {name: extent.log_scale() for name, extent in extents.items()},
    )


def _pieces(part: Trace) -> Iterator[Trace]:
    """The heads of a part, so few at a time that temporary arrays are small: large ones cost more than the sums."""
    heads = len(part.heads)
    per_head = part.dataset["column_mass"].size // heads if "column_mass" in part.dataset else 1
    size = max(1, _PIECE // max(per_head, 1))
    return (Trace(part.dataset.isel(head=slice(first, first + size))) for first in range(0, heads, size))


def _per_head(part: Trace, keys: list[str]) -> dict[str, np.ndarray]:
    """Metrics [sample, step, layer, head] and, as ``budgets``, recall with a last axis of ``BUDGETS``."""
    values = {key: with_samples(head_metric(part, key)).transpose(*_ORDER) for key in keys}
    if "column_mass" in part.dataset:
        recall = with_samples(metrics.column_recall(part, BUDGETS))
        values["budgets"] = recall.transpose(*_ORDER, "budget")
    return {key: value.values.astype(np.float32) for key, value in values.items()}


def kept(values: np.ndarray, plan: Plan) -> np.ndarray:
    """The steps, layers and heads of [sample, step, layer, head, …] that a plan keeps."""
    return values[np.ix_(range(len(values)), plan.steps, plan.layers, plan.heads)]


def _range(values: np.ndarray) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    return {"lo": float(finite.min()), "hi": float(finite.max())} if finite.size else {"lo": 0.0, "hi": 1.0}
