"""Block-sparse attention in plain PyTorch: blocks written out as columns."""

import torch
from torch import Tensor

from dlm_kernels.column_sparse_attention.reference import attend_to_columns


def attend_to_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    counts: Tensor,
    block_size: int,
    scale: float,
    chunk_bytes: int,
) -> Tensor:
    """See :func:`dlm_kernels.block_sparse_attention`; arguments are checked there."""
    columns, listed = blocks_to_columns(blocks, counts, block_size, k.shape[2])
    return attend_to_columns(q, k, v, columns, listed, block_size, scale, chunk_bytes)


def blocks_to_columns(blocks: Tensor, counts: Tensor, block_size: int, keys: int) -> tuple[Tensor, Tensor]:
    """Lists of key blocks as ascending lists of keys [..., K · block_size], without the keys that a cut-off last block
    lacks, and their counts."""
    used = torch.arange(blocks.shape[-1], device=blocks.device) < counts[..., None]
    first = torch.where(used, blocks.long() * block_size, keys)
    columns = (first[..., None] + torch.arange(block_size, device=blocks.device)).flatten(-2)
    columns = columns.clamp_max(keys).sort(-1).values
    listed = (columns < keys).sum(-1)
    return torch.where(columns < keys, columns, 0), listed
