"""Dense mass on listed keys in plain PyTorch: only the listed scores are computed."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def mass_on_columns(
    q: Tensor,
    k: Tensor,
    columns: Tensor,
    counts: Tensor,
    group_size: int,
    lse: Tensor,
    scale: float,
    chunk_bytes: int,
) -> Tensor:
    """Mass that every query keeps, float32 [B, H, Lq]; see :func:`dlm_kernels.retained_mass`."""
    batch, heads, length, dim = q.shape
    repeat = heads // k.shape[1]
    groups, width = columns.shape[2:]
    beyond = groups * group_size - length
    padded = pad(q, (0, 0, 0, beyond)).view(batch, heads, groups, group_size, dim)
    # A log-sum-exp of infinity gives the queries that only fill up the last group no mass.
    normaliser = pad(lse, (0, beyond), value=float("inf")).view(batch, heads, groups, group_size, 1)
    kept = q.new_empty(batch, heads, groups, group_size, dtype=torch.float32)
    listed = torch.arange(width, device=q.device) < counts[..., None]
    step = max(1, chunk_bytes // (width * 4 * (dim + group_size)))
    for b in range(batch):
        for h in range(heads):
            for g in range(0, groups, step):
                now = slice(g, min(g + step, groups))
                rows = k[b, h // repeat].index_select(0, columns[b, h, now].reshape(-1)).float()
                rows = rows.view(-1, width, dim)
                scores = torch.bmm(padded[b, h, now].float() * scale, rows.transpose(1, 2))
                probability = scores.sub_(normaliser[b, h, now]).exp_()
                kept[b, h, now] = (probability @ listed[b, h, now, :, None].float())[..., 0]
    return kept.view(batch, heads, -1)[:, :, :length]


def reduce_queries(kept: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and minimum [B, H] over the valid queries of ``kept [B, H, Lq]``; ``start`` integer [B]."""
    if start is None:
        return kept.mean(-1), kept.amin(-1)
    valid = (torch.arange(kept.shape[-1], device=kept.device) >= start[:, None])[:, None]
    mean = torch.where(valid, kept, 0.0).sum(-1) / valid.sum(-1)
    return mean, torch.where(valid, kept, float("inf")).amin(-1)
