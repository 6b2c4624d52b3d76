"""One pass over a trace before it is packed: the metrics of every head, and the ranges of what will be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from dlm_lens import metrics
from dlm_lens.explorer.budget import Plan
from dlm_lens.explorer.quantise import Extent
from dlm_lens.explorer.selection import layer_blocks, with_samples
from dlm_lens.plots.head_metrics import HEAD_METRICS, HeadMetric, head_metric
from dlm_lens.trace import Trace
from dlm_lens.trace_store import BASE

# Recall is packed at these shares of the keys; between them the browser interpolates.
BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
RECALL_LABEL = "recall at a budget"  # which the page lets one choose
_READ = ("column_mass", "pooled_map", "row_entropy", "retained_mass")
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
    keys = [key for key, metric in HEAD_METRICS.items() if metric.needs in trace.dataset]
    found: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    recall: list[np.ndarray] = []
    extents = {name: Extent() for name in ("column_mass", "pooled_map") if name in trace.dataset}
    names = [name for name in (*BASE, *_READ) if name in trace.dataset]
    for block in layer_blocks(trace, _READ):
        part = Trace(trace.dataset[names].isel(layer=block).load())
        for key in keys:
            found[key].append(
                with_samples(head_metric(part, key)).transpose(*_ORDER).values.astype(np.float32)
            )
        for name, extent in extents.items():
            extent.include(part[name].values)
        if "column_mass" in part.dataset:
            kept = with_samples(metrics.column_recall(part, BUDGETS)).transpose(*_ORDER, "budget")
            recall.append(kept.values.astype(np.float32))
        bar.update(block.stop - block.start)
    return Survey(
        {key: np.concatenate(parts, axis=2) for key, parts in found.items()},
        np.concatenate(recall, axis=2) if recall else None,
        {name: extent.log_scale() for name, extent in extents.items()},
    )


def kept(values: np.ndarray, plan: Plan) -> np.ndarray:
    """The steps, layers and heads of [sample, step, layer, head, …] that a plan keeps."""
    return values[np.ix_(range(len(values)), plan.steps, plan.layers, plan.heads)]


def _range(values: np.ndarray) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    return {"lo": float(finite.min()), "hi": float(finite.max())} if finite.size else {"lo": 0.0, "hi": 1.0}
