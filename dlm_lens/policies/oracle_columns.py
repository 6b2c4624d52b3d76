"""Oracle columns: chosen as PulseCol does, from the true attention of every step: a bound on what choosing gains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlm_lens.attention import StepContext
from dlm_lens.policies.base import PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.columns import ColumnPattern, ColumnPolicy, best_columns, refuse_causal


@dataclass(frozen=True)
class OracleColumns(ColumnPolicy):
    """The best columns of every group at every step: how good a frozen pattern could be if it never aged.

    Scores, groups and budget are those of :class:`PulseCol`, but the columns of a step come from the dense attention
    of that same step, which must be computed for it. So this is slower than dense attention and says nothing of
    speed; what a policy with the same budget loses beside it is what its schedule or its choice costs.
    """

    title = "Oracle columns"

    def start(self, info: RunInfo) -> PolicyRun:
        refuse_causal(self, info)
        return _OracleColumnsRun(self)


class _OracleColumnsRun(PolicyRun):
    def __init__(self, policy: OracleColumns) -> None:
        self._policy = policy
        self._patterns: dict[int, ColumnPattern] = {}

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        return StepPlan(step, "sparse")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        policy = self._policy
        self._patterns[layer] = ColumnPattern.build(
            lambda span: best_columns(span, q, k, policy.group_size, policy.sparsity),
            start=context.start,
            group_size=policy.group_size,
            length=k.shape[2],
        )
        return self._patterns[layer].attend(q, k, v)

    def pattern(self, layer: int) -> ColumnPattern | None:
        return self._patterns[layer]
