"""What sink-aware policies know of a step: the mass every key receives, which keys are sinks, and how steadily.

All of it per head, because heads have different sinks (Sink-Aware Pruning, arXiv 2602.17664).
"""

from __future__ import annotations

import torch
from dlm_kernels.attention_statistics import attention_statistics
from torch import Tensor

from dlm_lens.policies.columns import spans_of


def sampled_mass(q: Tensor, k: Tensor, *, sample: int, start: Tensor | None = None) -> Tensor:
    """Mean probability that each key receives from ``sample`` queries, float32 [B, H, L]; 0 on padding.

    ``q`` [B, H, L, D], ``k`` [B, Hkv, L, D], ``start`` [B] the first valid positions. The queries are evenly spaced
    over a sample's n valid positions, the i-th at floor((i + ½) · n / sample), and their attention is over all keys,
    whatever the policy keeps: what it does not keep could otherwise never be found again. The products cost sample / L
    of those of a dense layer. With ``sample`` ≥ n the mass is exact: the paper's m_t(i) = Σ_j A_{j,i}, divided by n.
    """
    mass = q.new_zeros(q.shape[:3], dtype=torch.float32)
    for span in spans_of(start):
        queries, keys = span.of(q), span.of(k)
        length = queries.shape[2]
        taken = min(sample, length)
        if taken < length:
            place = (2 * torch.arange(taken, device=q.device) + 1) * length // (2 * taken)
            queries = queries.index_select(2, place)
        statistics = attention_statistics(queries, keys, bins=None, entropy=False)
        span.of(mass).copy_(statistics.column_mass)
    return mass


def sinks(mass: Tensor, kappa: float, start: Tensor | None) -> Tensor:
    """Which keys are sinks of a head: ``mass`` [B, H, L] above mean + κ · std over its valid keys; bool like it.

    The paper's S_t, as ``metrics.sinks`` reports it. At most a share of 1 / (1 + κ²) of the keys can be.
    """
    members = torch.zeros_like(mass, dtype=torch.bool)
    for span in spans_of(start):
        own = span.of(mass)
        threshold = own.mean(-1, keepdim=True) + kappa * own.std(-1, correction=0, keepdim=True)
        span.of(members).copy_(own > threshold)
    return members


class SinkHistory:
    """Which keys were sinks at the last ``memory`` + 1 measured steps, per head, so that changes can be counted.

    Begins with the ``members`` bool [B, H, L] of a first step, which are taken to have been sinks always.
    """

    def __init__(self, members: Tensor, memory: int) -> None:
        self._members = members.expand(memory + 1, *members.shape)

    @property
    def current(self) -> Tensor:
        """bool [B, H, L]: the sinks of the last measured step."""
        return self._members[-1]

    def push(self, members: Tensor, measured: Tensor | None = None) -> None:
        """Add a step's ``members`` bool [B, H, L], for the heads ``measured`` bool [B, H] if not all were."""
        later = torch.cat([self._members[1:], members[None]])
        if measured is not None:
            later = torch.where(measured[:, :, None], later, self._members)
        self._members = later

    def changes(self) -> Tensor:
        """In what share of the last ``memory`` comparisons of a step with the next a key became a sink or ceased to
        be one, float32 [B, H, L]."""
        changed = self._members[1:] != self._members[:-1]
        return changed.sum(0, dtype=torch.float32) / len(changed)
