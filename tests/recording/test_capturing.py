"""Capture as a user calls it, on untrained models."""

import json
from importlib.metadata import version

import numpy as np
import pytest
import torch

import dlm_lens as dl
from dlm_lens.errors import MemoryBudgetError, TraceError
from dlm_lens.recording import ColumnMass, FullMaps, RowEntropy

PROMPT = torch.arange(12)


@pytest.fixture
def short():
    return {"gen_length": 8, "steps": 4, "progress": False}


def test_recording_changes_no_token(random_dlm, short):
    trace = dl.capture(random_dlm, PROMPT, **short)
    plain = dl.denoise(random_dlm, PROMPT, history=True, **short)
    np.testing.assert_array_equal(trace["tokens"], plain.history[:, 0])
    np.testing.assert_array_equal(trace["final_tokens"], plain.tokens[0])
    np.testing.assert_array_equal(trace["committed_at"], plain.committed_at[0])
    np.testing.assert_array_equal(trace["masked"], plain.history[:, 0] == random_dlm.spec.mask_id)
    assert trace.complete


@pytest.mark.parametrize("family", ["llada", "dream", "ar"])
def test_statistics_match_full_maps(family):
    dlm = dl.random_model(family, layers=2, hidden=32, heads=4, kv_heads=2, vocab=64)
    trace = dl.capture(
        dlm, PROMPT, gen_length=6, statistics=[ColumnMass(), FullMaps()], progress=False, memory_budget="1 GB"
    )
    maps = trace["full_map"]
    np.testing.assert_allclose(maps.sum("key"), 1, rtol=1e-5)
    np.testing.assert_allclose(trace["column_mass"], maps.mean("query"), atol=1e-6)
    if family == "ar":
        assert not np.triu(maps.values, 1).any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "policy", [dl.Dense(), dl.PulseCol(group_size=16, refresh_count=1)], ids=["dense", "pulsecol"]
)
def test_statistics_match_full_maps_on_a_gpu(dtype, policy):
    dlm = dl.random_model(
        "llada", layers=2, hidden=256, heads=4, kv_heads=2, vocab=64, device="cuda", dtype=dtype
    )
    trace = dl.capture(
        dlm, torch.arange(60).repeat(5), gen_length=6, steps=3, policy=policy, progress=False,
        statistics=[ColumnMass(), RowEntropy(bins=7), FullMaps()], memory_budget="1 GB",
    )  # fmt: skip
    maps = trace["full_map"].values
    np.testing.assert_allclose(trace["column_mass"], maps.mean(-2), atol=1e-4)
    entropy = -(maps * np.log(np.maximum(maps, 1e-30))).sum(-1)
    bin_of = np.arange(306) * 7 // 306
    by_bin = np.stack([entropy[..., bin_of == b].mean(-1) for b in range(7)], -1)
    np.testing.assert_allclose(trace["row_entropy"], by_bin, atol=2e-3)


def test_padded_sample_has_the_trace_of_itself_alone(random_dlm, short):
    prompts = [torch.arange(5, 14), torch.arange(12)]
    start = torch.tensor([3, 0])
    # Left padding as `encode` makes it from texts of different lengths.
    padded = torch.stack([torch.cat([torch.full((3,), random_dlm.spec.pad_id), prompts[0]]), prompts[1]])
    encoded = type(random_dlm.encode(PROMPT))(padded, start, ("", ""))
    both = dl.capture(_Encoded(random_dlm, encoded), "", **short)
    alone = dl.capture(random_dlm, prompts[0], **short)
    assert both["start"].values.tolist() == [3, 0]
    found = both["column_mass"].isel(sample=0)
    np.testing.assert_allclose(found[..., 3:], alone["column_mass"], atol=1e-5)
    assert not found[..., :3].any()


class _Encoded:
    """A model whose prompt is given, already encoded."""

    def __init__(self, dlm, encoded):
        self._dlm, self._encoded = dlm, encoded

    def encode(self, prompt):
        return self._encoded

    def __getattr__(self, name):
        return getattr(self._dlm, name)


def test_sparse_policy_records_what_it_keeps(random_dlm):
    policy = dl.PulseCol(sparsity=0.5, group_size=4, refresh_count=2, refresh_window=0.5)
    trace = dl.capture(random_dlm, PROMPT, gen_length=8, policy=policy, progress=False)
    kept, kinds = trace["retained_mass"], trace["kind"].values
    assert set(kinds) == {"refresh", "sparse"}
    np.testing.assert_array_equal(kept[kinds == "refresh"], 1)
    assert float(kept[kinds == "sparse"].max()) < 1
    assert float(kept.min()) > 0.3
    assert trace.attrs["policy"] == repr(policy)
    guided = dl.capture(
        random_dlm, PROMPT, gen_length=8, policy=policy, heads=[1], cfg_scale=1.0, progress=False
    )
    assert guided["retained_mass"].shape == (8, 2, 1)


def test_dense_policy_has_nothing_to_retain(random_dlm, short):
    assert "retained_mass" not in dl.capture(random_dlm, PROMPT, **short).statistics


def test_subsets_and_provenance(random_dlm, short, tmp_path):
    trace = dl.capture(
        random_dlm,
        PROMPT,
        layers=[1],
        heads=(3, 0),
        record_steps=range(0, 4, 2),
        path=tmp_path / "run.zarr",
        **short,
    )
    assert (trace.steps, trace.layers, trace.heads) == ((0, 2), (1,), (0, 3))
    whole = dl.capture(random_dlm, PROMPT, **short)
    part = whole["column_mass"].sel(step=[0, 2], layer=[1], head=[0, 3])
    np.testing.assert_allclose(trace["column_mass"], part, atol=1e-6)
    assert trace.spec["heads"] == 4
    assert json.loads(trace.attrs["versions"])["torch"] == version("torch")
    assert {"model", "policy", "sampler", "seed", "device", "created", "git_revision"} <= set(trace.attrs)
    assert trace.tokens_text()[0][-1] == "[MASK]"
    assert dl.open_trace(tmp_path / "run.zarr").attrs == trace.attrs


def test_early_end_is_complete(random_dlm):
    sampler = dl.Threshold(threshold=1e-6, block_length=8)
    trace = dl.capture(random_dlm, PROMPT, gen_length=8, sampler=sampler, progress=False)
    assert len(trace.steps) < 8
    assert trace.complete


def test_interruption_returns_the_finished_steps(random_dlm, short, tmp_path, monkeypatch):
    forward = type(random_dlm).logits
    calls = []

    def interrupted_in_third_step(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(random_dlm), "logits", interrupted_in_third_step)
    trace = dl.capture(random_dlm, PROMPT, path=tmp_path / "run.zarr", **short)
    assert trace.steps == (0, 1)
    assert not trace.complete
    assert int((trace["committed_at"] == -2).sum()) == 4


def test_estimate_is_shown(random_dlm, short, capsys):
    dl.capture(random_dlm, PROMPT, **{**short, "progress": True})
    assert "capture: trace " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": [2]}, ValueError, r"layers must be numbers in 0 … 1, at least one, got \[2\]"),
        ({"heads": [-1]}, ValueError, "heads must be numbers in 0 … 3"),
        ({"record_steps": []}, ValueError, "record_steps must be numbers in 0 … 3, at least one"),
        ({"layers": 1}, TypeError, r"layers must be several numbers such as \[1\]"),
        ({"statistics": ["column_mass"]}, TypeError, "statistics must be objects such as ColumnMass"),
        ({"memory_budget": "10 KB"}, MemoryBudgetError, "but memory_budget is 10.0 KB"),
        ({"memory_budget": "lots"}, ValueError, "'lots' is no amount of memory"),
        ({"steps": 3, "sampler": dl.LowConfidence(block_length=4)}, ValueError, "steps"),
        ({"policy": "pulsecol"}, TypeError, "policy"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(
    random_dlm, short, tmp_path, change, error, message
):
    with pytest.raises(error, match=message):
        dl.capture(random_dlm, PROMPT, path=tmp_path / "run.zarr", **(short | change))
    assert not (tmp_path / "run.zarr").exists()


def test_existing_path_needs_permission(random_dlm, short, tmp_path):
    path = tmp_path / "run.zarr"
    dl.capture(random_dlm, PROMPT, path=path, **short)
    with pytest.raises(TraceError, match="exists already"):
        dl.capture(random_dlm, PROMPT, path=path, **short)
    assert dl.capture(random_dlm, PROMPT, path=path, overwrite=True, layers=[0], **short).layers == (0,)
    with pytest.raises(ValueError, match="layers"):
        dl.capture(random_dlm, PROMPT, path=path, overwrite=True, layers=[7], **short)
    assert dl.open_trace(path).layers == (0,)
