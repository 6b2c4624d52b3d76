"""A comparison that was cut short goes on where it stopped, and measures nothing twice."""

from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import pandas as pd
import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure import speed, tasks

SETS = {"short": torch.arange(1, 9), "batch": [torch.arange(1, 21), torch.arange(1, 15)]}
RUN = {"gen_length": 8, "steps": 4, "repeats": 2, "control": False, "progress": False}
QUESTIONS = [tasks.TaskItem(torch.arange(1, 9), "", "", "single", 8)]


@dataclass(frozen=True)
class Fragile(dl.PulseCol):
    """PulseCol that is interrupted at its n-th start, if told so."""

    title = "Fragile"
    starts: ClassVar[int] = 0
    fails_at: ClassVar[int | None] = None
    error: ClassVar[type[BaseException]] = RuntimeError

    def start(self, info):
        Fragile.starts += 1
        if Fragile.starts == Fragile.fails_at:
            raise Fragile.error("in the middle")
        return super().start(info)


POLICY = Fragile(sparsity=0.5, group_size=8)


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """What was measured to its end, in order."""
    log: list[str] = []

    def noting(module, name, what):
        function = getattr(module, name)

        def noted(*arguments, **options):
            value = function(*arguments, **options)
            log.append(what)
            return value

        monkeypatch.setattr(module, name, noted)

    compare_module = import_module("dlm_lens.measure.compare")  # the package shows the function of this name
    noting(compare_module, "walk", "fidelity")
    noting(compare_module, "round_rows", "round")
    noting(compare_module, "run_audit", "audit")
    noting(tasks, "accuracy", "accuracy")
    monkeypatch.setattr(Fragile, "starts", 0)
    monkeypatch.setattr(Fragile, "fails_at", None)
    monkeypatch.setattr(Fragile, "error", RuntimeError)
    return log


def compare(dlm, **changed) -> pd.DataFrame:
    return dl.compare(dlm, SETS, [POLICY], **{"tasks": QUESTIONS, **RUN, **changed})


WHOLE = {"accuracy": 2, "fidelity": 2, "round": 4, "audit": 2}


def counts(log: list[str]) -> dict[str, int]:
    return {what: log.count(what) for what in WHOLE}


@pytest.mark.parametrize(
    ("error", "share"),
    [(RuntimeError, 0.2), (KeyboardInterrupt, 0.5), (RuntimeError, 0.75), (KeyboardInterrupt, 0.95)],
)
def test_a_comparison_cut_short_goes_on(random_dlm, tmp_path, monkeypatch, measured, error, share):
    whole = compare(random_dlm, audit=True)
    assert counts(measured) == WHOLE
    starts = Fragile.starts
    measured.clear()

    monkeypatch.setattr(Fragile, "starts", 0)
    monkeypatch.setattr(Fragile, "fails_at", round(share * starts))
    monkeypatch.setattr(Fragile, "error", error)
    with pytest.raises(error):
        compare(random_dlm, audit=True, path=tmp_path)
    assert counts(measured) != WHOLE
    monkeypatch.setattr(Fragile, "fails_at", None)
    table = compare(random_dlm, audit=True, path=tmp_path)
    assert counts(measured) == WHOLE
    assert list(table.columns) == list(whole.columns)
    timed = [name for name in table if name.startswith(("ms_", "speedup", "peak")) or name == "total_ms"]
    pd.testing.assert_frame_equal(table.drop(columns=timed), whole.drop(columns=timed))
    assert (table.dtypes == whole.dtypes).all()


def test_a_finished_comparison_runs_nothing(random_dlm, tmp_path, monkeypatch, measured):
    first = compare(random_dlm, path=tmp_path)
    monkeypatch.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran the model"))
    again = compare(random_dlm, path=tmp_path)
    pd.testing.assert_frame_equal(again, first)
    assert again.attrs == first.attrs


def test_speedups_hold_within_a_round_of_one_session(random_dlm, tmp_path, monkeypatch, measured):
    """A round that was cut short is measured again as a whole, its dense run included."""
    runs = []
    peak_memory = speed.peak_memory
    monkeypatch.setattr(speed, "peak_memory", lambda device: runs.append(device) or peak_memory(device))
    one = {"tasks": None, "repeats": 1}
    monkeypatch.setattr(Fragile, "fails_at", 4)  # checked, walked and warmed up once each, then timed
    with pytest.raises(RuntimeError):
        dl.compare(random_dlm, SETS["short"], [POLICY], path=tmp_path, **{**RUN, **one})
    assert len(runs) == 2  # dense, and the run that failed
    table = dl.compare(random_dlm, SETS["short"], [POLICY], path=tmp_path, **{**RUN, **one})
    assert len(runs) == 4
    dense, sparse = table["total_ms"]
    assert table["speedup"].iloc[1] == dense / sparse


def test_more_repetitions_can_be_asked_for_later(random_dlm, tmp_path, measured):
    first = compare(random_dlm, path=tmp_path, repeats=1)
    measured.clear()
    more = compare(random_dlm, path=tmp_path, repeats=3)
    assert counts(measured) == {"accuracy": 0, "fidelity": 0, "round": 4, "audit": 0}
    kept = more[more["repetition"] == 0].reset_index(drop=True)
    assert list(kept["total_ms"]) == list(first["total_ms"])
    fewer = compare(random_dlm, path=tmp_path, repeats=1)
    assert list(fewer["total_ms"]) == list(first["total_ms"])
    assert len(more.attrs["provenance"]["sessions"]) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"steps": 8}, "steps was 4 and is 8"),
        ({"sampler": dl.LowConfidence(4)}, r"sampler was None and is LowConfidence\(block_length=4"),
        ({"tasks": None}, "tasks was"),
        ({"control": True}, r"policies\[Random columns 50%\] was absent"),
    ],
)
def test_other_arguments_are_refused_by_name(random_dlm, tmp_path, measured, changed, message):
    compare(random_dlm, path=tmp_path, repeats=1)
    measured.clear()
    with pytest.raises(ValueError, match=message):
        compare(random_dlm, path=tmp_path, repeats=1, **changed)
    assert not measured
    anew = compare(random_dlm, path=tmp_path, repeats=1, overwrite=True, **changed)
    assert len(anew) in (4, 6)
    assert counts(measured)["round"] == 2


def test_other_prompts_and_models_are_refused(random_dlm, tmp_path, measured):
    compare(random_dlm, path=tmp_path, repeats=1)
    other = {**SETS, "short": SETS["short"] + 1}
    with pytest.raises(ValueError, match=r"else: prompts\[short\] was \w+ and is \w+\. Choose"):
        dl.compare(random_dlm, other, [POLICY], path=tmp_path, tasks=QUESTIONS, **RUN)
    twin = dl.random_model("llada", layers=2, hidden=32, heads=4, vocab=64, seed=1)
    with pytest.raises(ValueError, match=r"else: weights was \w+ and is \w+\. Choose"):
        compare(twin, path=tmp_path)
