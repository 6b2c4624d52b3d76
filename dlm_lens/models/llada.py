"""LLaDA (arXiv 2502.09992) as a configuration and key mapping onto transformers' Llama modules.

LLaDA's blocks are Llama's: RMSNorm, half-rotation RoPE, SwiGLU, no biases. Only the names differ, and attention
is bidirectional. So the published checkpoints load natively, with no modelling code of their own.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from dlm_lens.models.family import Family, check_heads, head_width, refuse_others, sizes, write_head_width
from dlm_lens.models.rope import read_rope, write_rope

# Published configuration name → Llama's.
CONFIG_NAMES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "mlp_hidden_size": "intermediate_size",
    "embedding_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "mask_token_id": "mask_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}

# What the mapping takes for granted: another value means a network that is not this one. Entries that are not named
# here or above tell of training, initialisation, dropout or how the published code computes the same (the RoPE of
# rope_full_precision, flash_attention).
_ASSUMED = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "include_bias": False,
    "include_qkv_bias": False,
    "alibi": False,
    "attention_layer_norm": False,
    "scale_logits": False,
    "input_emb_norm": False,
    "layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "clip_qkv": None,
}

# Published key → Llama's, within and outside the blocks.
_BLOCK_KEYS = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_OUTER_KEYS = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
_PREFIX = "model.transformer."


class LladaConfig(LlamaConfig):
    """Llama's configuration with LLaDA's mask token; reads the published names as well as Llama's."""

    model_type = "llada"
    mask_token_id: int | None = None
    is_causal: bool = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> LladaConfig:
        if "hidden_size" not in config_dict:
            config_dict = from_published(config_dict)
        return super().from_dict(config_dict, **kwargs)

    def validate_architecture(self) -> None:
        """Heads need not divide the hidden size: some of them may have been pruned."""


class LladaForMaskedLM(LlamaForCausalLM):
    """Llama's modules attending in both directions; logits for position ``i`` are read at ``i``."""

    config_class = LladaConfig
    config: LladaConfig


def from_published(published: dict[str, Any]) -> dict[str, Any]:
    """Llama's configuration names from a published LLaDA ``config.json``.

    Raises
    ------
    ValueError
        if an entry describes a network other than LLaDA's, naming the entry.
    """
    refuse_others(published, _ASSUMED, "LLaDA")
    published = _with_defaults(published)
    hidden, _, heads, kv_heads, *_ = sizes(published, _SIZES)
    check_heads(("n_heads", heads), ("n_kv_heads", kv_heads))
    width = head_width(published, hidden, heads, "LLaDA")
    if width is None:
        check_heads(("d_model", hidden), ("n_heads", heads))
    config = {
        ours: published[theirs] for theirs, ours in CONFIG_NAMES.items() if published.get(theirs) is not None
    }
    config["rope_parameters"] = read_rope(
        published, theta=10000.0, positions=published["max_sequence_length"]
    )
    config["head_dim"] = width
    config["bos_token_id"] = published.get("bos_token_id")
    for name in ("dtype", "torch_dtype", "architectures"):
        if name in published:
            config[name] = published[name]
    return config


# Sizes that a network cannot do without.
_SIZES = (
    "d_model",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "mlp_hidden_size",
    "embedding_size",
    "max_sequence_length",
)


def _with_defaults(published: dict[str, Any]) -> dict[str, Any]:
    """The configuration with what the published code puts in the place of missing or null entries."""
    given = {name: value for name, value in published.items() if value is not None}
    if "n_heads" in given:
        given.setdefault("n_kv_heads", 1 if given.get("multi_query_attention") else given["n_heads"])
    if {"mlp_ratio", "d_model"} <= given.keys():
        given.setdefault("mlp_hidden_size", given["mlp_ratio"] * given["d_model"])
    if "vocab_size" in given:
        given.setdefault("embedding_size", given["vocab_size"])
    given.setdefault("rms_norm_eps", 1e-5)
    return given


def to_published(config: LladaConfig) -> dict[str, Any]:
    """The published ``config.json`` of a configuration: the inverse of :func:`from_published`."""
    published = {theirs: getattr(config, ours) for theirs, ours in CONFIG_NAMES.items()}
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        **published,
        **_ASSUMED,
        "vocab_size": config.vocab_size,
        **write_rope(config.rope_parameters),
        **write_head_width(config),
        "bos_token_id": config.bos_token_id,
    }


def to_llama(key: str) -> str:
    """Llama's name of a published key. Keys that are not LLaDA's come back unchanged, so that they stand out."""
    stem, _, kind = key.removeprefix(_PREFIX).rpartition(".")
    if not key.startswith(_PREFIX):
        return key
    if stem.startswith("blocks."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{_BLOCK_KEYS[part]}.{kind}" if part in _BLOCK_KEYS else key
    return f"{_OUTER_KEYS[stem]}.{kind}" if stem in _OUTER_KEYS else key


def to_llada(key: str) -> str:
    """The published name of one of Llama's keys: the inverse of :func:`to_llama`."""
    stem, _, kind = key.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"{_PREFIX}blocks.{layer}.{_BLOCK_NAMES[part]}.{kind}"
    return f"{_PREFIX}{_OUTER_NAMES[stem]}.{kind}"


_BLOCK_NAMES = {ours: theirs for theirs, ours in _BLOCK_KEYS.items()}
_OUTER_NAMES = {ours: theirs for theirs, ours in _OUTER_KEYS.items()}


LLADA = Family(
    name="llada",
    model_class=LladaForMaskedLM,
    read_config=LladaConfig.from_dict,
    write_config=to_published,
    to_native=to_llama,
    to_published=to_llada,
    logit_shift=False,
    causal=False,
)
