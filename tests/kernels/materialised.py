"""The operations on a whole attention map in float64: the plain meaning the kernels are held to."""

import torch
from torch import Tensor


def attention_map(q: Tensor, k: Tensor, start: Tensor | None = None, causal: bool = False) -> Tensor:
    """Probabilities [B, H, Lq, Lk]; rows of padding are zero."""
    k = k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q.double() @ k.mT * q.shape[-1] ** -0.5
    seen = torch.ones(scores.shape, dtype=torch.bool)
    if causal:
        seen &= torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if start is not None:
        valid = torch.arange(scores.shape[-1]) >= start[:, None]
        seen &= valid[:, None, None, :] & valid[:, None, :, None]
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), -1).nan_to_num(0.0)


def valid_queries(start: Tensor | None, batch: int, length: int) -> Tensor:
    """Whether each query is no padding, bool [B, L]."""
    begin = torch.zeros(batch, dtype=torch.long) if start is None else start
    return torch.arange(length) >= begin[:, None]
