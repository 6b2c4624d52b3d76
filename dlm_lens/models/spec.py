"""The facts of a model that denoising needs, and where they are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from dlm_lens.models.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Spec:
    """Facts of a model.

    Attributes
    ----------
    name : what it was loaded as.
    family : ``"llada"``, ``"dream"``, ``"ar"`` (autoregressive), or the ``model_type`` of an adapted model.
    mask_id : token id of ``[MASK]``; None for autoregressive models.
    eos_id, pad_id, bos_id : token ids; ``bos_id`` may be None.
    logit_shift : whether the prediction for position ``i`` is read at ``i − 1``; ``DLM.logits`` undoes it.
    causal : whether attention looks to the left only.
    layers, heads, kv_heads, head_dim, hidden, mlp, vocab : the shape.
    max_length : positions that a run may have; those the model was published for, if nothing else was asked for.
    windowed : layers that attend within a window only. No policy replaces their attention.
    published_length : positions the model was published for, where ``max_length`` is not that; None otherwise.
    rope_theta : base of the rotary embedding; None where there is none.
    """

    name: str
    family: str
    mask_id: int | None
    eos_id: int
    pad_id: int
    bos_id: int | None
    logit_shift: bool
    causal: bool
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    mlp: int
    vocab: int
    max_length: int
    windowed: tuple[int, ...] = ()
    published_length: int | None = None
    rope_theta: float | None = None

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast | None = None,
        *,
        name: str | None = None,
        mask_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        logit_shift: bool = False,
        max_length: int | None = None,
    ) -> Spec:
        """The facts of a diffusion model of transformers, for :func:`dlm_lens.adapt`.

        What is not stated is taken from the tokenizer and then from the model's configuration; end-of-text may be the
        separator, and padding falls back to end-of-text. The family is the configuration's ``model_type``, and ``mlp``
        the width of a gated MLP of as many weights as a layer has besides attention. Raises ``ValueError`` naming the
        argument to give where mask or end-of-text are told nowhere.
        """
        config = model.config.get_text_config()
        name = name or config._name_or_path or config.model_type
        mask = _first_told(mask_id, "mask_id", tokenizer, config)
        eos = _first_told(eos_id, "eos_id", tokenizer, config)
        eos = _first_told(eos, "sep_id", tokenizer, config)
        pad = _first_told(pad_id, "pad_id", tokenizer, config)
        if mask is None or eos is None:
            wanted = "mask_id" if mask is None else "eos_id"
            raise ValueError(
                f"neither tokenizer nor configuration of {name!r} tells its {wanted}; give Spec.of(…, {wanted}=…)"
            )
        heads, hidden = config.num_attention_heads, config.hidden_size
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or hidden // heads
        layer = layers_of(model.base_model, config.num_hidden_layers)[0]
        matrices = sum(weight.numel() for weight in layer.parameters() if weight.ndim == 2)
        return cls(
            name=name,
            family=config.model_type,
            mask_id=mask,
            eos_id=eos,
            pad_id=eos if pad is None else pad,
            bos_id=_first_told(None, "bos_id", tokenizer, config),
            logit_shift=logit_shift,
            causal=False,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            mlp=(matrices - 2 * hidden * head_dim * (heads + kv_heads)) // (3 * hidden),
            vocab=config.vocab_size,
            max_length=max_length or config.max_position_embeddings,
        )


def layers_of(backbone: nn.Module, count: int) -> nn.ModuleList:
    """The ``count`` transformer layers of a model without its head, first to last; ``ValueError`` if it has no list."""
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(
        f"{type(backbone).__name__} has no list of {count} layers; models that use a layer several times, or keep"
        " theirs otherwise, cannot be told apart layer by layer"
    )


def _first_told(
    stated: int | None, name: str, tokenizer: PreTrainedTokenizerFast | None, config: Any
) -> int | None:
    """A special token's id: as stated, or the tokenizer's, or the configuration's, or None; the first of several."""
    if stated is not None:
        return stated
    attribute = name.replace("_id", "_token_id")
    for source in (tokenizer, config):
        found = getattr(source, attribute, None)
        if found is not None:
            return found[0] if isinstance(found, list) else found
    return None


def make_spec(
    name: str, config: Any, family: Family, tokenizer: Mapping[str, int | None] | None = None
) -> Spec:
    """The facts of a model from its configuration, and from its tokenizer's special ids where it names none."""
    ids = dict(tokenizer or {})
    eos = config.eos_token_id if config.eos_token_id is not None else ids.get("eos")
    eos = eos[0] if isinstance(eos, list) else eos
    if eos is None:
        raise ValueError(f"model {name!r} names no end-of-text token; set eos_token_id in its config.json")
    pad = config.pad_token_id if config.pad_token_id is not None else ids.get("pad")
    mask = getattr(config, "mask_token_id", None)
    if mask is None and not family.causal:
        mask = ids.get("mask")
        if mask is None:
            raise ValueError(
                f"model {name!r} names no mask token, so it cannot be denoised; set mask_token_id in its config.json"
            )
    return Spec(
        name=name,
        family=family.name,
        mask_id=mask,
        eos_id=eos,
        pad_id=eos if pad is None else pad,
        bos_id=config.bos_token_id,
        logit_shift=family.logit_shift,
        causal=family.causal,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        hidden=config.hidden_size,
        mlp=config.intermediate_size,
        vocab=config.vocab_size,
        max_length=config.max_position_embeddings,
        rope_theta=config.rope_parameters["rope_theta"],
    )
