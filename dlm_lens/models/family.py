"""What sets one family of models apart: how its files are named and where its logits are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """A published checkpoint layout and the transformers modules that run it.

    Attributes
    ----------
    read_config, write_config : from a published ``config.json`` to a transformers configuration and back.
    to_native, to_published : from a published weight key to the module's and back.
    logit_shift : whether the prediction for position ``i`` is read at ``i − 1``.
    causal : whether attention looks to the left only.
    """

    name: str
    model_class: type[PreTrainedModel]
    read_config: Callable[[dict[str, Any]], PreTrainedConfig]
    write_config: Callable[[Any], dict[str, Any]]
    to_native: Callable[[str], str]
    to_published: Callable[[str], str]
    logit_shift: bool
    causal: bool


def same_key(key: str) -> str:
    """The mapping of families whose published keys are the module's own."""
    return key
