"""Sink-aware pruning of heads while denoising: skip those whose sinks hold least, anew at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_lens.attention import StepContext, dense_attention, dense_attention_and_lse
from dlm_lens.policies.base import Policy, PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.columns import spans_of
from dlm_lens.policies.held import Held, RunSize
from dlm_lens.policies.sink_mass import SinkHistory, sampled_mass, sinks


@dataclass(frozen=True)
class SinkAwareHeads(Policy):
    """Skip the share ``prune`` of every layer's heads, those with the lowest sink score at the step before.

    A head's sinks S_t are the keys whose column mass m(i), the mean attention they receive, exceeds mean + ``kappa``
    · std over the valid keys. Its score is the mass of its sinks, each weighed by how stably it is one:
    Σ_{i ∈ S_t} m(i) · (1 − c(i)), where c(i) is the share of the last ``memory`` comparisons of a step with the next
    in which i became a sink or ceased to be one. It lies between 0, for a head without sinks, and 1, for a head whose
    attention is all on sinks that stay.

    Of H heads the floor(``prune`` · H) lowest are skipped, of equal scores the later; at least one head is left. A
    skipped head outputs zeros, its attention is not computed, and it keeps its score. The first step and every
    ``refresh``-th after it compute and score all heads, so that none is lost for ever.

    The method measures and prunes what sinks hold (arXiv 2602.17664); its use on heads is described, with up to 40%
    less compute at comparable perplexity, without details. Chosen here: the score; a share per layer and per sample,
    so that a batch is treated as its samples alone; mass from ``sample`` queries of the heads that were computed
    (:func:`~dlm_lens.policies.sink_mass.sampled_mass`), exact with ``sample`` ≥ L; c(i) over measured steps, with
    a key's membership before the first taken to be that of the first.
    """

    prune: float = 0.4
    refresh: int = 8
    kappa: float = 2.0
    sample: int = 128
    memory: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.prune < 1:
            raise ValueError(f"prune={self.prune} must be in [0, 1): the share of the heads that is skipped")
        if not self.kappa >= 0:
            raise ValueError(f"kappa={self.kappa} must not be negative: sinks lie above the mean")
        for name, what in (("refresh", "step"), ("sample", "query"), ("memory", "comparison")):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1 {what}")

    @property
    def label(self) -> str:
        return f"Sink-aware heads {100 * self.prune:g}%"

    @property
    def density(self) -> float:
        """Share of the heads that a sparse step computes, before rounding to whole heads."""
        return 1 - self.prune

    def skipped(self, heads: int) -> int:
        """How many of a layer's ``heads`` a sparse step skips."""
        return min(int(self.prune * heads + 1e-9), heads - 1)  # 0.29 · 100 must not become 28

    def held(self, size: RunSize) -> Held:
        """Whether every key was a sink of late, for every head of every layer; in a layer, copies of the heads kept."""
        spec, rows = size.spec, size.batch * size.length
        copies = rows * (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim * size.element
        return Held(spec.layers * rows * spec.heads * self.memory, copies)

    def start(self, info: RunInfo) -> PolicyRun:
        if info.spec.causal:
            raise ValueError(
                f"{self.label} scores heads by attention to both sides, but {info.spec.name!r} is causal"
            )
        return _SinkAwareHeadsRun(self)


@dataclass(frozen=True)
class HeadPattern:
    """The heads that a step computed: ``kept`` bool [B, H], on the CPU."""

    kept: Tensor

    @property
    def density(self) -> float:
        """Share of the heads that were computed."""
        return float(self.kept.double().mean())

    def retained_mass(self, q: Tensor, k: Tensor, *, lse: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """1 for a head that was computed and 0 for one that was not, as mean and as minimum, float32 [B, H]."""
        share = self.kept.to(q.device, torch.float32)
        return share, share

    def kept_share(self, bins: int, heads: int) -> Tensor:
        """1 where a head was computed, float32 [B, heads, bins, bins]; padding included, for none is known of."""
        return self.kept.float()[:, :, None, None].expand(-1, heads, bins, bins)


class _SinkAwareHeadsRun(PolicyRun):
    def __init__(self, policy: SinkAwareHeads) -> None:
        self._policy = policy
        self._refreshing = True
        self._history: dict[int, SinkHistory] = {}
        self._scores: dict[int, Tensor] = {}  # float32 [B, H]
        self._patterns: dict[int, HeadPattern] = {}

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        self._refreshing = step % self._policy.refresh == 0
        return StepPlan(step, "refresh" if self._refreshing else "sparse")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        if self._refreshing:
            out, context.lse = dense_attention_and_lse(q, k, v, start=context.start)
            mass = sampled_mass(q, k, sample=self._policy.sample, start=context.start)
            self._score(layer, mass, context.start, None)
            return out
        scores = self._scores[layer].cpu()
        kept = highest(scores, scores.shape[1] - self._policy.skipped(scores.shape[1]))
        self._patterns[layer] = HeadPattern(kept)
        out, mass = attend_with_heads(q, k, v, kept, sample=self._policy.sample, start=context.start)
        self._score(layer, mass, context.start, kept.to(q.device))
        return out

    def pattern(self, layer: int) -> HeadPattern | None:
        return None if self._refreshing else self._patterns[layer]

    def _score(self, layer: int, mass: Tensor, start: Tensor | None, measured: Tensor | None) -> None:
        """Score the heads ``measured`` bool [B, H], all if None, by their ``mass`` [B, H, L]; others keep theirs."""
        members = sinks(mass, self._policy.kappa, start)
        if layer not in self._history:
            self._history[layer] = SinkHistory(members, self._policy.memory)
        else:
            self._history[layer].push(members, measured)
        scores = (mass * members * (1 - self._history[layer].changes())).sum(-1)
        if measured is not None:
            scores = torch.where(measured, scores, self._scores[layer])
        self._scores[layer] = scores


def highest(scores: Tensor, count: int) -> Tensor:
    """bool like ``scores`` [B, H]: the ``count`` highest of each row, of equal ones the first."""
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def attend_with_heads(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, *, sample: int, start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Dense attention [B, H, L, D] of the heads ``kept`` bool [B, H] and their sampled mass [B, H, L].

    Both are zero for the other heads, for which nothing is computed, and on padding.
    """
    out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
    mass = q.new_zeros(q.shape[:3], dtype=torch.float32)
    for span in spans_of(start):
        queries, keys, values = span.of(q), span.of(k), span.of(v)
        for at, kv_at in even_heads(kept[span.rows], k.shape[1]):
            q_here, k_here, v_here = queries[at][None], keys[kv_at][None], values[kv_at][None]
            span.of(out)[at] = dense_attention(q_here, k_here, v_here)[0]
            span.of(mass)[at] = sampled_mass(q_here, k_here, sample=sample)[0]
    return out, mass


Place = tuple[Tensor, Tensor]


def even_heads(kept: Tensor, kv_heads: int) -> Iterator[tuple[Place, Place]]:
    """Divide the heads ``kept`` bool [B, H] into sets in which every head of keys serves as many of queries.

    Yields the (rows, heads) of the queries and those of the keys, in an order in which consecutive query heads share
    a key head. So keys and values need not be expanded, and without shared keys there is one set only.
    """
    per_group = kept.view(len(kept), kv_heads, -1)
    served = per_group.sum(-1)
    for number in served.unique().tolist():
        if number:
            group = served == number
            heads = (per_group & group[:, :, None]).flatten(1)
            yield heads.nonzero(as_tuple=True), group.nonzero(as_tuple=True)
