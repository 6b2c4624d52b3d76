"""The run of a PulseCol that refreshes when its pattern has drifted, each sample of a batch for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dlm_lens.attention import StepContext, dense_attention_and_lse
from dlm_lens.policies.base import PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.columns import ColumnLists, ColumnPattern, sample_spans
from dlm_lens.policies.drift import DriftWatch

if TYPE_CHECKING:
    from dlm_lens.policies.pulsecol import PulseCol


class AdaptiveRun(PolicyRun):
    """In a step of kind ``"refresh"`` at least one sample runs dense and rebuilds its columns; others stay sparse.

    So every sample of a batch gets what it would get alone.
    """

    def __init__(self, policy: PulseCol, info: RunInfo) -> None:
        self._policy = policy
        self._watches = [
            DriftWatch(policy.drift, policy.refresh_count, policy.group_size, policy.drift_groups)
            for _ in range(info.batch)
        ]
        self._lists: dict[int, list[ColumnLists]] = {}
        self._length = info.length

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        refreshing = [watch.begin_step() for watch in self._watches]
        return StepPlan(step, "refresh" if any(refreshing) else "sparse")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        spans = sample_spans(context.start, len(self._watches))
        lists = self._lists.setdefault(layer, [ColumnLists.everything(span) for span in spans])
        pattern = self.pattern(layer)
        if pattern is None:
            out, context.lse = dense_attention_and_lse(q, k, v, start=context.start)
        else:
            out = pattern.attend(q, k, v)
        for sample, (watch, span) in enumerate(zip(self._watches, spans, strict=True)):
            if not watch.refreshing:
                watch.look(layer, span.of(q), span.of(k))
                continue
            # The old lists must not take memory beside the new ones.
            lists[sample] = ColumnLists.everything(span)
            columns, counts = self._policy.choose(span, q, k, context.lse)
            watch.chosen(layer, columns, counts, span.of(q), span.of(k))
            keys = q.shape[2] - span.first
            lists[sample] = ColumnLists.build(span, columns, counts, self._policy.group_size, keys)
        return out

    def pattern(self, layer: int) -> ColumnPattern | None:
        if all(watch.refreshing for watch in self._watches):
            return None
        lists = tuple(
            ColumnLists.everything(kept.span) if watch.refreshing else kept
            for watch, kept in zip(self._watches, self._lists[layer], strict=True)
        )
        return ColumnPattern(lists, self._policy.group_size, self._length)
