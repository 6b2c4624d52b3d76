"""Scores of keys per group of queries in plain PyTorch, a few groups at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad


def score_columns(
    q: Tensor, k: Tensor, group_size: int, scale: float, first: list[int], chunk_bytes: int
) -> Iterator[tuple[range, Tensor]]:
    """See :func:`dlm_kernels.column_scores`; arguments are checked there."""
    batch, heads, length, dim = q.shape
    kv_heads, keys = k.shape[1:3]
    repeat = heads // kv_heads
    groups = -(-length // group_size)
    padded = pad(q, (0, 0, 0, groups * group_size - length)).view(batch, heads, groups, group_size, dim)
    weights = _group_weights(length, group_size, first, q.device)
    # Scores and probabilities live in two tiles that serve all rounds.
    step = min(groups, max(1, chunk_bytes // (8 * repeat * group_size * keys)))
    tiles = q.new_empty(2, repeat * step * group_size * keys, dtype=torch.float32)
    for g in range(0, groups, step):
        piece = range(g, min(g + step, groups))
        now = slice(piece.start, piece.stop)
        out = q.new_zeros((batch, heads, len(piece), keys), dtype=torch.float32)
        for b, begin in enumerate(first):
            mean = weights[b, now].repeat(repeat, 1)[:, None]
            for kv in range(kv_heads):
                these = slice(kv * repeat, (kv + 1) * repeat)
                rows = padded[b, these, now].reshape(-1, dim).float() * scale
                scores, probability = tiles[:, : len(rows) * (keys - begin)].view(2, len(rows), keys - begin)
                torch.mm(rows, k[b, kv, begin:].float().T, out=scores)
                torch.softmax(scores, -1, out=probability)
                by_group = torch.bmm(mean, probability.view(-1, group_size, keys - begin))
                out[b, these, :, begin:] = by_group.view(repeat, len(piece), -1)
        yield piece, out


def _group_weights(length: int, group_size: int, first: list[int], device: torch.device) -> Tensor:
    """Weight of every query in the mean of its group, [B, groups, group_size]: 0 for padding and beyond the end."""
    position = torch.arange(-(-length // group_size) * group_size, device=device)
    begin = torch.tensor(first, device=device)[:, None]
    valid = ((position >= begin) & (position < length)).view(len(first), -1, group_size).float()
    return valid / valid.sum(-1, keepdim=True).clamp_min(1)
