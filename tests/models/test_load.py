"""Published checkpoints: written, read back, run, and refused when something is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dlm_lens as dl
from dlm_lens.models.llada import to_llada, to_llama
from tests.models import plain

SHAPE = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "vocab": 64}


def saved(folder: Path, family: str = "llada", **more) -> tuple[dl.DLM, dict, dict[str, torch.Tensor]]:
    dlm = dl.random_model(family, **SHAPE, **more)
    dlm.save(folder, max_shard_size=20_000)
    weights: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        weights |= load_file(shard)
    return dlm, json.loads((folder / "config.json").read_text()), weights


def tokens(rows: int = 2, length: int = 11) -> torch.Tensor:
    return torch.randint(0, SHAPE["vocab"], (rows, length))


@pytest.mark.parametrize("family", ["llada", "dream", "ar"])
def test_a_saved_model_loads_with_the_same_weights_and_spec(family, tmp_path):
    dlm, _, _ = saved(tmp_path, family)
    again = dl.load(tmp_path, device="cpu")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = tokens()
    assert torch.equal(again.logits(ids), dlm.logits(ids))
    changed = {name for name in vars(dlm.spec) if getattr(dlm.spec, name) != getattr(again.spec, name)}
    assert changed == {"name"}


def test_llada_agrees_with_the_published_architecture(tmp_path):
    _, config, weights = saved(tmp_path)
    assert config["model_type"] == "llada"
    assert "model.transformer.blocks.1.attn_out.weight" in weights
    ids = tokens()
    expected = plain.llada(weights, config, ids)
    assert (dl.load(tmp_path, device="cpu").logits(ids) - expected).abs().max() < 1e-4


def test_dream_agrees_with_the_published_architecture_shifted_by_one(tmp_path):
    _, config, weights = saved(tmp_path, "dream")
    assert config["model_type"] == "Dream"
    assert config["mask_token_id"] == 63
    ids = tokens()
    unshifted = plain.qwen2(weights, config, ids, causal=False)
    expected = torch.cat([unshifted[:, :1], unshifted[:, :-1]], dim=1)
    assert (dl.load(tmp_path, device="cpu").logits(ids) - expected).abs().max() < 1e-4


def test_an_autoregressive_model_sees_nothing_to_the_right():
    dlm = dl.random_model("ar", **SHAPE)
    ids = tokens(1)
    other = ids.clone()
    other[0, 6] = (ids[0, 6] + 1) % 60
    same, changed = dlm.logits(ids), dlm.logits(other)
    assert torch.allclose(same[:, :7], changed[:, :7])
    assert not torch.allclose(same[:, 7:], changed[:, 7:])


@pytest.mark.parametrize("family", ["llada", "dream", "ar"])
def test_padding_on_the_left_changes_nothing(family):
    dlm = dl.random_model(family, **SHAPE)
    ids = tokens(1)
    padded = torch.cat([torch.full((1, 5), dlm.spec.pad_id), ids], dim=1)
    start = torch.tensor([5])
    shifted = dlm.logits(padded, start=start)[:, 5:]
    assert torch.allclose(shifted, dlm.logits(ids), atol=1e-5)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_only_the_wanted_positions_are_computed(family):
    dlm = dl.random_model(family, **SHAPE)
    ids = tokens()
    assert torch.allclose(dlm.logits(ids, keep=range(3, 9)), dlm.logits(ids)[:, 3:9], atol=1e-6)
    assert dlm.logits(ids, keep=range(4, 4)).shape == (2, 0, SHAPE["vocab"])


def test_key_names_map_both_ways():
    for name in dl.random_model("llada", **SHAPE).model.state_dict():
        assert to_llama(to_llada(name)) == name
    assert to_llama("model.transformer.wpe.weight") == "model.transformer.wpe.weight"


def test_a_folder_lacking_a_key_says_which(tmp_path):
    saved(tmp_path)
    shard = next(
        s for s in sorted(tmp_path.glob("*.safetensors")) if "blocks" in next(iter(safe_open(s, "pt").keys()))
    )
    weights = load_file(shard)
    gone = sorted(weights)[0]
    del weights[gone]
    save_file(weights, shard)
    with pytest.raises(dl.CheckpointError, match=f"1 missing, such as {gone}"):
        dl.load(tmp_path)


def test_a_surplus_key_is_an_error(tmp_path):
    saved(tmp_path)
    save_file(
        {"model.transformer.blocks.0.q_norm.weight": torch.ones(8)}, tmp_path / "model-extra.safetensors"
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.transformer.blocks.0.q_norm.weight"] = "model-extra.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(dl.CheckpointError, match=r"not of this model.*q_norm"):
        dl.load(tmp_path)


def test_a_wrong_shape_is_an_error(tmp_path):
    _, config, _ = saved(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"mlp_hidden_size": 99}))
    with pytest.raises(dl.CheckpointError, match=r"has shape .* the config says"):
        dl.load(tmp_path)


def test_half_a_set_of_shards_names_what_lacks(tmp_path):
    saved(tmp_path)
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(dl.CheckpointError, match=r"lacks 1 of the \d+ shards .*model-00001"):
        dl.load(tmp_path)


def test_a_torn_shard_is_an_error(tmp_path):
    saved(tmp_path)
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(dl.CheckpointError, match="not a whole safetensors file"):
        dl.load(tmp_path)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(dl.CheckpointError, match=r"no config\.json"):
        dl.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(dl.CheckpointError, match=r"model_type='gpt2'.*'llada'"):
        dl.load(tmp_path)


def test_a_llada_config_of_another_network_is_refused(tmp_path):
    _, config, _ = saved(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"alibi": True}))
    with pytest.raises(dl.CheckpointError, match="alibi=True"):
        dl.load(tmp_path)


def test_a_model_without_a_mask_token_cannot_be_denoised(tmp_path):
    _, config, _ = saved(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"mask_token_id": None}))
    with pytest.raises(ValueError, match="names no mask token"):
        dl.load(tmp_path)


def test_unknown_names_say_what_there_is():
    with pytest.raises(ValueError, match=r"unknown model 'tyni'.*'tiny'.*hub id"):
        dl.load("tyni")
    with pytest.raises(ValueError, match="unknown family"):
        dl.random_model("gpt")


def test_a_hub_id_that_cannot_be_had_is_a_clear_error():
    with pytest.raises(ValueError, match=r"neither a folder nor to be had from the hub"):
        dl.load("nobody/no-such-model")


def test_no_weights_but_safetensors_are_read(tmp_path):
    saved(tmp_path)
    for file in [*tmp_path.glob("*.safetensors"), tmp_path / "model.safetensors.index.json"]:
        file.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(dl.CheckpointError, match=r"no \*\.safetensors"):
        dl.load(tmp_path)


def test_random_models_repeat_and_leave_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second = dl.random_model(seed=3), dl.random_model(seed=3)
    assert torch.rand(1) == expected
    ids = tokens()
    assert torch.equal(first.logits(ids), second.logits(ids))


def test_converting_keeps_rotary_frequencies_in_float32():
    dlm = dl.random_model(**SHAPE).to(dtype=torch.bfloat16)
    assert dlm.dtype == torch.bfloat16
    assert dlm.model.model.rotary_emb.inv_freq.dtype == torch.float32
