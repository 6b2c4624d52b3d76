"""Perplexity of text under the diffusion bound, estimated by Monte Carlo together with its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from dlm_lens.measure.predict import mask_token
from dlm_lens.measure.tasks.bound import Nats, draw_hidden, score, standard_error, strata
from dlm_lens.measure.tasks.held_out import held_out_text, tokenizer_of
from dlm_lens.policies import Dense, Policy

if TYPE_CHECKING:
    from dlm_lens.models import DLM


@dataclass(frozen=True, repr=False)
class Perplexity(Nats):
    """How improbable a text is to a model, in nats per token.

    It is exact of an autoregressive model. ``tokens`` counts those of the text, which was cut into windows of
    ``length``.
    """

    length: int
    seed: int

    @property
    def ppl(self) -> float:
        """Perplexity, exp(nats)."""
        return float(np.exp(self.nats))

    def above(self, other: Perplexity) -> tuple[float, float]:
        """Nats per token by which this exceeds ``other``, and the standard error of that difference.

        With the same text and seed both were asked to predict the same tokens from the same context, so the error of
        their difference is far smaller than that of either. Raises ValueError if they were not.
        """
        names = ("samples", "tokens", "length", "seed")
        ours, theirs = ((len(p.draws), p.tokens, p.length, p.seed) for p in (self, other))
        for name, mine, its in zip(names, ours, theirs, strict=True):
            if mine != its:
                raise ValueError(
                    f"{name} differ, {mine} and {its}: measure both with the same text and settings"
                )
        gap = self.draws - other.draws
        return float(gap.mean()), standard_error(gap)

    def __repr__(self) -> str:
        error = "" if self.exact else f" ± {self.standard_error:.2g}"
        how = "exact" if self.exact else f"diffusion bound, {len(self.draws)} draws"
        return (
            f"Perplexity under {self.label}: {self.ppl:.4g} ({self.nats:.4f}{error} nats per token)\n"
            f"  {how}, predicted in {self.kind} steps; {self.tokens:,} tokens in windows of {self.length}"
        )


def perplexity(
    dlm: DLM,
    texts: Any = None,
    policy: Policy | None = None,
    *,
    length: int = 512,
    samples: int = 64,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = True,
) -> Perplexity:
    """Estimate the diffusion bound on −log p of ``texts`` per token, predicting as ``policy`` does.

    The bound of a window x of L tokens, divided by L, is the mean of −log p(x_i | what is not masked) over the masked
    positions i, with the number l of masked positions uniform in 1 … L and the positions uniform given l (LLaDA,
    arXiv 2502.09992, on evaluating likelihoods: exactly l masks vary less than masking each token with a probability).

    Each of the ``samples`` draws picks a window, with a probability proportional to its length, and l and the
    positions. l is stratified: the range of l / L is cut into samples / 2 equal strata, of two draws each, whose
    differences give the standard error. It is the error of the estimate for these texts, not for others like them.
    Windows, l and positions depend on ``seed`` alone: see :meth:`Perplexity.above` for differences between policies.

    Under a sparse policy each prediction comes from a sparse step whose pattern was chosen at that same state, so what
    shows is the sparsity, not the age of a pattern.

    Parameters
    ----------
    texts : a string, a list of strings, or token ids; by default the bundled held-out code. Each is cut into windows
        of ``length`` tokens; what is left at its end is a shorter one.
    samples : draws, an even number; each costs one forward pass of a window, under PulseCol two, under SparseD three.
    batch_size : windows at a time. The logits [batch_size, length, V] must fit into memory. Policies that draw at
        random draw anew for every batch.

    An autoregressive model needs no bound: every window is scored once, exactly, ``samples`` and ``seed`` play no
    part, and the first token of each window, which nothing predicts, is left out.

    Raises ValueError before anything is run for values that cannot work.
    """
    policy = Dense() if policy is None else policy
    _check(dlm, length, samples, batch_size)
    windows = _windows(dlm, texts, length)
    draws = [_all_but_the_first(window) for window in windows]
    if not dlm.spec.causal:
        draws = _draw(windows, samples, seed)
    nats, kind = [], ""
    with tqdm(total=len(draws), desc=policy.label, unit="window", disable=not progress, leave=False) as bar:
        for at in range(0, len(draws), batch_size):
            batch = draws[at : at + batch_size]
            scored = score(dlm, batch, policy, seed + at)
            nats.append(scored.nats)
            kind = scored.kind
            bar.update(len(batch))
    values = torch.cat(nats).cpu().numpy()
    if dlm.spec.causal:
        values = np.average(values, weights=[int(scored.sum()) for _, scored in draws])[None]
    return Perplexity(policy.label, kind, values, sum(map(len, windows)), length, seed)


def _check(dlm: DLM, length: int, samples: int, batch_size: int) -> None:
    shortest = 2 if dlm.spec.causal else 1
    if not shortest <= length <= dlm.spec.max_length:
        raise ValueError(
            f"length={length} must be in {shortest}…{dlm.spec.max_length}, the positions of {dlm.spec.name!r}"
        )
    if samples < 2 or samples % 2:
        raise ValueError(f"samples={samples} must be even and at least 2: two are drawn from each stratum")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1 window")


def _windows(dlm: DLM, texts: Any, length: int) -> list[Tensor]:
    """The token ids of ``texts`` in windows [at most ``length``] with something to predict."""
    if texts is None:
        tokenizer_of(dlm, "held-out texts")
        texts = held_out_text()
    encoded = dlm.encode(texts)
    rows = [row[start:] for row, start in zip(encoded.tokens, encoded.start.tolist(), strict=True)]
    if not dlm.spec.causal and any((row == mask_token(dlm, "the diffusion bound")).any() for row in rows):
        raise ValueError(
            f"the text holds the mask token {dlm.spec.mask_id}, which nothing can tell from a hidden one"
        )
    shortest = 2 if dlm.spec.causal else 1
    windows = [window for row in rows for window in row.split(length) if len(window) >= shortest]
    if not windows:
        raise ValueError(
            f"no text has {shortest} tokens, the fewest that {dlm.spec.name!r} can predict among"
        )
    return windows


def _draw(windows: Sequence[Tensor], samples: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Windows [L] and the positions to mask in each, bool [L]; draws 2h and 2h + 1 come from stratum h."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([len(window) for window in windows], dtype=torch.float64)
    which = torch.multinomial(lengths, samples, replacement=True, generator=generator)
    return [
        (windows[index], draw_hidden(len(windows[index]), share, generator))
        for index, share in zip(which.tolist(), strata(samples, generator), strict=True)
    ]


def _all_but_the_first(window: Tensor) -> tuple[Tensor, Tensor]:
    return window, torch.arange(len(window)) > 0
