"""Packing: what reaches the browser is the trace, within half a quantum and within the budget."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import dlm_lens as dl
from dlm_lens import metrics
from dlm_lens.explorer.budget import describe, full_plan, plans
from dlm_lens.explorer.bundle import bundle
from dlm_lens.explorer.data import pack
from dlm_lens.explorer.quantise import Buffer, Extent, decode, encode
from dlm_lens.explorer.selection import coarser_maps, layer_blocks
from tests.explorer.conftest import synthetic

SHARES = arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(0, 1, width=32))
DTYPES = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "i4": np.int32, "f4": np.float32}


def unpack(packed):
    """The arrays as the browser reads them; those with a scale decoded."""
    data = zlib.decompress(packed.payload)
    out = {}
    for name, entry in packed.manifest["arrays"].items():
        size = int(np.prod(entry["shape"]))
        codes = np.frombuffer(data, DTYPES[entry["dtype"]], size, entry["offset"]).reshape(entry["shape"])
        if "along" in entry:
            codes = np.cumsum(codes, axis=entry["along"], dtype=np.uint8)
        out[name] = decode(codes, entry["scale"]) if "scale" in entry else codes
    return out


def bits(array, length):
    return np.unpackbits(array, axis=-1)[..., :length].astype(bool)


@given(SHARES)
def test_a_logarithmic_code_is_off_by_half_a_quantum(values):
    scale = Extent().include(values).log_scale()
    seen = decode(encode(values, scale), scale)
    quantum = np.log(scale["hi"] / scale["lo"]) / 255
    kept = values > scale["lo"]
    assert np.all(np.abs(np.log(seen[kept] / values[kept])) <= quantum / 2 * (1 + 1e-4) + 1e-6)
    assert np.all(seen[~kept] == scale["lo"])
    assert quantum <= np.log(10) * 5 / 255 + 1e-9


@given(arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(0, 1, width=32) | st.just(np.nan)))
def test_a_linear_code_is_off_by_half_a_quantum_and_keeps_nan(values):
    scale = {"kind": "linear", "lo": 0.0, "hi": 1.0}
    seen = decode(encode(values, scale), scale)
    assert np.array_equal(np.isnan(seen), np.isnan(values))
    assert np.nanmax(np.abs(seen - values), initial=0) <= 0.5 / 254 + 1e-6


def test_arrays_start_where_any_type_may_start():
    buffer = Buffer()
    buffer.add("odd", np.arange(5, dtype=np.uint8))
    buffer.add("wide", np.arange(3, dtype=np.float32))
    assert [entry["offset"] % 8 for entry in buffer.arrays.values()] == [0, 0]
    assert len(buffer.tobytes()) == buffer.size


def test_packed_values_are_those_of_the_trace(trace):
    arrays = unpack(pack(trace))
    mass, maps = trace["column_mass"].values, trace["pooled_map"].values
    heads = 1 + len(trace.layers)
    assert arrays["mass"].shape == (1, 1 + 2 + 8, 6, 48)
    np.testing.assert_allclose(arrays["mass"][0, 0], mass.mean((1, 2)), rtol=0.024)
    np.testing.assert_allclose(arrays["mass"][0, 2], mass[:, 1].mean(1), rtol=0.024)
    np.testing.assert_allclose(arrays["mass"][0, heads + 4 + 3], mass[:, 1, 3], rtol=0.024)
    np.testing.assert_allclose(arrays["map"][0, heads + 2], maps[:, 0, 2], rtol=0.024, atol=1e-5)
    tokens = np.array(pack(trace).manifest["words"])[arrays["tokens"][0]]
    assert tokens[:-1].tolist() == trace.tokens_text()
    assert tokens[-1].tolist() == trace.final_text()
    assert np.array_equal(bits(arrays["masked"], 48)[0], trace["masked"].values)
    assert np.array_equal(arrays["committed_at"][0], trace["committed_at"].values)


def test_sinks_centroid_and_variance_are_those_of_the_metrics(trace):
    arrays = unpack(pack(trace))
    sinks = bits(arrays["sinks"], trace.length)[0]
    assert np.array_equal(sinks[0], metrics.sinks(trace).values)
    per_head = metrics.sinks(trace, per_head=True).transpose("layer", "head", "step", "position").values
    assert np.array_equal(sinks[3:], per_head.reshape(8, 6, 48))
    np.testing.assert_allclose(arrays["centroid"][0, 0], metrics.sink_centroid(trace).values, rtol=1e-5)
    variance = metrics.sink_variance(trace)
    expected = [float(variance["spatial"]), float(variance["temporal"])]
    np.testing.assert_allclose(arrays["variance"][0, 0], expected, rtol=1e-4)


def test_metrics_per_head_are_those_of_the_metrics(trace):
    packed = pack(trace)
    keys = [metric["key"] for metric in packed.manifest["metrics"]]
    assert keys == [
        "sink_mass",
        "temporal_variance",
        "effective_columns",
        "recall",
        "step_similarity",
        "row_entropy",
    ]
    values = dict(zip(keys, unpack(packed)["metrics"][0], strict=True))
    expected = metrics.effective_columns(trace).values
    np.testing.assert_allclose(values["effective_columns"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        values["row_entropy"], trace["row_entropy"].mean("query_bin").values, rtol=1e-5
    )
    drift = metrics.temporal_variance(trace, per_head=True).values
    np.testing.assert_allclose(values["temporal_variance"], np.broadcast_to(drift, (6, 2, 4)), rtol=1e-5)


def test_recall_is_packed_by_budget(trace):
    packed = pack(trace)
    budgets = packed.manifest["budgets"]
    expected = metrics.column_recall(trace, budgets).values
    np.testing.assert_allclose(unpack(packed)["recall"][0], expected, atol=0.003)


def test_heads_and_layers_can_be_left_to_be_asked_for(trace):
    """What is asked for later is what would have been packed; on the same scale, so that colours agree."""
    whole = pack(trace)
    packed = pack(trace, max_bytes=len(whole.payload) // 2, on_demand=True)
    assert (packed.plan.resident, packed.manifest["resident"], packed.manifest["notes"]) == ("layer", 3, [])
    arrays, payload = packed.selection(0, 1, 2)
    everything = unpack(whole)
    for name, values in unpack(replace(packed, manifest={"arrays": arrays}, payload=payload)).items():
        np.testing.assert_allclose(values[0, 0], everything[name][0, 3 + 4 + 2], rtol=1e-6, err_msg=name)
    mean = packed.selection(0, 1, None)
    layer = unpack(replace(packed, manifest={"arrays": mean[0]}, payload=mean[1]))
    assert np.array_equal(layer["mass"][0, 0], everything["mass"][0, 2])
    smaller = pack(trace, max_bytes=len(whole.payload) // 4, on_demand=True)
    assert smaller.plan.resident == "all"
    assert smaller.manifest["steps"] == list(trace.steps)


def test_selections_of_a_padded_sample_are_those_of_that_sample(batch):
    whole, packed = pack(batch), pack(batch, max_bytes=len(pack(batch).payload) // 2, on_demand=True)
    arrays, payload = packed.selection(2, 0, 3)
    for name, values in unpack(replace(packed, manifest={"arrays": arrays}, payload=payload)).items():
        np.testing.assert_allclose(values[0, 0], unpack(whole)[name][2, 3 + 3], rtol=1e-6, err_msg=name)


def test_a_trace_larger_than_a_block_of_memory_is_read_in_pieces(trace, monkeypatch):
    whole = pack(trace)
    monkeypatch.setattr("dlm_lens.explorer.selection._BLOCK_BYTES", 1)
    assert list(layer_blocks(trace, ("column_mass",))) == [slice(0, 1), slice(1, 2)]
    for name, values in unpack(pack(trace)).items():
        np.testing.assert_allclose(values, unpack(whole)[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_retained_mass_is_a_metric_when_recorded(trace):
    retained = trace["row_entropy"].mean("query_bin") * 0 + 0.9
    sparse = dl.Trace(trace.dataset.assign(retained_mass=retained))
    assert pack(sparse).manifest["metrics"][-1]["key"] == "retained_mass"


def test_samples_come_first_and_padding_is_told(batch):
    packed = pack(batch)
    arrays = unpack(packed)
    assert packed.manifest["start"] == [0, 1, 2]
    mass = batch["column_mass"].values
    np.testing.assert_allclose(arrays["mass"][2, 0][:, 2:], mass[2].mean((1, 2))[:, 2:], rtol=0.024)
    assert not bits(arrays["sinks"], batch.length)[2, ..., :2].any()


def test_coarser_maps_keep_rows_that_sum_to_one():
    trace = dl.synthetic_trace(steps=1, length=50, prompt_length=20, bins=16, samples=2)
    maps = trace["pooled_map"].values[:, None, :, 0, 0]
    coarse = coarser_maps(maps, 8, trace["start"].values, trace.length)
    np.testing.assert_allclose(coarse.sum(-1), 1, rtol=1e-5)
    fine = dl.synthetic_trace(steps=1, length=50, prompt_length=20, bins=8, samples=2)
    np.testing.assert_allclose(coarse, fine["pooled_map"].values[:, None, :, 0, 0], rtol=1e-4)


@pytest.mark.parametrize("share", [0.8, 0.3, 0.1])
def test_the_budget_is_kept_and_what_is_dropped_is_said(share):
    trace = synthetic(steps=20, heads=8, bins=48, length=96)
    whole = pack(trace)
    budget = int(share * len(whole.payload))
    packed = pack(trace, max_bytes=budget)
    assert len(packed.payload) <= budget
    assert whole.manifest["notes"] == []
    assert packed.manifest["notes"]
    assert packed.manifest["steps"][-1] == 19


def test_a_budget_that_nothing_fits_into_is_an_error(trace):
    with pytest.raises(ValueError, match="max_bytes=100 is too small"):
        pack(trace, max_bytes=100)


def test_plans_shrink_and_describe_themselves(trace):
    full = full_plan(trace)
    ladder = list(plans(trace))
    assert ladder[0] == full
    assert describe(full, full) == []
    sizes = [(len(p.steps) * p.selections * (p.bins**2 + trace.length)) for p in ladder]
    assert sizes == sorted(sizes, reverse=True)
    last = " ".join(describe(ladder[-1], full))
    assert "Attention maps are left out" in last
    assert "1 of 4 heads" in last


def test_a_trace_without_statistics_is_an_error(trace):
    bare = dl.Trace(trace.dataset.drop_vars(["column_mass", "pooled_map", "row_entropy"]))
    with pytest.raises(dl.TraceError, match="nothing to explore"):
        pack(bare)
    with pytest.raises(dl.TraceError, match="no finished step"):
        pack(dl.Trace(trace.dataset.isel(step=slice(0))))


def test_the_manifest_is_json_whatever_the_tokens_hold(trace):
    words = {0: "\ud800", 1: "</script>"}
    broken = dl.Trace(trace.dataset.assign_attrs(vocabulary=json.dumps(words)))
    text = bundle([broken]).manifest_json
    text.encode("utf-8")
    assert "</script>" in json.loads(text)["traces"][0]["words"]
