"""What a function is told of a run, and how it ends one."""

import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure.tasks.retrieval import TaskItem
from dlm_lens.progress import Bar

PROMPT = torch.arange(3, 20)


class Told:
    """A progress function that ends the run at its ``last`` call."""

    def __init__(self, last=None):
        self.calls, self.last = [], last

    def __call__(self, done, total, what):
        self.calls.append((done, total, what))
        if len(self.calls) == self.last:
            raise KeyboardInterrupt


def test_parts_and_what_lies_within_them_are_told():
    told = Told()
    with Bar(told, total=2, desc="first", unit="part") as bar:
        bar.within()(1, 4, "ignored")
        bar.update()
        bar.note("second")
        bar.within(counts=False)(3, 4, "ignored")
        bar.within()(2, 4, "ignored")
        bar.update()
    assert told.calls == [
        (0.25, 2, "first"),
        (1, 2, "first"),
        (1, 2, "second"),
        (1.5, 2, "second"),
        (2, 2, "second"),
    ]


@pytest.mark.parametrize("progress", [True, False])
def test_within_a_bar_there_is_no_other(progress):
    with Bar(progress, total=1, desc="", unit="part") as bar:
        assert bar.within() is False


def test_a_run_tells_every_step(random_dlm):
    told = Told()
    dl.denoise(random_dlm, PROMPT, gen_length=8, steps=4, progress=told)
    assert told.calls == [(step, 4, "Dense") for step in (1, 2, 3, 4)]


def test_a_run_ends_at_the_step_that_raises(random_dlm):
    out = dl.denoise(random_dlm, PROMPT, gen_length=8, steps=4, progress=Told(last=2))
    assert out.interrupted
    assert len(out.timings) == 2


def test_a_capture_keeps_the_steps_before_the_one_that_raises(random_dlm, capsys):
    trace = dl.capture(random_dlm, PROMPT, gen_length=8, steps=4, progress=Told(last=3))
    assert trace.steps == (0, 1, 2)
    assert not trace.complete
    assert capsys.readouterr().out == ""


@pytest.fixture
def comparison(random_dlm):
    """A comparison of all that one can hold, given a function to tell."""
    task = TaskItem(PROMPT, "what?", "that", "single", 8)
    settings = {"gen_length": 8, "steps": 4, "tasks": [task], "audit": True}
    return lambda told: dl.compare(random_dlm, PROMPT, [dl.RandomColumns(0.5)], progress=told, **settings)


def test_a_comparison_tells_every_step_and_comes_to_its_end(comparison):
    told = Told()
    comparison(told)
    done, totals, whats = zip(*told.calls, strict=True)
    runs = 2 + 1 + 1 + 2  # tasks, audit and fidelity, one round
    assert list(done) == sorted(done)
    assert done[-1] == runs
    assert set(totals) == {runs}
    assert list(dict.fromkeys(whats)) == [
        "tasks: Dense",
        "tasks: Random columns 50%",
        "prompt: audit of Random columns 50%",
        "prompt: fidelity",
        "prompt: warming up Dense",
        "prompt: warming up Random columns 50%",
        "prompt: Dense",
        "prompt: Random columns 50%",
    ]


@pytest.mark.parametrize(
    "what", ["tasks: Dense", "audit of Random", "fidelity", "warming up Random", "prompt: Random"]
)
def test_a_comparison_ends_at_once_wherever_it_is(comparison, what):
    heard = []

    def told(done, total, now):
        heard.append(now)
        if what in now:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison(told)
    assert [what in now for now in heard].count(True) == 1
    assert what in heard[-1]
