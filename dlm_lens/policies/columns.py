"""Sparsity by lists, shared by several policies: groups of neighbouring queries with one list of keys, or of
blocks of keys, each.

Groups and keys are counted from a sample's first valid position, and the budget is a share of its valid
length: a left-padded sample is treated exactly as if it were alone, which is also why kernels need not know
of padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar

import torch
from dlm_kernels.block_sparse_attention import block_sparse_attention
from dlm_kernels.column_scores import column_scores
from dlm_kernels.column_sparse_attention import column_sparse_attention
from dlm_kernels.retained_mass import retained_mass
from dlm_kernels.select_columns import select_columns
from dlm_kernels.share_columns import SharedColumns, private_lists, share_columns
from torch import Tensor

from dlm_lens.attention import dense_attention
from dlm_lens.policies.base import Policy, PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.held import CHOSEN, Held, RunSize, held_lists

if TYPE_CHECKING:
    from dlm_lens.attention import StepContext

_TINY = torch.finfo(torch.float32).tiny
# Scores that a policy makes itself are made for as many groups at a time as fit into this many bytes.
_SCORE_BYTES = 64 << 20


def column_budget(sparsity: float, keys: int) -> int:
    """Columns kept of ``keys``: round((1 − sparsity) · keys), at least 1."""
    return max(1, round((1 - sparsity) * keys))


@dataclass(frozen=True)
class ColumnPolicy(Policy):
    """A policy in which each group of ``group_size`` neighbouring queries keeps round((1 − sparsity) · L) keys."""

    sparsity: float = 0.8
    group_size: int = 32
    title: ClassVar[str]
    union: ClassVar[float] = CHOSEN
    """How long merged lists of neighbouring groups are, beside those of independent groups (``held_lists``)."""

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(
                f"sparsity={self.sparsity} must be in [0, 1): the share of keys that is left out"
            )
        if self.group_size < 1:
            raise ValueError(f"group_size={self.group_size} must be at least 1 query")

    @property
    def label(self) -> str:
        return f"{self.title} {100 * self.sparsity:g}%"

    @property
    def density(self) -> float:
        return 1 - self.sparsity

    def held(self, size: RunSize) -> Held:
        """Lists of every layer, all heads' of the same length."""
        width = column_budget(self.sparsity, size.length)
        return held_lists(size, group_size=self.group_size, width=width, union=self.union)


def refuse_causal(policy: Policy, info: RunInfo) -> None:
    """Raise ValueError for a causal model: keys are chosen on both sides of a query."""
    if info.spec.causal:
        raise ValueError(f"{policy.label} chooses keys on both sides, but {info.spec.name!r} is causal")


@dataclass(frozen=True)
class Span:
    """Rows of a batch with the same valid range: ``rows``, valid from position ``first`` on."""

    rows: slice
    first: int

    def of(self, tensor: Tensor) -> Tensor:
        """The valid part of a [B, H, L, ...] tensor, as a view."""
        return tensor[self.rows, :, self.first :]


def spans_of(start: Tensor | None) -> list[Span]:
    """The whole batch as one span where nothing is padded, otherwise one span per sample."""
    if start is None:
        return [Span(slice(None), 0)]
    return sample_spans(start, len(start))


def sample_spans(start: Tensor | None, batch: int) -> list[Span]:
    """One span per sample of a batch, padded or not: for policies that treat samples differently."""
    firsts = [0] * batch if start is None else start.tolist()
    return [Span(slice(b, b + 1), first) for b, first in enumerate(firsts)]


def select_best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest of mean probabilities ``scores`` [..., n], which are overwritten, as lists and counts.

    A probability that underflows to zero must not cost a place: the kernel never selects a zero.
    """
    return select_columns(scores.clamp_min_(_TINY), count)


def best_columns(
    span: Span, q: Tensor, k: Tensor, group_size: int, sparsity: float, lse: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The columns of one span with the highest mean of the dense attention of each group's queries.

    ``q`` [B, H, L, D], ``k`` [B, Hkv, L, D]; ``lse`` [B, H, L], the dense log-sum-exp, where it is known. Returns
    lists int32 [rows, H, groups, K], ascending, ties going to the lower key, and their counts.
    """
    q, k, lse = span.of(q), span.of(k), None if lse is None else span.of(lse)
    budget = column_budget(sparsity, k.shape[2])
    pieces = column_scores(q, k, group_size=group_size, lse=lse)
    chosen = []
    for _, scores in pieces:
        chosen.append(select_best(scores, budget))
        del scores  # a gigabyte on a GPU, before the next ones are made
    columns, counts = zip(*chosen, strict=True)
    return torch.cat(columns, dim=2), torch.cat(counts, dim=2)


def select_in_pieces(
    score: Callable[[int, int], Tensor], groups: int, group_bytes: int, count: int
) -> tuple[Tensor, Tensor]:
    """Lists and counts of the ``count`` keys with the highest positive scores of each of ``groups``.

    ``score(first, end)`` makes those of some groups, float32 [rows, H, end − first, n], ``group_bytes`` for each.
    """
    step = max(1, _SCORE_BYTES // group_bytes)
    pieces = [
        select_columns(score(first, min(first + step, groups)), count) for first in range(0, groups, step)
    ]
    columns, counts = zip(*pieces, strict=True)
    return torch.cat(columns, dim=2), torch.cat(counts, dim=2)


@dataclass(frozen=True)
class ColumnLists:
    """The kept keys of one span: ``columns`` int32 [rows, H, groups, K] ascending, of which the first
    ``counts`` int32 [rows, H, groups] are meant. Groups and keys count from the span's first valid
    position. Both are None for a sample that keeps everything beside others that do not (:meth:`everything`).

    On a GPU, lists of groups smaller than its tiles of 128 queries are kept merged (``SharedColumns``):
    attention over them is several times faster, and they take less than half of the memory.
    """

    span: Span
    columns: Tensor | SharedColumns | None
    counts: Tensor | None

    @classmethod
    def build(cls, span: Span, columns: Tensor, counts: Tensor, group_size: int, keys: int) -> ColumnLists:
        """Lists of ``keys`` keys, merged where that helps."""
        if columns.is_cuda and group_size <= 64:
            return cls(span, share_columns(columns, counts, keys=keys, group_size=group_size), counts)
        return cls(span, columns, counts)

    @classmethod
    def everything(cls, span: Span) -> ColumnLists:
        """All keys, for a ``span`` of one sample; attention over them is dense."""
        return cls(span, None, None)

    def shares(self, keys: int) -> list[float]:
        """Kept keys (or blocks) of each sample as a share of ``keys``, mean over heads and groups."""
        return [1.0] if self.counts is None else (self.counts.double().mean(dim=(1, 2)) / keys).tolist()

    @property
    def arguments(self) -> tuple[Tensor | SharedColumns, Tensor | None]:
        """The pattern as the kernels take it; there must be lists."""
        assert self.columns is not None
        return self.columns, None if isinstance(self.columns, SharedColumns) else self.counts


@dataclass(frozen=True)
class ColumnPattern:
    """The keys that each (sample, head, group of ``group_size`` neighbouring queries) of a layer keeps.

    With a ``block_size`` above 1 lists name blocks of so many keys, and groups are as large as blocks.
    """

    lists: tuple[ColumnLists, ...]
    group_size: int
    length: int
    block_size: int = 1

    @classmethod
    def build(
        cls,
        select: Callable[[Span], tuple[Tensor, Tensor]],
        *,
        start: Tensor | None,
        group_size: int,
        length: int,
        block_size: int = 1,
    ) -> ColumnPattern:
        """The pattern whose ``(columns, counts)`` of every span are what ``select`` returns for it."""
        lists = tuple(
            ColumnLists.build(span, *select(span), group_size, -(-(length - span.first) // block_size))
            for span in spans_of(start)
        )
        return cls(lists, group_size, length, block_size)

    @property
    def density(self) -> float:
        """Kept keys (or blocks) as a share of the valid ones, mean over samples, heads and groups."""
        shares = [
            share
            for c in self.lists
            for share in c.shares(-(-(self.length - c.span.first) // self.block_size))
        ]
        return sum(shares) / len(shares)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention over the kept keys only, [B, H, L, D]; rows of padding are zero."""
        outputs = [self._attend(c, c.span.of(q), c.span.of(k), c.span.of(v)) for c in self.lists]
        if len(outputs) == 1 and self.lists[0].span.first == 0:
            return outputs[0]
        out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        for c, part in zip(self.lists, outputs, strict=True):
            c.span.of(out).copy_(part)
        return out

    def _attend(self, lists: ColumnLists, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if lists.columns is None:
            return dense_attention(q, k, v)
        if self.block_size > 1:
            return block_sparse_attention(q, k, v, *lists.arguments, block_size=self.block_size)
        return column_sparse_attention(q, k, v, *lists.arguments, group_size=self.group_size)

    def retained_mass(self, q: Tensor, k: Tensor, *, lse: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Share of the dense attention that falls on the kept keys: mean and minimum over valid queries.

        Both [B, H] float32; ``lse`` [B, H, L], the dense log-sum-exp, saves computing it again.
        """
        parts = [self._retained_mass(c, q, k, lse) for c in self.lists]
        return torch.cat([mean for mean, _ in parts]), torch.cat([minimum for _, minimum in parts])

    def _retained_mass(
        self, lists: ColumnLists, q: Tensor, k: Tensor, lse: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        span = lists.span
        q, k, lse = span.of(q), span.of(k), None if lse is None else span.of(lse)
        if lists.columns is None:
            everything = torch.ones(q.shape[:2], device=q.device)
            return everything, everything
        return retained_mass(
            q, k, *lists.arguments, group_size=self.group_size, block_size=self.block_size, lse=lse
        )

    def kept_share(self, bins: int, heads: int) -> Tensor:
        """Share of the pairs of a query and a key that were kept, float32 [B, heads, bins, bins] on the CPU.

        Rows are bins of queries; position p is in bin floor(p · bins / L). Pairs with padding do not count.
        """
        return torch.cat([self._kept_share(c, bins, heads) for c in self.lists])

    def _kept_share(self, lists: ColumnLists, bins: int, heads: int) -> Tensor:
        first, length, size = lists.span.first, self.length, self.group_size
        bin_of = torch.arange(length) * bins // length
        there = torch.bincount(bin_of[first:], minlength=bins).float()
        if lists.columns is None:
            return (there > 0).outer(there > 0).float().expand(1, heads, bins, bins)
        groups = -(-(length - first) // size)
        columns, counts = private_lists(lists.columns, lists.counts, groups)
        shares = columns.new_zeros(*columns.shape[:2], bins, bins, dtype=torch.float32, device="cpu")
        group_of = torch.arange(length - first) // size
        queries = torch.bincount(bin_of[first:] * groups + group_of, minlength=bins * groups)
        for row, head in product(*map(range, columns.shape[:2])):  # one at a time: lists are long
            kept = self._keys_by_bin(columns[row, head].cpu(), counts[row, head].cpu(), bin_of[first:], bins)
            pairs = queries.view(bins, groups).float() @ kept
            shares[row, head] = pairs / there.outer(there).clamp_min(1)
        return shares

    def _keys_by_bin(self, columns: Tensor, counts: Tensor, bin_of: Tensor, bins: int) -> Tensor:
        """How many keys of each bin the lists [groups, K] of a head name, float32 [groups, bins]."""
        named = torch.arange(columns.shape[-1]) < counts[:, None]
        keys = columns.long()[:, :, None] * self.block_size + torch.arange(self.block_size)
        named = (named[:, :, None] & (keys < len(bin_of))).flatten(1).float()
        tally = torch.zeros(len(columns), bins)
        return tally.scatter_add_(1, bin_of[keys.flatten(1).clamp_max(len(bin_of) - 1)], named)


class FixedColumnsRun(PolicyRun):
    """The run of a policy whose lists are made once per layer, before the first step, and never change.

    ``choose`` gets the queries [rows, H, L, D] of a span and returns its ``(columns, counts)``.
    """

    def __init__(self, choose: Callable[[Tensor], tuple[Tensor, Tensor]], group_size: int) -> None:
        self._choose, self._group_size = choose, group_size
        self._patterns: dict[int, ColumnPattern] = {}

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        return StepPlan(step, "sparse")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        if layer not in self._patterns:
            self._patterns[layer] = ColumnPattern.build(
                lambda span: self._choose(span.of(q)),
                start=context.start,
                group_size=self._group_size,
                length=k.shape[2],
            )
        return self._patterns[layer].attend(q, k, v)

    def pattern(self, layer: int) -> ColumnPattern | None:
        return self._patterns[layer]
