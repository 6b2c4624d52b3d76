"""The estimate of memory and what it says when there is not enough."""

import pytest
import torch

import dlm_lens as dl
from dlm_lens.byte_sizes import format_bytes, parse_bytes
from dlm_lens.errors import MemoryBudgetError
from dlm_lens.recording import ColumnMass, FullMaps, PooledMap, RowEntropy, estimate_memory
from dlm_lens.recording.memory import check_budget


@pytest.mark.parametrize(
    ("size", "expected"),
    [(5, 5), ("2 GB", 2_000_000_000), ("512 MiB", 512 << 20), ("1.5kb", 1500), ("7 B", 7)],
)
def test_amounts_are_read(size, expected):
    assert parse_bytes(size) == expected


@pytest.mark.parametrize("size", ["much", "2", "-1 GB", "0 GB", 0, True, "3 IB"])
def test_what_is_no_amount_is_named(size):
    with pytest.raises(ValueError, match="memory"):
        parse_bytes(size)


def test_sizes_are_shown_in_fitting_units():
    assert [format_bytes(n) for n in (999, 2_100_000, 3 * 10**12)] == ["999 B", "2.1 MB", "3.0 TB"]


def test_estimate_is_what_the_trace_takes(random_dlm):
    statistics = [ColumnMass(), PooledMap(bins=8), RowEntropy(bins=8), FullMaps()]
    prompt = torch.randint(0, 60, (2, 10))
    trace = dl.capture(random_dlm, prompt, gen_length=8, statistics=statistics, progress=False)
    estimate = estimate_memory(statistics, batch=2, length=18, layers=2, heads=4, steps=8)
    for name in trace.statistics:
        assert estimate.variables[name] == trace[name].nbytes
    per_position = ("tokens", "masked", "confidence", "committed_at", "final_tokens")
    assert estimate.variables["tokens"] == sum(trace[name].nbytes for name in per_position)
    assert repr(estimate).startswith("trace ")


def test_too_much_says_what_to_drop():
    statistics = [PooledMap(), FullMaps()]
    estimate = estimate_memory(statistics, batch=1, length=4096, layers=32, heads=32, steps=64)
    with pytest.raises(MemoryBudgetError) as error:
        check_budget(estimate, 10**12, statistics, 64)
    message = str(error.value)
    assert "needs 4.5 TB but memory_budget is 1.0 TB" in message
    assert "leave out FullMaps() (4.4 TB)" in message
    assert "record 12 of the 64 steps (record_steps)" in message
    assert "fewer layers or heads" in message


def test_the_advised_steps_fit():
    statistics = [ColumnMass()]

    def needed(steps):
        return estimate_memory(statistics, batch=1, length=1000, layers=8, heads=8, steps=steps)

    budget = needed(64).workspace + needed(64).trace // 3
    with pytest.raises(MemoryBudgetError, match="record 21 of the 64 steps"):
        check_budget(needed(64), budget, statistics, 64)
    check_budget(needed(21), budget, statistics, 21)


def test_workspace_on_a_gpu_grows_with_bins_and_length_up_to_a_gigabyte():
    sizes = {"batch": 1, "layers": 1, "heads": 4, "steps": 1, "on_gpu": True}
    short, long = (estimate_memory([RowEntropy(bins=8)], length=n, **sizes).workspace for n in (1000, 2000))
    assert long - short == 8 * 4 * 8 * 1000
    assert estimate_memory([RowEntropy(bins=64)], length=10**7, **sizes).workspace < 1.1 * 2**30
