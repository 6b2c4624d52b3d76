"""The study of pruning asks every model the same, keeps what is finished, and goes on from there."""

import json

import pytest

from dlm_lens.errors import DlmLensError
from dlm_lens.measure import pruning_study
from dlm_lens.measure.pruning_study import Cell, _options, how_much, main, plan

SMALL = ["--samples", "2", "--length", "32", "--task-length", "64", "--pieces", "2", "--draws", "2"]
SMALL += ["--questions", "2", "--holes", "4", "--span", "2", "--block", "2"]
NO_MORE = ["--more-amounts", "--kappas"]


def row_of(cell):
    """What a cell might have given: every number tells which cell it is of."""
    value = {"plain": 1.0, "sinks": 2.0, "random": 3.0}[cell.discount] + 10 * cell.seed
    blocks = {name: [value, value + 1] for name in ("nats", "retrieval", "infilling", "infilling_tokens")}
    means = dict.fromkeys(blocks, value + 0.5)
    facts = {"ppl": value, "error": 0.1, "sparsity": 0.5, "discounted": 0.2}
    return vars(cell) | facts | means | {"by_block": blocks}


class Pretended:
    """A worker that prunes nothing, and is interrupted after so many cells."""

    done: list
    stop_after = 1000

    def __init__(self, options, device):
        type(self).done = []

    def __call__(self, cell):
        if len(self.done) == self.stop_after:
            raise KeyboardInterrupt
        self.done.append(cell)
        return row_of(cell)


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(pruning_study, "Worker", Pretended)
    monkeypatch.setattr(Pretended, "stop_after", 1000)
    return Pretended


def test_measures_the_bundled_model(tmp_path, capsys):
    out = tmp_path / "study.json"
    cells = ["--seeds", "1", "--methods", "wanda", "--amounts", "structured-0.5"]
    assert main([*SMALL, *cells, *NO_MORE, "--out", str(out)]) == 0
    stored = json.loads(out.read_text())
    assert stored["provenance"]["model"] == "tiny"
    assert stored["settings"]["length"] == 32
    rows = stored["rows"]
    assert [(row["method"], row["discount"]) for row in rows] == [
        (None, "plain"), ("wanda", "plain"), ("wanda", "sinks"), ("wanda", "random"),
    ]  # fmt: skip
    dense, plain, sinks, random = rows
    assert dense["sparsity"] == dense["error"] == 0
    assert all(row["sparsity"] == pytest.approx(0.5, abs=0.01) for row in rows[1:])
    assert all(row["nats"] > dense["nats"] and row["error"] > 0 for row in rows[1:])
    assert plain["discounted"] is None
    assert 0 < sinks["discounted"] < 1
    assert sinks["nats"] != plain["nats"]
    assert sinks["nats"] != random["nats"]
    for row in rows:
        blocks = row["by_block"]
        assert {name: len(values) for name, values in blocks.items()} == {
            "nats": 2, "retrieval": 1, "infilling": 2, "infilling_tokens": 2,
        }  # fmt: skip
        assert row["nats"] == pytest.approx(sum(blocks["nats"]) / 2, abs=1e-5)
        assert row["infilling"] == sum(blocks["infilling"]) / 2
    printed = capsys.readouterr().out
    assert "4 of 4 cells" in printed
    assert "wanda" in printed


def test_an_interrupted_run_goes_on_to_the_same_rows(tmp_path, pretended, monkeypatch):
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    cells = [*SMALL, "--seeds", "2"]
    assert main([*cells, "--out", str(whole)]) == 0
    count = len(pretended.done)
    monkeypatch.setattr(pretended, "stop_after", 10)
    with pytest.raises(KeyboardInterrupt):
        main([*cells, "--out", str(broken)])
    assert len(json.loads(broken.read_text())["rows"]) == 10
    monkeypatch.setattr(pretended, "stop_after", 1000)
    later = pruning_study.provenance
    monkeypatch.setattr(
        pruning_study, "provenance", lambda *what, **how: later(*what, **how) | {"torch": "later"}
    )
    assert main([*cells, "--out", str(broken)]) == 0
    assert json.loads(broken.read_text())["provenance"]["torch"] == "later"
    assert len(pretended.done) == count - 10
    kept = json.loads(broken.read_text())["provenance"]
    assert kept["sessions"][-1] == kept["date"]
    assert len(kept["sessions"]) == 2
    assert json.loads(broken.read_text())["rows"] == json.loads(whole.read_text())["rows"]
    with pytest.raises(DlmLensError, match="another --out"):
        main([*cells, "--samples", "3", "--out", str(broken)])
    assert json.loads(broken.read_text())["rows"] == json.loads(whole.read_text())["rows"]


def test_no_cell_is_begun_when_time_is_over(tmp_path, pretended, capsys):
    assert main([*SMALL, "--minutes", "-1"]) == 0
    assert pretended.done == []
    assert "nothing is measured yet" in capsys.readouterr().out


def test_seeds_are_whole_and_what_is_extra_comes_last():
    cells = plan(_options(["--seeds", "3", "--kappas", "0.5"]))
    assert len(set(cells)) == len(cells)
    assert cells[0] == Cell(None)
    assert [cell.method for cell in cells[1:7]] == ["magnitude"] * 6
    main_cells, later = cells[7 : 7 + 3 * 30], cells[7 + 3 * 30 :]
    assert [cell.seed for cell in main_cells] == [0] * 30 + [1] * 30 + [2] * 30
    for seed in range(3):
        found = {
            (cell.method, cell.discount, cell.amount) for cell in main_cells[30 * seed : 30 * (seed + 1)]
        }
        assert len(found) == 2 * 3 * 5
    assert {cell.kappa for cell in main_cells} == {2.0}
    assert [cell.seed for cell in later] == sorted(cell.seed for cell in later)
    assert {(cell.amount, cell.kappa) for cell in later} == {("4:8", 2.0), ("0.75", 0.5)}
    assert all(cell.discount != "plain" for cell in later if cell.kappa == 0.5)


@pytest.mark.parametrize(
    ("amount", "arguments"),
    [("0.75", {"sparsity": 0.75}), ("2:4", {"pattern": "2:4"}), ("structured-0.3", {"structured": 0.3})],
)
def test_amounts_are_arguments_of_prune(amount, arguments):
    assert how_much(amount) == arguments


def test_pieces_that_the_text_does_not_have_are_refused():
    with pytest.raises(ValueError, match="pieces=100000 must be in"):
        main([*SMALL, "--pieces", "100000"])
