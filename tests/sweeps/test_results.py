"""Traces of a sweep open without being read, and a selection reads its own chunks only."""

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from zarr.storage import LocalStore

import dlm_lens as dl
from dlm_lens.sweeps import Sweep


@pytest.fixture(scope="module")
def sweep(checkpoint, tmp_path_factory) -> Sweep:
    """Dense, PulseCol and Fast-dLLM with two seeds, some runs shorter than others, and two prompt sets."""
    grid = dl.Grid(
        checkpoint,
        [dl.PulseCol(sparsity=0.5, group_size=4), dl.FastDLLM()],
        {"short": torch.arange(1, 9), "batch": [list(range(1, 12)), list(range(1, 9))]},
        seeds=[0, 1],
        gen_length=4,
        steps=4,
        sampler=dl.Threshold(threshold=0.1, block_length=4),
        control=False,
        capture=[dl.ColumnMass()],
    )
    return dl.sweep(grid, path=tmp_path_factory.mktemp("traced"), device="cpu", progress=False)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The chunks of ``column_mass`` that were read from disk."""
    chunks: list[str] = []
    inner = LocalStore.get

    async def noting(self, key, *arguments, **options):
        if key.startswith("column_mass/c/"):
            chunks.append(f"{self.root}/{key}")
        return await inner(self, key, *arguments, **options)

    monkeypatch.setattr(LocalStore, "get", noting)
    return chunks


def test_opening_computes_nothing(sweep):
    def refuse(*arguments, **options):
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        traces = sweep.traces
        selected = traces["short"].sel(policy="PulseCol 50%", seed=1)["column_mass"].mean("head")
    assert set(traces) == {"short", "batch"}
    with pytest.raises(AssertionError, match="something was computed"), dask.config.set(scheduler=refuse):
        selected.compute()


def test_a_selection_reads_its_own_chunks(sweep, read):
    mass = sweep.traces["short"]["column_mass"]
    assert read == []
    mass.sel(policy="PulseCol 50%", seed=1).isel(step=0).compute(scheduler="synchronous")
    row = sweep.table.set_index(["prompts", "policy", "seed"]).loc["short", "PulseCol 50%", 1]
    assert read == [f"{row['trace']}/column_mass/c/0/0/0/0"]
    read.clear()
    mass.isel(step=0).compute(scheduler="synchronous")
    assert len(read) == len(set(read)) == mass.sizes["cell"]


def test_values_are_those_of_the_single_traces(sweep):
    table = sweep.table
    for name, dataset in sweep.traces.items():
        rows = table[(table["prompts"] == name) & table["trace"].notna()]
        assert list(zip(rows["policy"], rows["seed"], strict=True)) == list(dataset["cell"].values)
        for (_, row), (_, cell) in zip(rows.iterrows(), dataset.groupby("cell", squeeze=False), strict=True):
            alone = dl.open_trace(row["trace"]).dataset
            taken = cell.isel(cell=0, step=slice(0, row["steps"]))
            for variable in ("column_mass", "tokens", "masked", "kind"):
                np.testing.assert_array_equal(taken[variable].values, alone[variable].values)


def test_steps_that_a_run_did_not_take_and_what_a_policy_lacks_are_nan(sweep):
    together = sweep.traces["short"]
    dense = together.sel(policy="Dense")
    assert dense["retained_mass"].isnull().all()
    for number, taken in enumerate(together["steps_taken"].values):
        beyond = together.isel(cell=number, step=slice(int(taken), None))
        assert beyond["column_mass"].isnull().all()
        assert (beyond["tokens"] == -1).all()


def test_a_policy_of_partial_steps_is_measured_without_a_trace(sweep):
    table = sweep.table
    partial = table["policy"].str.startswith("Fast-dLLM")
    assert partial.any()
    assert table.loc[partial, "trace"].isna().all()
    assert table.loc[~partial, "trace"].notna().all()
    assert table["error"].isna().all()
    assert repr(sweep).endswith("12 of 12 cells finished, 8 traces")


def test_traces_of_several_lengths_are_kept_apart(checkpoint, tmp_path):
    grid = dl.Grid(
        checkpoint,
        [],
        {"growing": lambda seed: list(range(1, 8 + seed))},
        seeds=[0, 2],
        gen_length=4,
        steps=2,
        capture=[dl.ColumnMass()],
    )
    traces = dl.sweep(grid, path=tmp_path, device="cpu", progress=False).traces
    assert sorted(name.split(", ")[1] for name in traces) == ["1 × 11 positions", "1 × 13 positions"]
    assert {dataset.sizes["position"] for dataset in traces.values()} == {11, 13}


def test_chunks_of_one_trace(sweep, monkeypatch):
    path = sweep.table["trace"][0]
    lazy = dl.open_trace(path, chunks={})
    assert lazy["column_mass"].chunks is not None
    assert dl.open_trace(path)["column_mass"].chunks is None
    xr.testing.assert_identical(lazy.dataset.compute(), dl.open_trace(path).dataset.compute())

    monkeypatch.setattr("dlm_lens.trace_store.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install \"dlm-lens\[scale\]\""):
        dl.open_trace(path, chunks={})
    assert dl.open_trace(path)["column_mass"].sizes["step"] > 0
