"""Samplers: which positions a denoising step commits, and to which tokens.

Every sampler is a frozen dataclass; all state of a run is in the tokens themselves, so one object serves
any number of runs. At temperature 0 each gives the same tokens as the sampler of the paper it is named
after.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

_PROBABILITY_BYTES = 256 << 20


@dataclass(frozen=True)
class Candidates:
    """What a sampler decides upon at one step: ``m`` positions of a generation region of ``gen_length``.

    ``logits`` [B, m, V] predict the tokens at ``positions`` LongTensor [B, m], which count from the beginning of the
    region and ascend; ``open`` bool [B, m] marks those that may be committed. ``undecided`` LongTensor [B] counts the
    masked positions of the whole region, of which a policy may have left out some; with ``whole`` it has left out none,
    and every row of ``positions`` is 0 … ``gen_length`` − 1.
    """

    step: int
    steps: int
    gen_length: int
    positions: Tensor
    open: Tensor
    undecided: Tensor
    logits: Tensor
    generator: torch.Generator
    whole: bool

    @classmethod
    def everywhere(
        cls, step: int, steps: int, open: Tensor, logits: Tensor, generator: torch.Generator
    ) -> Candidates:
        """All positions of a region, of which those in ``open`` bool [B, n] are masked."""
        positions = torch.arange(open.shape[1], device=open.device).expand(open.shape)
        return cls(step, steps, open.shape[1], positions, open, open.sum(-1), logits, generator, whole=True)


@dataclass(frozen=True)
class Commitment:
    """The outcome of a step, for the positions of :class:`Candidates`: ``tokens`` LongTensor [B, m], of which those
    where ``where`` bool [B, m] is True are committed."""

    tokens: Tensor
    where: Tensor


class Sampler(ABC):
    """Decides at every step which positions of the generation region are committed to which tokens."""

    causal: ClassVar[bool] = False
    """Whether it drives an autoregressive model; all others need a diffusion model with a mask token."""

    def check(self, gen_length: int, steps: int) -> None:
        """Raise ValueError, saying what would do, if the sampler cannot fill ``gen_length`` in
        ``steps``."""
        return

    def positions(self, step: int, gen_length: int) -> range:
        """The positions, counted within the generation region, whose logits this step needs."""
        return range(gen_length)

    def workspace(self, rows: int, vocab: int) -> int:
        """Bytes that ``commit`` takes beside the logits of so many positions."""
        return min(16 * rows * vocab, _PROBABILITY_BYTES)

    @abstractmethod
    def commit(self, at: Candidates) -> Commitment:
        """What to commit, given the logits of this step."""


@dataclass(frozen=True)
class LowConfidence(Sampler):
    """LLaDA's sampler: block by block, each step commits a fixed number of its most confident predictions.

    The generation region is split into blocks of ``block_length``, filled from left to right in ``steps /
    n_blocks`` steps each. A block's masks are shared out evenly over its steps, the remainder one each to
    the first. Confidence is the probability softmax(logits)[x0] of the proposed token x0, or uniformly
    random with ``remasking="random"``. With a ``temperature`` T the proposal is argmax exp(logits) / (−log
    u)^T with uniform u, in float64; at 0 it is argmax(logits).

    Source: LLaDA (arXiv 2502.09992), low-confidence and random remasking with semi-autoregressive blocks.
    """

    block_length: int = 32
    remasking: str = "low_confidence"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        _check_block_length(self.block_length)
        _check_choice("remasking", self.remasking, ("low_confidence", "random"))
        _check_temperature(self.temperature)

    def check(self, gen_length: int, steps: int) -> None:
        if gen_length % self.block_length:
            raise ValueError(
                f"gen_length={gen_length} must be divisible by block_length={self.block_length};"
                f" try {_neighbours(gen_length, self.block_length)}"
            )
        blocks = gen_length // self.block_length
        if steps % blocks:
            raise ValueError(
                f"steps={steps} must be divisible by the number of blocks {blocks}"
                f" (gen_length {gen_length} / block_length {self.block_length});"
                f" try {_neighbours(steps, blocks)}"
            )

    def workspace(self, rows: int, vocab: int) -> int:
        # Drawing takes four copies in float64.
        return (32 * rows * vocab if self.temperature else 0) + super().workspace(rows, vocab)

    def commit(self, at: Candidates) -> Commitment:
        per_block = at.steps * self.block_length // at.gen_length
        first = at.step // per_block * self.block_length
        share, remainder = divmod(self.block_length, per_block)
        count = share + (at.step % per_block < remainder)

        block = (at.positions >= first) & (at.positions < first + self.block_length)
        # Draws must not depend on what lies outside the block.
        near = slice(first, first + self.block_length) if at.whole else slice(None)
        logits, masked = at.logits[:, near], (at.open & block)[:, near]
        proposal = _draw(logits, self.temperature, at.generator)
        if self.remasking == "random":
            shape, device = proposal.shape, proposal.device
            confidence = torch.rand(shape, generator=at.generator, device=device, dtype=torch.float64)
        else:
            confidence = _probability(logits, proposal)
        tokens = torch.zeros_like(at.positions)
        where = torch.zeros_like(at.open)
        tokens[:, near] = proposal
        where[:, near] = _best(confidence, masked, count)
        return Commitment(tokens, where)


@dataclass(frozen=True)
class Threshold(Sampler):
    """Fast-dLLM's parallel decoding: commit every prediction of the block that is confident enough.

    In the first block of ``block_length`` with a masked position, each step commits all masked positions
    whose probability exceeds ``threshold``, and the most probable one in any case. The run ends when
    nothing is masked; ``steps`` is an upper bound, and its last step commits whatever is left. The samples
    of a batch move from block to block independently.

    Source: Fast-dLLM (arXiv 2505.22618), confidence-aware parallel decoding.
    """

    threshold: float = 0.9
    block_length: int = 32

    def __post_init__(self) -> None:
        _check_block_length(self.block_length)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be in (0, 1], a probability")

    def commit(self, at: Candidates) -> Commitment:
        proposal = at.logits.argmax(-1)
        if at.step == at.steps - 1:
            return Commitment(proposal, at.open)
        block = at.positions // self.block_length
        # Of the first masked position: argmax takes the first of ties.
        current = block.gather(1, at.open.int().argmax(-1, keepdim=True))
        eligible = at.open & (block == current)
        confidence = at.logits.new_zeros(at.open.shape, dtype=torch.float64)
        confidence[eligible] = _probability(at.logits[eligible], proposal[eligible])
        return Commitment(
            proposal, _best(confidence, eligible, 1) | (eligible & (confidence > self.threshold))
        )


@dataclass(frozen=True)
class DreamSampler(Sampler):
    """Dream's sampler: commit along a time grid, anywhere in the generation region.

    The grid is t_i = linspace(1, ``eps``, steps + 1). With t, s the two times around a step, int(n · (1 −
    s/t)) of a sample's n masked positions are committed, and all of them at the last step. ``alg`` is the
    confidence they are ranked by: ``"maskgit_plus"`` the probability of the proposed token,
    ``"topk_margin"`` the best probability minus the second, ``"entropy"`` the negative entropy;
    ``"origin"`` commits each masked position with probability 1 − s/t instead. With ``alg_temp`` positions
    are drawn without replacement from softmax(confidence / alg_temp) instead of taking the best.

    Logits are divided by ``temperature``, then cut to the nucleus ``top_p`` and to the ``top_k`` best;
    proposals are drawn from what is left, or are its argmax at temperature 0. Confidences are of that
    distribution.

    Source: Dream 7B (arXiv 2508.15487) and its published generation code's algorithms.
    """

    alg: str = "maskgit_plus"
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    alg_temp: float | None = None
    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_choice("alg", self.alg, ("maskgit_plus", "topk_margin", "entropy", "origin"))
        _check_temperature(self.temperature)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1], or None for no cut")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or None for no cut")
        if self.alg_temp is not None and self.alg_temp < 0:
            raise ValueError(f"alg_temp={self.alg_temp} must not be negative")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps={self.eps} must be between 0 and 1, the last time of the grid")

    def workspace(self, rows: int, vocab: int) -> int:
        # A copy of the open rows, and one in float64; sorting for the nucleus makes four more.
        return rows * vocab * (12 if self.top_p is None else 44) + super().workspace(rows, vocab)

    def commit(self, at: Candidates) -> Commitment:
        logits = self._filtered(at.logits[at.open].double())
        proposal = torch.zeros_like(at.open, dtype=torch.long)
        proposal[at.open] = _draw(logits, 1.0 if self.temperature > 0 else 0.0, at.generator)
        return Commitment(proposal, self._chosen(at, logits, proposal))

    def _chosen(self, at: Candidates, logits: Tensor, proposal: Tensor) -> Tensor:
        if at.step == at.steps - 1:
            return at.open
        times = torch.linspace(1, self.eps, at.steps + 1)  # float32, as the published counts are made with
        share = 1 - times[at.step + 1] / times[at.step]
        uniform = torch.rand(
            at.open.shape, generator=at.generator, device=at.open.device, dtype=torch.float64
        )
        if self.alg == "origin":
            return at.open & (uniform < share)
        confidence = uniform.new_zeros(at.open.shape)
        confidence[at.open] = self._confidence(logits, proposal[at.open])
        if (
            self.alg_temp
        ):  # the best of perturbed confidences are a draw without replacement from their softmax
            confidence = confidence / self.alg_temp - torch.log(-torch.log(uniform))
        count = (at.undecided * share.to(at.open.device)).int()
        return _best(confidence, at.open, count)

    def _filtered(self, logits: Tensor) -> Tensor:
        if self.temperature > 0:
            logits = logits / self.temperature
        if self.top_p is not None and self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            mass = ordered.softmax(-1)
            beyond = mass.cumsum(-1) - mass > self.top_p  # what precedes a token is enough without it
            logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -math.inf)
        if self.top_k is not None:
            kth = logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -math.inf)
        return logits

    def _confidence(self, logits: Tensor, proposal: Tensor) -> Tensor:
        if self.alg == "maskgit_plus":
            return _probability(logits, proposal)
        probability = logits.softmax(-1)
        if self.alg == "entropy":
            return -torch.special.entr(probability).sum(-1)
        best = probability.topk(2).values
        return best[..., 0] - best[..., 1]


@dataclass(frozen=True)
class LeftToRight(Sampler):
    """The autoregressive order: each step commits the next position, so ``steps`` equals ``gen_length``.

    The token is argmax(logits), or drawn from softmax(logits / temperature).
    """

    temperature: float = 0.0

    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    def check(self, gen_length: int, steps: int) -> None:
        if steps != gen_length:
            raise ValueError(
                f"steps={steps} must equal gen_length={gen_length}: an autoregressive model makes one token"
                " a step"
            )

    def positions(self, step: int, gen_length: int) -> range:
        return range(step, step + 1)

    def commit(self, at: Candidates) -> Commitment:
        return Commitment(_draw(at.logits, self.temperature, at.generator), torch.ones_like(at.open))


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """A token per row of ``logits`` [..., V]: argmax exp(logits) / (−log u)^temperature, in float64."""
    if temperature == 0:
        return logits.argmax(-1)
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=torch.float64)
    return (logits.double().exp() / (-uniform.log()) ** temperature).argmax(-1)


def _probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """softmax(logits)[token] in float64: in float32 many confident positions would tie at 1.

    A few positions at a time: in float64 the logits of all would take as much as the rest of a step.
    """
    rows, chosen = logits.flatten(0, -2), tokens.flatten()
    probability = torch.empty(chosen.shape, dtype=torch.float64, device=logits.device)
    few = max(1, _PROBABILITY_BYTES // (16 * rows.shape[-1]))  # float64 twice: the copy and its exponentials
    for first in range(0, len(rows), few):
        part = rows[first : first + few].double()
        best = part.gather(-1, chosen[first : first + few, None])[:, 0]
        probability[first : first + few] = (best - part.logsumexp(-1)).exp()
    return probability.view(tokens.shape)


def _best(confidence: Tensor, eligible: Tensor, count: int | Tensor) -> Tensor:
    """bool [B, n]: the ``count`` (int or [B]) most confident eligible positions, the lower of ties."""
    order = confidence.masked_fill(~eligible, -math.inf).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    if isinstance(count, Tensor):
        count = count[:, None]
    return eligible & (rank < count)


def _neighbours(value: int, divisor: int) -> str:
    """The multiples of ``divisor`` around ``value``, for a message: ``"8 or 12"``."""
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{divisor}"


def _check_block_length(block_length: int) -> None:
    if block_length < 1:
        raise ValueError(f"block_length={block_length} must be at least 1 position")


def _check_temperature(temperature: float) -> None:
    if temperature < 0:
        raise ValueError(f"temperature={temperature} must not be negative; 0 takes the most probable token")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}")
