"""The figure of sinks, spatial against temporal variance."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

import dlm_lens as dl
from dlm_lens import metrics, plots
from dlm_lens.plots.sink_variance import sink_variance_table


def dots(ax) -> list[PathCollection]:
    return [artist for artist in ax.collections if isinstance(artist, PathCollection)]


def test_the_table_has_a_row_per_head_and_one_per_text(batch):
    table = sink_variance_table({"twin": batch})
    heads = metrics.sink_variance(batch, per_head=True).mean("sample")
    means = metrics.sink_variance(batch)
    row = table[(table["layer"] == 1) & (table["head"] == 0)].iloc[0]
    assert row["spatial"] == pytest.approx(float(heads["spatial"].sel(layer=1, head=0)))
    assert row["temporal"] == pytest.approx(float(heads["temporal"].sel(layer=1, head=0)))
    texts = table[table["layer"] == -1]
    np.testing.assert_allclose(texts["spatial"], means["spatial"])
    np.testing.assert_allclose(texts["temporal"], means["temporal"])
    assert texts["sample"].tolist() == [0, 1, 2]
    assert len(table) == 2 * 2 + 3


def test_heads_are_dots_and_the_mean_has_whiskers_over_texts(trace, batch):
    traces = {"one": trace, "several": batch}
    ax = plots.sink_variance(traces)
    table = sink_variance_table(traces)
    assert [len(part.get_offsets()) for part in dots(ax)] == [8, 4]
    marks = {container.get_label(): container for container in ax.containers}
    assert list(marks) == ["one", "several"]
    texts = table[(table["trace"] == "several") & (table["layer"] < 0)]
    x, y = marks["several"].lines[0].get_xydata()[0]
    assert (x, y) == pytest.approx((texts["spatial"].mean(), texts["temporal"].mean()))
    assert marks["several"].has_xerr
    assert not marks["one"].has_xerr
    error = marks["several"].lines[2][0].get_segments()[0]
    assert error[1][0] == pytest.approx(x + 2 * texts["spatial"].std() / np.sqrt(3))


def test_sinks_that_never_move_lie_on_the_edge():
    rows = [("a", 0, 0, -1, 1.0, 0.0), ("a", 0, 1, -1, 2.0, np.nan), ("a", -1, -1, 0, 1.5, 20.0)]
    columns = ["trace", "layer", "head", "sample", "spatial", "temporal"]
    ax = plots.sink_variance(pd.DataFrame(rows, columns=columns))
    np.testing.assert_allclose(dots(ax)[0].get_offsets(), [(1, 10), (2, 10)])
    assert ax.get_ylim()[0] == pytest.approx(8)


def test_no_trace_is_refused():
    with pytest.raises(ValueError, match="at least one trace"):
        plots.sink_variance({})


def test_kappa_reaches_the_metric():
    trace = dl.synthetic_trace(steps=4, layers=1, heads=2, length=32, prompt_length=8, bins=8)
    few = sink_variance_table({"a": trace}, kappa=4.0)
    expected = metrics.sink_variance(trace, kappa=4.0)
    assert few.iloc[-1]["temporal"] == pytest.approx(float(expected["temporal"]), nan_ok=True)
