"""Llama and Qwen2 as they are: causal models to hold diffusion models against."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, Qwen2Config, Qwen2ForCausalLM

from dlm_lens.models.family import Family, same_key


class _LlamaConfig(LlamaConfig):
    """Llama's configuration, also with some of the heads pruned: they need not divide the hidden size."""

    def validate_architecture(self) -> None:
        """Nothing to object to."""


def _write_config(config: PreTrainedConfig) -> dict[str, Any]:
    return config.to_diff_dict() | {"model_type": config.model_type}


def _family(model_class: Any, config_class: Any) -> Family:
    return Family(
        name="ar",
        model_class=model_class,
        read_config=config_class.from_dict,
        write_config=_write_config,
        to_native=same_key,
        to_published=same_key,
        logit_shift=True,
        causal=True,
    )


LLAMA = _family(LlamaForCausalLM, _LlamaConfig)
QWEN2 = _family(Qwen2ForCausalLM, Qwen2Config)
