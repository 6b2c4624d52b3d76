"""Plots of traces: what is drawn, not how it looks."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh

import dlm_lens as dl
from dlm_lens import metrics, plots
from dlm_lens.plots.head_metrics import HEAD_METRICS, head_metric
from dlm_lens.plots.sink_drift import sink_moments

PLOTS = (plots.sink_drift, plots.column_raster, plots.head_grid)


def drawn(ax, kind):
    return next(artist for artist in ax.collections if isinstance(artist, kind))


@pytest.mark.parametrize("plot", PLOTS)
def test_plots_draw_on_the_axes_given_or_on_new_ones(plot, trace):
    own = plot(trace)
    assert own.figure.get_layout_engine() is not None
    figure, ax = plt.subplots()
    assert plot(trace, ax=ax) is ax
    assert ax.figure is figure


@pytest.mark.parametrize("plot", PLOTS)
def test_titles_and_labels_say_what_is_shown(plot, trace):
    ax = plot(trace)
    assert ax.get_title(loc="left")
    assert ax.get_xlabel() in {"step", "head"}
    assert ax.get_ylabel()


def test_sink_drift_draws_the_centroid_and_tells_the_variances(trace):
    ax = plots.sink_drift(trace)
    line = ax.lines[0]
    np.testing.assert_allclose(line.get_ydata(), metrics.sink_centroid(trace).values)
    np.testing.assert_array_equal(line.get_xdata(), trace.steps)
    variance = metrics.sink_variance(trace)
    text = ax.texts[0].get_text()
    assert f"spatial variance {float(variance['spatial']):.3g}" in text
    assert "positions²" in text
    assert ax.lines[1].get_ydata()[0] == trace.prompt_length - 0.5


def test_sink_drift_of_one_head(trace):
    ax = plots.sink_drift(trace, layer=1, head=2)
    expected = metrics.sink_centroid(trace, per_head=True).sel(layer=1, head=2).values
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)
    assert ax.get_title(loc="left") == "Sink drift, layer 1, head 2"


def test_moments_of_sinks():
    mass = np.array([[0.25, 0.0, 0.75, 0.9], [0.1, 0.2, 0.3, 0.4]])
    sinks = np.array([[True, False, True, False], [False] * 4])
    centroid, spread = sink_moments(mass, sinks)
    assert centroid[0] == pytest.approx(1.5)
    assert spread[0] == pytest.approx(np.sqrt(0.25 * 1.5**2 + 0.75 * 0.5**2))
    assert np.isnan(centroid[1])
    assert np.isnan(spread[1])


def test_column_raster_draws_shares_and_marks_the_sinks(trace):
    ax = plots.column_raster(trace, layer=0)
    mesh = drawn(ax, QuadMesh)
    mass = trace["column_mass"].sel(layer=0).mean("head").transpose("position", "step").values
    np.testing.assert_allclose(mesh.get_array(), np.maximum(mass * 48, 1), rtol=1e-5)
    part = dl.Trace(trace.dataset.sel(layer=[0]))
    assert len(drawn(ax, LineCollection).get_segments()) == int(metrics.sinks(part).sum())
    committed = ax.collections[-1].get_offsets()
    assert len(committed) == 48 - trace.prompt_length
    assert ax.get_ylim() == (47.5, -0.5)


def test_padding_is_left_out(batch):
    ax = plots.column_raster(batch, sample=2)
    assert drawn(ax, QuadMesh).get_array().shape == (22, 3)
    assert plots.sink_drift(batch, sample=2).get_ylim() == (23.5, 1.5)


def test_steps_recorded_with_gaps_keep_their_places(trace):
    part = dl.Trace(trace.dataset.isel(step=[0, 1, 5]))
    mesh = drawn(plots.column_raster(part), QuadMesh)
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], [-0.5, 0.5, 3, 7])


@pytest.mark.parametrize("metric", sorted(set(HEAD_METRICS) - {"retained_mass"}))
def test_head_grid_draws_a_cell_per_head(trace, metric):
    ax = plots.head_grid(trace, metric, step=3)
    cells = drawn(ax, QuadMesh).get_array()
    scale = 100 if HEAD_METRICS[metric].unit == "%" else 1
    np.testing.assert_allclose(np.asarray(cells), scale * head_metric(trace, metric).sel(step=3).values)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1"]
    assert HEAD_METRICS[metric].unit in ax.figure.axes[1].get_ylabel()
    assert "step 3" in ax.get_title(loc="left")


def test_head_grid_averages_over_steps_by_default(batch):
    cells = drawn(plots.head_grid(batch, sample=1), QuadMesh).get_array()
    expected = 100 * head_metric(batch, "sink_mass").isel(sample=1).mean("step").values
    np.testing.assert_allclose(np.asarray(cells), expected)


def test_row_entropy_leaves_out_bins_of_padding():
    trace = dl.synthetic_trace(steps=1, length=24, prompt_length=8, bins=24, samples=3)
    entropy = trace["row_entropy"].isel(sample=2)
    expected = entropy.isel(query_bin=slice(2, None)).mean("query_bin")
    np.testing.assert_allclose(
        head_metric(trace, "row_entropy").isel(sample=2).values, expected.values, rtol=1e-5
    )


def test_step_similarity_is_the_cosine_with_the_step_before(batch):
    found = head_metric(batch, "step_similarity").transpose("sample", "step", "layer", "head").values
    mass = batch["column_mass"].transpose("sample", "step", "layer", "head", "position").values.astype(float)
    assert np.isnan(found[:, 0]).all()
    for index in np.ndindex(3, 2, 2, 2):
        sample, step, layer, head = index
        a, b = mass[sample, step + 1, layer, head], mass[sample, step, layer, head]
        cosine = a @ b / np.sqrt((a @ a) * (b @ b))
        np.testing.assert_allclose(found[sample, step + 1, layer, head], cosine, rtol=1e-5)


@pytest.mark.parametrize(
    ("plot", "arguments", "message"),
    [
        (plots.sink_drift, {"layer": 7}, "layer=7 is not in the trace"),
        (plots.column_raster, {"head": 1}, "head=1 needs a layer"),
        (plots.column_raster, {"sample": 1}, "sample=1 is not in the trace"),
        (plots.head_grid, {"metric": "nonsense"}, "choose one of sink_mass"),
        (plots.head_grid, {"step": 9}, "step=9 is not in the trace"),
        (plots.head_grid, {"sample": 2}, "sample=2 is not in the trace"),
    ],
)
def test_what_the_trace_lacks_is_named(plot, arguments, message, trace):
    with pytest.raises(ValueError, match=message):
        plot(trace, **arguments)


def test_a_statistic_that_was_not_recorded_is_named(trace):
    bare = dl.Trace(trace.dataset.drop_vars("column_mass"))
    for plot in PLOTS:
        with pytest.raises(dl.TraceError, match="column_mass"):
            plot(bare)


def test_dark_figures_use_the_dark_palette(trace):
    with plots.dark():
        ax = plots.sink_drift(trace)
    assert ax.lines[0].get_color() == plots.style.DARK.sink
    with plots.light():
        assert plots.sink_drift(trace).lines[0].get_color() == plots.style.LIGHT.sink
    assert plt.rcParams["axes.facecolor"] == "white"


@pytest.mark.parametrize("palette", [plots.style.LIGHT, plots.style.DARK], ids=["light", "dark"])
def test_the_scale_changes_lightness_steadily(palette):
    rgb = palette.sequential(np.linspace(0, 1, 64))[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    steps = np.diff(luminance)
    assert (steps < 0).all() or (steps > 0).all()
