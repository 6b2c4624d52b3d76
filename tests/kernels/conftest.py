"""Uninitialised memory is poisoned for every test of the kernels, so that whoever reads it is found out."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """``torch.empty`` yields NaN, or the greatest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
