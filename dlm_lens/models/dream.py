"""Dream (arXiv 2508.15487) as transformers' Qwen2, attending in both directions, logits shifted by one.

Dream was adapted from Qwen2.5 and keeps its names. The prediction for position ``i`` is read at ``i − 1``, as in
the autoregressive model it came from.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM

from dlm_lens.models.family import Family, same_key

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
    """A configuration from a published Dream ``config.json``."""
    config = {name: published[name] for name in _NAMES if name in published}
    theta = float(published.get("rope_theta", 1e6))
    return DreamConfig(**config, rope_parameters={"rope_type": "default", "rope_theta": theta})


def to_published(config: DreamConfig) -> dict[str, Any]:
    """The published ``config.json`` of a configuration: the inverse of :func:`from_published`."""
    names = {name: getattr(config, name) for name in _NAMES}
    return {
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        **names,
        "rope_theta": config.rope_parameters["rope_theta"],
        "rope_scaling": None,
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
