"""The figure of what discounting sinks gains: the numbers of the table, in the units of its axis."""

import numpy as np
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer

from dlm_lens import plots
from dlm_lens.measure.pruning_gains import gains
from dlm_lens.plots.pruning_gain import amount_title
from tests.measure.pruning_rows import AMOUNTS, study_rows


@pytest.mark.parametrize(("measure", "factor"), [("nats", 1), ("infilling", 100)])
def test_marks_whiskers_and_bars_are_the_table(measure, factor):
    table = gains(study_rows(0.02, 0.01))
    ax = plots.pruning_gain(table, measure)
    whiskers = {c.get_label(): c for c in ax.containers if isinstance(c, ErrorbarContainer)}
    bars = [c for c in ax.containers if isinstance(c, BarContainer)]
    assert list(whiskers) == [
        "Wanda, over plain", "Wanda, over random tokens discounted",
        "SparseGPT, over plain", "SparseGPT, over random tokens discounted",
    ]  # fmt: skip
    own = table[(table["measure"] == measure) & (table["kappa"] == 2.0)]
    groups = own.groupby(["method", "against"], sort=False)
    for (_, rows), drawn, bar in zip(groups, whiskers.values(), bars, strict=True):
        np.testing.assert_allclose(drawn[0].get_ydata().astype(float), factor * rows["gain"])
        assert np.round(drawn[0].get_xdata()).tolist() == list(range(len(AMOUNTS)))
        ends = np.array(drawn[2][0].get_segments())[:, :, 1]
        np.testing.assert_allclose(ends, factor * rows[["low", "high"]].to_numpy(), atol=1e-12)
        edges = np.array([(patch.get_y(), patch.get_y() + patch.get_height()) for patch in bar], dtype=float)
        asked = rows["asked_error"]
        expected = np.column_stack([rows["gain"] - 2 * asked, rows["gain"] + 2 * asked])
        np.testing.assert_allclose(edges, factor * expected, atol=1e-12)


def test_amounts_are_read():
    assert [amount_title(amount) for amount in ("0.75", "2:4", "structured-0.3")] == [
        "75%", "2:4", "structured\n30%",
    ]  # fmt: skip


@pytest.mark.parametrize(("measure", "kappa"), [("speed", 2.0), ("nats", 3.0)])
def test_what_is_not_there_is_refused(measure, kappa):
    with pytest.raises(ValueError, match=r"measure='speed' must be|no gains of 'nats' with kappa=3"):
        plots.pruning_gain(gains(study_rows(seeds=2)), measure, kappa=kappa)
