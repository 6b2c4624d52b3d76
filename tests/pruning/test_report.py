"""Reports of pruning: to be read in a notebook, and kept beside what was pruned."""

import json

import numpy as np
import pandas as pd
import pytest

from dlm_lens.pruning import PruningReport


@pytest.fixture
def report() -> PruningReport:
    table = pd.DataFrame(
        {
            "layer": [0, 1],
            "weights": [200, 200],
            "nonzero": [100, 50],
            "sparsity": [0.5, 0.75],
            "error": [0.1 + 1e-13, 0.3],
            "discounted": [np.nan, np.nan],
        }
    )
    table.attrs["provenance"] = {"device": "cpu"}
    return PruningReport("Wanda <script>", table, {"method": "wanda"})


def test_it_says_how_much_is_gone_and_where_it_costs_most(report):
    assert report.sparsity == pytest.approx(1 - 150 / 400)
    assert report.error == pytest.approx(0.2)
    head, *table = repr(report).splitlines()
    assert head == (
        "Wanda <script>: 62.50% of 400 weights gone in 2 layers; error 20% on average, 30% in layer 1"
    )
    assert table[0].split() == ["layer", "sparsity", "%", "error", "%"]  # nothing was discounted


def test_in_a_notebook_its_text_is_escaped(report):
    page = report._repr_html_()
    assert "Wanda &lt;script&gt;: 62.50% of 400 weights gone" in page
    assert "<script>" not in page
    assert "<td>75.0</td>" in page


def test_it_is_kept_as_a_table_or_with_its_provenance(report, tmp_path):
    report.save(tmp_path / "report.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "report.csv"), report.table)
    report.save(tmp_path / "report.json")
    kept = json.loads((tmp_path / "report.json").read_text())
    assert kept["label"] == report.label
    assert kept["settings"] == {"method": "wanda"}
    assert kept["provenance"] == {"device": "cpu"}
    assert kept["rows"][1] == {
        "layer": 1,
        "weights": 200,
        "nonzero": 50,
        "sparsity": 0.75,
        "error": 0.3,
        "discounted": None,
    }
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        report.save(tmp_path / "report.txt")
