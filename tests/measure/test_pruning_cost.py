"""What pruning costs, at a shape that a CPU bears: seconds by phase, and totals that say when they are projected."""

import json
from dataclasses import replace

import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure import pruning_cost
from dlm_lens.measure.pruning_cost import PHASES, Stopwatch
from dlm_lens.measure.shapes import SHAPES


@pytest.fixture
def small(monkeypatch, tmp_path):
    spec = replace(SHAPES["llada-8b"], layers=2, heads=4, kv_heads=4, head_dim=8, hidden=32, mlp=48, vocab=64)
    monkeypatch.setitem(SHAPES, "tiny", spec)
    out = tmp_path / "found.json"
    return ["--shape", "tiny", "--samples", "2", "--length", "8", "--out", str(out)], out


def test_every_method_tells_seconds_by_phase_and_memory(small, capsys):
    arguments, out = small
    assert pruning_cost.main(arguments) == 0
    found = json.loads(out.read_text())
    assert found["provenance"]["finished"]
    assert found["calibration"]["tokens"] == 2 * 10 * 8
    rows = found["rows"]
    assert [row["label"] for row in rows[:4]] == [
        "sink-aware Wanda 2:4",
        "sink-aware SparseGPT 2:4",
        "magnitude 2:4",
        "Wanda structured 50%",
    ]
    for row in rows:
        assert "error" not in row
        assert not row["projected"]
        assert len(row["per_layer"]) == row["layers"] == 2
        assert all(row["layer_s"][phase] > 0 for phase in ("statistics", "advance"))
        assert sum(row["layer_s"][phase] for phase in PHASES) < row["total_s"]
        assert row["peak_gb"] > 0
    assert "a layer" in capsys.readouterr().out


def test_what_is_cut_off_is_projected_and_says_so(small, capsys):
    arguments, out = small
    pruning_cost.main([*arguments, "--minutes", "0.00001"])
    found = json.loads(out.read_text())
    assert not found["provenance"]["finished"]
    (row,) = found["rows"]
    assert row["projected"]
    assert len(row["per_layer"]) == 1
    assert row["total_s"] > row["per_layer"][0]["total"]
    assert "projected from 1 layers" in capsys.readouterr().out


def test_a_row_that_fails_says_why_and_the_others_are_there(small, monkeypatch):
    arguments, out = small
    monkeypatch.setattr(
        pruning_cost,
        "JOBS",
        [{"method": "wanda", "pattern": "2:5"}, {"method": "magnitude", "sparsity": 0.5}],
    )
    pruning_cost.main(arguments)
    failed, whole = json.loads(out.read_text())["rows"][:2]
    assert failed["error"].startswith("ValueError: pattern 2:5 needs inputs in multiples of 5")
    assert whole["label"] == "magnitude 50%"


def test_phases_are_told_apart(monkeypatch):
    """Chunks of 1 s before and 2 s after pruning, which takes 5 s; 10 s go before the first."""
    times = iter([0.0, 11.0, 14.0, 21.0, 27.0, 28.0, 31.0, 38.0, 44.0])
    monkeypatch.setattr(pruning_cost, "perf_counter", lambda: next(times))

    class Kept:
        over = False

        def keep(self):
            pass

    row = {"layers": 3, "per_layer": []}
    watch = Stopwatch(torch.device("cpu"), 4, row, Kept())
    for done in range(1, 17):
        watch(done, 24, "")
    assert row["setup_s"] == pytest.approx(10)
    for layer in row["per_layer"]:
        assert layer == pytest.approx({"statistics": 4, "pruning": 5, "advance": 8, "total": 17})
    assert row["total_s"] == pytest.approx(44 + 17)
    assert row["projected"]


def test_a_model_streamed_from_the_cpu_is_told_apart(monkeypatch):
    asked = []
    monkeypatch.setattr(dl, "prune", lambda dlm, **how: asked.append(how["device"]))
    dlm = dl.random_model(layers=1, hidden=8, heads=1, device="cpu")
    options = pruning_cost.argparse.Namespace(out=None, minutes=1)
    session = pruning_cost.Session(options, {}, {"calibration": {"sequences": 20}}, pruning_cost.line)
    for device in ("cpu", "meta"):
        pruning_cost.pruned_row(
            dlm, {"method": "wanda", "pattern": "2:4"}, dl.Calibration(), session, torch.device(device)
        )
    assert asked == [None, torch.device("meta")]
