"""The published checkpoints by their files: networks, tokenizers, chat templates, dtypes, and entries that differ."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import dlm_lens as dl
from dlm_lens.models.checkpoint import StoredWeight
from dlm_lens.models.llada import from_published
from tests.models import plain
from tests.models.published import DREAM_CONFIG, LLADA_CONFIG, VOCAB, WORDS, checkpoint

FAMILIES = ["llada", "dream"]
CONFIGS = {"llada": LLADA_CONFIG, "dream": DREAM_CONFIG}
CHAT = [{"role": "user", "content": "hello the"}]


def plain_logits(family, weights, tokens, config):
    if family == "llada":
        return plain.llada(weights, config, tokens)
    unshifted = plain.qwen2(weights, config, tokens, causal=False)
    return torch.cat([unshifted[:, :1], unshifted[:, :-1]], dim=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_are_those_of_the_published_architecture(family, kv_heads, tmp_path):
    changes = {"n_kv_heads" if family == "llada" else "num_key_value_heads": kv_heads}
    weights = checkpoint(tmp_path, family, **changes)
    dlm = dl.load(tmp_path, device="cpu")
    tokens = torch.randint(0, VOCAB, (2, 13))
    expected = plain_logits(family, weights, tokens, CONFIGS[family] | changes)
    assert dlm.spec.kv_heads == kv_heads
    assert (dlm.logits(tokens) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_bfloat16_stay_or_widen(family, tmp_path):
    weights = checkpoint(tmp_path, family, torch.bfloat16)
    assert dl.load(tmp_path, device="cpu").dtype == torch.float32
    dlm = dl.load(tmp_path, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in dlm.model.parameters()} == {torch.bfloat16}
    tokens = torch.randint(0, VOCAB, (1, 13))
    expected = plain_logits(family, weights, tokens, CONFIGS[family])
    assert (dlm.logits(tokens) - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("named", "expected"), [(None, torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)]
)
def test_on_a_gpu_the_dtype_is_the_configs_or_else_that_of_most_weights(named, expected, tmp_path):
    weights = {
        "norm": StoredWeight(tmp_path, "a", (8,), "F32"),
        "matrix": StoredWeight(tmp_path, "b", (8, 8), "BF16"),
    }
    loading = sys.modules["dlm_lens.models.load"]  # dlm_lens.models.load is the function
    published = LLADA_CONFIG if named is None else LLADA_CONFIG | {"torch_dtype": named}
    assert loading._dtype(None, published, weights, tmp_path, on_cpu=False) == expected
    assert loading._dtype(None, published, weights, tmp_path, on_cpu=True) == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_are_those_of_the_files(family, tmp_path):
    checkpoint(tmp_path, family)
    dlm = dl.load(tmp_path, device="cpu")
    config = CONFIGS[family]
    assert (dlm.spec.mask_id, dlm.spec.eos_id) == (config["mask_token_id"], config["eos_token_id"])
    assert dlm.token_texts([dlm.spec.mask_id, dlm.spec.eos_id, WORDS["he"]]) == ["[MASK]", "<eos>", "he"]


@pytest.mark.parametrize(
    ("family", "pieces"),
    [
        ("llada", [0, 3, "user", 4, "\n\n", "he", "ll", "o", "Ġt", "he", 5, 3, "assistant", 4, "\n\n"]),
        (
            "dream",
            [
                1,
                "system\nBe brief.",
                2,
                "\n",
                1,
                "user\n",
                "he",
                "ll",
                "o",
                "Ġt",
                "he",
                2,
                "\n",
                1,
                "assistant\n",
            ],
        ),
    ],
)
def test_chat_prompts_are_the_template_rendered_by_hand(family, pieces, tmp_path):
    checkpoint(tmp_path, family)
    expected = []
    for piece in pieces:  # a number is a special token, text goes letter by letter but for the merged pairs
        if isinstance(piece, int):
            expected.append(len(WORDS) + piece)
        elif piece in WORDS:
            expected.append(WORDS[piece])
        else:
            expected += [WORDS[{"\n": "Ċ", " ": "Ġ"}.get(letter, letter)] for letter in piece]
    assert dl.load(tmp_path, device="cpu").encode(CHAT).tokens[0].tolist() == expected


def test_a_tokenizer_that_begins_texts_does_not_begin_a_chat_twice(tmp_path):
    checkpoint(tmp_path, "llada")
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    bos = {"id": "<|startoftext|>", "ids": [len(WORDS)], "tokens": ["<|startoftext|>"]}
    piece = [{"SpecialToken": {"id": bos["id"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": piece,
        "pair": piece,
        "special_tokens": {bos["id"]: bos},
    }
    path.write_text(json.dumps(tokenizer))
    dlm = dl.load(tmp_path, device="cpu")
    assert dlm.encode(CHAT).tokens[0].tolist().count(len(WORDS)) == 1
    assert dlm.encode("he").tokens[0].tolist() == [len(WORDS), WORDS["he"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_denoising_a_chat_ends_in_text(family, tmp_path):
    checkpoint(tmp_path, family)
    dlm = dl.load(tmp_path, device="cpu")
    done = dl.denoise(dlm, CHAT, gen_length=6, steps=3, progress=False)
    assert not (done.tokens == dlm.spec.mask_id).any()


def test_missing_entries_have_the_defaults_of_the_published_code(tmp_path):
    nothing = {"embedding_size": None, "n_kv_heads": None, "mlp_hidden_size": None}
    checkpoint(tmp_path, "llada")
    path = tmp_path / "config.json"
    for multi, kv_heads in ((None, 4), (True, 1)):
        path.write_text(json.dumps(LLADA_CONFIG | nothing | {"multi_query_attention": multi}))
        with pytest.raises(dl.CheckpointError, match="has shape"):
            dl.load(tmp_path, device="cpu")
        config = from_published(json.loads(path.read_text()))
        assert config["num_key_value_heads"] == kv_heads
        assert config["intermediate_size"] == 4 * 32
        assert config["vocab_size"] == VOCAB - 8


@pytest.mark.parametrize(
    ("family", "entry", "value"),
    [
        *[("llada", name, True) for name in ("alibi", "include_bias", "include_qkv_bias", "scale_logits")],
        *[
            ("llada", name, True)
            for name in ("attention_layer_norm", "input_emb_norm", "bias_for_layer_norm")
        ],
        *[("llada", name, False) for name in ("rope", "layer_norm_with_affine")],
        ("llada", "block_type", "sequential"),
        ("llada", "layer_norm_type", "default"),
        ("llada", "activation_type", "gelu"),
        ("llada", "block_group_size", 2),
        ("llada", "clip_qkv", 8.0),
        ("llada", "rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("dream", "rope_scaling", {"type": "mrope", "mrope_section": [1, 2]}),
        ("dream", "use_mrope", True),
        ("dream", "use_sliding_window", True),
        ("dream", "attention_bias", False),
        ("dream", "hidden_act", "gelu"),
        ("dream", "head_dim", 16),
    ],
)
def test_an_entry_that_means_another_network_is_refused_by_name(family, entry, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[family] | {entry: value}))
    with pytest.raises(dl.CheckpointError, match=entry):
        dl.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("family", "entry", "value"),
    [
        ("llada", "n_layers", "2"),
        ("llada", "n_heads", 5),
        ("llada", "n_kv_heads", 3),
        ("llada", "d_model", None),
        ("dream", "num_hidden_layers", None),
        ("dream", "num_attention_heads", 5),
        ("dream", "hidden_size", -32),
    ],
)
def test_a_size_that_cannot_be_is_refused_by_name(family, entry, value, tmp_path):
    config = CONFIGS[family] | {entry: value}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(dl.CheckpointError, match=entry):
        dl.load(tmp_path, device="cpu")
