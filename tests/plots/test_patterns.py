"""Plots of sparsity and similarity: what is drawn, not how it looks."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh

import dlm_lens as dl
from dlm_lens import metrics, plots


def mesh(ax):
    return next(artist for artist in ax.collections if isinstance(artist, QuadMesh))


@pytest.fixture
def recall():
    labels = ["columns 8", "columns 16", "blocks 8", "blocks 16", "columns all"]
    values = np.arange(3 * 2 * 5 * 2).reshape(3, 1, 2, 5, 2) / 60
    dims = ("step", "layer", "head", "granularity", "budget")
    return xr.DataArray(
        values, dims=dims, coords={"step": [0, 4, 8], "granularity": labels, "budget": [0.1, 0.3]}
    )


def test_recall_is_drawn_for_every_granularity(recall):
    ax = plots.recall_by_budget(recall, steps=[4, 8])
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == {"random keys", *recall["granularity"].values}
    expected = 100 * recall.sel(step=[4, 8], granularity="blocks 16").mean(("step", "layer", "head"))
    np.testing.assert_allclose(lines["blocks 16"].get_ydata(), expected)
    np.testing.assert_allclose(lines["blocks 16"].get_xdata(), [10, 30])
    np.testing.assert_allclose(lines["random keys"].get_ydata(), [10, 30])
    assert lines["blocks 16"].get_linestyle() == "--" != lines["columns 16"].get_linestyle()
    assert lines["blocks 16"].get_color() == lines["columns 16"].get_color() != lines["columns 8"].get_color()


def test_recall_of_a_trace(trace, recall):
    full = recall.isel(step=[0] * 6, layer=[0, 0], head=[0] * 4).assign_coords(step=range(6))
    batch = xr.concat([trace.dataset.assign(recall=part) for part in (full, full / 2)], dim="sample")
    drawn = [plots.recall_by_budget(dl.Trace(batch), sample=sample).lines[1].get_ydata() for sample in (0, 1)]
    np.testing.assert_allclose(drawn[0], 2 * drawn[1])
    with pytest.raises(dl.TraceError, match="no recall"):
        plots.recall_by_budget(trace)


def test_step_similarity_draws_the_mean_of_the_selection(trace):
    ax = plots.step_similarity(trace, layer=1, measure="overlap", budget=0.1, lowest=0.25)
    expected = metrics.step_similarity(trace, measure="overlap", budget=0.1).sel(layer=1).mean("head")
    np.testing.assert_allclose(mesh(ax).get_array(), expected)
    assert mesh(ax).get_clim() == (0.25, 1)
    assert ax.figure.axes[1].get_ylabel() == "overlap (Jaccard)"
    assert ax.yaxis.get_inverted()


def test_head_similarity_keeps_the_order_of_layers(trace, batch):
    ax = plots.head_similarity(trace)
    expected = metrics.head_similarity(trace)
    drawn = np.asarray(mesh(ax).get_array())
    assert drawn[2, 4 + 3] == pytest.approx(float(expected.sel(layer=0, head=2, layer_other=1, head_other=3)))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1"]
    of_last = metrics.head_similarity(batch).isel(sample=2).values.reshape(4, 4)
    np.testing.assert_allclose(mesh(plots.head_similarity(batch, sample=2)).get_array(), of_last)


def test_pooled_maps_show_shares_and_the_end_of_the_prompt(trace):
    axes = plots.pooled_maps(trace, layer=0, head=3, steps=[1, 5])
    assert len(axes) == 2
    for ax, step in zip(axes, (1, 5), strict=True):
        shares = trace["pooled_map"].sel(layer=0, head=3, step=step).values * 16
        np.testing.assert_allclose(mesh(ax).get_array(), np.clip(shares, 0.1, 30), rtol=1e-5)
        assert {line.get_ydata()[0] for line in ax.lines[:1]} == {trace.prompt_length - 0.5}
        assert f"step {step}" in ax.get_title(loc="left")
    assert "head 3" in axes[0].get_title(loc="left")


def test_pooled_maps_choose_steps_and_leave_padding_out(trace, batch):
    titles = [ax.get_title(loc="left") for ax in plots.pooled_maps(trace)]
    assert [title.split()[-1] for title in titles] == ["0", "2", "3", "5"]
    ax = plots.pooled_maps(batch, sample=2, steps=[0])[0]
    assert ax.get_xlim() == (1.5, 23.5)
    # The first bin of 3 positions holds one that is valid, which gets all of the bin's mass.
    shares = batch["pooled_map"].isel(sample=2).sel(step=0).mean(("layer", "head")).values[3, 0] * 22
    assert np.asarray(mesh(ax).get_array())[3, 0] == pytest.approx(np.clip(shares, 0.1, 30), rel=1e-5)


def test_pattern_age_draws_fresh_and_frozen_columns(trace):
    ax = plots.pattern_age(trace, layer=1, budget=0.25, made=[0, 3])
    recall = 100 * metrics.stale_recall(trace, 0.25)["recall"].sel(layer=1).mean("head")
    fresh, first, third = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(fresh, np.diagonal(recall))
    np.testing.assert_allclose(first, recall.sel(step_made=0))
    np.testing.assert_allclose(third, recall.sel(step_made=3))
    assert np.isnan(third[:3]).all()


def test_plots_draw_on_given_axes(trace):
    for plot in (plots.step_similarity, plots.head_similarity, plots.pattern_age):
        ax = plt.subplots()[1]
        assert plot(trace, ax=ax) is ax
    figure, axes = plt.subplots(1, 2)
    assert plots.pooled_maps(trace, steps=[0, 1], ax=axes)[1].figure is figure


@pytest.mark.parametrize(
    ("plot", "arguments", "message"),
    [
        (plots.pooled_maps, {"steps": [9]}, r"steps \[9\] are not in the trace"),
        (plots.pooled_maps, {"steps": [0, 1], "ax": []}, "2 steps need as many axes, got 0"),
        (plots.pattern_age, {"made": [0, 77]}, r"not recorded: \[77\]"),
        (plots.step_similarity, {"layer": 9}, "layer=9 is not in the trace"),
        (plots.head_similarity, {"sample": 3}, "sample=3 is not in the trace"),
    ],
)
def test_what_the_trace_lacks_is_named(plot, arguments, message, trace):
    with pytest.raises(ValueError, match=message):
        plot(trace, **arguments)
