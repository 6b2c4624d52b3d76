"""Attention of few queries over keys and values that are kept from step to step."""

import torch
from torch import Tensor

from dlm_kernels.cached_attention.reference import attend_to_cache
from dlm_kernels.common import check_heads, check_scale, choose, debug_checks

__all__ = ["cached_attention"]


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Softmax attention of every query over the first ``lengths[b]`` keys of a cache, which may hold more.

    Parameters
    ----------
    q : [B, H, Lq, D]
    k, v : the cache, [B, Hkv, C, D]; Hkv divides H, and what lies beyond ``lengths`` is never read into a result
    lengths : int32 or int64 [B], 0 … C; it may change between replays of a CUDA graph
    scale : factor of the scores; 1/√D by default
    impl : "auto", "triton" or "reference"

    Keys are cut into pieces that run side by side, so that a handful of queries fills a GPU; sums of the pieces are
    joined in a fixed order. Returns [B, H, Lq, D] in the type of q; zeros where ``lengths`` is 0. Raises
    ``ValueError`` for shapes or types that do not fit, and for lengths out of range on a CPU or in debug mode.
    """
    impl = choose("cached_attention", impl, q)
    check_heads(q, k, v)
    scale = check_scale(scale, q)
    if lengths.shape != q.shape[:1] or lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"lengths must be an integer tensor of shape ({q.shape[0]},), got {lengths.dtype} {tuple(lengths.shape)}"
        )
    if lengths.device != q.device:
        raise ValueError(f"lengths {tuple(lengths.shape)} is on {lengths.device} but q is on {q.device}")
    if debug_checks(lengths):
        low, high = (int(bound) for bound in torch.aminmax(lengths))
        if low < 0 or high > k.shape[2]:
            raise ValueError(f"lengths must lie in 0 … {k.shape[2]}, got {lengths.tolist()}")
    if impl == "triton":
        from dlm_kernels.cached_attention.triton_cached import cached_attention_op

        return cached_attention_op(q, k, v, lengths.int(), scale)
    return attend_to_cache(q, k, v, lengths, scale)
