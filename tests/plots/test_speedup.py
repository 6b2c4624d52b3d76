"""The figure of speed and quality of a table of measurements."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dlm_lens import plots


@pytest.fixture
def table() -> pd.DataFrame:
    """Three policies, twice measured, as compare returns them."""
    return pd.DataFrame(
        {
            "policy": ["Dense", "PulseCol 80%", "Random columns 80%"] * 2,
            "repetition": [0, 0, 0, 1, 1, 1],
            "speedup": [1.0, 1.6, 1.7, 1.0, 1.8, 1.7],
            "amdahl_bound": [1.0, 2.2, 2.2] * 2,
            "token_agreement": [1.0, 0.93, 0.4] * 2,
            "retained_mass": [np.nan, 0.95, 0.25] * 2,
            "accuracy": [np.nan] * 6,
            "projected": [False] * 6,
        }
    )


def test_bars_are_medians_in_the_order_of_the_table(table):
    ax = plots.speedup(table)
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [1.0, 1.7, 1.7])
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "Dense",
        "PulseCol 80%",
        "Random columns 80%",
    ]
    assert {text.get_text() for text in ax.texts} == {"1.00×", "1.70×"}
    assert "higher is faster" in ax.get_xlabel()


def test_quality_stands_beside_every_bar(table):
    ax = plots.speedup(table)
    beside = ax.figure.axes[1]
    labels = [text.get_text() for text in beside.get_legend().get_texts()]
    assert labels == ["tokens as dense", "attention kept"]  # no accuracy without tasks
    agreement = beside.collections[1].get_offsets()
    np.testing.assert_allclose(agreement[:, 0], [100, 93, 40])
    assert beside.get_shared_y_axes().joined(ax, beside)


def test_all_dense_baselines_are_drawn_alike(table):
    both = table.replace({"policy": {"Random columns 80%": "Dense (FlashAttention-2)"}})
    dense, sparse, flash = (bar.get_facecolor() for bar in plots.speedup(both).patches)
    assert dense == flash != sparse


def test_it_draws_into_axes_of_a_larger_figure(table):
    figure, axes = plt.subplots(2, 1, layout="constrained")
    assert plots.speedup(table, ax=axes[1]) is axes[1]
    assert len(figure.axes) == 3
    figure.canvas.draw()
    lower = [ax.get_position() for ax in (axes[1], figure.axes[2])]
    assert lower[0].x1 < lower[1].x0
    assert axes[0].get_position().y0 > lower[0].y1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="speedup"), "speedup needs a table with policy, speedup"),
        (
            lambda table: table.drop(columns=["token_agreement", "retained_mass"]),
            "and one of token_agreement",
        ),
        (lambda table: table.iloc[:0], "got 0 rows"),
        (lambda table: table.assign(projected=[True, False] * 3), "mixes measured and projected"),
    ],
)
def test_a_table_that_would_mislead_is_refused(table, change, message):
    with pytest.raises(ValueError, match=message):
        plots.speedup(change(table))


def test_axes_without_a_place_to_split_are_refused(table):
    ax = plt.figure().add_axes((0.1, 0.1, 0.8, 0.8))
    with pytest.raises(ValueError, match="splits the place"):
        plots.speedup(table, ax=ax)


@pytest.fixture
def pruned(table) -> pd.DataFrame:
    """The table with two pruned models beside the dense one."""
    parts = [table.assign(model="tiny")]
    for model in ("Wanda 2:4", "sink-aware Wanda 50%"):
        parts.append(table.assign(model=model, policy=table["policy"] + f", {model}"))
    return pd.concat(parts, ignore_index=True)


def test_bars_of_pruned_models_keep_their_colour_and_are_hatched(table, pruned):
    ax = plots.speedup(pruned)
    alone = [bar.get_facecolor() for bar in plots.speedup(table).patches]
    assert [bar.get_facecolor() for bar in ax.patches] == alone * 3
    hatches = [bar.get_hatch() or "" for bar in ax.patches]
    assert hatches[:3] == [""] * 3
    assert len(set(hatches[3:6])) == len(set(hatches[6:])) == 1
    assert len({hatches[0], hatches[3], hatches[6]}) == 3
    assert ax.get_yticklabels()[4].get_text() == "PulseCol 80%, Wanda 2:4"
