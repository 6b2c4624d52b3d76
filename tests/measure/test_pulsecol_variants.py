"""The experiment on PulseCol's variants compares at equal cost and keeps what it measured."""

import json
import math

import pandas as pd
import pytest

from dlm_lens.measure import pulsecol_variants
from dlm_lens.measure.pulsecol_variants import Outcome, main, paired_kl, summarise


def test_measures_prints_and_keeps_every_variant_at_equal_cost(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(pulsecol_variants, "DRIFTS", (0.01,))
    monkeypatch.setattr(pulsecol_variants, "SPARSITIES", (0.8,))
    monkeypatch.setattr(pulsecol_variants, "BUDGETS", ("uniform", "mass:0.95"))
    out = tmp_path / "variants.json"
    sizes = ["--prompts", "2", "--questions", "1", "--length", "96", "--steps", "8", "--seed", "3"]
    assert main([*sizes, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("adaptive", "first 30%", "whole run", "mass:0.95", "KL nats", "worst layer %", "right %"):
        assert words in printed
    stored = json.loads(out.read_text())
    assert stored["provenance"]["seed"] == 3
    assert stored["provenance"]["length"] == 96
    found = pd.DataFrame(stored["outcomes"])
    assert len(found) == (3 + 2) * 3  # variants of both experiments; two prompts and a question
    schedules = found[found["experiment"] == "schedule"]
    assert schedules.groupby(["setting", "prompt"])["refreshes"].nunique().eq(1).all()
    budgets = found[found["experiment"] == "budget"]
    assert set(budgets["refreshes"]) == {2}
    assert set(budgets["prompt"]) == {"code 0", "multi_key 0", "single 0"}
    walked = found[found["right"].isna()]
    assert walked["kl"].ge(0).all()
    assert walked["retained"].between(0, 1).all()


def outcome(variant, prompt, kl, experiment="schedule", **more):
    return Outcome(experiment, "one", variant, prompt, 2, kl=kl, **more)


OUTCOMES = [
    outcome("adaptive", "a", 0.1),
    outcome("adaptive", "b", 0.3),
    outcome("whole run", "a", 0.2),
    outcome("whole run", "b", 0.6),
    outcome("mass:0.9", "a", 0.5, "budget"),
    outcome("uniform", "a", 0.25, "budget"),
    Outcome("schedule", "one", "adaptive", "question", 4, right=1.0),
]


def test_differences_are_taken_prompt_by_prompt():
    rows = paired_kl(OUTCOMES).set_index("variant")
    assert rows.loc["adaptive", "difference"] == pytest.approx(-0.2)
    assert rows.loc["adaptive", "se"] == pytest.approx(0.1)  # of −0.1 and −0.3
    assert rows.loc["mass:0.9", "difference"] == pytest.approx(0.25)
    assert set(rows.index) == {"adaptive", "mass:0.9"}


def test_the_summary_keeps_free_answers_apart():
    row = summarise(OUTCOMES).set_index("variant").loc["adaptive"]
    assert (row["kl"], row["right"]) == (pytest.approx(0.2), 1.0)
    assert row["kl_se"] == pytest.approx(0.1)
    assert (row["refreshes"], row["refreshes_free"]) == (2, 4)
    assert math.isnan(row["right_se"])  # one question tells no spread
