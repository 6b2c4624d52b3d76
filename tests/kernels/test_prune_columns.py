"""Columns pruned in turn against plain loops in float64, by both implementations."""

import pytest
import torch
from dlm_kernels import prune_columns
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.strategies import DEVICE, IMPLS


def problem(rows, width):
    """Weights, and the factor of the inverse of a Hessian of correlated inputs."""
    x = torch.randn(3 * width, width) @ torch.randn(width, width)
    inverse = torch.linalg.inv((x.T @ x).double() + torch.eye(width).double())
    factor = torch.linalg.cholesky(inverse / inverse.diagonal().mean(), upper=True)
    return torch.randn(rows, width), factor.float()


def by_loops(weight, factor, gone, pattern):
    w, u = weight.double().tolist(), factor.double().tolist()
    width = len(u)
    errors = [[0.0] * width for _ in w]
    for i, row in enumerate(w):
        out = set() if gone is None else {j for j in range(width) if gone[i, j]}
        for j in range(width):
            if pattern is not None and j % pattern[1] == 0:
                turn = sorted(range(j, j + pattern[1]), key=lambda c: (row[c] / u[c][c]) ** 2)
                out |= set(turn[: pattern[1] - pattern[0]])
            if j in out:
                errors[i][j] = row[j] / u[j][j]
                for c in range(j, width):
                    row[c] -= errors[i][j] * u[j][c]
        for j in out:
            row[j] = 0.0
    return torch.tensor(w), torch.tensor(errors)


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=8)
@given(st.data())
def test_is_its_definition(impl, data):
    pattern = data.draw(st.sampled_from([None, (2, 4), (4, 8), (1, 3)]))
    width = data.draw(st.integers(1, 3)) * (pattern[1] if pattern else 5)
    weight, factor = problem(data.draw(st.integers(1, 20)), width)
    gone = torch.rand(weight.shape) < 0.6 if pattern is None else None
    pruned, errors = prune_columns(
        weight.to(DEVICE),
        factor.to(DEVICE),
        gone=None if gone is None else gone.to(DEVICE),
        pattern=pattern,
        impl=impl,
    )
    expected, left = by_loops(weight, factor, gone, pattern)
    assert torch.equal(pruned.cpu() == 0, expected == 0)
    torch.testing.assert_close(pruned.cpu(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(errors.cpu(), left, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_of_equals_the_first_goes_and_what_is_given_stays_as_it_is(impl):
    weight, factor = torch.ones(2, 4, device=DEVICE), torch.eye(4, device=DEVICE)
    pruned, _ = prune_columns(weight, factor, pattern=(2, 4), impl=impl)
    assert pruned.tolist() == [[0, 0, 1, 1]] * 2
    assert weight.tolist() == [[1] * 4] * 2


def test_the_kernel_starts_on_the_device_of_its_tensors(monkeypatch):
    """A layer of a model on several GPUs need not lie on the current one, on which Triton launches."""
    triton_prune = pytest.importorskip("dlm_kernels.prune_columns.triton_prune")
    current, seen = [], []

    class On:
        def __init__(self, tensor):
            self.shape = tensor.shape

        def __enter__(self):
            current.append(self.shape)

        def __exit__(self, *_):
            current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, **__: seen.append(list(current))

    monkeypatch.setattr(torch.cuda, "device_of", On)
    monkeypatch.setattr(triton_prune, "prune_kernel", Kernel())
    triton_prune.prune(torch.ones(2, 4), torch.eye(4), None, (2, 4))
    assert seen == [[(2, 4)]]
    assert current == []


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", [None, (2, 4), (4, 8)])
def test_many_rows_of_a_wide_block_go_as_in_pytorch(pattern):
    weight, factor = (tensor.cuda() for tensor in problem(5000, 128))
    gone = torch.rand(weight.shape, device="cuda") < 0.5 if pattern is None else None
    (own, own_errors), (its, its_errors) = (
        prune_columns(weight, factor, gone=gone, pattern=pattern, impl=impl) for impl in IMPLS
    )
    # Near ties fall either way, and change what follows in their row.
    same = ((own == 0) == (its == 0)).all(1)
    assert same.float().mean() > 0.99
    torch.testing.assert_close(own[same], its[same], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(own_errors[same], its_errors[same], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight": torch.ones(2, 4, dtype=torch.float64)},
            r"weight must be .* float32 .*, got torch.float64",
        ),
        ({"weight": torch.ones(4)}, r"weight must be .* \(4,\)"),
        ({"factor": torch.eye(3)}, r"factor must be float32 \(4, 4\) .* \(3, 3\)"),
        ({"pattern": None}, "either gone or pattern, got .* neither"),
        ({"gone": torch.ones(2, 4, dtype=torch.bool)}, "either gone or pattern, got .* too"),
        ({"pattern": (2, 3)}, "M dividing the 4 columns"),
        ({"pattern": (4, 4)}, "0 < N < M"),
        ({"pattern": None, "gone": torch.ones(2, 4)}, "gone must be bool"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    problem = {"weight": torch.ones(2, 4), "factor": torch.eye(4), "pattern": (2, 4)} | change
    with pytest.raises(ValueError, match=message):
        prune_columns(**problem)
