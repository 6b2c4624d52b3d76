"""Intervals of grouped means, against plain loops and against what is known of normal samples."""

import warnings

import numpy as np
import pytest
import xarray as xr

from dlm_lens.metrics import bootstrap_interval


def grouped(texts: int = 6, seeds: int = 3) -> xr.DataArray:
    rng = np.random.default_rng(5)
    values = rng.normal(size=(texts, 1, 1)) + 0.2 * rng.normal(size=(texts, seeds, 2)) + [0.0, 3.0]
    return xr.DataArray(values, {"model": ["a", "b"]}, ("text", "seed", "model"))


def loops(values: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Means [draw] of texts drawn with replacement, and of their seeds drawn for each text anew."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(draws):
        texts = rng.integers(0, len(values), size=len(values))
        seeds = rng.integers(0, values.shape[1], size=values.shape)
        of_texts = []
        for place, text in enumerate(texts):
            of_texts.append(np.mean([values[text, one] for one in seeds[place]]))
        means.append(np.mean(of_texts))
    return np.array(means)


def test_texts_are_drawn_and_then_seeds():
    values = grouped().sel(model="a", drop=True)
    found = bootstrap_interval(values, ("text", "seed"), draws=50, seed=3)
    means = loops(values.values, 50, 3)
    assert found["bound"].values.tolist() == ["low", "estimate", "high"]
    np.testing.assert_allclose(
        found, [*np.quantile(means, [0.025]), values.mean(), np.quantile(means, 0.975)]
    )
    # In whatever order the dimensions are.
    xr.testing.assert_allclose(found, bootstrap_interval(values.T, ("text", "seed"), draws=50, seed=3))


def test_pairs_stay_pairs():
    values = grouped()
    found = bootstrap_interval(
        values, ("text", "seed"), statistic=lambda means: means.sel(model="b") - means.sel(model="a")
    )
    alone = bootstrap_interval(values, ("text", "seed"))
    assert float(found.sel(bound="estimate")) == pytest.approx(
        float((values.sel(model="b") - values.sel(model="a")).mean())
    )
    width = float(found.sel(bound="high") - found.sel(bound="low"))
    assert width < 0.5 * float((alone.sel(bound="high") - alone.sel(bound="low")).min())


def test_a_text_counts_once_however_many_seeds_it_has():
    values = xr.DataArray([[0.0, 0.0, 0.0], [1.0, np.nan, np.nan]], dims=("text", "seed"))
    found = bootstrap_interval(values, ("text", "seed"), draws=200)
    assert float(found.sel(bound="estimate")) == 0.5


def test_intervals_of_normal_means_are_as_wide_as_they_should_be():
    groups = 40
    values = xr.DataArray(np.random.default_rng(1).normal(size=groups), dims="text")
    found = bootstrap_interval(values, "text", draws=4000)
    width = float(found.sel(bound="high") - found.sel(bound="low"))
    assert width == pytest.approx(2 * 1.96 * float(values.std()) / np.sqrt(groups), rel=0.1)
    narrow = bootstrap_interval(values, "text", level=0.5)
    assert float(narrow.sel(bound="high") - narrow.sel(bound="low")) < 0.5 * width


def test_where_nothing_was_measured_there_is_no_interval_and_no_warning():
    values = grouped()
    values.loc[{"model": "a"}] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap_interval(values, ("text", "seed"), draws=20)
    assert found.sel(model="a").isnull().all()
    assert found.sel(model="b").notnull().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"over": "prompt"}, r"over=\('prompt',\) must name dimensions of the values"),
        ({"over": ()}, r"over=\(\) must name"),
        ({"level": 95}, "level=95 must be between 0 and 1"),
        ({"draws": 0}, "draws=0 must be at least 1"),
    ],
)
def test_arguments_that_cannot_work_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(grouped(), **{"over": "text", **change})
