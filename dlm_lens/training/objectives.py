"""What a batch is trained on: the masked-diffusion loss of LLaDA, and next-token prediction for the causal twin."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MAX_WEIGHT = 20.0  # 1/t is unbounded as t → 0; clipped, one sequence cannot rule a batch
_PADDING_WEIGHT = 0.1  # end-of-text after an answer: easy, many, and not what is asked


@dataclass
class Objective:
    """Inputs ``[B, L]`` and, for ``K`` flat positions of the hidden states, targets and loss weights ``[K]``."""

    inputs: torch.Tensor
    index: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


def diffusion(tokens: torch.Tensor, answer: torch.Tensor, mask_id: int, eos_id: int) -> Objective:
    """LLaDA's loss (arXiv 2502.09992, eq. 3) on code and on the answer regions of questions.

    Code tokens are masked at a rate ``t ~ U(0, 1)`` drawn evenly over the batch and weigh ``1/t``. Of an answer
    region either all is masked, as at the start of denoising, or a share ``t``.
    """
    batch, length = tokens.shape
    position = torch.arange(length, device=tokens.device)
    in_answer = position[None] >= answer[:, None]
    is_code = answer == length
    rate = (torch.rand((), device=tokens.device) + torch.arange(batch, device=tokens.device) / batch) % 1.0
    rate = rate[torch.randperm(batch, device=tokens.device)]
    rate = torch.where(~is_code & (torch.rand(batch, device=tokens.device) < 0.5), 1.0, rate)
    masked = (torch.rand(batch, length, device=tokens.device) < rate[:, None]) & (
        is_code[:, None] | in_answer
    )
    code_weight = masked / rate.clamp_min(1 / _MAX_WEIGHT)[:, None] / (is_code.sum().clamp_min(1) * length)
    answer_weight = _answer_weight(tokens, masked & ~is_code[:, None], eos_id)
    weight = torch.where(is_code[:, None], code_weight, answer_weight)
    index = masked.flatten().nonzero().squeeze(1)
    inputs = torch.where(masked, mask_id, tokens)
    return Objective(inputs, index, tokens.flatten()[index], weight.flatten()[index])


def next_token(tokens: torch.Tensor, answer: torch.Tensor, mask_id: int, eos_id: int) -> Objective:
    """Next-token cross-entropy on code and on answers.

    A share ``U(0, 0.5)`` of the code that is read (never of what is predicted) is masked. Without that the model
    learns the small corpus by heart within a minute, while its diffusion twin, always reading masked text,
    cannot.
    """
    batch, length = tokens.shape
    position = torch.arange(length, device=tokens.device)
    is_code = answer == length
    in_answer = position[None] >= answer[:, None]
    learnt = (is_code[:, None] | in_answer) & (position > 0)[None]
    code_weight = learnt / (is_code.sum().clamp_min(1) * (length - 1))
    weight = torch.where(
        is_code[:, None], code_weight, _answer_weight(tokens, learnt & ~is_code[:, None], eos_id)
    )
    index = learnt.flatten().nonzero().squeeze(1)
    rate = 0.5 * torch.rand(batch, 1, device=tokens.device) * is_code[:, None]
    inputs = torch.where(torch.rand(batch, length, device=tokens.device) < rate, mask_id, tokens)
    return Objective(inputs, index - 1, tokens.flatten()[index], weight.flatten()[index])


def _answer_weight(tokens: torch.Tensor, learnt: torch.Tensor, eos_id: int) -> torch.Tensor:
    weight = learnt * torch.where(tokens == eos_id, _PADDING_WEIGHT, 1.0)
    return weight / weight.sum().clamp_min(1e-6)
