import matplotlib.pyplot as plt
import pytest

import dlm_lens as dl


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def trace() -> dl.Trace:
    return dl.synthetic_trace(steps=6, layers=2, heads=4, length=48, prompt_length=16, bins=16)


@pytest.fixture(scope="session")
def batch() -> dl.Trace:
    return dl.synthetic_trace(steps=3, layers=2, heads=2, length=24, prompt_length=8, bins=8, samples=3)
