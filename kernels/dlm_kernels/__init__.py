"""Attention operations on tensors: what attention does, and attention that does less.

Operations on attention take ``q [B, H, Lq, D]`` and ``k, v [B, Hkv, Lk, D]`` after the rotary embedding, where ``Hkv``
divides ``H``, and never make a tensor of ``Lq · Lk`` over all heads; ``prune_columns`` is about weights. The package
depends on PyTorch only.
"""

from dlm_kernels.attention_statistics import AttentionStatistics, attention_statistics
from dlm_kernels.block_sparse_attention import block_sparse_attention
from dlm_kernels.cached_attention import cached_attention, store_in_cache
from dlm_kernels.column_scores import column_scores
from dlm_kernels.column_sparse_attention import column_sparse_attention
from dlm_kernels.common import position_bins
from dlm_kernels.prune_columns import prune_columns
from dlm_kernels.retained_mass import retained_mass
from dlm_kernels.select_columns import select_columns
from dlm_kernels.share_columns import SharedColumns, share_columns

__all__ = [
    "AttentionStatistics",
    "SharedColumns",
    "attention_statistics",
    "block_sparse_attention",
    "cached_attention",
    "column_scores",
    "column_sparse_attention",
    "position_bins",
    "prune_columns",
    "retained_mass",
    "select_columns",
    "share_columns",
    "store_in_cache",
]
