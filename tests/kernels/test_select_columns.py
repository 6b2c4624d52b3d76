"""Selection of the best keys: exact, ordered and deterministic."""

from importlib import import_module

import pytest
import torch
from dlm_kernels import select_columns
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.strategies import DEVICE, IMPLS, effort


def ranked(scores):
    """Positions of the positive scores, best first, ties to the lower index."""
    return [i for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)) if scores[i] > 0]


def assert_selects(chosen, count, best):
    """``chosen`` is the set of the ``best`` in ascending order, then its last entry to the end."""
    expected = sorted(best)
    assert count == len(expected)
    assert chosen[:count] == expected
    assert chosen[count:] == [expected[-1] if expected else 0] * (len(chosen) - count)


def small_rows(draw_row):
    return st.integers(1, 20).flatmap(
        lambda length: st.lists(st.lists(draw_row, min_size=length, max_size=length), min_size=1, max_size=4)
    )


# Few distinct values, so that ties and zeros are common.
tied = st.sampled_from([0.0, 1e-30, 0.25, 0.5, 1.0])


@pytest.mark.parametrize("impl", IMPLS)
def test_takes_the_highest_with_ties_to_the_lower_index(impl):
    @effort(impl, reference=80, triton=16)
    @given(data=st.data(), rows=small_rows(tied))
    def check(data, rows):
        k = data.draw(st.integers(1, len(rows[0])))
        columns, counts = select_columns(torch.tensor(rows, device=DEVICE), k, impl=impl)
        assert columns.dtype == counts.dtype == torch.int32
        for scores, chosen, count in zip(rows, columns.tolist(), counts.tolist(), strict=True):
            assert_selects(chosen, count, ranked(scores)[:k])

    check()


@pytest.mark.parametrize("impl", IMPLS)
def test_top_p_takes_the_fewest_that_reach_the_share(impl):
    @effort(impl, reference=80, triton=16)
    @given(
        data=st.data(),
        rows=small_rows(tied | st.floats(0, 1, width=32, allow_subnormal=False)),
        top_p=st.floats(0.01, 1.0),
    )
    def check(data, rows, top_p):
        length = len(rows[0])
        k = data.draw(st.none() | st.integers(1, length))
        columns, counts = select_columns(torch.tensor(rows, device=DEVICE), k, top_p=top_p, impl=impl)
        assert columns.shape[-1] == (k or length)
        for scores, chosen, count in zip(rows, columns.tolist(), counts.tolist(), strict=True):
            best = ranked(scores)
            assert_selects(chosen, count, best[:count])
            goal = top_p * sum(scores)
            enough = sum(scores[i] for i in best[:count]) >= goal * (1 - 1e-6)
            assert enough or count == min(k or length, len(best))
            assert not count or sum(scores[i] for i in best[: count - 1]) < goal * (1 + 1e-6)

    check()


@pytest.mark.parametrize("length", [1500, 3000])
@pytest.mark.parametrize("top_p", [None, 0.3, 0.95])
def test_triton_agrees_on_long_rows(length, top_p):
    scores = torch.rand(3, length, device=DEVICE) ** 8
    scores[2, ::3] = 0.0
    scores[1] = (scores[1] * 20).round()  # ties
    found, reference = (select_columns(scores, 1200, top_p=top_p, impl=impl) for impl in IMPLS)
    if top_p is None:
        assert torch.equal(found[0], reference[0])
        assert torch.equal(found[1], reference[1])
        return
    for one, n, other, m in zip(*found, *reference, strict=True):
        assert len(set(one[:n].tolist()) ^ set(other[:m].tolist())) <= 1


def odd_rows(length):
    """Rows that a sample describes well, badly, or not at all."""
    rows = torch.rand(8, length)
    rows[1] = 0.5  # one value
    rows[2] = rows[2].round()  # two
    rows[3, : length // 2] = 0.0  # half empty
    rows[4, 64:] = 0.0  # all but empty
    rows[5] = torch.linspace(1, 0, length)  # sorted
    rows[6, ::4] += 1.0  # what a stride of four sees is not what there is
    rows[7] = 1e-30 * (rows[7] * 4).round()  # masses of ties, tiny
    return rows.to(DEVICE)


@pytest.mark.parametrize("top_p", [None, 0.6])
@pytest.mark.parametrize(("length", "k"), [(1024, 512), (1024, 1000), (2500, 700)])
def test_triton_brackets_the_threshold_by_a_sample(length, k, top_p, monkeypatch):
    """As for long rows, where the sample is larger; and where it misleads, the selection is exact all the same."""
    triton_select = import_module("dlm_kernels.select_columns.triton_select")
    monkeypatch.setattr(triton_select, "_SAMPLE", 256)
    monkeypatch.setattr(triton_select, "_ROOM", 512)
    rows = odd_rows(length)
    columns, counts = select_columns(rows, k, top_p=top_p, impl="triton")
    for scores, chosen, count in zip(rows.tolist(), columns.tolist(), counts.tolist(), strict=True):
        assert_selects(chosen, count, ranked(scores)[: k if top_p is None else count])
        assert count > 0


def test_triton_selects_thousands_of_keys():
    scores = torch.rand(2, 9000, device=DEVICE)
    scores[1] = (scores[1] * 3).round()
    found, reference = (select_columns(scores, 8500, impl=impl) for impl in IMPLS)
    assert torch.equal(found[0], reference[0])
    assert torch.equal(found[1], reference[1])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_leading_dimensions_types_and_strides(dtype, impl):
    scores = torch.rand(10, 2, 4, 3, device=DEVICE).to(dtype).permute(1, 3, 2, 0)
    columns, counts = select_columns(scores, 5, impl=impl)
    assert columns.shape == (2, 3, 4, 5)
    assert counts.shape == (2, 3, 4)
    expected, _ = select_columns(scores.float().contiguous(), 5, impl="reference")
    assert torch.equal(columns, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_alone_is_a_row(impl):
    columns, counts = select_columns(torch.tensor([0.1, 0.0, 0.7], device=DEVICE), 3, impl=impl)
    assert columns.tolist() == [0, 2, 2]
    assert counts.item() == 2


@pytest.mark.parametrize(
    ("scores", "k", "top_p", "message"),
    [
        (torch.rand(2, 5), 6, None, r"k must lie in 1 … 5 \(the number of keys\), got 6"),
        (torch.rand(2, 5), 0, None, "got 0"),
        (torch.rand(2, 5), None, None, "give k, top_p, or both"),
        (torch.rand(2, 5), None, 0.0, r"top_p must lie in \(0, 1\], a share of the mass, got 0.0"),
        (torch.rand(2, 5), 3, 1.1, r"top_p must lie in \(0, 1\], a share of the mass, got 1.1"),
        (torch.ones(2, 5, dtype=torch.long), 2, None, r"non-empty floats .*, got torch.int64 \(2, 5\)"),
        (torch.ones(2, 0), 1, None, r"scores must be non-empty floats .*\(2, 0\)"),
        (torch.tensor([0.5, -0.5]), 1, None, r"\(2,\) must not be negative or NaN, the lowest is -0.5"),
        (torch.tensor([0.5, float("nan")]), 1, None, "must not be negative or NaN"),
    ],
)
def test_wrong_arguments_are_named(scores, k, top_p, message, monkeypatch):
    monkeypatch.setenv("DLM_KERNELS_DEBUG", "1")
    with pytest.raises(ValueError, match=message):
        select_columns(scores.to(DEVICE), k, top_p=top_p)
