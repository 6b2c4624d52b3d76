"""Selection of the best keys: exact, ordered and deterministic."""

import pytest
import torch
from dlm_kernels import select_columns
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_takes_the_highest_with_ties_to_the_lower_index(data):
    length = data.draw(st.integers(1, 20))
    k = data.draw(st.integers(1, length))
    # Few distinct values, so that ties and zeros are common.
    row = st.lists(st.sampled_from([0.0, 1e-30, 0.25, 0.5, 1.0]), min_size=length, max_size=length)
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    columns, counts = select_columns(torch.tensor(rows), k)
    assert columns.dtype == counts.dtype == torch.int32
    for scores, chosen, count in zip(rows, columns.tolist(), counts.tolist(), strict=True):
        best = sorted(range(length), key=lambda i: (-scores[i], i))[:k]
        expected = sorted(i for i in best if scores[i] > 0)
        assert chosen[:count] == expected
        assert chosen[count:] == [expected[-1] if expected else 0] * (k - count)


def test_leading_dimensions_and_types():
    scores = torch.rand(2, 3, 4, 10).bfloat16()
    columns, counts = select_columns(scores, 5)
    assert columns.shape == (2, 3, 4, 5)
    assert counts.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("scores", "k", "message"),
    [
        (torch.rand(2, 5), 6, r"k must lie in 1 … 5 \(the number of keys\), got 6"),
        (torch.rand(2, 5), 0, "got 0"),
        (torch.ones(2, 5, dtype=torch.long), 2, "scores must be non-empty floats"),
        (torch.tensor([0.5, -0.5]), 1, "must not be negative or NaN, the lowest is -0.5"),
        (torch.tensor([0.5, float("nan")]), 1, "must not be negative or NaN"),
    ],
)
def test_wrong_arguments_are_named(scores, k, message):
    with pytest.raises(ValueError, match=message):
        select_columns(scores, k)
