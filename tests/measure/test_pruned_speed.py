"""The speed of pruned models, end to end at a shape that a CPU bears, with and without sparse cores."""

import json
from dataclasses import replace

import pytest
import torch

from dlm_lens.measure import pruned_speed
from dlm_lens.measure.matrix_speed import GROUPS, output_error
from dlm_lens.measure.shapes import SHAPES
from tests.sparse_cores import sparse_cores

MODELS = ["dense", "structured 50%", "structured 30%"]


@pytest.fixture
def small(monkeypatch, tmp_path):
    spec = replace(
        SHAPES["llada-8b"], layers=2, heads=4, kv_heads=4, head_dim=16, hidden=64, mlp=96, vocab=64
    )
    monkeypatch.setitem(SHAPES, "tiny", spec)
    out = tmp_path / "found.json"
    common = ["--shape", "tiny", "--eager", "--gen-length", "16", "--steps", "2", "--rounds", "2"]

    def run(*more: str) -> dict:
        assert pruned_speed.main([*common, "--lengths", "24", "48", "--out", str(out), *more]) == 0
        return json.loads(out.read_text())

    return run


def test_every_model_is_timed(small, monkeypatch, capsys):
    with sparse_cores(monkeypatch):
        found = small()
    assert found["provenance"]["finished"]
    assert found["check"]["weights_equal"]
    assert set(found["algorithms"].values()) == {17}
    assert found["models"]["structured 50%"]["gb"] < found["models"]["dense"]["gb"]
    matrices = [row for row in found["rows"] if row["job"] == "matrices"]
    assert {(row["model"], row["context"], row["matrices"]) for row in matrices} == {
        (model, context, group)
        for model in [*MODELS, "2:4"]
        for context in (24, 48)
        for group in [*GROUPS, "all"]
    }
    assert all(0 < row["ms"]["low"] <= row["ms"]["median"] <= row["ms"]["high"] for row in matrices)
    steps = [row for row in found["rows"] if row["job"] == "denoise"]
    for model in [*MODELS, "2:4"]:
        policies = [(row["context"], row["policy"]) for row in steps if row["model"] == model]
        assert {(24, "Dense"), (48, "Dense")} <= set(policies)
        assert policies.count((48, "PulseCol 80%")) == (0 if model == "structured 30%" else 2)
    said = capsys.readouterr().out
    assert "48 Random columns 80%, sparse step: dense" in said
    assert "0 failed, 0 models left out; finished" in said


def test_without_sparse_cores_the_rest_is_measured_and_the_reason_told(small, capsys):
    found = small("--minutes", "0")
    assert found["rows"] == []
    assert not found["provenance"]["finished"]
    assert "is on cpu" in found["skipped"]["2:4"]
    assert list(found["models"]) == [*MODELS[1:], "dense"]
    said = capsys.readouterr().out
    assert "2:4 is left out: " in said
    assert "1 models left out; not finished" in said


def test_what_fails_is_told_and_the_rest_goes_on(small, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(pruned_speed, "jobs", lambda models, options: [broken, lambda: []])
    with pytest.raises(AssertionError):
        small()
    assert "failed: RuntimeError: no kernel" in capsys.readouterr().out


def test_times_are_of_one_layer_and_count_dense_work():
    dlm = pruned_speed.random_of_shape("tiny", 64)
    rows = pruned_speed.matrix_rows({"dense": dlm}, 16, graphs=False, rounds=2, layers=3)
    whole = next(row for row in rows if row["matrices"] == "all")
    weights = sum(parameter.numel() for parameter in dlm.layers[0].parameters() if parameter.ndim == 2)
    assert whole["tflops"] == pytest.approx(2 * 16 * weights / whole["ms"]["median"] / 1e9)
    parts = [row["ms"]["low"] for row in rows if row["matrices"] != "all"]
    assert sum(parts) <= whole["ms"]["low"]


def test_errors_of_outputs_are_those_of_their_definition():
    linear = torch.nn.Linear(32, 16)
    dense = linear.weight.detach().clone()
    found = output_error(linear, dense)
    assert found["weights_equal"]
    assert max(found["error"], found["dense_error"]) < 1e-5
    linear.weight.data *= 1.01
    found = output_error(linear, dense)
    assert not found["weights_equal"]
    assert found["error"] == pytest.approx(0.01, rel=1e-3)
