"""Plots of the tables of locality and drift: what is drawn."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection

from dlm_lens import plots
from dlm_lens.plots.spread import over_prompts


@pytest.fixture
def influence() -> pd.DataFrame:
    rows = [
        (prompt, step, kind, distance, (prompt + 1) * (step + 1) * weight / (1 + distance), 1 - 0.1 * prompt)
        for prompt in (0, 1)
        for step in (0, 2)
        for distance in (0, 4, 16)
        for kind, weight in (("far", 0.01), ("near", 0.02), ("decided", 1.0))
        if not (kind == "decided" and distance == 0)
    ]
    return pd.DataFrame(rows, columns=["prompt", "step", "left_out", "distance", "kl", "agreement"])


@pytest.fixture
def drift() -> pd.DataFrame:
    rows = []
    for prompt in (0, 1):
        for kind, age, distance in (
            ("decoded", 0, 0),
            *(("decoded", age, distance) for age in (1, 2, 3) for distance in (1, 2)),
            ("masked", -1, 1),
            ("prompt", -1, 2),
        ):
            for tensor, size in (("key", 1.0), ("value", 2.0), ("hidden", 3.0)):
                value = size * (prompt + 1) / (age + 2) / (distance + 1)
                about = (prompt, kind, age, distance, 0.5, 0, tensor)
                rows.append((*about, 10 * distance + 1, value, value**2 / 2))
    columns = ["prompt", "kind", "age", "distance", "remaining", "layer", "tensor", "positions"]
    return pd.DataFrame(rows, columns=[*columns, "relative_l2", "cosine_distance"])


def test_prompts_count_once_and_positions_by_weight():
    table = pd.DataFrame(
        {
            "prompt": [0, 0, 1, 1],
            "age": [1, 1, 1, 2],
            "positions": [1, 3, 5, 1],
            "value": [1.0, 2.0, 4.0, 9.0],
        }
    )
    plain = over_prompts(table, ["age"], "value")
    assert plain.loc[1, "mean"] == pytest.approx((1.5 + 4) / 2)
    weighted = over_prompts(table, ["age"], "value", "positions")
    assert weighted.loc[1, "mean"] == pytest.approx((1.75 + 4) / 2)
    assert weighted.loc[1, "se"] == pytest.approx(np.std([1.75, 4], ddof=1) / np.sqrt(2))
    assert np.isnan(weighted.loc[2, "se"])


def test_influence_draws_means_over_prompts_at_evenly_spaced_distances(influence):
    ax = plots.influence_by_distance(influence)
    lines = {container.get_label(): container.lines[0] for container in ax.containers}
    assert len(lines) == 3
    far = next(line for label, line in lines.items() if "farther" in label)
    np.testing.assert_array_equal(far.get_xdata(), [0, 1, 2])
    np.testing.assert_allclose(far.get_ydata(), 0.01 * 1.5 * 2 / np.array([1, 5, 17]))
    decided = next(line for label, line in lines.items() if "random" in label)
    assert np.isnan(decided.get_ydata()[0])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "4", "16"]
    assert ax.get_yscale() == "log"
    assert "nats" in ax.get_ylabel()


def test_agreement_is_in_percent(influence):
    ax = plots.influence_by_distance(influence, value="agreement")
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), 95)
    assert ax.get_yscale() == "linear"


@pytest.mark.parametrize("value", ["relative_l2", "cosine_distance"])
def test_drift_draws_a_line_per_tensor_and_what_has_no_age(drift, value):
    ax = plots.kv_drift(drift, value=value)
    lines = {line.get_label(): line for line in ax.lines}
    for tensor in ("key", "value", "hidden"):
        rows = drift[(drift["tensor"] == tensor) & (drift["kind"] == "decoded")]
        expected = []
        for age in (0, 1, 2, 3):
            means = []
            for prompt in (0, 1):
                now = rows[(rows["age"] == age) & (rows["prompt"] == prompt)]
                means.append(np.average(now[value], weights=now["positions"]))
            expected.append(np.mean(means))
        np.testing.assert_array_equal(lines[tensor].get_xdata(), [0, 1, 2, 3])
        np.testing.assert_allclose(lines[tensor].get_ydata(), expected)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["0", "1", "2", "3+", "masked", "prompt"]
    assert len(ax.containers) == 6  # two kinds without an age, for every tensor
    key_masked = ax.containers[0].lines[0]
    rows = drift[(drift["tensor"] == "key") & (drift["kind"] == "masked")]
    assert key_masked.get_xdata()[0] == pytest.approx(ax.get_xticks()[4])
    assert key_masked.get_ydata()[0] == pytest.approx(rows[value].mean())
    assert sum(isinstance(artist, PolyCollection) for artist in ax.collections) == 3


def test_drift_by_distance_leaves_the_token_itself_out(drift):
    ax = plots.kv_drift(drift, by="distance", tensor="value")
    lines = [line for line in ax.lines if "from new text" in str(line.get_label())]
    assert [line.get_label() for line in lines] == ["1 from new text", "2 from new text"]
    np.testing.assert_array_equal(lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(lines[0].get_ydata(), 2 * 1.5 / np.array([3, 4, 5]) / 2)
    assert ax.get_title(loc="left") == "Drift since decoding, value"


@pytest.mark.parametrize(
    ("plot", "arguments", "message"),
    [
        (plots.influence_by_distance, {"value": "loss"}, "unknown value 'loss'"),
        (plots.kv_drift, {"by": "head"}, "unknown by='head': choose one of tensor, distance"),
        (plots.kv_drift, {"value": "kl"}, "unknown value='kl'"),
    ],
)
def test_unknown_names_are_refused(plot, arguments, message, drift, influence):
    with pytest.raises(ValueError, match=message):
        plot(drift if plot is plots.kv_drift else influence, **arguments)


def test_tables_of_something_else_are_refused(drift, influence):
    with pytest.raises(ValueError, match="needs a table with distance, kl, left_out, prompt"):
        plots.influence_by_distance(drift)
    with pytest.raises(ValueError, match="got 0 rows"):
        plots.influence_by_distance(influence.iloc[:0])
    with pytest.raises(ValueError, match="needs a table with age"):
        plots.kv_drift(influence)
    with pytest.raises(ValueError, match="name it, one of key, value, hidden"):
        plots.kv_drift(drift, by="layer")
    with pytest.raises(ValueError, match="tensor='query' is not in the table"):
        plots.kv_drift(drift, tensor="query")
