"""The dense backends that are present: the peers of everything here, and the measure of efficiency."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "FlashAttention-2 (PyTorch)": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def dense_rivals(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Every dense attention that this machine can run, PyTorch's default first."""
    rivals: dict[str, Callable[[], Tensor]] = {
        "PyTorch default": lambda: F.scaled_dot_product_attention(q, k, v)
    }
    if not q.is_cuda:
        return rivals

    def forced(backend: SDPBackend) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        return call

    rivals |= {name: forced(backend) for name, backend in _BACKENDS.items()}
    transposed = [t.transpose(1, 2) for t in (q, k, v)]
    if find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_func

        rivals["flash-attn 2"] = lambda: flash_attn_func(*transposed)
    if find_spec("flash_attn_interface") is not None:
        from flash_attn_interface import flash_attn_func as flash_attn_3

        rivals["FlashAttention-3"] = lambda: flash_attn_3(*transposed)
    return rivals


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = 64  # one for every length and block size, and none of them eager
    return torch.compile(flex_attention, dynamic=False)


def flex_blocks(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int) -> Callable[[], Tensor]:
    """FlexAttention over the same lists of key blocks, none of them masked inside."""
    from torch.nn.attention.flex_attention import BlockMask

    heads, rows, width = blocks.shape[1:]
    counts = torch.full((1, heads, rows), width, dtype=torch.int32, device=q.device)
    indices = torch.zeros(1, heads, rows, -(-k.shape[2] // block_size), dtype=torch.int32, device=q.device)
    none = torch.zeros_like(counts), torch.zeros_like(indices)
    indices[..., :width] = blocks
    mask = BlockMask.from_kv_blocks(*none, counts, indices, BLOCK_SIZE=block_size)
    compiled = _compiled_flex()
    # Its own choice of tile is 128 wide, which it then refuses for smaller blocks.
    tile = {"BLOCK_M": block_size, "BLOCK_N": block_size} if block_size < 128 else None
    return lambda: compiled(q, k, v, block_mask=mask, kernel_options=tile)


def flex_columns(q: Tensor, k: Tensor, v: Tensor, columns: Tensor, group_size: int) -> Callable[[], Tensor]:
    """FlexAttention over the same columns: no block is empty, so it computes everything and masks."""
    from torch.nn.attention.flex_attention import BlockMask

    heads, groups = columns.shape[1:3]
    member = torch.zeros(heads, groups, k.shape[2], dtype=torch.bool, device=q.device)
    member.scatter_(2, columns[0].long(), True)
    rows, blocks = (-(-t.shape[2] // 128) for t in (q, k))
    counts = torch.full((1, heads, rows), blocks, dtype=torch.int32, device=q.device)
    indices = torch.arange(blocks, dtype=torch.int32, device=q.device).expand(1, heads, rows, blocks)

    def listed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return member[head, query // group_size, key]

    mask = BlockMask.from_kv_blocks(counts, indices.contiguous(), BLOCK_SIZE=128, mask_mod=listed)
    compiled = _compiled_flex()
    return lambda: compiled(q, k, v, block_mask=mask)
