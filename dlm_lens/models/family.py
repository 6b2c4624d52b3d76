"""What sets one family of models apart: how its files are named and where its logits are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
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


def refuse_others(published: dict[str, Any], assumed: dict[str, Any], family: str) -> None:
    """Raise ``ValueError`` naming an entry of ``published`` with which the network would not be the assumed one.

    What is missing or null has the family's own default, which is the assumed.
    """
    for name, expected in assumed.items():
        if published.get(name, expected) not in (expected, None):
            raise ValueError(f"{name}={published[name]!r}; only {expected!r} is a {family} network")


def sizes(published: dict[str, Any], names: Sequence[str]) -> list[int]:
    """The entries ``names``, all positive whole numbers; ``ValueError`` names one that is not, or is missing."""
    for name in names:
        size = published.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            said = f"{name}={size!r}" if name in published else f"no {name}"
            raise ValueError(f"it has {said}; expected a positive whole number")
    return [published[name] for name in names]


def check_heads(*named: tuple[str, int]) -> None:
    """Raise ``ValueError`` unless each of the named sizes is a multiple of the next."""
    for (name, size), (part, count) in pairwise(named):
        if size % count:
            raise ValueError(f"{name}={size} is no multiple of {part}={count}")


def head_width(published: dict[str, Any], hidden: int, heads: int, family: str) -> int | None:
    """The ``head_dim`` of a network from which heads were pruned; None where it is ``hidden`` / ``heads``.

    No published checkpoint has one, and with all heads there is one value only. Raises ``ValueError`` for a value that
    is not a head's of such a network.
    """
    width = published.get("head_dim")
    if width is None or width * heads == hidden:
        return None
    if not isinstance(width, int) or width < 1 or width * heads > hidden or hidden % width:
        raise ValueError(
            f"head_dim={width!r} with {heads} heads; only a divisor of {hidden}, at most {hidden // heads}, is a"
            f" {family} network with heads pruned"
        )
    return width


def write_head_width(config: Any) -> dict[str, int]:
    """The entry that :func:`head_width` reads, where heads were pruned."""
    width = getattr(config, "head_dim", None)
    if width is None or width * config.num_attention_heads == config.hidden_size:
        return {}
    return {"head_dim": width}


def same_key(key: str) -> str:
    """The mapping of families whose published keys are the module's own."""
    return key
