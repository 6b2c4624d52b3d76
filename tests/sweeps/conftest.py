"""A model in a folder, and the grid that the tests of sweeps measure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure.tasks import TaskItem

# What does not depend on the clock.
DETERMINISTIC = [
    "policy", "prompts", "seed", "sparsity", "gen_length", "planned_steps", "context", "batch", "steps", "density",
    "amdahl_bound", "token_agreement", "argmax_agreement", "kl", "retained_mass", "retained_worst_layer", "accuracy",
    "error",
]  # fmt: skip


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory) -> str:
    """A folder that any process can load the model from."""
    folder = tmp_path_factory.mktemp("model")
    dl.random_model("llada", layers=2, hidden=32, heads=4, vocab=64, seed=0, device="cpu").save(folder)
    return str(folder)


@pytest.fixture(scope="package")
def options(checkpoint) -> dict:
    """Six cells: Dense, PulseCol and the control, with two seeds."""
    answer = Path(checkpoint)  # a text that no answer equals
    return {
        "model": checkpoint,
        "policies": [dl.PulseCol(sparsity=0.5, group_size=4)],
        "prompts": {"short": lambda seed: torch.arange(1 + seed, 13 + seed)},
        "seeds": [0, 1],
        "gen_length": 8,
        "steps": 4,
        "tasks": [TaskItem(torch.arange(1, 9), "", answer.name, "single", 8), right_answer(checkpoint)],
    }


def right_answer(checkpoint: str) -> TaskItem:
    """A question that dense attention answers."""
    prompt = torch.arange(20, 28)
    told = dl.denoise(dl.load(checkpoint, device="cpu"), prompt, gen_length=8, progress=False).texts[0]
    return TaskItem(prompt, "", told.strip(), "single", 8)
