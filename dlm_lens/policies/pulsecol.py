"""PulseCol: column-sparse attention whose columns are rebuilt in pulses (arXiv 2605.20813)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dlm_lens.attention import StepContext, dense_attention_and_lse
from dlm_lens.policies.base import PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.columns import ColumnPattern, ColumnPolicy, Span, best_columns, refuse_causal
from dlm_lens.policies.head_budgets import best_columns_by_need, mass_of_budget
from dlm_lens.policies.pulsecol_adaptive import AdaptiveRun


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

    **Adaptive refresh** (``refresh="adaptive"``), which the paper names as future work, is ours. The first step
    refreshes; afterwards a step does if in the step before it the pattern kept less of the dense attention than when
    it was chosen, by more than ``drift``: a difference of shares, so 0.05 is five points, 0 any loss, and ``inf``
    never refreshes again. Its loss is the mean over layers, heads and the queries of ``drift_groups`` groups, which
    lie at even distances up to the last. There are at most ``refresh_count`` refreshes, so that the cost has a
    bound, anywhere in the run: ``refresh_window`` does not apply. Every sample of a batch refreshes when it
    would alone, while the others of the batch stay sparse; each is an attention call of its own. Looking at 4
    groups of 32 takes 0.2% of the operations of a layer's dense attention at 64k positions (27% at 512), counted and
    not measured, and nothing once the refreshes are used up.

    **Budgets per head** (``budget="mass:0.95"``), ours too: a group needs the fewest columns whose scores sum to
    0.95, a head the mean of its groups' needs. The columns that equal budgets would keep in a layer, H · K per group,
    are divided among the heads in proportion to their needs: exactly as many, at least 1 and at most L for a head.
    The lists of all heads are as wide as the largest budget in memory, and a refresh makes its scores twice.

    Neither is a gain for certain: on the bundled model at 512 positions adaptive refreshes were no better than as many
    spread evenly over the run (``refresh_window=1.0``), and budgets per head were better at 50% sparsity but worse at
    80% and much worse at 90%, where even a head that needs little gets less than that. See
    ``figures/data/pulsecol-variants-cpu.json`` and :mod:`dlm_lens.measure.pulsecol_variants`.

    Source: arXiv 2605.20813, sections on column-sparse selection and refresh schedule.
    """

    title = "PulseCol"
    refresh_count: int = 16
    refresh_window: float = 0.3
    refresh: str = "uniform"
    drift: float = 0.05
    drift_groups: int = 4
    budget: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refresh_count < 1:
            raise ValueError(
                f"refresh_count={self.refresh_count} must be at least 1: the first step refreshes"
            )
        if not 0 < self.refresh_window <= 1:
            raise ValueError(f"refresh_window={self.refresh_window} must be in (0, 1], a share of the steps")
        if self.refresh not in ("uniform", "adaptive"):
            raise ValueError(f'refresh={self.refresh!r} must be "uniform" or "adaptive"')
        if not self.drift >= 0:
            raise ValueError(f"drift={self.drift} must be at least 0: the loss of retained mass to act upon")
        if self.drift_groups < 1:
            raise ValueError(f"drift_groups={self.drift_groups} must be at least 1 group of queries")
        mass_of_budget(self.budget)

    @property
    def label(self) -> str:
        adaptive = " adaptive" if self.refresh == "adaptive" else ""
        mass = mass_of_budget(self.budget)
        budgets = "" if mass is None else f", mass {100 * mass:g}%"
        return f"{self.title}{adaptive} {100 * self.sparsity:g}%{budgets}"

    @classmethod
    def llada(cls, sparsity: float = 0.8) -> PulseCol:
        """The published settings for LLaDA-1.5: 16 refreshes."""
        return cls(sparsity=sparsity, refresh_count=16)

    @classmethod
    def dream(cls, sparsity: float = 0.8) -> PulseCol:
        """The published settings for Dream: 8 refreshes."""
        return cls(sparsity=sparsity, refresh_count=8)

    def refresh_steps(self, steps: int) -> tuple[int, ...]:
        """The steps, counted from 0, that run dense and rebuild the columns in a run of ``steps``.

        ValueError with adaptive refresh, where they depend on what happens in the run.
        """
        if self.refresh == "adaptive":
            raise ValueError('refresh="adaptive" decides during a run which steps refresh; there is no list')
        window = max(1, int(self.refresh_window * steps + 1e-9))  # 0.3 · 10 must not become 2
        count = min(self.refresh_count, window)
        return tuple(i * window // count for i in range(count))

    def start(self, info: RunInfo) -> PolicyRun:
        refuse_causal(self, info)
        return AdaptiveRun(self, info) if self.refresh == "adaptive" else _UniformRun(self, info)

    def choose(self, span: Span, q: Tensor, k: Tensor, lse: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Lists int32 [rows, H, groups, K] of the columns of a span and their counts int32 [rows, H, groups].

        ``q`` [B, H, L, D] and ``k`` [B, Hkv, L, D] are those of the batch, ``lse`` [B, H, L] its dense
        log-sum-exp where it is known.
        """
        mass = mass_of_budget(self.budget)
        if mass is None:
            return best_columns(span, q, k, self.group_size, self.sparsity, lse)
        return best_columns_by_need(span, q, k, self.group_size, self.sparsity, mass, lse)


class _UniformRun(PolicyRun):
    """Refreshes at steps known beforehand, all samples together."""

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
            lambda span: self._policy.choose(span, q, k, lse),
            start=context.start,
            group_size=self._policy.group_size,
            length=k.shape[2],
        )
        return out

    def pattern(self, layer: int) -> ColumnPattern | None:
        return None if self._refreshing else self._patterns[layer]
