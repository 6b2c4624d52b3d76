"""A model's own attention, watched: for models that denoise in a generation loop of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class Watcher(Protocol):
    """Who is told, when it goes through the forward pass as the keyword ``lens``."""

    def see(self, module: nn.Module, q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> None:
        """``q`` [B, H, Lq, D], ``k`` [B, Hkv, Lk, D] and what the model passes with them: ``mask`` [B, 1, Lq, Lk],
        bool where True may be attended to, or to be added to the scores, or None; ``scale`` of the scores."""


def _watched(inner: Callable[[nn.Module], Callable[..., Any]]) -> Callable[..., Any]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        lens: Watcher | None = None,
        **options: Any,
    ) -> Any:
        out = inner(module)(module, query, key, value, attention_mask, **options)
        if lens is not None:
            lens.see(module, query, key, attention_mask, options.get("scaling"))
        return out

    return attention


def _eager(module: nn.Module) -> Callable[..., Any]:
    """Every modelling file of transformers has its own."""
    return sys.modules[type(module).__module__].eager_attention_forward


_NAMES = {"sdpa": "dlm_lens_over_sdpa", "eager": "dlm_lens_over_eager"}
AttentionInterface.register(_NAMES["sdpa"], _watched(lambda module: ALL_ATTENTION_FUNCTIONS["sdpa"]))
AttentionInterface.register(_NAMES["eager"], _watched(_eager))
AttentionMaskInterface.register(_NAMES["sdpa"], sdpa_mask)
AttentionMaskInterface.register(_NAMES["eager"], eager_mask)


@contextmanager
def watched_attention(model: PreTrainedModel) -> Iterator[None]:
    """While inside, the text part of ``model`` shows its attention to the keyword ``lens`` of its forward passes.

    What is computed is what its own implementation computes, by the same calls; passes without the keyword are as
    ever, and the implementation is set back at the end. Raises ``ValueError`` unless it is ``"sdpa"`` or ``"eager"``.
    """
    config = model.config
    parts = {name: getattr(config, name) for name in config.sub_configs}
    own = {name: part._attn_implementation for name, part in parts.items() if part is not None}
    text = config.get_text_config()._attn_implementation
    if text not in _NAMES or config._attn_implementation != text:
        raise ValueError(
            f"{type(model).__name__} attends by {text!r}, which cannot be watched; call"
            ' model.set_attn_implementation("sdpa") first'
        )
    try:
        watched = {name: _NAMES[text] for name, part in parts.items() if part is config.get_text_config()}
        model.set_attn_implementation({"": _NAMES[text], **own, **watched})
        yield
    finally:
        model.set_attn_implementation({"": text, **own})
