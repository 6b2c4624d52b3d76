"""Discounting attention sinks in calibration: how much of each token's activations is left (arXiv 2602.17664)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_lens.attention import StepContext
from dlm_lens.recording.base import LayerAttention


@dataclass(frozen=True)
class SinkDiscount:
    """The soft mask φ(i) = sigmoid(α (m(i) − (mean + κ · std))) by which sinks are left out of calibration.

    m(i) = Σ_j A_ji is the attention that key i receives, summed over all queries: 1 on average, whatever the length, a
    unit that α depends on. Mean and standard deviation (of the population) are over the positions of one sequence. The
    paper leaves open whose attention it is. Here it is that of the layer being pruned, the mean over its heads, in the
    very sequence whose activations are scaled: every text has a mask of its own at every noise level, for diffusion
    sinks move, and the mask scales the inputs of all matrices of the layer.

    Attributes
    ----------
    alpha, kappa : steepness, and the standard deviations above the mean at which φ is ½.
    shuffled : the control: each sequence's values of φ are given to random positions of it instead.
    seed : of the shuffling.
    """

    alpha: float = 5.0
    kappa: float = 2.0
    shuffled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha} must be positive: how steeply φ rises with the mass")
        if not self.kappa > 0:
            raise ValueError(f"kappa={self.kappa} must be positive: standard deviations above the mean")

    def phi(self, mass: Tensor, generator: torch.Generator) -> Tensor:
        """φ in [0, 1], float32 [B, L], for the received ``mass`` [B, L]; shuffled by ``generator``, on the CPU."""
        mass = mass.float()
        spread = self.kappa * mass.std(-1, correction=0, keepdim=True)
        phi = torch.sigmoid(self.alpha * (mass - mass.mean(-1, keepdim=True) - spread))
        if self.shuffled:
            order = torch.rand(phi.shape, generator=generator).argsort(-1)
            phi = phi.gather(-1, order.to(phi.device))
        return phi

    def generator(self, layer: int) -> torch.Generator:
        """For the shuffling in a layer: the same whether or not layers before it were shuffled in this process."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + layer)


class MassReader:
    """Reads the attention that each key of a layer receives; stands where a recorder would.

    ``mass`` float32 [B, L] is of the layer run last, the mean over its heads; of its windows where it has any.
    """

    mass: Tensor

    def observe(self, layer: int, q: Tensor, k: Tensor, context: StepContext) -> None:
        mask = None if context.mask is None else context.mask.expand(len(q), -1, -1, -1)
        attention = LayerAttention(
            q, k, start=None, causal=context.causal, bins=None, entropy=False, lse=context.lse, mask=mask
        )
        self.mass = attention.reduced.column_mass.mean(1) * q.shape[2]
