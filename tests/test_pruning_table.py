"""The caption of the pruning table says what its numbers say, for the paper and against it."""

import json
from pathlib import Path

import pytest

from tests.measure.pruning_rows import study_rows


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "figures"))
    import pruning_table

    return pruning_table


def said(script, tmp_path, rows):
    file = tmp_path / "study.json"
    about = {"device": "cpu", "model": "tiny"}
    settings = {"samples": 4, "pieces": 20, "questions": 40, "holes": 40, "span": 3}
    file.write_text(json.dumps({"provenance": about, "settings": settings, "rows": rows}))
    return script.caption(script.measure(file))


@pytest.mark.parametrize(
    ("effect", "claim"),
    [
        ({"sinks": 0.02, "at_more": 2}, "in 10 of 30 comparisons, as the paper says, and more where more is pruned."),
        ({"sinks": 0.02}, "more where more is pruned does not show here, unlike in the paper."),
        ({"sinks": -0.02}, "Discounting sinks hurts in 10 comparisons, which contradicts the paper."),
        ({"sinks": 0.02, "random": 0.02}, "is not clearly more than random tokens give"),
        ({}, "That discounting sinks helps, as the paper says (LLaDA-8B at 50%"),
    ],
    ids=["helps, and grows", "helps", "hurts", "as random tokens do", "nothing"],
)  # fmt: skip
def test_claims_are_those_of_the_numbers(script, tmp_path, effect, claim):
    text = said(script, tmp_path, study_rows(**effect))
    assert claim in text
    assert (
        "10 differences (20 more are exactly none" in text
    )  # retrieval and infilling are the same everywhere
    assert "Magnitude looks at no activations" in text
    assert "nan" not in text


def test_counts_are_of_each_control(script, tmp_path):
    text = said(script, tmp_path, study_rows(0.02, 0.02))
    plain, random = text.split("Against as much discounted at random tokens")
    assert "above zero (better) in 10 and below in 0" in plain
    assert (
        "better in 10 (nats of Wanda at 50%, 75%, 2:4, structured 30%, structured 50%; nats of SparseGPT"
        in plain
    )
    assert "better in 0 and worse in 0." in random
