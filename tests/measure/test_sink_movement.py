"""How sinks move on shared texts: every run and reading, against plain loops and against models on shorter texts."""

import json
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import dlm_lens as dl
from dlm_lens import metrics
from dlm_lens.measure import sink_movement as module
from dlm_lens.measure.policy_table import code_prompts
from dlm_lens.measure.sink_movement import even_movement, open_movement, save_movement, sink_movement
from dlm_lens.measure.sink_readings import EVEN, GIVEN, NEWEST, PAPER, of_denoising, of_growing, read

KEPT = Path(__file__).resolve().parents[2] / "figures" / "data" / "sink-movement-cpu.json"
SHAPE = {"layers": 2, "hidden": 16, "heads": 2, "vocab": 64}
GIVEN_TOKENS, STEPS, LENGTH = 6, 3, 16
BOUNDS = [6, 9, 12, 16]
HOW = {"given": GIVEN_TOKENS, "steps": STEPS, "seeds": 2, "progress": False}


@pytest.fixture(scope="module")
def pair() -> tuple[dl.DLM, dl.DLM]:
    return dl.random_model("llada", **SHAPE, seed=1), dl.random_model("ar", **SHAPE, seed=2)


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    return torch.randint(4, 50, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def found(pair, texts) -> xr.Dataset:
    return sink_movement(*pair, texts, **HOW)


def maps_of(dlm: dl.DLM, tokens: torch.Tensor, gen_length: int = 1, **run) -> dl.Trace:
    run = {"steps": 1, **run}
    return dl.capture(dlm, tokens, gen_length=gen_length, statistics=[dl.FullMaps()], progress=False, **run)


def shares(mass: np.ndarray) -> np.ndarray:
    return mass / mass.sum(-1, keepdims=True) * mass.shape[-1]


def test_a_growing_text_is_read_as_shorter_texts_are(pair, texts):
    _, causal = pair
    whole = maps_of(causal, texts[0])["full_map"].values[0, ..., :LENGTH, :LENGTH]
    masses = of_growing(whole, GIVEN_TOKENS, BOUNDS)
    for step, (there, then) in enumerate(pairwise(BOUNDS)):
        prefix = maps_of(causal, texts[0, :there])["full_map"].values[0, ..., :there, :there]
        np.testing.assert_allclose(masses[PAPER][step, ..., :there], prefix.sum(-2), rtol=1e-5)
        assert np.isnan(masses[PAPER][step, ..., there:]).all()
        later = prefix[..., GIVEN_TOKENS - 1 :, :GIVEN_TOKENS].sum(-2)
        np.testing.assert_allclose(masses[GIVEN][step], shares(later), rtol=1e-5)
        soon = maps_of(causal, texts[0, :then])["full_map"].values[
            0, ..., there - 1 : then - 1, :GIVEN_TOKENS
        ]
        np.testing.assert_allclose(masses[NEWEST][step], shares(soon.sum(-2)), rtol=1e-5)


def test_denoising_is_read_from_the_queries_of_each_reading(pair, texts):
    trace = maps_of(pair[0], texts[0, :GIVEN_TOKENS], LENGTH - GIVEN_TOKENS, steps=STEPS)
    maps, masses = trace["full_map"].values, of_denoising(trace, GIVEN_TOKENS)
    for step, layer, head in product(range(STEPS), range(2), range(2)):
        received = {name: np.zeros(LENGTH) for name in (PAPER, GIVEN, NEWEST)}
        for query in range(LENGTH):
            row = maps[step, layer, head, query]
            received[PAPER] += row
            received[GIVEN] += row * (query >= GIVEN_TOKENS)
            received[NEWEST] += row * (int(trace["committed_at"][query]) == step)
        np.testing.assert_allclose(masses[PAPER][step, layer, head], received[PAPER], rtol=1e-5)
        for name in (GIVEN, NEWEST):
            expected = shares(received[name][:GIVEN_TOKENS])
            np.testing.assert_allclose(masses[name][step, layer, head], expected, rtol=1e-5)


def test_readings_are_the_metrics_of_a_trace(pair, texts):
    trace = maps_of(pair[0], texts[0, :GIVEN_TOKENS], LENGTH - GIVEN_TOKENS, steps=STEPS)
    masses = {name: mass[None] for name, mass in of_denoising(trace, GIVEN_TOKENS).items()}
    readings = read(masses, causal=False).isel(sample=0)
    trace.dataset["column_mass"] = (
        trace["full_map"].mean("query").rename(key="position").transpose("step", "layer", "head", "position")
    )
    for name, kappa in ((PAPER, 2.0), ("κ = 1", 1.0), (EVEN, 2.0)):
        temporal = readings["temporal"].sel(reading=name)
        expected = metrics.temporal_variance(trace, kappa)
        heads = metrics.temporal_variance(trace, kappa, per_head=True)
        np.testing.assert_allclose(temporal[0], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(temporal[1], np.nanmedian(heads), rtol=1e-4, atol=1e-6)
    merged, apart = (readings.sel(reading=PAPER).isel(average=number) for number in (0, 1))
    np.testing.assert_allclose(merged["spatial"], metrics.spatial_variance(trace), rtol=1e-4)
    np.testing.assert_allclose(
        apart["spatial"], metrics.spatial_variance(trace, per_head=True).median(), rtol=1e-4
    )
    np.testing.assert_allclose(merged["count"], metrics.sinks(trace).sum("position").mean())
    for name, metric in (("persistence", metrics.sink_persistence), ("lifetime", metrics.sink_lifetime)):
        heads = metric(trace, per_head=True)
        heads = heads.mean("position") if "position" in heads.dims else heads
        np.testing.assert_allclose(apart[name], heads.mean(), rtol=1e-4)
    first = metrics.sinks(trace, per_head=True)[..., 0]
    np.testing.assert_allclose(apart["first"], first.mean())
    np.testing.assert_allclose(
        readings["heads_temporal"], metrics.temporal_variance(trace, per_head=True), rtol=1e-4, atol=1e-6
    )


def test_runs_without_noise_are_the_same_for_every_seed_and_others_are_not(found):
    spatial = found["spatial"].sel(reading=PAPER, average="mean of heads")
    for name in module.RUNS:
        same = np.allclose(*spatial.sel(run=name).transpose("seed", "text").values)
        assert same == (name in module.SEEDLESS), name
    # Other texts have other seeds: neither noise nor order is shared.
    again = found.isel(text=0)["spatial"].values
    assert not np.allclose(again, found.isel(text=1)["spatial"].values)


def test_the_twin_reads_what_was_written(pair, texts, found):
    diffusion, causal = pair
    options = {"steps": STEPS, "sampler": dl.LowConfidence(block_length=10, temperature=1.0), "seed": 3}
    written = maps_of(diffusion, texts[1, :GIVEN_TOKENS], LENGTH - GIVEN_TOKENS, **options)
    found = found.isel(text=1, seed=1)
    tokens = torch.from_numpy(written["final_tokens"].values).long()
    whole = maps_of(causal, tokens)["full_map"].values[0, ..., :LENGTH, :LENGTH]
    expected = read(
        {name: mass[None] for name, mass in of_growing(whole, GIVEN_TOKENS, BOUNDS).items()}, True
    )
    for variable in ("spatial", "temporal", "count"):
        np.testing.assert_allclose(
            found[variable].sel(run=module.WRITTEN).transpose("reading", "average"),
            expected[variable].isel(sample=0).transpose("reading", "average"),
            rtol=1e-4,
            atol=1e-9,
        )


def test_restless_counts_pairs_of_heads():
    rng = np.random.default_rng(0)
    moving, still = rng.integers(0, 3, (2, 3)).astype(float), rng.integers(0, 3, (2, 2)).astype(float)
    still[0, 0] = np.nan
    expected = np.mean(
        [(a > b) + 0.5 * (a == b) for a in moving.ravel() for b in np.nan_to_num(still).ravel()]
    )
    arrays = [xr.DataArray(values, dims=("layer", "head")) for values in (moving, still)]
    assert float(module._more_often(*arrays)) == pytest.approx(expected)


def test_no_model_has_no_sinks_over_even_attention():
    even = even_movement(64, 32, 4).sel(average="mean of heads")
    assert float(even["count"].sel(reading=PAPER)) > 1
    assert float(even["persistence"].sel(reading=PAPER)) == 1
    assert np.isfinite(even["temporal"].sel(reading=PAPER))
    for reading in (EVEN, GIVEN, NEWEST):
        assert float(even["spatial"].sel(reading=reading)) < 1e-20
        assert np.isnan(even["temporal"].sel(reading=reading))


def test_what_is_kept_is_read_back(found, tmp_path):
    path = tmp_path / "movement.json"
    save_movement(found, {"seeds": 2, "models": "random"}, path)
    again = open_movement(path)
    assert again.attrs["models"] == "random"
    assert again.attrs["finished_texts"] == 2
    for name in ("spatial", "temporal", "persistence", "centroid", "lifetime", "count", "first", "restless"):
        before, after = (data[name].sel(reading=PAPER) for data in (found, again))
        before = before.transpose(*after.dims)
        np.testing.assert_allclose(after, before, rtol=6e-3, err_msg=name)
    heads = found["heads_temporal"].mean(("text", "seed"))
    np.testing.assert_allclose(again["heads_temporal"], heads.transpose("run", "layer", "head"), rtol=6e-3)


def test_the_command_keeps_what_is_finished(tmp_path, monkeypatch, pair, capsys):
    monkeypatch.setattr(dl, "load", lambda name: pair[name == "tiny-ar"])
    monkeypatch.setattr(
        module, "code_prompts", lambda dlm, count, length: list(torch.randint(4, 50, (count, length)))
    )
    of_text, finished = module._of_text, []

    def breaks_off(*arguments, **how):
        if finished:
            raise KeyboardInterrupt
        finished.append(1)
        return of_text(*arguments, **how)

    sizes = ["--texts", "2", "--seeds", "1", "--length", "16", "--given", "6", "--steps", "3", "--out"]
    out = tmp_path / "movement.json"
    monkeypatch.setattr(module, "_of_text", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        module.main([*sizes, str(out)])
    assert json.loads(out.read_text())["provenance"]["finished_texts"] == 1
    monkeypatch.setattr(module, "_of_text", of_text)
    assert module.main([*sizes, str(out)]) == 0
    stored = json.loads(out.read_text())["provenance"]
    assert (stored["finished_texts"], stored["texts"], stored["steps"]) == (2, 2, 3)
    assert "autoregressive, own text" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"given": 1}, "given=1 leaves 15 to arrive"),
        ({"given": 14, "steps": 3}, "given=14 leaves 2 to arrive in steps=3"),
        ({"steps": 1}, "steps=1; expected at least"),
        ({"seeds": 0}, "seeds=0 must be at least 1"),
    ],
)
def test_arguments_that_cannot_work_are_named(pair, texts, change, message):
    with pytest.raises(ValueError, match=message):
        sink_movement(*pair, texts, **{**HOW, **change})


def test_models_of_the_wrong_kind_and_single_texts_are_refused(pair, texts):
    with pytest.raises(ValueError, match="expected a diffusion model and then an autoregressive one"):
        sink_movement(*pair[::-1], texts, **HOW)
    with pytest.raises(ValueError, match=r"shape \(16,\); expected \[texts, tokens\]"):
        sink_movement(*pair, texts[0], **HOW)


@pytest.mark.slow
def test_the_kept_measurement_is_found_again(tiny):
    """Of runs that draw no tokens, which another CPU could draw otherwise."""
    kept = open_movement(KEPT)
    about = kept.attrs
    texts = torch.stack(code_prompts(tiny, about["texts"], about["length"])[:1])
    how = {"given": about["given"], "steps": about["steps"], "seeds": 1}
    anew = sink_movement(tiny, dl.load("tiny-ar"), texts, **how, progress=False).isel(text=0, seed=0)
    kept = kept.isel(text=0, seed=0)
    for name in (module.SHUFFLED, module.ORDERED, module.TWIN):
        for variable, tolerance in {"spatial": 0.02, "count": 0.1, "lifetime": 0.1}.items():
            now, then = (data[variable].sel(run=name, reading=PAPER) for data in (anew, kept))
            np.testing.assert_allclose(now, then, rtol=tolerance, err_msg=f"{variable} of {name}")
        now, then = (data["temporal"].sel(run=name, average="head by head") for data in (anew, kept))
        np.testing.assert_allclose(now, then.reindex_like(now), rtol=0.25, atol=2.0, err_msg=name)
