import math
from pathlib import Path

import numpy as np
import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure import environment
from dlm_lens.measure.lineup import Entry
from dlm_lens.measure.speed import peak_memory, timed_runs, warm_up_steps
from dlm_lens.progress import Bar


def test_policies_take_turns_in_alternating_order(random_dlm):
    policies = [dl.Dense(), dl.RandomColumns(sparsity=0.5)]
    entries = [Entry(policy.label, policy, random_dlm) for policy in policies]
    settings = {"gen_length": 8, "steps": 4, "sampler": dl.LowConfidence(8), "seed": 0}
    told = []
    with Bar(lambda *how_far: told.append(how_far), total=6, desc="", unit="run") as bar:
        settings |= {"repetitions": range(3), "bar": bar, "heading": "code"}
        runs = list(timed_runs(entries, torch.arange(8), **settings))
    assert [(run.entry, run.repetition) for run in runs] == [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2)]
    assert all(len(run.result.timings) == 4 for run in runs)
    assert {what for done, _, what in told if done == 0} == {
        "code: warming up Dense",
        "code: warming up Random columns 50%",
    }
    assert [done for done, _, what in told if what == "code: Dense"][:5] == [0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(
    ("sampler", "gen_length", "steps", "expected"),
    [
        (dl.LowConfidence(32), 96, 96, 6),
        (dl.LowConfidence(32), 32, 32, 4),
        (dl.LowConfidence(32), 32, 2, 2),
        (dl.LeftToRight(), 64, 64, 64),
        (dl.DreamSampler(), 64, 64, 4),
    ],
)
def test_warm_up_is_as_short_as_the_sampler_allows(sampler, gen_length, steps, expected):
    assert warm_up_steps(sampler, gen_length, steps) == expected


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_peak_memory_sees_what_was_held_meanwhile():
    size = 200 << 20
    with peak_memory(torch.device("cpu")) as before:
        pass
    with peak_memory(torch.device("cpu")) as peak:
        np.ones(size, np.uint8).sum()
    with peak_memory(torch.device("cpu")) as after:
        pass
    assert 0.9 * size < peak[0] - before[0] < 1.5 * size
    assert after[0] < peak[0] - 0.5 * size


def test_peak_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    def denied(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", denied)
    with peak_memory(torch.device("cpu")) as peak:
        pass
    assert math.isnan(peak[0])


@pytest.mark.gpu
def test_dense_backend_of_a_gpu_is_named():
    dlm = dl.random_model(hidden=256, heads=2, device="cuda", dtype=torch.bfloat16)
    assert environment.dense_backend(dlm) in {"cuDNN", "FlashAttention-2", "memory-efficient"}
