"""What all tests share: no network, fixed seeds, the two cores of a small machine, models, a browser."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TQDM_DISABLE"] = "1"
# Workers share the cores; more threads than cores would wait for each other. Processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = str(
    max(1, min(2, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
)

import hypothesis
import numpy as np
import pytest
import torch

# Without a GPU, impl="triton" runs in Triton's interpreter, which must be chosen before triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import dlm_lens as dl

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
hypothesis.settings.register_profile("dlm-lens", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("dlm-lens")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def random_dlm() -> dl.DLM:
    """An untrained LLaDA of two layers, for tests where only shapes and identities matter."""
    return dl.random_model("llada", layers=2, hidden=32, heads=4, vocab=64, seed=0)


@pytest.fixture
def on_both_devices() -> Callable[..., list[dl.DLM]]:
    """``on_both_devices(family, **shape)``: a random model on the CPU, and the same weights on the GPU."""

    def make(family: str, **shape: int) -> list[dl.DLM]:
        models = [dl.random_model(family, **shape, device=device) for device in ("cpu", "cuda")]
        models[1].model.load_state_dict(models[0].model.state_dict())
        return models

    return make


@pytest.fixture(scope="session")
def tiny() -> dl.DLM:
    """The bundled diffusion model."""
    return dl.load("tiny")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the system's Chromium; without one, browser tests are skipped, but on CI they fail."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if path := next(filter(None, map(shutil.which, names)), None):
        return path
    message = "no Chromium on the PATH (on Debian: apt-get install chromium)"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
