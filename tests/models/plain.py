"""The published architectures once more, in plain PyTorch and by the published key names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, theta: float) -> Tensor:
    """RoPE by half rotation on ``x [B, H, L, D]``."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, theta: float, causal: bool
) -> Tensor:
    def split(x: Tensor, n: int) -> Tensor:
        return x.unflatten(-1, (n, -1)).transpose(1, 2)

    q, k = rotate(split(q, heads), theta), rotate(split(k, kv_heads), theta)
    k = k.repeat_interleave(heads // kv_heads, dim=1)
    v = split(v, kv_heads).repeat_interleave(heads // kv_heads, dim=1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def llada(weights: dict[str, Tensor], config: dict, tokens: Tensor) -> Tensor:
    """LLaDA's logits ``[B, L, V]`` from a published state dict and ``config.json``."""
    eps = config["rms_norm_eps"]
    x = weights["model.transformer.wte.weight"][tokens]
    for layer in range(config["n_layers"]):
        block = {
            name.split(".")[4]: tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.transformer.blocks.{layer}.")
        }
        h = rms_norm(x, block["attn_norm"], eps)
        q, k, v = (h @ block[name].T for name in ("q_proj", "k_proj", "v_proj"))
        mixed = attention(
            q, k, v, config["n_heads"], config["n_kv_heads"], config["rope_theta"], causal=False
        )
        x = x + mixed @ block["attn_out"].T
        h = rms_norm(x, block["ff_norm"], eps)
        x = x + (F.silu(h @ block["ff_proj"].T) * (h @ block["up_proj"].T)) @ block["ff_out"].T
    x = rms_norm(x, weights["model.transformer.ln_f.weight"], eps)
    head = "model.transformer.wte.weight" if config["weight_tying"] else "model.transformer.ff_out.weight"
    return x @ weights[head].T


def qwen2(weights: dict[str, Tensor], config: dict, tokens: Tensor, *, causal: bool) -> Tensor:
    """Qwen2's logits ``[B, L, V]``, unshifted, from a published state dict and ``config.json``."""
    eps, heads, kv_heads = (
        config["rms_norm_eps"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
    )
    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = rms_norm(x, weights[f"{at}input_layernorm.weight"], eps)
        q, k, v = (
            h @ weights[f"{at}self_attn.{name}.weight"].T + weights[f"{at}self_attn.{name}.bias"]
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = attention(q, k, v, heads, kv_heads, config["rope_theta"], causal)
        x = x + mixed @ weights[f"{at}self_attn.o_proj.weight"].T
        h = rms_norm(x, weights[f"{at}post_attention_layernorm.weight"], eps)
        gate, up, down = (weights[f"{at}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T
    x = rms_norm(x, weights["model.norm.weight"], eps)
    return x @ weights["lm_head.weight"].T
