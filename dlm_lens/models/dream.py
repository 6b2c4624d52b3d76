"""Dream (arXiv 2508.15487) as transformers' Qwen2, attending in both directions, logits shifted by one.

Dream was adapted from Qwen2.5 and keeps its names. The prediction for position ``i`` is read at ``i − 1``, as in
the autoregressive model it came from.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM

from dlm_lens.models.family import (
    Family,
    check_heads,
    head_width,
    refuse_others,
    same_key,
    sizes,
    write_head_width,
)
from dlm_lens.models.rope import read_rope, write_rope

_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "mask_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "hidden_act",
)

# Another value means a network that is not Dream's. Entries named neither here nor above tell of training,
# initialisation or generation; sliding_window and max_window_layers mean nothing while use_sliding_window is false.
_ASSUMED = {
    "use_sliding_window": False,
    "use_mrope": False,
    "attention_bias": True,
    "hidden_act": "silu",
}
_SIZES = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "num_hidden_layers",
    "vocab_size",
    "max_position_embeddings",
)


class DreamConfig(Qwen2Config):
    """Qwen2's configuration with Dream's mask token."""

    model_type = "Dream"
    mask_token_id: int | None = None
    is_causal: bool = False


class DreamForMaskedLM(Qwen2ForCausalLM):
    """Qwen2's modules attending in both directions."""

    config_class = DreamConfig
    config: DreamConfig


def from_published(published: dict[str, Any]) -> DreamConfig:
    """A configuration from a published Dream ``config.json``.

    Raises ``ValueError`` if an entry is missing or describes a network other than Dream's, naming it.
    """
    refuse_others(published, _ASSUMED, "Dream")
    hidden, heads, kv_heads, *_ = sizes(published, _SIZES)
    check_heads(("num_attention_heads", heads), ("num_key_value_heads", kv_heads))
    width = head_width(published, hidden, heads, "Dream")
    if width is None:
        check_heads(("hidden_size", hidden), ("num_attention_heads", heads))
    config = {name: published[name] for name in _NAMES if published.get(name) is not None}
    if width is not None:
        config["head_dim"] = width
    rope = read_rope(published, theta=1e4, positions=published["max_position_embeddings"])
    return DreamConfig(**config, rope_parameters=rope)


def to_published(config: DreamConfig) -> dict[str, Any]:
    """The published ``config.json`` of a configuration: the inverse of :func:`from_published`."""
    names = {name: getattr(config, name) for name in _NAMES}
    return {
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        **names,
        "rope_scaling": None,
        **write_rope(config.rope_parameters),
        **write_head_width(config),
        "use_sliding_window": False,
    }


DREAM = Family(
    name="dream",
    model_class=DreamForMaskedLM,
    read_config=from_published,
    write_config=to_published,
    to_native=same_key,
    to_published=same_key,
    logit_shift=True,
    causal=False,
)
