"""Attention of few queries over keys and values that are kept from step to step."""

import torch
from torch import Tensor

from dlm_kernels.cached_attention.reference import attend_to_cache, put_in_slots
from dlm_kernels.common import check_heads, check_scale, choose, debug_checks

__all__ = ["cached_attention", "store_in_cache"]


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


def store_in_cache(
    k_cache: Tensor, v_cache: Tensor, slots: Tensor, k: Tensor, v: Tensor, *, impl: str = "auto"
) -> None:
    """Put fresh keys and values into their slots of a cache, in place.

    Parameters
    ----------
    k_cache, v_cache : [B, Hkv, C, D]
    slots : integer [B, n], 0 … C − 1: where row i of ``k`` and ``v`` goes; of several that go to one slot any stays
    k, v : [B, Hkv, n, D]
    impl : "auto", "triton" or "reference"

    Raises ``ValueError`` for shapes or types that do not fit, and for slots out of range on a CPU or in debug mode.
    """
    impl = choose("store_in_cache", impl, k, "k")
    check_heads(k, k_cache, v_cache)
    if k.shape[1] != k_cache.shape[1] or v.shape != k.shape or v.dtype != k.dtype:
        raise ValueError(
            f"k {tuple(k.shape)} and v {tuple(v.shape)} must agree, and in heads with the cache {tuple(k_cache.shape)}"
        )
    if slots.shape != (k.shape[0], k.shape[2]) or slots.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"slots must be integers of shape {(k.shape[0], k.shape[2])}, got {slots.dtype} {tuple(slots.shape)}"
        )
    if debug_checks(slots):
        low, high = (int(bound) for bound in torch.aminmax(slots))
        if low < 0 or high >= k_cache.shape[2]:
            raise ValueError(f"slots must lie in 0 … {k_cache.shape[2] - 1}, got {low} … {high}")
    if impl == "triton":
        from dlm_kernels.cached_attention.triton_cached import store_op

        return store_op(k_cache, v_cache, slots, k, v)
    return put_in_slots(k_cache, v_cache, slots, k, v)
