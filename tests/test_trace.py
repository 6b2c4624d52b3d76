"""Traces survive saving, interruption and damage, and say what is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.errors import TraceError
from dlm_lens.trace import Trace, open_trace
from dlm_lens.trace_synthetic import synthetic_trace


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    synthetic_trace(steps=4).save(tmp_path / "run.zarr")
    return tmp_path / "run.zarr"


@settings(deadline=None, max_examples=10)
@given(
    steps=st.integers(1, 4),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    length=st.integers(5, 40),
    samples=st.integers(1, 3),
    causal=st.booleans(),
)
def test_synthetic_statistics_are_distributions(steps, layers, heads, length, samples, causal):
    trace = synthetic_trace(steps, layers, heads, length, prompt_length=4, causal=causal, samples=samples)
    np.testing.assert_allclose(trace["column_mass"].sum("position"), 1, rtol=1e-5)
    rows = trace["pooled_map"].sum("key_bin").values
    assert np.all(np.isclose(rows, 1, rtol=1e-5) | (rows == 0))
    assert float(trace["row_entropy"].min()) >= 0
    assert trace["tokens"].sizes.get("sample", 1) == samples == trace.samples


@pytest.mark.parametrize("samples", [1, 3])
def test_saved_trace_opens_equal(tmp_path, samples):
    trace = synthetic_trace(steps=3, samples=samples)
    again = trace.save(tmp_path / "run.zarr")
    xr.testing.assert_equal(trace.dataset, again.dataset)
    assert {k: trace.attrs[k] for k in trace.attrs} == again.attrs
    assert again.tokens_text() == trace.tokens_text()


def test_opening_reads_no_statistics(saved):
    variable = open_trace(saved)["column_mass"].variable
    assert not isinstance(variable._data, np.ndarray)


def test_texts_come_from_the_vocabulary_and_show_unknown_ids():
    trace = synthetic_trace(steps=2)
    assert trace.tokens_text()[0][-1] == "[MASK]"
    assert "[MASK]" not in trace.final_text()
    trace.attrs["vocabulary"] = "{}"
    assert set(trace.final_text()) <= {f"‹{n}›" for n in range(13)}


def test_variable_that_was_not_recorded_is_named(saved):
    with pytest.raises(TraceError, match=r"no full_map \(recorded: column_mass"):
        open_trace(saved)["full_map"]
    with pytest.raises(TraceError, match="unknown variable 'colum_mass'"):
        open_trace(saved)["colum_mass"]


def test_repr_states_interruption_and_escapes():
    trace = synthetic_trace(steps=2)
    trace.attrs.update(complete=False, model="<b>")
    assert "2 recorded, interrupted" in repr(trace)
    assert "<b>" not in trace._repr_html_()


def test_unfinished_steps_are_left_out(saved):
    zarr.open_group(saved)["finished"][2:] = 0
    trace = open_trace(saved)
    assert trace.steps == (0, 1)
    assert trace["column_mass"].sizes["step"] == 2


KILLED = """
import os, signal, sys
import numpy as np
from dlm_lens.trace_store import VARIABLES, TraceWriter, create_store
coordinates = {"step": range(6), "layer": [0], "head": [0], "position": range(8)}
writer = TraceWriter(create_store(sys.argv[1]), coordinates, {}, ["column_mass"], {"prompt_length": 2})
writer.write_start(np.zeros(1))
for step in range(6):
    tokens = np.full((1, 8), step)
    writer.write_outcome(tokens, tokens)
    if step == 3:
        writer._arrays["tokens"][step] = tokens[0]
        os.kill(os.getpid(), signal.SIGKILL)
    mass = np.full((1, 1, 1, 8), 1 / 8)
    writer.write_step(step, dict(tokens=tokens, masked=tokens > 0, confidence=tokens / 8, kind="dense",
                                 step_ms=1.0, column_mass=mass))
"""


def test_killed_run_leaves_its_finished_steps(tmp_path):
    path = tmp_path / "run.zarr"
    run = subprocess.run([sys.executable, "-c", KILLED, str(path)], env={"PYTHONPATH": ":".join(sys.path)})
    assert run.returncode == -9
    trace = open_trace(path)
    assert trace.steps == (0, 1, 2)
    np.testing.assert_allclose(trace["column_mass"], 1 / 8)


def test_missing_path(tmp_path):
    with pytest.raises(TraceError, match=r"no trace at .*nowhere.zarr: the path does not exist"):
        open_trace(tmp_path / "nowhere.zarr")


@pytest.mark.parametrize("as_folder", [True, False])
def test_something_that_is_no_zarr(tmp_path, as_folder):
    path = tmp_path / "notes"
    path.mkdir() if as_folder else path.write_text("hello")
    with pytest.raises(TraceError, match="notes is not a trace: it is no Zarr 3 folder"):
        open_trace(path)


def test_foreign_zarr(tmp_path):
    zarr.open_group(tmp_path / "other.zarr", mode="w").create_array("tokens", shape=(2,), dtype="int32")
    with pytest.raises(
        TraceError, match="Zarr data but not a trace: it lacks the attribute 'dlm_lens_trace'"
    ):
        open_trace(tmp_path / "other.zarr")


def test_newer_format(saved):
    zarr.open_group(saved).attrs["dlm_lens_trace"] = 99
    with pytest.raises(TraceError, match="trace format 99, this version of dlm-lens reads 1"):
        open_trace(saved)


def test_damaged_metadata(saved):
    (saved / "zarr.json").write_text('{"zarr_format": 3, "node_')
    with pytest.raises(TraceError, match="damaged"):
        open_trace(saved)


def test_damaged_metadata_of_an_array(saved):
    (saved / "tokens" / "zarr.json").write_text("{")
    with pytest.raises(TraceError, match="damaged"):
        open_trace(saved)


def test_missing_arrays(saved):
    shutil.rmtree(saved / "column_mass")
    shutil.rmtree(saved / "masked")
    with pytest.raises(TraceError, match="truncated: it lacks the arrays masked, column_mass"):
        open_trace(saved)


@pytest.mark.parametrize("keep", [0, 100])
def test_broken_off_chunk(saved, keep):
    chunk = saved / "column_mass" / "c" / "1" / "0" / "0" / "0"
    data = chunk.read_bytes()[:keep]
    chunk.write_bytes(data) if data else chunk.unlink()
    with pytest.raises(TraceError, match=rf"truncated: column_mass/c/1/0/0/0 has {keep} of 2048 bytes"):
        open_trace(saved)


def test_no_finished_step(saved):
    zarr.open_group(saved)["finished"][:] = 0
    with pytest.raises(TraceError, match="holds no finished step"):
        open_trace(saved)


def test_saving_replaces_only_traces_and_only_when_told(tmp_path, saved):
    trace = synthetic_trace(steps=1)
    with pytest.raises(TraceError, match="exists already"):
        trace.save(saved)
    assert trace.save(saved, overwrite=True).steps == (0,)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    with pytest.raises(TraceError, match="not a trace, so overwrite=True does not replace it"):
        trace.save(thesis, overwrite=True)
    assert (thesis / "chapter.tex").exists()


def test_from_dataset_names_what_is_wrong():
    dataset = synthetic_trace(steps=2).dataset
    with pytest.raises(TraceError, match="lacks masked, kind"):
        Trace.from_dataset(dataset.drop_vars(["masked", "kind"]))
    with pytest.raises(TraceError, match="column_mass has the dimensions"):
        Trace.from_dataset(dataset.transpose("layer", ...))
    with pytest.raises(TraceError, match="unknown step kinds"):
        Trace.from_dataset(dataset.assign(kind=("step", ["dense", "sideways"])))


def test_public_names_and_plain_attributes(saved):
    assert dl.Trace is Trace
    assert dl.open_trace is open_trace
    json.dumps(open_trace(saved).attrs)


def test_a_large_step_is_stored_in_several_chunks(tmp_path, monkeypatch):
    """A head of a large model can then be read without reading all the others, and a lost chunk is noticed."""
    monkeypatch.setattr("dlm_lens.trace_store._CHUNK_BYTES", 2 * 4 * 4 * 24)  # of two layers' column mass
    trace = dl.synthetic_trace(steps=2, layers=5, heads=4, length=24, prompt_length=8, bins=4)
    saved = trace.save(tmp_path / "run.zarr")
    assert sorted(path.name for path in (tmp_path / "run.zarr/column_mass/c/1").iterdir()) == ["0", "1", "2"]
    np.testing.assert_array_equal(saved["column_mass"].values, trace["column_mass"].values)
    (tmp_path / "run.zarr/column_mass/c/1/2/0/0").unlink()
    with pytest.raises(dl.TraceError, match=r"column_mass/c/1/2/0/0 has 0 of"):
        dl.open_trace(tmp_path / "run.zarr")
