"""The cost of capturing is measured beside plain denoising and PulseCol."""

import json

import pytest

from dlm_lens.measure.capture_cost import main


def test_costs_are_printed_and_kept(capsys, tmp_path):
    out = tmp_path / "cost.json"
    sizes = ["--shape", "tiny", "--tokens", "96", "--gen-length", "16"]
    assert main([*sizes, "--steps", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for line in (
        "dense step",
        "captured, dense step",
        "PulseCol 80%, refresh step",
        "PulseCol 80%, sparse step",
    ):
        assert line in printed
    stored = json.loads(out.read_text())
    assert stored["provenance"]["shape"] == "tiny"
    kinds = {cost["name"]: [kind for kind, _ in cost["steps"]] for cost in stored["costs"]}
    assert kinds == {
        "dense": ["dense", "dense"],
        "captured": ["dense", "dense"],
        "PulseCol 80%": ["refresh", "sparse"],
    }
    assert all(ms > 0 for cost in stored["costs"] for _, ms in cost["steps"])


def test_too_few_tokens_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["--shape", "tiny", "--tokens", "64"])
    assert "--tokens must exceed the 64 that are generated, got 64" in capsys.readouterr().err
