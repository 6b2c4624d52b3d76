"""Sink-aware retention of keys and values: the sinks of the step before, a window, and the best of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_lens.attention import StepContext, dense_attention_and_lse
from dlm_lens.policies.base import Policy, PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.columns import ColumnPattern, Span, column_budget, refuse_causal, select_in_pieces
from dlm_lens.policies.held import Held, RunSize, held_lists
from dlm_lens.policies.sink_mass import SinkHistory, sampled_mass, sinks
from dlm_lens.policies.sliding_window import twice_middles, window_starts


@dataclass(frozen=True)
class SinkAwareKV(Policy):
    """Follow the sinks as they move: at every step keep those of the step before, and never a fixed set.

    A head's sinks S_t are the keys whose column mass, the mean attention they receive, exceeds mean + ``kappa`` · std
    over the valid keys. The first step is dense. At every later one each (layer, head, group of ``group_size``
    neighbouring queries) keeps exactly round(``budget`` · L) keys, the budget of the other column policies, and
    places go

    1. to the head's sinks of the step before, those with most mass first;
    2. to the ``window`` consecutive keys centred on the group, moved inwards at the ends, nearest first;
    3. to the other keys, those with most mass at the step before first.

    But for the window all groups of a head keep the same keys: where groups look for different ones, as in retrieval,
    :class:`~dlm_lens.policies.pulsecol.PulseCol` keeps more of the attention at the same budget.

    ``mode="drop_transient"`` takes out of these the *transient* sinks, whose membership in S_t changed in more than
    the share ``transience`` of the last ``memory`` comparisons of a step with the next: their places go to other
    keys, and only a budget that would otherwise stay empty reaches them. ``mode="keep"`` keeps all sinks alike.

    The method measures and prunes what sinks hold (arXiv 2602.17664); its use on keys is described without details.
    Chosen here: mass and sinks per head and layer, because heads have different ones; mass from ``sample`` queries
    that attend to all keys at the end of every step (:func:`~dlm_lens.policies.sink_mass.sampled_mass`), for about
    sample / L of a dense layer, exact with ``sample`` ≥ L; the order of places where the budget is short; what
    transient means, with a key's membership before the first step taken to be that of the first; ties to the lower
    key; with left padding, L and groups count from a sample's first valid position. The window is in keys, so a group
    of 32 queries with the default 32 sees itself; a small budget cuts it.
    """

    budget: float = 0.2
    mode: str = "keep"
    window: int = 32
    kappa: float = 2.0
    sample: int = 128
    memory: int = 4
    transience: float = 0.25
    group_size: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget={self.budget} must be in (0, 1]: the share of the keys that is kept")
        if self.mode not in ("keep", "drop_transient"):
            raise ValueError(f'mode={self.mode!r} must be "keep" or "drop_transient"')
        if self.window < 0:
            raise ValueError(f"window={self.window} must not be negative: it is a number of keys")
        if not self.kappa >= 0:
            raise ValueError(f"kappa={self.kappa} must not be negative: sinks lie above the mean")
        if not 0 <= self.transience < 1:
            raise ValueError(f"transience={self.transience} must be in [0, 1): a share of the comparisons")
        for name, what in (("sample", "query"), ("memory", "comparison"), ("group_size", "query")):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1 {what}")

    @property
    def label(self) -> str:
        suffix = "" if self.mode == "keep" else ", no transient sinks"
        return f"Sink-aware KV {100 * (1 - self.budget):g}%{suffix}"

    @property
    def density(self) -> float:
        return self.budget

    def held(self, size: RunSize) -> Held:
        """Lists, and for every key and head of every layer its mass and whether it was a sink of late."""
        width = column_budget(1 - self.budget, size.length)
        lists = held_lists(size, group_size=self.group_size, width=width)
        keys = size.spec.layers * size.batch * size.spec.heads * size.length
        return Held(lists.kept + (4 + self.memory) * keys, lists.workspace)

    def start(self, info: RunInfo) -> PolicyRun:
        refuse_causal(self, info)
        return _SinkAwareKVRun(self)


class _SinkAwareKVRun(PolicyRun):
    def __init__(self, policy: SinkAwareKV) -> None:
        self._policy = policy
        self._dense = True
        self._mass: dict[int, Tensor] = {}  # of the step before, float32 [B, H, L]
        self._history: dict[int, SinkHistory] = {}
        self._patterns: dict[int, ColumnPattern] = {}

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        self._dense = step == 0
        return StepPlan(step, "refresh" if self._dense else "sparse")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        if self._dense:
            out, context.lse = dense_attention_and_lse(q, k, v, start=context.start)
        else:
            self._patterns.pop(layer, None)  # the old lists must not take memory beside the new ones
            self._patterns[layer] = self._choose(layer, context.start)
            out = self._patterns[layer].attend(q, k, v)
        self._measure(layer, q, k, context.start)
        return out

    def pattern(self, layer: int) -> ColumnPattern | None:
        return None if self._dense else self._patterns[layer]

    def _measure(self, layer: int, q: Tensor, k: Tensor, start: Tensor | None) -> None:
        """Note mass and sinks of this step, for the next."""
        mass = sampled_mass(q, k, sample=self._policy.sample, start=start)
        members = sinks(mass, self._policy.kappa, start)
        self._mass[layer] = mass
        if self._dense:
            self._history[layer] = SinkHistory(members, self._policy.memory)
        else:
            self._history[layer].push(members)

    def _choose(self, layer: int, start: Tensor | None) -> ColumnPattern:
        """The pattern of this step from what the step before has left."""
        policy, mass, history = self._policy, self._mass[layer], self._history[layer]
        kept, dropped = history.current, torch.zeros_like(history.current)
        if policy.mode == "drop_transient":
            dropped = kept & (history.changes() > policy.transience)
            kept = kept & ~dropped

        def select(span: Span) -> tuple[Tensor, Tensor]:
            return _select(span.of(mass), span.of(kept), span.of(dropped), policy)

        return ColumnPattern.build(select, start=start, group_size=policy.group_size, length=mass.shape[2])


def _select(mass: Tensor, kept: Tensor, dropped: Tensor, policy: SinkAwareKV) -> tuple[Tensor, Tensor]:
    """Lists int32 [rows, H, groups, K] and counts for one span, from its mass and its sinks to keep and to drop,
    [rows, H, n] each.

    Every key gets a rank, and the highest are kept. From above: sinks, window, the rest, dropped sinks.
    """
    rows, heads, length = mass.shape
    by_mass = _ranks(mass)
    rank = torch.where(kept, by_mass + 4 * length, torch.where(dropped, by_mass, by_mass + length))
    key = torch.arange(length, device=mass.device)
    window = min(policy.window, length)
    twice_middle = twice_middles(length, policy.group_size, mass.device)
    begin = window_starts(twice_middle, window, length)[:, None]
    nearness = 4 * length - (2 * key - twice_middle[:, None]).abs()
    in_window = torch.where((key >= begin) & (key < begin + window), nearness, 0).float()

    def score(first: int, end: int) -> Tensor:
        return torch.maximum(rank[:, :, None], in_window[first:end] * ~dropped[:, :, None])

    budget = column_budget(1 - policy.budget, length)
    return select_in_pieces(score, len(begin), 4 * rows * heads * length, budget)


def _ranks(mass: Tensor) -> Tensor:
    """1 for the key with least mass … n for that with most, ties to the lower key; float32 [rows, H, n].

    Exact where added to other ranks, as mass itself is not: float32 counts to 2²⁴, enough for 3 million keys.
    """
    length = mass.shape[-1]
    order = mass.sort(dim=-1, descending=True, stable=True).indices
    ranks = torch.arange(length, 0, -1, dtype=torch.float32, device=mass.device)
    return torch.empty_like(mass).scatter_(-1, order, ranks.expand_as(mass))
