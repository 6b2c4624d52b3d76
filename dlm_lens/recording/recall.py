"""How much of the attention few keys can hold, by the shape in which keys are kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from dlm_kernels import column_scores
from torch import Tensor
from torch.nn.functional import pad

from dlm_lens.recording.base import LayerAttention, Statistic

# Scores are made in pieces of about so many bytes; sorting one takes copies of it with 64-bit indices.
_PIECE = {False: 4 << 20, True: 64 << 20}
_COPIES = 6


@dataclass(frozen=True)
class Recall(Statistic):
    """Best share of a head's attention that a budget of keys can keep, [granularity, budget].

    A budget is a share of the valid keys: ``round(budget · L)`` of them, at least one, for every query. How they may be
    chosen is the granularity, for each G of ``groups``:

    - ``"columns G"``: a list of keys for every group of G neighbouring queries, best by the group's mean
      probability (PulseCol, arXiv 2605.20813);
    - ``"blocks G"``: whole tiles of G × G for every block of G queries, best by the tile's mean probability (SparseD,
      arXiv 2509.24014, without choosing prompt and generation apart). A tile that exceeds what is left of the budget
      counts in proportion, so that all granularities keep equally many keys and none suffers from rounding;
    - ``"columns all"``: one list of keys for all queries, as in :func:`dlm_lens.metrics.column_recall`.

    The share is the mean over the valid queries of the probability on the chosen keys, in [0, 1]. It is what a choice
    made with full knowledge of this very step keeps; a pattern from an earlier step keeps less
    (:func:`dlm_lens.metrics.stale_recall`). Groups and keys count from a sample's first valid position. In causal
    models the budget still is a share of all keys, of which early queries see few.

    Raises ``ValueError`` for groups that are not positive and budgets outside (0, 1].
    """

    variable = "recall"
    groups: tuple[int, ...] = (32, 128)
    budgets: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)

    def __post_init__(self) -> None:
        if (
            not self.groups
            or any(size < 1 for size in self.groups)
            or len(set(self.groups)) < len(self.groups)
        ):
            raise ValueError(
                f"groups must be different numbers of queries, at least 1 each, got {self.groups}"
            )
        if not self.budgets or not all(0 < budget <= 1 for budget in self.budgets):
            raise ValueError(
                f"budgets must be shares of the keys in (0, 1], at least one, got {self.budgets}"
            )

    @property
    def labels(self) -> Mapping[str, Sequence[str | float]]:
        by_group = [f"{shape} {size}" for shape in ("columns", "blocks") for size in self.groups]
        return {"granularity": [*by_group, "columns all"], "budget": list(self.budgets)}

    def shape(self, length: int) -> tuple[int, ...]:
        return (2 * len(self.groups) + 1, len(self.budgets))

    def workspace(self, on_gpu: bool) -> int:
        return _COPIES * _PIECE[on_gpu]

    def __call__(self, attention: LayerAttention) -> Tensor:
        batch, _, length, _ = attention.q.shape
        starts = [0] * batch if attention.start is None else attention.start.tolist()
        return torch.stack([self._of_sample(attention, b, first, length) for b, first in enumerate(starts)])

    def _of_sample(self, attention: LayerAttention, sample: int, first: int, length: int) -> Tensor:
        """Recall of the sample's valid part, [H, granularity, budget]."""
        keys = length - first
        kept = [max(1, round(budget * keys)) for budget in self.budgets]
        heads = attention.q.shape[1]
        sums = torch.zeros(2, len(self.groups), heads, len(kept), device=attention.q.device)
        for place, size in enumerate(self.groups):
            for groups, scores in _scores(attention, sample, first, size):
                members = _sizes(keys, size, scores.device)[groups.start : groups.stop]
                for shape, best in enumerate((_best_columns(scores, kept), _best_blocks(scores, kept, size))):
                    sums[shape, place] += torch.einsum("hgk,g->hk", best, members)
        everywhere = _best_columns(attention.reduced.column_mass[sample, :, None, first:], kept)
        return torch.cat([sums.flatten(0, 1).transpose(0, 1) / keys, everywhere], dim=1)


def _scores(attention: LayerAttention, sample: int, first: int, size: int) -> Iterator[tuple[range, Tensor]]:
    """Mean probability of each valid key per group of ``size`` valid queries of a sample, [H, groups, keys]."""
    q, k = attention.q[sample, None, :, first:], attention.k[sample, None, :, first:]
    if attention.causal:
        yield from _causal_scores(q[0], k[0], size)
        return
    lse = None if attention.lse is None else attention.lse[sample, None, :, first:]
    for groups, scores in column_scores(q, k, group_size=size, lse=lse, chunk_bytes=_PIECE[q.is_cuda]):
        yield groups, scores[0]


def _causal_scores(q: Tensor, k: Tensor, size: int) -> Iterator[tuple[range, Tensor]]:
    """As :func:`_scores`, of q [H, L, D] and k [Hkv, L, D] whose queries see no later keys, head by head."""
    heads, length, dim = q.shape
    members = _sizes(length, size, q.device)
    step = max(1, _PIECE[q.is_cuda] // (4 * size * length))
    position = torch.arange(length, device=q.device)
    for g in range(0, len(members), step):
        groups = range(g, min(g + step, len(members)))
        rows = slice(g * size, min(groups.stop * size, length))
        out = q.new_zeros((heads, len(groups), length), dtype=torch.float32)
        for head in range(heads):
            scores = q[head, rows].float() @ k[head // (heads // len(k))].float().T * dim**-0.5
            scores.masked_fill_(position > position[rows, None], float("-inf"))
            out[head].index_add_(0, position[rows] // size - g, torch.softmax(scores, -1))
        yield groups, out / members[groups.start : groups.stop, None]


def _sizes(length: int, size: int, device: torch.device) -> Tensor:
    """How many of ``length`` positions each group of ``size`` holds: the last may hold fewer."""
    members = torch.full((-(-length // size),), float(size), device=device)
    members[-1] -= len(members) * size - length
    return members


def _best_columns(scores: Tensor, kept: Sequence[int]) -> Tensor:
    """Sum of the ``kept`` highest of mean probabilities [..., keys], [..., len(kept)]."""
    best = scores.topk(max(kept), dim=-1).values.cumsum(-1)
    return best[..., [count - 1 for count in kept]]


def _best_blocks(scores: Tensor, kept: Sequence[int], size: int) -> Tensor:
    """The same for whole blocks of ``size`` keys, best by their mean; the last one kept counts in proportion."""
    keys = scores.shape[-1]
    members = _sizes(keys, size, scores.device)
    sums = pad(scores, (0, len(members) * size - keys)).unflatten(-1, (-1, size)).sum(-1)
    order = (sums / members).argsort(dim=-1, descending=True)
    sums, members = sums.gather(-1, order), members[order]
    before = members.cumsum(-1) - members
    return torch.stack([(sums * ((count - before) / members).clamp(0, 1)).sum(-1) for count in kept], dim=-1)
