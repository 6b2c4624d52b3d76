"""Prompts as token ids: what users write, left-padded into one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from dlm_lens.models.spec import Spec


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts.

    Attributes
    ----------
    tokens : int64 ``[B, P]``, shorter rows padded on the left.
    start : int64 ``[B]``, the first position of each row that is no padding.
    texts : the prompts as text, one per row.
    """

    tokens: Tensor
    start: Tensor
    texts: tuple[str, ...]


def encode_prompt(prompt: Any, tokenizer: PreTrainedTokenizerFast | None, spec: Spec) -> Prompt:
    """Encode a string, chat messages, token ids, or a list of any one of these."""
    rows = [_row(one, tokenizer, spec) for one in _as_list(prompt)]
    if not rows:
        raise ValueError("the prompt is an empty list; give at least one prompt")
    return left_padded([ids for ids, _ in rows], [text for _, text in rows], spec)


def left_padded(rows: Sequence[Tensor], texts: Sequence[str], spec: Spec) -> Prompt:
    """Rows of token ids, int64 [P] each, as one batch; a row may be empty."""
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), spec.pad_id, dtype=torch.long)
    for padded, ids in zip(tokens, rows, strict=True):
        padded[longest - len(ids) :] = ids
    return Prompt(tokens, torch.tensor([longest - len(ids) for ids in rows]), tuple(texts))


def _as_list(prompt: Any) -> list[Any]:
    if isinstance(prompt, Tensor):
        return list(prompt) if prompt.ndim == 2 else [prompt]
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, (list, tuple)):
        single = prompt and isinstance(prompt[0], (Mapping, int))
        return [prompt] if single else list(prompt)
    raise TypeError(
        f"a prompt is a string, a list of strings, chat messages or token ids, not {type(prompt).__name__}"
    )


def _row(prompt: Any, tokenizer: PreTrainedTokenizerFast | None, spec: Spec) -> tuple[Tensor, str]:
    if isinstance(prompt, Tensor) or (
        isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], int)
    ):
        return _from_ids(torch.as_tensor(prompt), tokenizer, spec)
    if tokenizer is None:
        raise ValueError(f"model {spec.name!r} has no tokenizer; give its prompt as token ids")
    chat = isinstance(prompt, (list, tuple)) and all(isinstance(message, Mapping) for message in prompt)
    if isinstance(prompt, str):
        text = prompt
    elif chat:
        text = _chat(prompt, tokenizer, spec)
    else:
        raise TypeError(
            f"a prompt in a list is a string, chat messages or token ids, not {type(prompt).__name__}"
        )
    # A chat template writes all special tokens itself; the tokenizer may not add its own before them.
    ids = torch.tensor(tokenizer(text, add_special_tokens=not chat)["input_ids"], dtype=torch.long)
    if tokenizer.sep_token_id is not None and ids[-1:].tolist() == [tokenizer.sep_token_id]:
        ids = ids[:-1]  # BERT's tokenizers close the text, which is to go on
    if not len(ids):
        raise ValueError("the prompt is empty; denoising needs at least one token to go by")
    return ids, text


def _chat(messages: Any, tokenizer: PreTrainedTokenizerFast, spec: Spec) -> str:
    if not messages:
        raise ValueError("the prompt is empty; denoising needs at least one token to go by")
    if tokenizer.chat_template is None:
        raise ValueError(f"model {spec.name!r} has no chat template; give the prompt as a plain string")
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def _from_ids(ids: Tensor, tokenizer: PreTrainedTokenizerFast | None, spec: Spec) -> tuple[Tensor, str]:
    if ids.ndim != 1 or not len(ids):
        raise ValueError(f"token ids of a prompt have shape [P] with P ≥ 1, not {list(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"token ids are integers, not {ids.dtype}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= spec.vocab:
        raise ValueError(f"token ids lie in 0…{spec.vocab - 1}; the prompt holds {low if low < 0 else high}")
    text = "" if tokenizer is None else tokenizer.decode(ids.tolist())
    return ids.cpu().long(), text
