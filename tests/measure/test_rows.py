"""Speed-ups from the totals of rounds, by hand."""

import math

import pytest

from dlm_lens.measure.rows import with_speedups

FLASH = "Dense (FlashAttention-2)"


def rounds(**totals: list[float]) -> list[list[dict]]:
    """Rounds of Dense, FlashAttention-2 and a sparse policy from the totals of each repetition."""
    labels = {"dense": "Dense", "flash": FLASH, "sparse": "Sparse"}
    count = len(totals["dense"])
    return [
        [
            {"policy": labels[name], "repetition": number, "total_ms": totals[name][number]}
            for name in labels
            if name in totals
        ]
        for number in range(count)
    ]


def column(rows: list[dict], policy: str, name: str) -> list[float]:
    return [row[name] for row in rows if row["policy"] == policy]


def test_a_speedup_is_a_ratio_within_a_round():
    rows = with_speedups(rounds(dense=[10, 20], sparse=[5, 4]), {"Dense": "cuDNN"})
    assert column(rows, "Sparse", "speedup") == [2, 5]
    assert column(rows, "Dense", "speedup") == [1, 1]
    assert [(row["policy"], row["repetition"]) for row in rows] == [
        ("Dense", 0),
        ("Dense", 1),
        ("Sparse", 0),
        ("Sparse", 1),
    ]


def test_without_flash_attention_there_is_no_ratio_to_it():
    rows = with_speedups(rounds(dense=[10], sparse=[5]), {"Dense": "SDPA (cpu)"})
    assert all(math.isnan(row["speedup_vs_flash2"]) for row in rows)


def test_both_dense_baselines_have_their_ratio():
    found = rounds(dense=[10, 10, 10], flash=[20, 18, 16], sparse=[5, 5, 4])
    rows = with_speedups(found, {"Dense": "cuDNN", FLASH: "FlashAttention-2"})
    assert column(rows, "Sparse", "speedup") == [2, 2, 2.5]
    assert column(rows, "Sparse", "speedup_vs_flash2") == pytest.approx([4, 3.6, 4])
    assert column(rows, "Dense", "speedup_vs_flash2") == [2, 1.8, 1.6]
    assert {row["backend"] for row in rows} == {"cuDNN"}


def test_the_baseline_is_the_faster_dense_backend():
    found = rounds(dense=[10, 10, 10], flash=[8, 11, 9], sparse=[4, 5, 4.5])
    rows = with_speedups(found, {"Dense": "cuDNN", FLASH: "FlashAttention-2"})
    assert {row["backend"] for row in rows} == {"FlashAttention-2"}
    assert column(rows, "Sparse", "speedup") == column(rows, "Sparse", "speedup_vs_flash2") == [2, 2.2, 2]
    assert column(rows, "Dense", "speedup") == [0.8, 1.1, 0.9]


def test_where_dense_takes_flash_attention_one_baseline_serves_both():
    rows = with_speedups(rounds(dense=[10], sparse=[5]), {"Dense": "FlashAttention-2"})
    assert column(rows, "Sparse", "speedup_vs_flash2") == [2]
