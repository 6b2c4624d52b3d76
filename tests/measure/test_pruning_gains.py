"""Differences are paired by calibration, and their intervals are Student's."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from dlm_lens.measure.pruning_gains import (
    formatted,
    gains,
    growth,
    holm,
    interval,
    student_quantile,
    student_within,
    summary,
)
from tests.measure.pruning_rows import study_rows

MEASURES = ("nats", "retrieval", "infilling")


def rows_at_random(seeds=4, amounts=("0.5", "0.75"), kappas=(2.0, 1.0)):
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        for amount in amounts:
            for kappa in kappas:
                for discount in ("plain", "sinks", "random")[kappa != 2.0 :]:
                    blocks = {name: rng.random(6).tolist() for name in (*MEASURES, "infilling_tokens")}
                    row = {"method": "wanda", "amount": amount, "kappa": kappa, "discount": discount}
                    row |= {"seed": seed, "by_block": blocks, "ppl": 20.0 + seed, "error": 0.1}
                    row |= {"sparsity": 0.5, "discounted": None if discount == "plain" else 0.1}
                    rows.append(row | {name: float(np.mean(values)) for name, values in blocks.items()})
    return rows


def test_gains_are_paired_by_seed_and_positive_where_sinks_help():
    rows = rows_at_random()
    del rows[1]  # seed 0 with sinks discounted, 50%, κ = 2
    table = gains(rows).set_index(["amount", "kappa", "measure", "against"])
    assert len(table) == 2 * 2 * 3 * 2
    for (amount, kappa, measure, against), found in table.iterrows():
        values, by_block = [], []
        for seed in range(4):
            ours = theirs = None
            for row in rows:
                if row["seed"] == seed and row["amount"] == amount:
                    if row["discount"] == "sinks" and row["kappa"] == kappa:
                        ours = row
                    if row["discount"] == against and row["kappa"] == (2.0 if against == "plain" else kappa):
                        theirs = row
            if ours is not None and theirs is not None:
                sign = -1 if measure == "nats" else 1
                values.append(sign * (ours[measure] - theirs[measure]))
                by_block.append(
                    [
                        sign * (a - b)
                        for a, b in zip(ours["by_block"][measure], theirs["by_block"][measure], strict=True)
                    ]
                )
        count = len(values)
        assert found["seeds"] == count == (3 if (amount, kappa) == ("0.5", 2.0) else 4)
        mean = sum(values) / count
        error = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
        t = {3: 4.302653, 4: 3.182446}[count]
        assert found["gain"] == pytest.approx(mean)
        assert found["low"] == pytest.approx(mean - t * error, abs=1e-6)
        assert found["high"] == pytest.approx(mean + t * error, abs=1e-6)
        over_seeds = [sum(blocks[at] for blocks in by_block) / count for at in range(6)]
        middle = sum(over_seeds) / 6
        asked = math.sqrt(sum((value - middle) ** 2 for value in over_seeds) / 5 / 6)
        assert found["asked_error"] == pytest.approx(asked)


def test_correction_is_within_a_family_of_comparisons():
    table = gains(rows_at_random())
    for against in ("plain", "random"):
        for default in (True, False):
            own = table[(table["against"] == against) & ((table["kappa"] == 2.0) == default)]
            assert own["adjusted"].tolist() == pytest.approx(holm(own["p"]).tolist())


def test_holm_multiplies_by_how_many_are_left():
    adjusted = holm(pd.Series([0.04, 0.001, 0.03, 0.9]))
    assert adjusted.tolist() == pytest.approx([0.09, 0.004, 0.09, 0.9])


def test_what_was_not_tested_is_neither_adjusted_nor_counted():
    adjusted = holm(pd.Series([0.04, math.nan, 0.03]))
    assert adjusted.tolist() == pytest.approx([0.06, math.nan, 0.06], nan_ok=True)
    assert gains(rows_at_random(seeds=1))[["p", "adjusted"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.706205), (2, 4.302653), (4, 2.776445), (5, 2.570582), (30, 2.042272)]
)
def test_student_against_the_published_table(degrees, t):
    assert student_quantile(0.95, degrees) == pytest.approx(t, abs=1e-5)
    assert student_within(t, degrees) == pytest.approx(0.95, abs=1e-6)


def test_intervals_hold_their_confidence():
    drawn = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [interval(values.tolist()) for values in drawn]
    held = sum(each["low"] < 0 < each["high"] for each in found) / len(found)
    assert held == pytest.approx(0.95, abs=0.015)
    assert sum(each["p"] < 0.05 for each in found) == sum(
        not each["low"] < 0 < each["high"] for each in found
    )


def test_one_seed_has_no_interval():
    found = interval([0.25])
    assert found["gain"] == 0.25
    assert math.isnan(found["low"])
    assert math.isnan(found["p"])


def test_a_difference_that_is_none_is_sure_to_be_none():
    assert interval([0.0, 0.0, 0.0])["p"] == 1


def test_summary_tells_the_two_errors_apart():
    rows = rows_at_random(seeds=3, amounts=("0.5",), kappas=(2.0,))
    plain = summary(rows).set_index("discount").loc["plain"]
    own = [row for row in rows if row["discount"] == "plain"]
    assert plain["seeds"] == 3
    assert plain["ppl"] == 21
    assert plain["ppl_sd"] == 1
    assert plain["retrieval_sd"] == pytest.approx(np.std([row["retrieval"] for row in own], ddof=1))
    blocks = np.mean([row["by_block"]["retrieval"] for row in own], axis=0)
    assert plain["retrieval_asked"] == pytest.approx(np.std(blocks, ddof=1) / math.sqrt(6))
    assert math.isnan(plain["discounted"])


def test_magnitude_with_sinks_is_a_hole_in_the_table():
    rows = rows_at_random(seeds=2, amounts=("0.5",), kappas=(2.0,))
    blank = {"method": "magnitude", "amount": "0.5", "discount": "plain", "kappa": 2.0, "seed": 0}
    shown = formatted(summary([rows[0] | blank, *rows]))
    assert shown[["method", "discounted"]].to_numpy().tolist() == [
        ["magnitude", "plain"], ["magnitude", "sinks"], ["wanda", "plain"], ["wanda", "sinks"], ["wanda", "random"],
    ]  # fmt: skip
    assert shown.loc[1, "perplexity"] == "–"
    assert shown.loc[0, "perplexity"] == "20.00"
    assert shown.loc[2, "perplexity"] == "20.50 ± 0.71"
    assert shown.loc[2, "mean φ %"] == "–"


@pytest.mark.parametrize("at_more", [1.0, 2.0])
def test_growth_is_the_gain_at_the_second_amount_less_that_at_the_first(at_more):
    rows = study_rows(0.02, at_more=at_more)
    table = growth(rows, [("0.5", "0.75")]).set_index(["method", "against"])
    assert len(table) == 4
    found = {(r["method"], r["amount"], r["discount"], r["seed"]): r["nats"] for r in rows if r["kappa"] == 2}
    for (method, against), row in table.iterrows():
        values = []
        for seed in range(5):
            gain = [
                found[method, amount, against, seed] - found[method, amount, "sinks", seed]
                for amount in ("0.5", "0.75")
            ]
            values.append(gain[1] - gain[0])
        expected = interval(values)
        assert row[list(expected)].tolist() == pytest.approx(list(expected.values()))
        assert row["gain"] == pytest.approx(0.02 * (at_more - 1), abs=2e-3)
