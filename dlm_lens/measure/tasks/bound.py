"""The diffusion bound on −log p: which tokens to hide, how well they are predicted, how far off a mean of draws is.

A text of n tokens costs at most the mean, over a uniform number l = 1 … n of hidden positions and over which l they
are, of n / l times the −log p of the hidden tokens (LLaDA, arXiv 2502.09992, on evaluating likelihoods).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlm_lens.measure.predict import mask_token, negative_log_likelihood, predict

if TYPE_CHECKING:
    from dlm_lens.models import DLM
    from dlm_lens.policies import Policy


@dataclass(frozen=True)
class Scored:
    """What a model thinks of the scored tokens of each row.

    ``nats`` float64 [B] is their mean −log p, ``right`` bool [B] whether each is the most probable one at its place,
    and ``kind`` that of the step that predicted.
    """

    nats: Tensor
    right: Tensor
    kind: str


@dataclass(frozen=True, repr=False)
class Nats:
    """−log p of so many ``tokens``, or a bound on it, in nats.

    ``draws`` float64 [samples] holds the value of every draw, two neighbours from the same stratum, or one value if
    that is exact. ``label`` and ``kind`` name the policy and the kind of step that predicted.
    """

    label: str
    kind: str
    draws: np.ndarray
    tokens: int

    @property
    def exact(self) -> bool:
        """Whether nothing was drawn."""
        return len(self.draws) == 1

    @property
    def nats(self) -> float:
        """−log p of an autoregressive model, an upper bound on it of a diffusion model."""
        return float(self.draws.mean())

    @property
    def standard_error(self) -> float:
        """Monte-Carlo error of :attr:`nats`: one standard deviation of the estimate, 0 if exact."""
        return standard_error(self.draws)


def strata(samples: int, generator: torch.Generator) -> list[float]:
    """``samples`` shares in [0, 1], two from each of samples / 2 equal strata; 2h and 2h + 1 from stratum h."""
    within = torch.rand(samples, generator=generator, dtype=torch.float64)
    return ((torch.arange(samples) // 2 + within) / (samples // 2)).tolist()


def draw_hidden(length: int, share: float, generator: torch.Generator) -> Tensor:
    """bool [length]: as many positions as ``share`` of the range 1 … length says, anywhere."""
    count = min(int(share * length) + 1, length)  # rounding may lift the share to 1
    hidden = torch.zeros(length, dtype=torch.bool)
    hidden[torch.randperm(length, generator=generator)[:count]] = True
    return hidden


def score(
    dlm: DLM,
    batch: Sequence[tuple[Tensor, Tensor]],
    policy: Policy,
    seed: int,
    *,
    cfg_scale: float = 0.0,
    given: Sequence[int] = (),
) -> Scored:
    """Predict the tokens of windows, int64 [L] each, where bool [L] says so, under ``policy``.

    A diffusion model does not see those tokens, an autoregressive one sees what precedes each. ``cfg_scale`` s > 0
    guides by uncond + (s + 1) (cond − uncond), where ``uncond`` does not see the first ``given`` tokens of a window.
    """
    encoded = dlm.encode([window for window, _ in batch])
    tokens, start = encoded.tokens.to(dlm.device), encoded.start.to(dlm.device)
    scored = torch.zeros_like(encoded.tokens, dtype=torch.bool)
    for row, (window, positions) in zip(scored, batch, strict=True):
        row[-len(window) :] = positions
    # Vocabularies are large and contexts long: no logits before the first position where they are wanted.
    keep = range(int(scored.any(0).int().argmax()), scored.shape[1])
    scored = scored.to(dlm.device)
    inputs = tokens if dlm.spec.causal else tokens.masked_fill(scored, mask_token(dlm, "the diffusion bound"))
    if cfg_scale:
        until = start + torch.tensor(given, device=dlm.device)
        at = torch.arange(tokens.shape[1], device=dlm.device)
        context = (at >= start[:, None]) & (at < until[:, None])
        inputs = torch.cat([inputs, inputs.masked_fill(context, mask_token(dlm, "guidance"))])
        start = start.repeat(2)
    prediction = predict(dlm, inputs, policy, start=start if start.any() else None, keep=keep, seed=seed)
    logits = prediction.logits
    if cfg_scale:
        conditional, unconditional = logits.chunk(2)
        logits = unconditional + (cfg_scale + 1) * (conditional - unconditional)
    where = scored[:, keep.start :]
    chosen, truth, rows = logits[where], tokens[:, keep.start :][where], where.nonzero()[:, 0]
    nats = torch.zeros(len(batch), dtype=torch.float64, device=dlm.device)
    nats.index_add_(0, rows, negative_log_likelihood(chosen, truth))
    wrong = torch.zeros_like(nats).index_add_(0, rows, (chosen.argmax(-1) != truth).double())
    return Scored(nats / where.sum(1), wrong == 0, prediction.kind)


def standard_error(draws: np.ndarray) -> float:
    """Of the mean of ``draws`` [n], of which each two neighbours share a stratum; 0 for a single value.

    The difference of two draws of a stratum has twice its variance, so the squares add up to that of the sum.
    """
    if len(draws) == 1:
        return 0.0
    return float(np.sqrt(np.square(draws[0::2] - draws[1::2]).sum()) / len(draws))
