"""Deterministic top-k in plain PyTorch."""

import torch
from torch import Tensor


def select_highest(scores: Tensor, k: int, top_p: float | None = None) -> tuple[Tensor, Tensor]:
    """See :func:`dlm_kernels.select_columns`; ``scores`` are float32, ≥ 0 and finite.

    ``topk`` breaks ties as it likes. The bits of non-negative floats order as the floats do, so bits and reversed
    index joined in one integer make every entry distinct and the choice unique.
    """
    length = scores.shape[-1]
    from_the_end = length - 1 - torch.arange(length, device=scores.device)
    keys = (scores.contiguous().view(torch.int32).long() << 32) | from_the_end
    best = torch.topk(keys, k, sorted=False).values
    positive = best >> 32 > 0
    if top_p is not None:
        ranked = best.sort(-1, descending=True).values
        score = (ranked >> 32).int().view(torch.float32).double()
        missing = score.cumsum(-1) - score < top_p * scores.double().sum(-1, keepdim=True)
        lowest = ranked.gather(-1, (missing.sum(-1, keepdim=True) - 1).clamp_min(0))
        positive &= best >= lowest
    counts = positive.sum(-1)
    # Unselected entries sort to the end, where they are overwritten.
    columns = torch.where(positive, length - 1 - (best & 0xFFFFFFFF), length).sort(-1).values
    last = columns.gather(-1, (counts - 1).clamp_min(0)[..., None])
    columns = torch.minimum(columns, torch.where(counts[..., None] > 0, last, 0))
    return columns.int(), counts.int()
