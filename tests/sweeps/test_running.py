"""A sweep in this process: equal to the calls it stands for, taken up where it stopped, and honest about failures."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch

import dlm_lens as dl
from dlm_lens import measure
from dlm_lens.sweeps import workers
from tests.sweeps.conftest import DETERMINISTIC

QUIET = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def path(options, tmp_path_factory) -> str:
    """A folder with the six cells."""
    folder = str(tmp_path_factory.mktemp("sweep") / "kept")
    dl.sweep(dl.Grid(**options), path=folder, **QUIET)
    return folder


@pytest.fixture(scope="module")
def table(path) -> pd.DataFrame:
    return dl.open_sweep(path).table


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """The cells that were measured, in order."""
    log: list[str] = []
    inner = workers.measure_cell
    monkeypatch.setattr(
        workers, "measure_cell", lambda dlm, cell, *more: log.append(str(cell)) or inner(dlm, cell, *more)
    )
    return log


@dataclass(frozen=True)
class Fragile(dl.PulseCol):
    """PulseCol that cannot start with some seeds."""

    title = "Fragile"
    refuses: ClassVar[set[int]] = {1}

    def start(self, info):
        if info.seed in self.refuses:
            raise ArithmeticError(f"no luck with seed {info.seed}")
        return super().start(info)


def test_rows_are_those_of_the_direct_calls(options, table):
    dlm = dl.load(options["model"], device="cpu")
    assert list(table["policy"]) == ["Dense", "PulseCol 50%", "Random columns 50%"] * 2
    lineup = [dl.Dense(), *options["policies"], dl.RandomColumns(sparsity=0.5, group_size=4)] * 2
    run = {"gen_length": 8, "steps": 4, "progress": False}
    for policy, (_, row) in zip(lineup, table.iterrows(), strict=True):
        prompt = options["prompts"]["short"](row["seed"])
        tokens, dense = (
            dl.denoise(dlm, prompt, policy=which, seed=row["seed"], **run).tokens[:, 12:]
            for which in (policy, dl.Dense())
        )
        assert row["token_agreement"] == (tokens == dense).double().mean()
        near = measure.fidelity(dlm, prompt, policy, seed=row["seed"], **run)
        assert row["kl"] == pytest.approx(near.kl, rel=1e-5)
        assert row["argmax_agreement"] == near.agreement
        assert row["retained_mass"] == pytest.approx(near.retained_mean, rel=1e-5)
        share = dl.tasks.accuracy(dlm, options["tasks"], policy=policy, seed=row["seed"], progress=False)
        assert row["accuracy"] == share
    assert (table.loc[table["policy"] == "Dense", "accuracy"] == 0.5).all()


def test_the_table_is_one_of_compare_with_the_axes_of_the_grid(options, table):
    dlm, prompt = dl.load(options["model"], device="cpu"), options["prompts"]["short"](0)
    like = dl.compare(dlm, prompt, options["policies"], gen_length=8, steps=4, progress=False)
    assert set(like.columns) - {"repetition"} <= set(table.columns)
    ours, theirs = table[table["seed"] == 0].reset_index(), like.reset_index()
    same = [
        "policy",
        "context",
        "steps",
        "density",
        "amdahl_bound",
        "token_agreement",
        "argmax_agreement",
        "backend",
    ]
    pd.testing.assert_frame_equal(ours[same], theirs[same])
    assert (table.loc[table["policy"] == "Dense", "speedup"] == 1).all()
    assert {"torch", "dlm_lens", "date"} <= set(table.attrs["provenance"])
    assert table.attrs["provenance"]["devices"] == ["cpu, float32"]
    json.dumps(table.attrs["provenance"])
    drawn = dl.plots.pareto(table, "token_agreement")
    assert {line.get_label() for line in drawn.lines} >= {"PulseCol", "Random columns"}


def test_finished_cells_are_not_measured_again(options, path, table, measured):
    again = dl.sweep(dl.Grid(**options), path=path, **QUIET)
    assert measured == []
    assert again.missing == 0
    pd.testing.assert_frame_equal(again.table, table)


def test_another_grid_takes_over_the_cells_that_both_have(options, path, table, measured, tmp_path):
    wider = dl.Grid(
        **{**options, "sparsity": [0.5, 0.75], "seeds": [1], "prompts": {"renamed": torch.arange(2, 14)}}
    )
    found = dl.sweep(wider, path=path, **QUIET).table
    assert measured == [f"renamed, seed 1: {label}" for label in ("PulseCol 75%", "Random columns 75%")]
    assert set(found["prompts"]) == {"renamed"}
    assert len(found) == 5
    both = ["policy", "kl", "total_ms"]
    shared = found[found["sparsity"].isin([0, 0.5])].reset_index(drop=True)
    pd.testing.assert_frame_equal(shared[both], table[table["seed"] == 1].reset_index(drop=True)[both])


def test_half_a_file_is_not_a_finished_cell(options, path, table, measured):
    damaged = dl.Grid(**options).cells()[1]
    file = Path(path) / "cells" / f"{damaged.key}.json"
    file.write_bytes(file.read_bytes()[:100])
    missing = dl.open_sweep(path).missing
    again = dl.sweep(dl.Grid(**options), path=path, **QUIET)
    assert missing == 1
    assert measured == [str(damaged)]
    pd.testing.assert_frame_equal(again.table[DETERMINISTIC], table[DETERMINISTIC])


def test_a_cell_that_fails_is_a_row_with_its_error_and_is_tried_again(
    options, tmp_path, monkeypatch, measured
):
    grid = dl.Grid(**{**options, "policies": [Fragile(sparsity=0.5)], "tasks": None, "control": False})
    with pytest.warns(
        UserWarning, match=r"1 of 4 cells failed, first short, seed 1: Fragile 50%: ArithmeticError: no luck"
    ):
        broken = dl.sweep(grid, path=tmp_path, **QUIET)
    row = broken.table.iloc[3]
    assert row["error"] == "ArithmeticError: no luck with seed 1"
    assert pd.isna(row["kl"])
    assert (row["policy"], row["seed"], row["gen_length"]) == ("Fragile 50%", 1, 8)
    assert broken.table["error"].isna().sum() == 3
    assert "3 of 4 cells finished, 1 failed" in repr(broken)
    assert len(dl.open_sweep(tmp_path).table) == 3

    monkeypatch.setattr(Fragile, "refuses", set())
    measured.clear()
    assert dl.sweep(grid, path=tmp_path, **QUIET).table["error"].isna().all()
    assert measured == ["short, seed 1: Fragile 50%"]


def test_if_every_cell_fails_the_first_message_is_raised(options):
    grid = dl.Grid(**{**options, "prompts": [99], "control": False})
    with pytest.raises(
        dl.DlmLensError, match=r"none of 4 cells could be measured; prompt, seed 0: Dense: ValueError.*99"
    ):
        dl.sweep(grid, **QUIET)


def test_ctrl_c_keeps_the_finished_cells(options, tmp_path, measured):
    def stop(done, total, what):
        if done > 1.5:
            raise KeyboardInterrupt

    grid = dl.Grid(**{**options, "tasks": None})
    with pytest.raises(KeyboardInterrupt):
        dl.sweep(grid, path=tmp_path, device="cpu", progress=stop)
    left = dl.open_sweep(tmp_path)
    assert list(left.table["policy"]) == ["Dense"]
    assert left.missing == 5
    assert len(measured) == 2


def test_a_loaded_model_and_no_folder_will_do(options, table, capsys):
    dlm = dl.load(options["model"], device="cpu")
    found = dl.sweep(dl.Grid(**{**options, "model": dlm, "seeds": 0}), progress=True)
    pd.testing.assert_frame_equal(found.table[DETERMINISTIC], table[DETERMINISTIC][:3])
    assert "sweep: 3 cells, 0 finished before, 3 to measure" in capsys.readouterr().out


def test_the_model_is_loaded_as_asked(options):
    few = {"policies": [], "tasks": None, "seeds": 0, "gen_length": 32}
    short, long = (dl.Grid(**{**options, **few, "load": {"max_length": length}}) for length in (40, 64))
    with pytest.raises(dl.DlmLensError, match="exceed the 40 positions"):
        dl.sweep(short, **QUIET)
    assert dl.sweep(long, **QUIET).missing == 0
    assert short.cells()[0].key != long.cells()[0].key


def test_folders_of_something_else_are_refused(options, path, tmp_path):
    grid = dl.Grid(**options)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else; choose another folder"):
        dl.sweep(grid, path=tmp_path, overwrite=True, **QUIET)
    with pytest.raises(dl.DlmLensError, match="holds no sweep"):
        dl.open_sweep(tmp_path)


def test_cells_of_other_versions_are_refused_unless_overwritten(options, tmp_path):
    grid = dl.Grid(**{**options, "tasks": None, "seeds": 0, "control": False})
    dl.sweep(grid, path=tmp_path, **QUIET)
    head = tmp_path / "sweep.json"
    older = json.loads(head.read_text())
    older["versions"]["torch"] = "1.0"
    head.write_text(json.dumps(older))
    with pytest.raises(
        ValueError, match=rf"other versions: torch was 1\.0 and is {re.escape(torch.__version__)}"
    ):
        dl.sweep(grid, path=tmp_path, **QUIET)
    dl.sweep(
        dl.Grid(**{**options, "tasks": None, "seeds": 0, "policies": []}),
        path=tmp_path,
        overwrite=True,
        **QUIET,
    )
    assert list(dl.open_sweep(tmp_path).table["policy"]) == ["Dense"]


def test_arguments_that_do_not_go_together_are_refused(options, random_dlm, tmp_path):
    grid = dl.Grid(**options)
    with pytest.raises(TypeError, match="expected a Grid"):
        dl.sweep([dl.PulseCol()])
    with pytest.raises(TypeError, match=r"expected a dask\.distributed\.Client"):
        dl.sweep(grid, 4)
    with pytest.raises(ValueError, match="needs a path"):
        dl.sweep(dl.Grid(**{**options, "capture": True}))
    with pytest.raises(ValueError, match="device='cpu' asked for"):
        dl.sweep(dl.Grid(**{**options, "model": random_dlm}), **QUIET)
