"""Shapes of published models, for what can be told or timed without their weights."""

from __future__ import annotations

import torch

from dlm_lens.models import DLM, Spec, random_model

SHAPES: dict[str, Spec] = {
    "llada-8b": Spec(
        name="llada-8b",
        family="llada",
        mask_id=126336,
        eos_id=126081,
        pad_id=126081,
        bos_id=126080,
        logit_shift=False,
        causal=False,
        layers=32,
        heads=32,
        kv_heads=32,
        head_dim=128,
        hidden=4096,
        mlp=12288,
        vocab=126464,
        max_length=4096,
        rope_theta=5e5,
    ),
    "dream-7b": Spec(
        name="dream-7b",
        family="dream",
        mask_id=151666,
        eos_id=151643,
        pad_id=151643,
        bos_id=None,
        logit_shift=True,
        causal=False,
        layers=28,
        heads=28,
        kv_heads=4,
        head_dim=128,
        hidden=3584,
        mlp=18944,
        vocab=152064,
        max_length=131072,
        rope_theta=1e6,
    ),
    "tiny": Spec(
        name="tiny",
        family="llada",
        mask_id=0,
        eos_id=1,
        pad_id=2,
        bos_id=None,
        logit_shift=False,
        causal=False,
        layers=8,
        heads=8,
        kv_heads=8,
        head_dim=32,
        hidden=256,
        mlp=704,
        vocab=4096,
        max_length=4096,
        rope_theta=5e5,
    ),
}
"""The published models, and the one that comes with the package."""


def spec_of(model: DLM | Spec | str) -> Spec:
    """The shape of a model, of itself, or the one known by this name."""
    if isinstance(model, Spec):
        return model
    if isinstance(model, DLM):
        return model.spec
    if not isinstance(model, str):
        raise TypeError(f"model={model!r} is a {type(model).__name__}; expected a model, a Spec or a name")
    if model not in SHAPES:
        raise ValueError(f"unknown shape {model!r}: choose one of {', '.join(map(repr, SHAPES))}, or a model")
    return SHAPES[model]


def random_of_shape(shape: str, tokens: int) -> DLM:
    """A model of a published shape with random weights for so many positions: in bf16, the small one in float32."""
    spec = SHAPES[shape]
    return random_model(
        spec.family,
        layers=spec.layers,
        hidden=spec.hidden,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        mlp=spec.mlp,
        vocab=spec.vocab,
        max_length=tokens,
        dtype=torch.float32 if shape == "tiny" else torch.bfloat16,
    )
