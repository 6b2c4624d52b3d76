"""Models with random weights, in the published layouts."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from dlm_lens.models.autoregressive import LLAMA
from dlm_lens.models.dlm import DLM
from dlm_lens.models.dream import DREAM
from dlm_lens.models.family import Family
from dlm_lens.models.llada import LLADA
from dlm_lens.models.load import empty_model, put
from dlm_lens.models.placement import Placement, default_device
from dlm_lens.models.spec import make_spec
from dlm_lens.models.tokenizer import check_ids, special_ids


def random_model(
    family: str = "llada",
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int | None = None,
    mlp: int | None = None,
    vocab: int | None = None,
    max_length: int = 4096,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> DLM:
    """A model of the given shape with random weights, for tests, for speed, and to try what needs a checkpoint.

    ``family`` is ``"llada"``, ``"dream"`` or ``"ar"``. ``vocab`` is 256 without a ``tokenizer``, and the last token id
    is the mask and the one before it both end-of-text and padding; with one, as many as it has tokens, and its special
    tokens are the model's. Its chat template is saved along: ``random_model("dream", tokenizer=…).save(folder)`` writes
    a checkpoint of the published layout, which knows nothing. The global random state is left as it was.
    """
    families = {"llada": LLADA, "dream": DREAM, "ar": LLAMA}
    if family not in families:
        raise ValueError(f"unknown family {family!r}: choose one of {', '.join(families)}")
    if hidden % heads or heads % (kv_heads or heads):
        raise ValueError(
            f"hidden={hidden}, heads={heads}, kv_heads={kv_heads}: each must divide the one before"
        )
    chosen = families[family]
    size, ids = _vocabulary(chosen, vocab, tokenizer)
    config = chosen.model_class.config_class(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=mlp or hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=max_length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        **ids,
    )
    where = torch.device(device or default_device())
    model = empty_model(chosen, config).to(dtype)
    put(model, Placement({"": where}))
    generator = torch.Generator(where).manual_seed(seed)
    with torch.no_grad():
        for tensor_name, parameter in model.named_parameters():
            if "norm" in tensor_name:
                parameter.fill_(1.0)
            elif parameter.ndim == 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                # Unit-variance outputs keep attention far from uniform, as in trained models.
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    spec = make_spec(f"random-{family}", config, chosen)
    check_ids(spec, tokenizer)
    return DLM(model, tokenizer, spec, chosen)


def _vocabulary(
    family: Family, vocab: int | None, tokenizer: PreTrainedTokenizerFast | None
) -> tuple[int, dict[str, int | None]]:
    """The number of tokens, and the special ids as a configuration names them."""
    if tokenizer is None:
        size = vocab or 256
        ids = {"bos_token_id": None, "eos_token_id": size - 2, "pad_token_id": size - 2}
        return size, ids if family.causal else ids | {"mask_token_id": size - 1}
    named = {f"{name}_token_id": token for name, token in special_ids(tokenizer).items()}
    if family.causal:
        del named["mask_token_id"]
    if lacking := [name for name, token in named.items() if token is None]:
        raise ValueError(f"the tokenizer has no {lacking[0]}; a {family.name} model needs one")
    return vocab or len(tokenizer), named | {"bos_token_id": tokenizer.bos_token_id}
