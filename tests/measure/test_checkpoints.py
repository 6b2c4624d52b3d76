"""Checkpoints written, loaded, denoised and captured, at a shape that a CPU bears."""

import json
from dataclasses import replace

import pytest

import dlm_lens as dl
from dlm_lens.measure import checkpoints
from dlm_lens.measure.shapes import SHAPES
from dlm_lens.measure.step_bench import line_of


@pytest.fixture
def small(monkeypatch):
    spec = replace(SHAPES["dream-7b"], layers=2, heads=4, kv_heads=2, head_dim=8, hidden=32, mlp=64, vocab=64)
    monkeypatch.setitem(SHAPES, "tiny", spec)
    return ["--shape", "tiny", "--eager", "--gen-length", "16", "--steps", "4"]


def test_every_row_tells_times_and_memory(small, tmp_path, capsys):
    out, trace = tmp_path / "found.json", tmp_path / "trace.zarr"
    more = ["--lengths", "48", "--longest", "64", "--capture", "48", "--out", str(out)]
    assert checkpoints.main([*small, *more, "--trace", str(trace), "--folder", str(tmp_path)]) == 0
    found = json.loads(out.read_text())
    assert found["provenance"]["finished"]
    assert {"shards", "gb", "write_s", "load_s"} <= found["checkpoint"].keys()
    rows = found["rows"]
    assert [row["context"] for row in rows] == [48] * 9 + [64] * 3
    for row in rows:
        assert row["total_ms"] > 0
        assert all(ms["low"] <= ms["median"] <= ms["high"] for ms in row["ms"].values())
        assert row["estimate_gb"] > 0
    dense = next(row for row in rows if row["policy"] == "Dense")
    assert dense["steps"] == 4
    assert "compile_s" in dense
    assert dl.open_trace(trace).dataset.sizes["step"] == 2
    assert not list(tmp_path.glob("tiny-*")), "the checkpoint is deleted"
    assert "estimated" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_left_out(small, tmp_path):
    out = tmp_path / "found.json"
    checkpoints.main([*small, "--lengths", "32", "--minutes", "0", "--out", str(out)])
    found = json.loads(out.read_text())
    assert [row["policy"] for row in found["rows"]] == ["No attention"]
    assert not found["provenance"]["finished"]


def test_what_does_not_fit_says_so(random_dlm, monkeypatch):
    def refuse(*_, **__):
        raise dl.MemoryBudgetError("too much")

    monkeypatch.setattr(dl, "denoise", refuse)
    row = checkpoints.Bench(random_dlm, 8, 4).row(dl.Dense(), 16, 4)
    assert row["error"] == "too much"
    assert "too much" in line_of(row)
