"""The recorder, shown random queries and keys as the loop would show them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_lens.attention import StepContext
from dlm_lens.errors import TraceError
from dlm_lens.policies import StepPlan
from dlm_lens.recording import ColumnMass, FullMaps, PooledMap, Recorder, RowEntropy, Selection
from dlm_lens.trace import open_trace
from tests.kernels.materialised import attention_map, valid_queries
from tests.tensors import LargestTensor

EVERYTHING = (ColumnMass(), PooledMap(bins=5), RowEntropy(bins=5), FullMaps())


class Run:
    """A policy run that keeps everything."""

    def pattern(self, layer):
        return None


def recorder_of(selection, start, path=None, prompt_length=3):
    return Recorder(
        selection,
        start=start,
        prompt_length=prompt_length,
        token_texts=lambda ids: [f"t{i}" for i in ids],
        attrs={"prompt_length": prompt_length, "policy": "Dense()"},
        path=path,
    )


def context_of(step, start=None, causal=False):
    return StepContext(step, StepPlan(step, "dense"), Run(), None, start, causal)


def drive(recorder, steps, qk, batch, length, start=None, causal=False):
    """Run ``steps`` steps over the layers in ``qk``; at each, commit the next position after the prompt."""
    layers = qk.shape[1]
    for step in range(steps):
        recorder.begin_step(step, torch.full((batch, length), step), StepPlan(step, "dense"))
        for layer in range(layers):
            recorder.observe(layer, *qk[step, layer], context_of(step, start, causal))
        committed = torch.zeros(batch, length, dtype=torch.bool)
        committed[:, 3 + step] = True
        recorder.end_step(step, torch.full((batch, length), 0.5), committed, "dense", 1.5, Run())


@settings(max_examples=15)
@given(batch=st.integers(1, 2), length=st.integers(6, 20), causal=st.booleans(), data=st.data())
def test_trace_agrees_with_materialised_maps(batch, length, causal, data):
    start = torch.tensor([data.draw(st.integers(0, 2)) for _ in range(batch)])
    qk = torch.randn(2, 3, 2, batch, 4, length, 8)
    recorder = recorder_of(Selection(EVERYTHING, (0, 1), (0, 1, 2), (0, 1, 2, 3)), start)
    drive(recorder, 2, qk, batch, length, start, causal)
    tokens = torch.full((batch, length), 9)
    trace = recorder.finish(tokens, torch.full((batch, length), -1), interrupted=False)

    values = {
        name: trace[name] if batch > 1 else trace[name].expand_dims("sample") for name in trace.statistics
    }
    valid = valid_queries(start, batch, length).sum(1)[:, None, None]
    for step in range(2):
        for layer in range(3):
            a = attention_map(*qk[step, layer], start=start, causal=causal)
            at = {"step": step, "layer": layer}
            np.testing.assert_allclose(values["full_map"].isel(at), a, atol=1e-5)
            np.testing.assert_allclose(values["column_mass"].isel(at), a.sum(2) / valid, atol=1e-5)
    assert values["pooled_map"].dims[-2:] == ("query_bin", "key_bin")
    assert values["row_entropy"].shape == (batch, 2, 3, 4, 5)


def test_subsets_of_steps_layers_and_grouped_heads():
    q, k = torch.randn(3, 2, 1, 6, 10, 8), torch.randn(3, 2, 1, 2, 10, 8)
    recorder = recorder_of(Selection((ColumnMass(),), (0, 2), (1,), (0, 4)), torch.tensor([0]))
    for step in range(3):
        recorder.begin_step(step, torch.zeros(1, 10, dtype=torch.long), StepPlan(step, "dense"))
        for layer in range(2):
            recorder.observe(layer, q[step, layer], k[step, layer], context_of(step))
        recorder.end_step(step, torch.zeros(1, 10), torch.zeros(1, 10, dtype=torch.bool), "dense", 1.0, Run())
    trace = recorder.finish(torch.zeros(1, 10), torch.zeros(1, 10), interrupted=False)
    assert (trace.steps, trace.layers, trace.heads) == ((0, 2), (1,), (0, 4))
    expected = attention_map(q[2, 1], k[2, 1]).mean(2)[:, [0, 4]]
    np.testing.assert_allclose(trace["column_mass"].sel(step=2, layer=1), expected[0], atol=1e-6)


def test_rows_of_guidance_beyond_the_batch_are_not_recorded():
    q, k = torch.randn(2, 2, 2, 10, 8)
    recorder = recorder_of(Selection((ColumnMass(),), (0,), (0,), (0, 1)), torch.tensor([0]))
    drive(recorder, 1, torch.stack([q, k])[None, None], 1, 10)
    trace = recorder.finish(torch.zeros(1, 10), torch.zeros(1, 10), interrupted=False)
    np.testing.assert_allclose(trace["column_mass"][0, 0], attention_map(q, k)[0].mean(1), atol=1e-6)


def test_state_commitments_and_texts(tmp_path):
    recorder = recorder_of(
        Selection((ColumnMass(),), (0, 1), (0,), (0,)), torch.tensor([0]), path=tmp_path / "run.zarr"
    )
    drive(recorder, 2, torch.randn(2, 1, 2, 1, 1, 6, 4), 1, 6)
    crashed = open_trace(tmp_path / "run.zarr")
    assert crashed["committed_at"].values.tolist() == [-1, -1, -1, 0, -2, -2]
    assert not crashed.complete

    end = torch.tensor([[-1, -1, -1, 0, 1, -2]])
    trace = recorder.finish(torch.tensor([[7, 7, 7, 7, 7, 0]]), end, interrupted=True)
    assert trace["masked"].values.tolist() == [[False] * 3 + [True] * 3, [False] * 4 + [True] * 2]
    assert trace["committed_at"].values.tolist() == end[0].tolist()
    assert trace["step_ms"].values.tolist() == [1.5, 1.5]
    assert trace.tokens_text() == [["t0"] * 6, ["t1"] * 6]
    assert trace.final_text() == ["t7"] * 5 + ["t0"]
    assert not trace.complete


def test_nothing_is_written_before_the_first_step(tmp_path):
    recorder = recorder_of(
        Selection((ColumnMass(),), (0,), (0,), (0,)), torch.tensor([0]), path=tmp_path / "run.zarr"
    )
    assert not (tmp_path / "run.zarr").exists()
    with pytest.raises(TraceError, match="interrupted before its first step"):
        recorder.finish(torch.zeros(1, 6), torch.zeros(1, 6), interrupted=True)


def test_partial_steps_are_refused():
    recorder = recorder_of(Selection((ColumnMass(),), (0,), (0,), (0,)), torch.tensor([0]))
    with pytest.raises(TraceError, match=r"step 0 \(cached\) computes part of the positions"):
        recorder.begin_step(0, torch.zeros(1, 6), StepPlan(0, "cached", queries=torch.arange(3)))


def test_conflicting_statistics_are_named():
    with pytest.raises(ValueError, match="must have the same bins"):
        Selection((PooledMap(bins=4), RowEntropy(bins=8)), (0,), (0,), (0,))
    with pytest.raises(ValueError, match="every statistic may be recorded once"):
        Selection((ColumnMass(), ColumnMass()), (0,), (0,), (0,))
    with pytest.raises(ValueError, match="PooledMap: bins must be a positive integer, got 0"):
        PooledMap(bins=0)


def test_recording_never_makes_a_map():
    length = 2500
    qk = torch.randn(1, 1, 2, 1, 8, length, 8)
    recorder = recorder_of(
        Selection((ColumnMass(), PooledMap(), RowEntropy()), (0,), (0,), tuple(range(8))), torch.tensor([0])
    )
    with LargestTensor() as largest:
        drive(recorder, 1, qk, 1, length)
    # A single head's map would have 6 million elements, all of them 50 million.
    assert largest.elements < 1.1e6
