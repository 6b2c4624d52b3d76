"""What the operations share: checking arguments, choosing an implementation, sizing chunks."""

import torch
from torch import Tensor


def choose(op: str, impl: str, available: tuple[str, ...]) -> str:
    """The implementation to run: the first available for ``"auto"``, otherwise exactly the one asked for."""
    if impl == "auto":
        return available[0]
    if impl not in available:
        raise ValueError(f"{op} has no implementation {impl!r}; available: {', '.join(available)}")
    return impl


def check_heads(q: Tensor, k: Tensor, v: Tensor | None = None) -> None:
    """Check ``q [B, H, Lq, D]`` and ``k, v [B, Hkv, Lk, D]`` against each other; ``ValueError`` names the culprit."""
    named = {"q": q, "k": k} if v is None else {"q": q, "k": k, "v": v}
    for name, tensor in named.items():
        if tensor.ndim != 4 or 0 in tensor.shape:
            raise ValueError(
                f"{name} must be a non-empty [batch, heads, length, dim], got {tuple(tensor.shape)}"
            )
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(f"{name} must be float16, bfloat16 or float32, got {tensor.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device} but q is on {q.device}")
    batch, heads, _, dim = q.shape
    if k.shape[0] != batch or k.shape[3] != dim:
        raise ValueError(f"k {tuple(k.shape)} must agree with q {tuple(q.shape)} in batch and dim")
    if heads % k.shape[1]:
        raise ValueError(f"the {k.shape[1]} heads of k must divide the {heads} heads of q")
    if v is not None and v.shape != k.shape:
        raise ValueError(f"v {tuple(v.shape)} must have the shape of k {tuple(k.shape)}")


def first_positions(start: Tensor | None, q: Tensor, k: Tensor) -> list[int]:
    """First valid position of every batch element: zeros for ``None``, otherwise ``start`` after a check."""
    batch, length = q.shape[0], q.shape[2]
    if start is None:
        return [0] * batch
    if start.shape != (batch,) or start.is_floating_point():
        raise ValueError(
            f"start must be an integer tensor of shape ({batch},), got {start.dtype} {tuple(start.shape)}"
        )
    if k.shape[2] != length:
        raise ValueError(f"start needs as many queries as keys, got {length} queries and {k.shape[2]} keys")
    first = [int(position) for position in start.tolist()]
    if not all(0 <= position < length for position in first):
        raise ValueError(f"start must lie in 0 … {length - 1}, got {first}")
    return first


def check_columns(columns: Tensor, counts: Tensor, q: Tensor, k: Tensor, group_size: int) -> None:
    """Check per-group key lists ``columns [B, H, nG, K]``, ``counts [B, H, nG]`` against q and k."""
    check_group_size(group_size)
    batch, heads, length, _ = q.shape
    groups = -(-length // group_size)
    if columns.ndim != 4 or columns.shape[:3] != (batch, heads, groups) or columns.shape[3] == 0:
        raise ValueError(
            f"columns must be [{batch}, {heads}, {groups}, K] for {length} queries in groups of {group_size},"
            f" got {tuple(columns.shape)}"
        )
    if counts.shape != columns.shape[:3]:
        raise ValueError(f"counts must be {tuple(columns.shape[:3])}, got {tuple(counts.shape)}")
    for name, tensor in (("columns", columns), ("counts", counts)):
        if tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} must be int32 or int64, got {tensor.dtype}")
    low, high = (int(bound) for bound in torch.aminmax(columns))
    if low < 0 or high >= k.shape[2]:
        raise ValueError(f"columns must lie in 0 … {k.shape[2] - 1}, got {low} … {high}")
    low, high = (int(bound) for bound in torch.aminmax(counts))
    if low < 0 or high > columns.shape[3]:
        raise ValueError(f"counts must lie in 0 … {columns.shape[3]}, got {low} … {high}")


def check_group_size(group_size: int) -> None:
    """``ValueError`` unless the number of queries per group is positive."""
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")


def chunk_budget(chunk_bytes: int | None, device: torch.device) -> int:
    """Bytes of scores to work on at once.

    By default what stays in the level-2 caches of a CPU, where memory traffic would otherwise cost more than the
    arithmetic, and 64 MB elsewhere, where small pieces would cost launches.
    """
    if chunk_bytes is None:
        return (4 << 20) if device.type == "cpu" else (64 << 20)
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be positive, got {chunk_bytes}")
    return chunk_bytes


def position_bins(length: int, bins: int, device: torch.device | None = None) -> Tensor:
    """Bin of every position when ``length`` positions are pooled into ``bins``: ``position · bins // length``.

    More bins than positions are capped at one bin per position. LongTensor [length].
    """
    if length < 1 or bins < 1:
        raise ValueError(f"length and bins must be positive, got {length=}, {bins=}")
    return torch.arange(length, device=device) * min(bins, length) // length
