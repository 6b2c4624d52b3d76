"""The bundled text that the bundled models have never seen, and the tokenizer that tasks of text need."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from dlm_lens.models import DLM


def held_out_text() -> str:
    """The bundled excerpt of standard-library source that the bundled models were not trained on."""
    return files("dlm_lens").joinpath("assets", "heldout.txt").read_text(encoding="utf-8")


def tokenizer_of(dlm: DLM, task: str) -> PreTrainedTokenizerFast:
    """The model's tokenizer; raises ValueError, naming the ``task``, if it has none."""
    if dlm.tokenizer is None:
        raise ValueError(f"model {dlm.spec.name!r} has no tokenizer; {task} are text")
    return dlm.tokenizer
