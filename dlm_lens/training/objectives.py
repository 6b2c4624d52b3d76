"""What a batch is trained on: the masked-diffusion loss of LLaDA, and next-token prediction for the causal twin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

_MAX_WEIGHT = 20.0  # 1/t is unbounded as t → 0; clipped, one sequence cannot rule a batch
_PADDING_WEIGHT = 0.1  # what follows the end of an answer: easy, many, and not what is asked


@dataclass
class Objective:
    """What the loss is taken of.

    ``inputs [B, L]``, and for ``K`` flat positions of the hidden states (``index [K]``) the ``target [K]`` and the
    ``weight [K, 2]`` of its cross-entropy in the loss of code and in that of answers.
    """

    inputs: torch.Tensor
    index: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor

    def padded(self) -> Objective:
        """The same with ``K`` a multiple of 4,096, filled up with entries of weight 0.

        Counts differ from step to step; a few sizes keep the compiled loss and the allocator calm.
        """
        pad = -len(self.index) % 4096
        index, target = F.pad(self.index, (0, pad)), F.pad(self.target, (0, pad))
        return Objective(self.inputs, index, target, F.pad(self.weight, (0, 0, 0, pad)))

    def pin_memory(self) -> Objective:
        """In page-locked memory; the data loader calls this in a thread of its own."""
        return Objective(*(part.pin_memory() for part in vars(self).values()))

    def to(self, device: torch.device) -> Objective:
        """On another device, without waiting for the copy."""
        return Objective(*(part.to(device, non_blocking=True) for part in vars(self).values()))


def diffusion(
    tokens: torch.Tensor,
    answer: torch.Tensor,
    mask_id: int,
    eos_id: int,
    generator: torch.Generator,
    written_share: float = 0.0,
) -> Objective:
    """LLaDA's loss (arXiv 2502.09992, eq. 3) on code and on the answer regions of questions.

    Code tokens are masked at a rate ``t ~ U(0, 1)`` drawn evenly over the batch and weigh ``1/t``; in a share
    ``written_share`` of the code the end is masked instead, as in the midst of being written, each masked token
    weighing the same. Of an answer region either all is masked, as at the start of denoising, or a share ``t``.
    """
    batch, length = tokens.shape
    position = torch.arange(length)
    in_answer = position[None] >= answer[:, None]
    is_code = answer == length
    rate = (torch.rand((), generator=generator) + torch.arange(batch) / batch) % 1.0
    rate = rate[torch.randperm(batch, generator=generator)]
    rate = torch.where(~is_code & (torch.rand(batch, generator=generator) < 0.5), 1.0, rate)
    masked = (torch.rand(batch, length, generator=generator) < rate[:, None]) & (is_code[:, None] | in_answer)
    inverse = masked / rate.clamp_min(1 / _MAX_WEIGHT)[:, None]
    written = is_code & (torch.rand(batch, generator=generator) < written_share)
    unwritten = _unwritten(batch, length, rate, generator)
    masked = torch.where(written[:, None], unwritten, masked)
    even = unwritten * length / unwritten.sum(1, keepdim=True).clamp_min(1)
    inverse = torch.where(written[:, None], even, inverse)
    code = is_code[:, None] * inverse / (is_code.sum().clamp_min(1) * length)
    weight = torch.stack([code, _answer_weight(tokens, masked & ~is_code[:, None], eos_id)], dim=-1)
    index = masked.flatten().nonzero().squeeze(1)
    inputs = torch.where(masked, mask_id, tokens)
    return Objective(inputs, index, tokens.flatten()[index], weight.flatten(0, 1)[index])


def _unwritten(batch: int, length: int, rate: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """bool ``[B, L]``: what is still masked while the last 1 to 256 tokens of a row are written block by block.

    The block of 32 being written is masked at the row's rate, and what follows it wholly. Without such rows a model
    that sees a masked end only behind short answers writes end-of-text there.
    """
    left = torch.rand(batch, generator=generator) * min(256, length // 2)
    into = torch.arange(length) - (length - 1 - left.long())[:, None]
    drawn = torch.rand(batch, length, generator=generator) < rate[:, None]
    unwritten = (into >= 0) & (drawn | (into >= 32))
    unwritten[:, -1] |= ~unwritten.any(1)  # something must be left to write
    return unwritten


def next_token(
    tokens: torch.Tensor, answer: torch.Tensor, mask_id: int, eos_id: int, generator: torch.Generator
) -> Objective:
    """Next-token cross-entropy on code and on answers.

    A share ``U(0, 0.5)`` of the code that is read (never of what is predicted) is masked. Without that the model
    learns the small corpus by heart within a minute; with it, within several. Its diffusion twin, always
    reading masked text, does not in the same time.
    """
    batch, length = tokens.shape
    position = torch.arange(length)
    is_code = answer == length
    in_answer = position[None] >= answer[:, None]
    learnt = (is_code[:, None] | in_answer) & (position > 0)[None]
    code = (learnt & is_code[:, None]) / (is_code.sum().clamp_min(1) * (length - 1))
    weight = torch.stack([code, _answer_weight(tokens, learnt & ~is_code[:, None], eos_id)], dim=-1)
    index = learnt.flatten().nonzero().squeeze(1)
    rate = 0.5 * torch.rand(batch, 1, generator=generator) * is_code[:, None]
    inputs = torch.where(torch.rand(batch, length, generator=generator) < rate, mask_id, tokens)
    return Objective(inputs, index - 1, tokens.flatten()[index], weight.flatten(0, 1)[index])


def _answer_weight(tokens: torch.Tensor, learnt: torch.Tensor, eos_id: int) -> torch.Tensor:
    """Weights ``[B, L]`` that add up to 1: answers and their first end-of-text count fully, the rest little.

    Where an answer ends is part of it: a model that is unsure there drops the last of several values.
    """
    weight = learnt * torch.where(after_the_end(tokens, eos_id), _PADDING_WEIGHT, 1.0)
    return weight / weight.sum().clamp_min(1e-6)


def after_the_end(tokens: torch.Tensor, eos_id: int) -> torch.Tensor:
    """bool ``[B, L]``: end-of-text tokens that follow another, so no part of an answer."""
    ends = tokens == eos_id
    return ends & ends.roll(1, dims=1)
