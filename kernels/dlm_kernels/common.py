"""What the operations share: checking arguments, choosing an implementation, sizing chunks."""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dlm_kernels.share_columns import SharedColumns

INDEX_BITS = 24  # of an entry of shared lists; the bits above say which groups of queries it is for
LOG2_E = 1.4426950408889634
_HAS_TRITON = find_spec("triton") is not None


def choose(op: str, impl: str, tensor: Tensor, name: str = "q") -> str:
    """The implementation to run: ``"triton"`` or ``"reference"``.

    ``"auto"`` takes Triton for CUDA tensors where it is installed, and otherwise the reference; an explicit choice
    that cannot be had is a ``ValueError`` that names the tensor in question.
    """
    if impl == "auto":
        return "triton" if tensor.is_cuda and _HAS_TRITON else "reference"
    if impl not in ("triton", "reference"):
        raise ValueError(f'{op} has no implementation {impl!r}; choose "auto", "triton" or "reference"')
    if impl == "triton":
        if not _HAS_TRITON:
            raise ValueError(f'{op}: impl="triton" needs the package triton, which is not installed')
        if not (tensor.is_cuda or _interpreting()):
            raise ValueError(
                f'{op}: impl="triton" needs CUDA tensors, but {name} {tuple(tensor.shape)} is on {tensor.device};'
                " to debug a kernel on the CPU, start Python with TRITON_INTERPRET=1"
            )
    return impl


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def debug_checks(tensor: Tensor) -> bool:
    """Whether to look at the values of index tensors: always on the CPU, where it costs next to nothing, and on a GPU,
    which it makes wait, only with ``DLM_KERNELS_DEBUG=1`` in the environment."""
    return not tensor.is_cuda or os.environ.get("DLM_KERNELS_DEBUG") == "1"


def check_scale(scale: float | None, q: Tensor) -> float:
    """The factor of the scores: 1/√D by default; it must be positive and finite."""
    if scale is None:
        return q.shape[-1] ** -0.5
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    return float(scale)


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
        if tensor.device != q.device or tensor.dtype != q.dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device} but q is {q.dtype} on {q.device}; they must agree"
            )
    batch, heads, _, dim = q.shape
    if k.shape[0] != batch or k.shape[3] != dim:
        raise ValueError(f"k {tuple(k.shape)} must agree with q {tuple(q.shape)} in batch and dim")
    if heads % k.shape[1]:
        raise ValueError(f"the {k.shape[1]} heads of k must divide the {heads} heads of q")
    if v is not None and v.shape != k.shape:
        raise ValueError(f"v {tuple(v.shape)} must have the shape of k {tuple(k.shape)}")


def check_start(start: Tensor | None, q: Tensor, k: Tensor) -> None:
    """Check ``start``, the first valid position of every batch element."""
    batch, length = q.shape[0], q.shape[2]
    if start is None:
        return
    if start.shape != (batch,) or start.is_floating_point():
        raise ValueError(
            f"start must be an integer tensor of shape ({batch},), got {start.dtype} {tuple(start.shape)}"
        )
    if start.device != q.device:
        raise ValueError(f"start {tuple(start.shape)} is on {start.device} but q is on {q.device}")
    if k.shape[2] != length:
        raise ValueError(f"start needs as many queries as keys, got {length} queries and {k.shape[2]} keys")
    if debug_checks(start):
        low, high = (int(bound) for bound in torch.aminmax(start))
        if low < 0 or high >= length:
            raise ValueError(f"start must lie in 0 … {length - 1}, got {start.tolist()}")


def first_positions(start: Tensor | None, q: Tensor) -> list[int]:
    """First valid position of every batch element, zeros for ``None``."""
    return [0] * q.shape[0] if start is None else [int(position) for position in start.tolist()]


def check_pattern(
    columns: "Tensor | SharedColumns",
    counts: Tensor | None,
    q: Tensor,
    keys: int,
    group_size: int,
    name: str = "columns",
) -> None:
    """Check lists of ``keys`` keys (or blocks), one per group of queries or shared between groups, against q."""
    check_group_size(group_size)
    batch, heads, length, _ = q.shape
    groups = -(-length // group_size)
    if not isinstance(columns, Tensor):
        lists = -(-groups // columns.groups_per_list)
        if columns.entries.shape[:3] != (batch, heads, lists) or columns.group_size != group_size:
            raise ValueError(
                f"shared {name} hold lists {tuple(columns.entries.shape[:3])} for groups of {columns.group_size}, but"
                f" {length} queries in groups of {group_size} need {(batch, heads, lists)}"
            )
        if counts is not None:
            raise ValueError(f"counts must not be given with shared {name}, which have their own")
        columns = columns.entries
    elif counts is None:
        raise ValueError(f"counts must be given with {name} {tuple(columns.shape)}")
    elif columns.ndim != 4 or columns.shape[:3] != (batch, heads, groups) or columns.shape[3] == 0:
        raise ValueError(
            f"{name} must be [{batch}, {heads}, {groups}, K] for {length} queries in groups of {group_size},"
            f" got {tuple(columns.shape)}"
        )
    else:
        check_lists(columns, counts, keys, name)
    if columns.device != q.device:
        raise ValueError(f"{name} {tuple(columns.shape)} is on {columns.device} but q is on {q.device}")


def check_lists(columns: Tensor, counts: Tensor, keys: int, name: str = "columns") -> None:
    """Check that lists and counts fit each other; their values too, where that is cheap or asked for."""
    if not 1 <= keys < 1 << INDEX_BITS:
        raise ValueError(f"there must be 1 … {(1 << INDEX_BITS) - 1} keys to list, got {keys}")
    if columns.ndim != 4 or 0 in columns.shape:
        raise ValueError(f"{name} must be a non-empty [batch, heads, groups, K], got {tuple(columns.shape)}")
    if counts.shape != columns.shape[:3]:
        raise ValueError(f"counts must be {tuple(columns.shape[:3])}, got {tuple(counts.shape)}")
    for its_name, tensor in ((name, columns), ("counts", counts)):
        if tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{its_name} must be int32 or int64, got {tensor.dtype} {tuple(tensor.shape)}")
    if counts.device != columns.device:
        raise ValueError(f"counts is on {counts.device} but {name} is on {columns.device}")
    if not debug_checks(columns):
        return
    low, high = (int(bound) for bound in torch.aminmax(columns))
    if low < 0 or high >= keys:
        raise ValueError(f"{name} {tuple(columns.shape)} must lie in 0 … {keys - 1}, got {low} … {high}")
    low, high = (int(bound) for bound in torch.aminmax(counts))
    if low < 0 or high > columns.shape[3]:
        raise ValueError(
            f"counts {tuple(counts.shape)} must lie in 0 … {columns.shape[3]}, got {low} … {high}"
        )


def check_group_size(group_size: int) -> None:
    """``ValueError`` unless the number of queries per group is positive."""
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")


def check_lse(lse: Tensor | None, q: Tensor) -> None:
    """Check the log-sum-exp ``lse [B, H, Lq]`` that a caller brings."""
    if lse is None:
        return
    if lse.shape != q.shape[:3] or lse.dtype != torch.float32:
        raise ValueError(f"lse must be float32 {tuple(q.shape[:3])}, got {lse.dtype} {tuple(lse.shape)}")
    if lse.device != q.device:
        raise ValueError(f"lse {tuple(lse.shape)} is on {lse.device} but q is on {q.device}")


def chunk_budget(chunk_bytes: int | None, device: torch.device | None = None, *, triton: bool = False) -> int:
    """Bytes to work on at once.

    By default what stays in the level-2 caches of a CPU, where memory traffic would otherwise cost more than the
    arithmetic; 64 MB elsewhere, where small pieces would cost launches; 1 GB for Triton, whose programs must each
    have enough to do.
    """
    if chunk_bytes is None:
        if triton:
            return 1 << 30
        return (4 << 20) if device is None or device.type == "cpu" else (64 << 20)
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
