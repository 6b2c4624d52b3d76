"""Tiny models of transformers with random weights, as a user would have them before adapting."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCAB, LAYERS, HEADS = 64, 3, 4
MASK, PAD, SEP = 63, 0, 62
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 96,
    "pad_token_id": PAD,
    "eos_token_id": SEP,
    "sep_token_id": SEP,
    "bos_token_id": None,
    "mask_token_id": MASK,
}
_DECODER = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8, "is_causal": False}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", _COMMON),
    "roberta": ("Roberta", _COMMON | {"pad_token_id": 1, "type_vocab_size": 1}),
    # Layers 1 and 2 see 4 positions to either side.
    "modernbert": ("ModernBert", _COMMON | {"local_attention": 8, "cls_token_id": 1}),
    "llama": ("Llama", _DECODER),
    "qwen3": ("Qwen3", _DECODER),
    # Scores are not divided by the root of the head's width; one layer of three has a window.
    "gemma3": (
        "Gemma3",
        _DECODER
        | {
            "query_pre_attn_scalar": 5,
            "use_bidirectional_attention": True,
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
}
WINDOWED = {"modernbert": (1, 2), "gemma3": (1,)}


def make(kind: str, attention: str = "sdpa", **more: Any) -> PreTrainedModel:
    """A model of one of the kinds above in evaluation mode, with attention far from uniform."""
    make, settings = _CONFIGS[kind]
    encoder = "bert" in kind
    config_class = getattr(transformers, make + ("TextConfig" if kind == "gemma3" else "Config"))
    model_class = getattr(transformers, make + ("ForMaskedLM" if encoder else "ForCausalLM"))
    settings = settings | more
    config = config_class(**{name: value for name, value in settings.items() if name != "is_causal"})
    if "is_causal" in settings:
        config.is_causal = settings["is_causal"]
    config.mask_token_id = settings["mask_token_id"]
    model = model_class._from_config(config, attn_implementation=attention).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.normal_(0, 1.5 * weight.shape[1] ** -0.5, generator=generator)
        elif "norm" not in name.lower():
            weight.normal_(0, 0.1, generator=generator)
    return model


KINDS = tuple(_CONFIGS)
