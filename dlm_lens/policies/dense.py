"""Dense attention: every step attends to everything."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlm_lens.attention import StepContext, dense_attention, dense_attention_and_lse
from dlm_lens.policies.base import Policy, PolicyRun, RunInfo, StepPlan


@dataclass(frozen=True)
class Dense(Policy):
    """Full attention at every step, by the fastest dense backend present: the measure of all others."""

    @property
    def label(self) -> str:
        return "Dense"

    def start(self, info: RunInfo) -> PolicyRun:
        return _DenseRun()


class _DenseRun(PolicyRun):
    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        return StepPlan(step, "dense")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        if context.recorder is None:
            return dense_attention(q, k, v, start=context.start, causal=context.causal)
        out, context.lse = dense_attention_and_lse(q, k, v, start=context.start, causal=context.causal)
        return out
