"""Column-sparse attention in plain PyTorch: gather the listed rows, then multiply small dense matrices.

The work falls with the number of listed keys. Keys and values lie side by side while gathering, so that each
listed key is one copy of contiguous memory.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def attend_to_columns(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    columns: Tensor,
    counts: Tensor,
    group_size: int,
    scale: float,
    chunk_bytes: int,
) -> Tensor:
    """See :func:`dlm_kernels.column_sparse_attention`; arguments are checked there."""
    batch, heads, length, dim = q.shape
    repeat = heads // k.shape[1]
    groups = columns.shape[2]
    padded = pad(q, (0, 0, 0, groups * group_size - length)).view(batch, heads, groups, group_size, dim)
    out = torch.empty_like(padded)
    key_values = torch.cat([k, v], dim=-1)
    shortest, longest = (bound.tolist() for bound in torch.aminmax(counts, dim=-1))
    for b in range(batch):
        for h in range(heads):
            table = key_values[b, h // repeat]
            width = max(longest[b][h], 1)
            # Gathered rows, scores and probabilities of one group.
            step = max(1, chunk_bytes // (width * 8 * (dim + group_size)))
            for g in range(0, groups, step):
                now = slice(g, min(g + step, groups))
                listed = columns[b, h, now, :width].reshape(-1)
                rows = table.index_select(0, listed).float().view(-1, width, 2 * dim)
                scores = torch.bmm(padded[b, h, now].float() * scale, rows[..., :dim].transpose(1, 2))
                if shortest[b][h] == width:
                    probability = torch.softmax(scores, -1)
                else:
                    probability = _softmax_of_first(scores, counts[b, h, now])
                out[b, h, now] = torch.bmm(probability, rows[..., dim:])
    return out.view(batch, heads, -1, dim)[:, :, :length]


def _softmax_of_first(scores: Tensor, counts: Tensor) -> Tensor:
    """Softmax of scores [g, n, K] over the first ``counts [g]`` entries; zeros where that is none."""
    beyond = torch.arange(scores.shape[-1], device=scores.device) >= counts[:, None]
    probability = torch.softmax(scores.masked_fill_(beyond[:, None], float("-inf")), -1)
    return probability.masked_fill_((counts == 0)[:, None, None], 0.0)
