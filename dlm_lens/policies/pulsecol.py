"""PulseCol: column-sparse attention whose columns are rebuilt in pulses (arXiv 2605.20813)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlm_lens.attention import StepContext, dense_attention_and_lse
from dlm_lens.policies.base import PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.columns import ColumnPattern, ColumnPolicy, best_columns, refuse_causal


@dataclass(frozen=True)
class PulseCol(ColumnPolicy):
    """Small groups of queries share few keys, chosen from the true attention at a few early refresh steps.

    ``group_size`` G neighbouring queries form a group. The score of key j for group g of head h is the mean
    of the dense attention A[h, i, j] over the group's queries i, and the K = round((1 − sparsity) · L) best
    columns are kept per (layer, head, group), ties going to the lower position. Refresh steps run dense
    attention and rebuild the columns; all others attend to the kept columns only, with the softmax over
    those.

    Steps are refreshed at the first step and then at even distances, ``refresh_count`` in all, within the
    first ``refresh_window`` of the steps; after that the pattern is frozen. Sparsity 0.8 and 0.5 were
    published, with 16 refreshes for LLaDA-1.5 (:meth:`llada`) and 8 for Dream (:meth:`dream`).

    Left open by the paper and chosen here: refresh i falls on step floor(i · W / n), with W the window in
    steps rounded down (at least 1) and n the count, at most W; at least one column is kept; with left
    padding L counts the sample's valid positions and groups begin at the first of them.

    Source: arXiv 2605.20813, sections on column-sparse selection and refresh schedule.
    """

    title = "PulseCol"
    refresh_count: int = 16
    refresh_window: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refresh_count < 1:
            raise ValueError(
                f"refresh_count={self.refresh_count} must be at least 1: the first step refreshes"
            )
        if not 0 < self.refresh_window <= 1:
            raise ValueError(f"refresh_window={self.refresh_window} must be in (0, 1], a share of the steps")

    @classmethod
    def llada(cls, sparsity: float = 0.8) -> PulseCol:
        """The published settings for LLaDA-1.5: 16 refreshes."""
        return cls(sparsity=sparsity, refresh_count=16)

    @classmethod
    def dream(cls, sparsity: float = 0.8) -> PulseCol:
        """The published settings for Dream: 8 refreshes."""
        return cls(sparsity=sparsity, refresh_count=8)

    def refresh_steps(self, steps: int) -> tuple[int, ...]:
        """The steps, counted from 0, that run dense and rebuild the columns in a run of ``steps``."""
        window = max(1, int(self.refresh_window * steps + 1e-9))  # 0.3 · 10 must not become 2
        count = min(self.refresh_count, window)
        return tuple(i * window // count for i in range(count))

    def start(self, info: RunInfo) -> PolicyRun:
        refuse_causal(self, info)
        return _PulseColRun(self, info)


class _PulseColRun(PolicyRun):
    def __init__(self, policy: PulseCol, info: RunInfo) -> None:
        self._policy = policy
        self._refresh = frozenset(policy.refresh_steps(info.steps))
        self._refreshing = True
        self._patterns: dict[int, ColumnPattern] = {}

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        self._refreshing = step in self._refresh
        return StepPlan(step, "refresh" if self._refreshing else "sparse")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        if not self._refreshing:
            return self._patterns[layer].attend(q, k, v)
        out, lse = dense_attention_and_lse(q, k, v, start=context.start)
        context.lse = lse
        self._patterns.pop(layer, None)  # the old lists must not take memory beside the new ones
        self._patterns[layer] = ColumnPattern.build(
            lambda span: best_columns(span, q, k, self._policy.group_size, self._policy.sparsity, lse),
            start=context.start,
            group_size=self._policy.group_size,
            length=k.shape[2],
        )
        return out

    def pattern(self, layer: int) -> ColumnPattern | None:
        return None if self._refreshing else self._patterns[layer]
