"""Tokenizers of checkpoint folders, and whether they belong to the model beside them."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from dlm_lens.errors import CheckpointError
from dlm_lens.models.spec import Spec


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """The folder's tokenizer, if it has one. Its class is chosen here: one that names remote code is not asked.

    Raises ``CheckpointError`` for files that cannot be read.
    """
    kind: type[PreTrainedTokenizerFast]
    if (folder / "tokenizer.json").is_file():
        kind, names = PreTrainedTokenizerFast, "tokenizer.json"
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        kind, names = Qwen2Tokenizer, "vocab.json and merges.txt"
    else:
        return None
    try:
        return kind.from_pretrained(folder)
    except Exception as error:  # what the tokenizers library raises is no narrower
        raise CheckpointError(
            f"the tokenizer in {folder} ({names}) cannot be read: {type(error).__name__}: {error}; download it again"
        ) from error


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """Its own ids of end-of-text, padding and mask; None where it has none."""
    return {
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "mask": tokenizer.mask_token_id,
    }


def check_ids(spec: Spec, tokenizer: PreTrainedTokenizerFast | None) -> None:
    """Raise ``CheckpointError`` for special tokens outside the vocabulary, or a tokenizer of another model."""
    for name in ("mask_id", "eos_id", "pad_id", "bos_id"):
        token = getattr(spec, name)
        setting = name.replace("_id", "_token_id")
        if token is not None and not isinstance(token, int):
            raise CheckpointError(
                f"{spec.name}: {setting}={token!r} is no token id; give a whole number below {spec.vocab} in"
                " config.json"
            )
        if token is not None and not 0 <= token < spec.vocab:
            raise CheckpointError(
                f"{spec.name}: {setting}={token} lies outside the vocabulary of {spec.vocab}; correct {setting} or the"
                " vocabulary's size in config.json"
            )
    if tokenizer is None:
        return
    last = max(tokenizer.get_vocab().values())
    if last >= spec.vocab:
        raise CheckpointError(
            f"{spec.name}: its tokenizer gives token ids up to {last}, but the model embeds {spec.vocab}; this is the"
            " tokenizer of another model, or tokens were added without resizing the embedding"
        )
    own = tokenizer.mask_token_id
    if None not in (own, spec.mask_id) and own != spec.mask_id:
        raise CheckpointError(
            f"{spec.name}: config.json says mask_token_id={spec.mask_id}, but the tokenizer's {tokenizer.mask_token!r}"
            f" is {own}; make them agree"
        )
