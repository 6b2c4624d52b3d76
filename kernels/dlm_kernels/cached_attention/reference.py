"""Plain PyTorch meaning of attention over a cache."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend_to_cache(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Attention over the first ``lengths`` keys, row by row of the batch, on exactly those keys."""
    out = torch.zeros_like(q)
    for b, length in enumerate(lengths.tolist()):
        if length:
            one = slice(b, b + 1)
            keys, values = k[one, :, :length], v[one, :, :length]
            grouped = q.shape[1] != k.shape[1]
            out[one] = scaled_dot_product_attention(q[one], keys, values, scale=scale, enable_gqa=grouped)
    return out


def put_in_slots(k_cache: Tensor, v_cache: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """``cache[b, h, slots[b, i]] = fresh[b, h, i]`` for keys and for values."""
    index = slots.long()[:, None, :, None].expand(k.shape)
    k_cache.scatter_(2, index, k)
    v_cache.scatter_(2, index, v)
