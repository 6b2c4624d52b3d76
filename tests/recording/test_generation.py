"""DiffusionGemma captured in its own generation: the same tokens, the statistics of its own attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    Gemma4VisionConfig,
    LogitsProcessorList,
)
from transformers.masking_utils import sdpa_mask

import dlm_lens as dl

CANVAS, STEPS, LAYERS, HEADS, BINS = 6, 3, 3, 4, 7
STATISTICS = [dl.ColumnMass(), dl.PooledMap(bins=BINS), dl.RowEntropy(bins=BINS)]
LENGTHS = {"max_new_tokens": 2 * CANVAS, "max_denoising_steps": STEPS}
CAPTURE = {**LENGTHS, "statistics": STATISTICS, "progress": False}


def make(attention: str = "sdpa") -> DiffusionGemmaForBlockDiffusion:
    """Random weights; layers 0 and 1 see the last 4 positions of the cache and the canvas."""
    text = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 8,
        "global_head_dim": 16,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "num_experts": 2,
        "top_k_experts": 1,
        "moe_intermediate_size": 8,
        "max_position_embeddings": 128,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    vision = Gemma4VisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=8, global_head_dim=8,
    )  # fmt: skip
    config = DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=CANVAS)
    torch.manual_seed(0)
    model = DiffusionGemmaForBlockDiffusion._from_config(config, attn_implementation=attention)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and ("q_proj" in name or "k_proj" in name or "embed_tokens" in name):
            torch.nn.init.normal_(weight, 0, weight.shape[1] ** -0.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    """Two prompts, of which the second begins with three positions of padding."""
    ids = torch.randint(2, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def trace(model, inputs) -> dl.Trace:
    torch.manual_seed(5)
    return dl.capture_generate(model, inputs, **CAPTURE)


def explicit(module, query, key, value, attention_mask, *, scaling, **more):
    """Attention by its definition. The model's own eager attention cannot be had with padding: its mask fails."""
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    weights = scores.softmax(-1).nan_to_num(0.0)  # rows of padding
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("explicit", explicit)
AttentionMaskInterface.register("explicit", sdpa_mask)


def followed(model, inputs: dict[str, torch.Tensor]) -> dict[str, list]:
    """What generation itself goes through: canvases, logits and probabilities by step."""
    seen: dict[str, list] = {"canvas": [], "logits": [], "maps": []}
    decoder = model.model.decoder

    def begins(module, args, options):
        seen["canvas"].append(options["decoder_input_ids"].clone())
        seen["maps"].append([])

    def processor(input_ids, scores):
        seen["logits"].append(scores)
        return scores

    decoder.register_forward_pre_hook(begins, with_kwargs=True)
    for layer in decoder.layers:
        layer.self_attn.register_forward_hook(
            lambda module, args, out: seen["maps"][-1].append(out[1].numpy())
        )
    torch.manual_seed(5)
    model.generate(**inputs, **LENGTHS, logits_processor=LogitsProcessorList([processor]))
    return seen


@pytest.fixture(scope="module")
def own(inputs):
    return followed(make("explicit"), inputs)


def unchanged(model) -> bool:
    parts = (model.config, model.config.text_config, model.config.vision_config)
    hooks = any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    return not hooks and all(part._attn_implementation == "sdpa" for part in parts)


def test_tokens_are_those_without_capture(model, inputs, trace):
    torch.manual_seed(5)
    out = model.generate(**inputs, **LENGTHS)
    assert np.array_equal(trace["final_tokens"], out.sequences)
    assert unchanged(model)


def test_a_step_is_a_pass_of_the_decoder(trace, own, inputs):
    assert trace.complete
    assert trace.steps == tuple(range(2 * STEPS)) == tuple(range(len(own["canvas"])))
    assert trace.length == 9 + 2 * CANVAS
    assert trace["start"].values.tolist() == [0, 3]
    final = trace["final_tokens"].values
    for step, canvas in enumerate(own["canvas"]):
        first = 9 + step // STEPS * CANVAS
        state = trace["tokens"].values[:, step]
        assert np.array_equal(state[:, :9], inputs["input_ids"])
        assert np.array_equal(state[:, 9:first], final[:, 9:first])
        assert np.array_equal(state[:, first : first + CANVAS], canvas)
        assert (state[:, first + CANVAS :] == -1).all()
        confidence = trace["confidence"].values[:, step]
        expected = own["logits"][step].softmax(-1).amax(-1)
        assert np.allclose(confidence[:, first : first + CANVAS], expected, atol=1e-5)
        assert np.isfinite(confidence).sum() == 2 * CANVAS


def test_a_canvas_is_decided_as_a_whole_after_its_last_step(trace):
    expected = [-1] * 9 + [STEPS - 1] * CANVAS + [2 * STEPS - 1] * CANVAS
    assert (trace["committed_at"].values == expected).all()
    masked = trace["masked"].values
    assert np.array_equal(masked, trace["committed_at"].values[:, None] >= np.arange(2 * STEPS)[:, None])


@pytest.mark.parametrize("step", [0, 2, 2 * STEPS - 1])
def test_statistics_are_those_of_its_own_attention(trace, own, step):
    first, length = 9 + step // STEPS * CANVAS, trace.length
    end = first + CANVAS
    for layer, sample, head in np.ndindex(LAYERS, 2, HEADS):
        maps = own["maps"][step][layer][sample, head]
        assert maps.shape == (CANVAS, CANVAS + (first if layer == 2 else 4))
        mass, pooled = np.zeros(length), np.zeros((BINS, BINS))
        entropy, queries = np.zeros(BINS), np.zeros(BINS)
        for i in range(CANVAS):
            row = (first + i) * BINS // length
            queries[row] += 1
            for j, probability in enumerate(maps[i]):
                position = end - maps.shape[1] + j
                mass[position] += probability / CANVAS
                pooled[row, position * BINS // length] += probability
                entropy[row] -= probability * np.log(probability) if probability > 0 else 0
        at = {"step": step, "layer": layer, "sample": sample, "head": head}
        assert np.allclose(trace["column_mass"].isel(at), mass, atol=1e-5)
        assert np.allclose(trace["pooled_map"].isel(at), pooled / queries.clip(1)[:, None], atol=1e-5)
        assert np.allclose(trace["row_entropy"].isel(at), entropy / queries.clip(1), atol=1e-4)


def test_the_models_eager_attention_is_recorded_too(inputs):
    ids = {"input_ids": inputs["input_ids"][:1]}
    maps, model = followed(make("eager"), ids)["maps"][3], make("eager")
    torch.manual_seed(5)
    trace = dl.capture_generate(model, ids, **CAPTURE)
    mass = trace["column_mass"].isel(step=3).values
    assert mass.shape[-1] == maps[2].shape[-1] == 9 + 2 * CANVAS
    assert np.allclose(mass[2], maps[2][0].mean(1), atol=1e-5)
    assert np.allclose(mass[0][:, -maps[0].shape[-1] :], maps[0][0].mean(1), atol=1e-5)


def test_padding_and_what_is_out_of_reach_get_nothing(trace):
    mass = trace["column_mass"]
    assert np.allclose(mass.sum("position"), 1, atol=1e-5)
    assert trace.spec["windowed"] == [0, 1]
    assert float(mass.isel(sample=1, position=slice(0, 3)).max()) == 0
    assert float(mass.isel(layer=[0, 1], step=0, position=slice(0, 5)).max()) == 0
    assert float(mass.isel(layer=2, sample=0, position=slice(0, 15)).min()) > 0


def test_a_subset_is_the_same_numbers(model, inputs, trace):
    torch.manual_seed(5)
    some = dl.capture_generate(model, inputs, **CAPTURE, layers=[2], heads=[1, 3], record_steps=[1, 4])
    expected = trace["column_mass"].sel(step=[1, 4], layer=[2], head=[1, 3])
    assert np.array_equal(some["column_mass"], expected)


def test_the_trace_opens_in_explorer_metrics_and_from_disk(model, inputs, tmp_path):
    ids = inputs["input_ids"][:1]
    trace = dl.capture_generate(model, ids, **LENGTHS, progress=False, path=tmp_path / "canvas.zarr")
    again = dl.open_trace(tmp_path / "canvas.zarr")
    assert again.tokens_text()[0][-1] == "·"
    assert np.array_equal(again["pooled_map"], trace["pooled_map"])
    dl.explore(again).save_html(tmp_path / "explorer.html")
    assert (tmp_path / "explorer.html").stat().st_size > 10_000
    assert float(dl.metrics.sink_variance(again)["spatial"]) > 0
    assert float(dl.metrics.step_similarity(again).max()) <= 1 + 1e-6


def test_ctrl_c_keeps_the_finished_steps(model, inputs, trace):
    def stop(done, total, what):
        if done == STEPS + 1:
            raise KeyboardInterrupt

    torch.manual_seed(5)
    part = dl.capture_generate(model, inputs, **CAPTURE | {"progress": stop})
    assert not part.complete
    assert part.steps == tuple(range(STEPS + 1))
    assert np.array_equal(part["column_mass"], trace["column_mass"].isel(step=slice(0, STEPS + 1)))
    assert part["committed_at"].values[0].tolist() == [-1] * 9 + [STEPS - 1] * CANVAS + [-2] * CANVAS
    assert unchanged(model)


def test_an_error_midway_leaves_the_model_as_it_was(model, inputs):
    def broken(input_ids, scores):
        raise RuntimeError("broken processor")

    with pytest.raises(RuntimeError, match="broken processor"):
        dl.capture_generate(model, inputs, **CAPTURE, logits_processor=[broken])
    assert unchanged(model)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"statistics": [dl.FullMaps()]}, "a canvas is a part of them"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"max_length": 30}, "give max_new_tokens"),
        ({"max_denoising_steps": -1}, "max_denoising_steps=-1 must be a positive integer"),
        ({"memory_budget": "1 KB"}, "this capture needs"),
        ({"layers": [LAYERS]}, "layers must be numbers in 0 … 2"),
    ],
)
def test_what_cannot_be_recorded_is_refused_beforehand(model, inputs, arguments, match):
    with pytest.raises((ValueError, dl.MemoryBudgetError), match=match):
        dl.capture_generate(model, inputs, **CAPTURE | arguments)
    assert unchanged(model)


def test_other_models_and_implementations_are_refused(model, inputs):
    with pytest.raises(TypeError, match="records DiffusionGemma, not LladaForMaskedLM"):
        dl.capture_generate(dl.random_model().model, inputs, **CAPTURE)
    other = make()
    other.set_attn_implementation("dlm_lens")
    with pytest.raises(ValueError, match=r"attends by 'dlm_lens'.*set_attn_implementation"):
        dl.capture_generate(other, inputs, **CAPTURE)
