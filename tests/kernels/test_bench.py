"""The benchmark runs wherever it is, and its file says what was measured and where."""

import json
import subprocess
import sys


def test_a_short_run_measures_every_operation(root, tmp_path):
    out = tmp_path / "bench.json"
    sizes = ["--device", "cpu", "--lengths", "160", "--heads", "2", "--repeats", "1"]
    command = [sys.executable, str(root / "kernels" / "bench" / "run.py"), *sizes, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stored = json.loads(out.read_text())
    assert {"device", "torch", "triton", "date", "git_revision", "command"} <= stored["provenance"].keys()
    ops = {row["op"] for row in stored["rows"]}
    assert ops == {
        "dense",
        "columns, groups of 128",
        "columns, groups of 32",
        *(f"blocks of {size}" for size in (128, 64, 32)),
        "statistics",
        "PulseCol refresh",
    }
    for row in stored["rows"]:
        assert row["low"] <= row["ms"] <= row["high"]
        assert 0 < row["density"] <= 1
    overlaps = [row["share"] for row in stored["rows"] if "share" in row]
    assert 0.6 < min(overlaps) < 0.85 < max(overlaps)
