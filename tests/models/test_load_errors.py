"""What does not fit together is found before weights are read, and named with what to do."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import dlm_lens as dl
from dlm_lens.models import checkpoint as reading
from dlm_lens.models import placement
from tests.models.published import DREAM_CONFIG, LLADA_CONFIG, VOCAB, WORDS, checkpoint

SHAPE = {"layers": 1, "hidden": 16, "heads": 2, "vocab": 32}


@pytest.fixture
def unread(monkeypatch):
    """Fails the test if weights are read."""
    loading = sys.modules["dlm_lens.models.load"]  # dlm_lens.models.load is the function
    monkeypatch.setattr(loading, "fill_weights", lambda *_, **__: pytest.fail("weights were read"))


def rewrite(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("dtype", ["int8", "bf16", torch.int8, torch.float8_e4m3fn])
def test_a_dtype_that_models_do_not_compute_in(dtype, tmp_path, unread):
    checkpoint(tmp_path, "llada")
    with pytest.raises(ValueError, match=r"dtype=.* use one of bfloat16, float16, float32"):
        dl.load(tmp_path, device="cpu", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float16", "torch.float16", torch.float16])
def test_dtypes_by_name(dtype, tmp_path):
    checkpoint(tmp_path, "llada")
    assert dl.load(tmp_path, device="cpu", dtype=dtype).dtype == torch.float16


def test_a_dtype_of_the_config_that_is_none(tmp_path, unread):
    checkpoint(tmp_path, "dream", torch_dtype="int8")
    with pytest.raises(dl.CheckpointError, match=r"torch_dtype='int8'.*bfloat16"):
        dl.load(tmp_path, device="cpu")


def test_quantised_weights_are_named(tmp_path, unread):
    checkpoint(tmp_path, "llada")
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    save_file({key: tensor.to(torch.int8) for key, tensor in load_file(shard).items()}, shard)
    with pytest.raises(dl.CheckpointError, match=r"stored as I8, such as model\.transformer\..*bfloat16"):
        dl.load(tmp_path, device="cpu")
    rewrite(tmp_path, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(dl.CheckpointError, match="quantization_config"):
        dl.load(tmp_path, device="cpu")


@pytest.mark.parametrize("indexed", [True, False])
def test_half_a_set_of_shards(indexed, tmp_path, unread):
    checkpoint(tmp_path, "dream")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    if not indexed:
        (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(dl.CheckpointError, match=r"lacks 1 of the 3 shards .*model-00002-of-00003"):
        dl.load(tmp_path, device="cpu")


def test_a_torn_index(tmp_path, unread):
    checkpoint(tmp_path, "dream")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ["model')
    with pytest.raises(dl.CheckpointError, match=r"index\.json is not an index of shards"):
        dl.load(tmp_path, device="cpu")


def test_an_autoregressive_checkpoint_where_a_diffusion_model_is_expected(tmp_path, unread):
    dl.random_model("ar", **SHAPE).save(tmp_path)
    with pytest.raises(
        dl.CheckpointError, match=r"model_type='llama', an autoregressive .*'llada' was asked"
    ):
        dl.load(tmp_path, family="llada")
    with pytest.raises(
        dl.CheckpointError, match=r"whose model_type is 'llada'; leave family out, or give 'ar'"
    ):
        dl.load(tmp_path, family="llada")
    rewrite(tmp_path, model_type="qwen2")
    with pytest.raises(dl.CheckpointError, match=r"'qwen2', an autoregressive .*family='dream'.* is 'Dream'"):
        dl.load(tmp_path, family="dream")
    with pytest.raises(ValueError, match="unknown family 'Dream': choose one of ar, dream, llada"):
        dl.load(tmp_path, family="Dream")


def test_an_autoregressive_checkpoint_is_not_denoised_as_a_diffusion_model(tmp_path):
    dl.random_model("ar", **SHAPE).save(tmp_path)
    dlm = dl.load(tmp_path, device="cpu", family="ar")
    with pytest.raises(ValueError, match=r"is autoregressive; LowConfidence.* needs a diffusion model"):
        dl.denoise(dlm, [1, 2], gen_length=4, sampler=dl.LowConfidence(), progress=False)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_mask_outside_the_vocabulary(family, tmp_path, unread):
    checkpoint(tmp_path, family, mask_token_id=VOCAB)
    with pytest.raises(
        dl.CheckpointError, match=f"mask_token_id={VOCAB} lies outside the vocabulary of {VOCAB}"
    ):
        dl.load(tmp_path, device="cpu")


def test_a_mask_that_is_no_id(tmp_path, unread):
    checkpoint(tmp_path, "dream", mask_token_id="<|mask|>")
    with pytest.raises(
        dl.CheckpointError, match=rf"mask_token_id='<\|mask\|>' is no token id; .* below {VOCAB}"
    ):
        dl.load(tmp_path, device="cpu")


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_torn_tokenizer(content, tmp_path, unread):
    checkpoint(tmp_path, "llada")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(
        dl.CheckpointError, match=r"tokenizer in .* \(tokenizer\.json\) cannot be read: .*download"
    ):
        dl.load(tmp_path, device="cpu")


def test_a_device_that_is_none(tmp_path, unread):
    checkpoint(tmp_path, "llada")
    with pytest.raises(ValueError, match="'gpu' is no device"):
        dl.load(tmp_path, device="gpu")


def test_no_mask_in_config_nor_tokenizer(tmp_path, unread):
    checkpoint(tmp_path, "llada", mask_token_id=None)
    with pytest.raises(ValueError, match=r"names no mask token.*set mask_token_id in its config"):
        dl.load(tmp_path, device="cpu")


def test_a_mask_that_only_the_tokenizer_names(tmp_path):
    checkpoint(tmp_path, "dream", mask_token_id=None)
    assert dl.load(tmp_path, device="cpu").spec.mask_id == DREAM_CONFIG["mask_token_id"]


def test_a_mask_that_config_and_tokenizer_name_differently(tmp_path, unread):
    checkpoint(tmp_path, "dream", mask_token_id=7)
    with pytest.raises(dl.CheckpointError, match=rf"mask_token_id=7, but .*'<\|mask\|>' is {len(WORDS) + 4}"):
        dl.load(tmp_path, device="cpu")


def test_a_tokenizer_larger_than_the_embedding(tmp_path, unread):
    checkpoint(tmp_path, "llada", embedding_size=VOCAB - 60, mask_token_id=1, eos_token_id=2, pad_token_id=2)
    last = len(WORDS) + 5
    with pytest.raises(
        dl.CheckpointError, match=rf"token ids up to {last}, but the model embeds {VOCAB - 60}"
    ):
        dl.load(tmp_path, device="cpu")


def test_a_configuration_of_another_kind_is_named(tmp_path):
    for content, message in (
        ("[]", "model_type=None"),
        ("{", "is not JSON"),
        (json.dumps(LLADA_CONFIG | {"model_type": "bert"}), "model_type='bert'.*'llada', 'Dream'"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(dl.CheckpointError, match=message):
            dl.load(tmp_path)


def test_weights_that_the_gpu_has_no_room_for(monkeypatch):
    dlm = dl.random_model(**SHAPE)
    monkeypatch.setattr(placement, "free_bytes", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        dl.MemoryBudgetError, match=r'take \d+\.\d KB in float32.*cuda:0 are free.*device_map="auto"'
    ):
        placement.place(dlm.model, "cuda:0", None, None)


def test_a_bar_is_for_loading_that_takes_long(tmp_path, monkeypatch):
    seen = []
    real = reading.tqdm
    monkeypatch.setattr(reading, "tqdm", lambda **options: (seen.append(options), real(**options))[1])
    checkpoint(tmp_path, "llada")
    dl.load(tmp_path, device="cpu", progress=False)
    dl.load(tmp_path, device="cpu")
    assert [(options["disable"], options["delay"]) for options in seen] == [(True, 2), (False, 2)]
