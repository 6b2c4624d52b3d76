"""Checkpoint folders as they are published, with the same files and entries, and small made weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

VOCAB = 320
BYTES = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
MERGES = [("h", "e"), ("l", "l"), ("Ġ", "t")]
WORDS = BYTES | {"".join(pair): len(BYTES) + index for index, pair in enumerate(MERGES)}

LLADA_SPECIAL = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
LLADA_TEMPLATE = (
    "{%- for m in messages -%}{%- if loop.first -%}{{ bos_token }}{%- endif -%}"
    "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ m.content | trim ~ '<|eot_id|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
)
LLADA_CONFIG = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 32,
    "embedding_dropout": 0.0,
    "embedding_size": VOCAB,
    "eos_token_id": WORDS["Ġt"] + 2,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": WORDS["Ġt"] + 3,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 48,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "pad_token_id": WORDS["Ġt"] + 2,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": VOCAB - 8,
    "weight_tying": False,
}

DREAM_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
DREAM_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{%- endif -%}"
    "{%- for m in messages -%}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
DREAM_CONFIG = {
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "bos_token_id": WORDS["Ġt"] + 1,
    "eos_token_id": WORDS["Ġt"] + 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "mask_token_id": WORDS["Ġt"] + 5,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "Dream",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": WORDS["Ġt"] + 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.2",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": VOCAB,
}


def checkpoint(folder: Path, family: str, dtype: torch.dtype = torch.float32, **changes) -> dict[str, Tensor]:
    """Write a checkpoint of ``family`` with entries of its config changed; its weights, by their published names."""
    made = {"llada": _llada, "dream": _dream}[family]
    config = {"llada": LLADA_CONFIG, "dream": DREAM_CONFIG}[family] | changes
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = made(folder, config)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (torch.rand(shape, generator=generator) + 0.5).to(dtype)
        if "norm" in name or "ln_f" in name
        else (torch.randn(shape, generator=generator) * 0.2).to(dtype)
        for name, shape in shapes.items()
    }
    _save_shards(weights, folder)
    return {name: tensor.float() for name, tensor in weights.items()}


def _save_shards(weights: dict[str, Tensor], folder: Path, count: int = 3) -> None:
    names = [f"model-{each + 1:05}-of-{count:05}.safetensors" for each in range(count)]
    placed = {key: names[index % count] for index, key in enumerate(weights)}
    for name in names:
        save_file(
            {key: tensor for key, tensor in weights.items() if placed[key] == name},
            folder / name,
            metadata={"format": "pt"},
        )
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _llada(folder: Path, config: dict) -> dict[str, tuple[int, ...]]:
    tokenizer = Tokenizer(models.BPE(vocab=WORDS, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(LLADA_SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict.fromkeys(("eos_token", "pad_token"), "<|endoftext|>") | {
        "bos_token": "<|startoftext|>",
        "cls_token": "<|startoftext|>",
    }
    named = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": _decoder(LLADA_SPECIAL),
        "additional_special_tokens": ["<|mdm_mask|>", "<|eot_id|>"],
        "chat_template": LLADA_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "fast_tokenizer": True,
        "merges_file": None,
        "model_max_length": 1000000000000000019884624838656,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "trust_remote_code": True,
        "vocab_file": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named | special))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    width, kv = config["d_model"], config["d_model"] // config["n_heads"] * config["n_kv_heads"]
    inner, rows = config["mlp_hidden_size"], config["embedding_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.transformer.wte.weight": (rows, width),
        "model.transformer.ln_f.weight": (width,),
        "model.transformer.ff_out.weight": (rows, width),
    }
    for layer in range(config["n_layers"]):
        block = {
            "q_proj": (width, width),
            "k_proj": (kv, width),
            "v_proj": (kv, width),
            "attn_out": (width, width),
            "ff_proj": (inner, width),
            "up_proj": (inner, width),
            "ff_out": (width, inner),
            "attn_norm": (width,),
            "ff_norm": (width,),
        }
        shapes |= {f"model.transformer.blocks.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def _dream(folder: Path, config: dict) -> dict[str, tuple[int, ...]]:
    (folder / "vocab.json").write_text(json.dumps(WORDS))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    added = {token: len(WORDS) + index for index, token in enumerate(DREAM_SPECIAL)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    special = {
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "pad_token": "<|endoftext|>",
    }
    named = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": _decoder(DREAM_SPECIAL),
        "additional_special_tokens": DREAM_SPECIAL[1:],
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "chat_template": DREAM_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 131072,
        "split_special_tokens": False,
        "tokenizer_class": "DreamTokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named | special))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 1}))
    (folder / "tokenization_dream.py").write_text('raise RuntimeError("code of a checkpoint was run")\n')
    width, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (rows, width),
    }
    for layer in range(config["num_hidden_layers"]):
        block = {
            "self_attn.q_proj.weight": (width, width),
            "self_attn.q_proj.bias": (width,),
            "self_attn.k_proj.weight": (kv, width),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.weight": (kv, width),
            "self_attn.v_proj.bias": (kv,),
            "self_attn.o_proj.weight": (width, width),
            "mlp.gate_proj.weight": (inner, width),
            "mlp.up_proj.weight": (inner, width),
            "mlp.down_proj.weight": (width, inner),
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _decoder(special: list[str]) -> dict[str, dict]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(len(WORDS) + index): {"content": token, **flags} for index, token in enumerate(special)}
