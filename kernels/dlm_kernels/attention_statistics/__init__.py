"""What attention does, without its map: normalisers, mass per key, pooled map and entropy in one pass."""

from torch import Tensor

from dlm_kernels.attention_statistics.reference import AttentionStatistics, reduce_attention
from dlm_kernels.common import (
    check_heads,
    check_lse,
    check_scale,
    check_start,
    choose,
    chunk_budget,
    first_positions,
)

__all__ = ["AttentionStatistics", "attention_statistics"]


def attention_statistics(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    start: Tensor | None = None,
    causal: bool = False,
    lse: Tensor | None = None,
    bins: int | None = 64,
    entropy: bool = True,
    impl: str = "auto",
    chunk_bytes: int | None = None,
) -> AttentionStatistics:
    """Reduce the attention probabilities ``A = softmax(scale · q kᵀ)`` of every head as they are computed.

    Parameters
    ----------
    q : [B, H, Lq, D] queries, float16, bfloat16 or float32
    k : [B, Hkv, Lk, D] keys; Hkv divides H, and consecutive query heads share a key head
    scale : factor of the scores; 1/√D by default
    start : integer [B], first valid position (left padding); needs Lq = Lk. Earlier keys receive no mass and
        earlier queries enter no mean
    causal : queries see no later keys; needs Lq = Lk
    lse : float32 [B, H, Lq], the log-sum-exp of the scaled scores where it is known already, as from the dense
        forward pass: it saves a GPU half of the work. Its entries at padding are not looked at
    bins : number of bins of queries and of keys for the pooled map and the entropy (see ``position_bins``),
        capped at the length; ``None`` leaves both out
    entropy : whether to make ``row_entropy``
    impl : "auto", "triton" or "reference"
    chunk_bytes : workspace: 4 MB by default on a CPU, 64 MB on a GPU, and 1 GB for Triton, which keeps the mass of
        ``bins`` · Lk pairs of as many heads as fit. No tensor of Lq · Lk over all heads is ever made

    Accumulates in float32. Raises ``ValueError`` for shapes, types or values that do not fit.
    """
    impl = choose("attention_statistics", impl, q)
    check_heads(q, k)
    check_start(start, q, k)
    check_lse(lse, q)
    scale = check_scale(scale, q)
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(f"causal needs as many queries as keys, got {q.shape[2]} and {k.shape[2]}")
    if bins is not None and bins < 1:
        raise ValueError(f"bins must be positive or None, got {bins}")
    chunk = chunk_budget(chunk_bytes, q.device, triton=impl == "triton")
    if impl == "triton":
        from dlm_kernels.attention_statistics.triton_statistics import reduce_scores

        return reduce_scores(q, k, scale, start, causal, bins, entropy, lse, chunk)
    return reduce_attention(q, k, scale, first_positions(start, q), causal, bins, entropy, chunk)
