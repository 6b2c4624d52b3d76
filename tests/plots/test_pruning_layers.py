"""The figure of what pruning did to each layer."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dlm_lens import plots
from dlm_lens.plots.style import LIGHT
from dlm_lens.pruning import PruningReport


def report(label: str, errors: list[float], sparsity: list[float]) -> PruningReport:
    table = pd.DataFrame({"layer": range(len(errors)), "error": errors, "sparsity": sparsity})
    return PruningReport(label, table, {})


def test_every_report_is_a_line_of_errors_that_says_how_much_is_gone():
    reports = {
        "plain": report("Wanda 2:4", [0.1, 0.25, 0.05], [0.5, 0.5, 0.5]),
        "other": report("uneven", [0.2, 0.3, 0.4], [0.25, 0.5, 0.75]),
    }
    ax = plots.pruning_layers(reports)
    drawn = {line.get_label(): line for line in ax.lines}
    assert list(drawn) == ["plain (50% gone)", "other (25–75% gone)"]
    np.testing.assert_allclose(drawn["plain (50% gone)"].get_xydata(), [(0, 10), (1, 25), (2, 5)])
    assert [line.get_color() for line in ax.lines] == list(LIGHT.series[:2])
    assert ax.get_ylim()[0] == 0
    assert "%" in ax.get_ylabel()


def test_one_report_goes_by_its_label_and_given_axes_are_used():
    _, given = plt.subplots()
    ax = plots.pruning_layers(report("Wanda 2:4", [0.1, 0.01], [0.5, 0.5]), log=True, ax=given)
    assert ax is given
    assert ax.get_yscale() == "log"
    assert [line.get_label() for line in ax.lines] == ["Wanda 2:4 (50% gone)"]


def test_no_report_is_refused():
    with pytest.raises(ValueError, match="at least one report"):
        plots.pruning_layers({})
