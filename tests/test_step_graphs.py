"""Which steps are recorded as CUDA graphs, and that replaying them is computing them."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import dlm_lens as dl
from dlm_lens import step_graphs
from dlm_lens.step_graphs import StepGraphs
from tests.models.test_semi_structured import SHAPE, ids, pruned
from tests.sparse_cores import sparse_cores

RUN = {"gen_length": 16, "steps": 16, "progress": False, "sampler": dl.LowConfidence(block_length=8)}


@pytest.fixture
def recorded(monkeypatch):
    """Shapes of what was recorded, on a CPU: each graph computes when it is replayed."""
    shapes = []

    def record(dlm, inputs, start, context, pool):
        shapes.append([tuple(tensor.shape) for tensor in inputs.values()])
        return SimpleNamespace(replay=lambda inputs: dlm.logits(**inputs, start=start, context=context))

    def begin(self, dlm):
        before(self, dlm)
        self._one_gpu = True

    before = StepGraphs.__init__
    monkeypatch.setattr(StepGraphs, "__init__", begin)
    monkeypatch.setattr(step_graphs._Graph, "record", record)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    with sparse_cores(monkeypatch):
        yield shapes


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_dense_steps_of_2_4_weights_are_recorded_once_for_all_blocks(family, recorded):
    dense = pruned(family)
    dlm = copy.deepcopy(dense).semi_structured()
    found = [dl.denoise(each, ids(each, 2), **RUN).tokens for each in (dense, dlm)]
    assert torch.equal(*found)
    positions = len(RUN["sampler"].positions(0, 16))
    assert recorded == [[(2, 40), (2, positions)]]


def test_guided_steps_are_recorded_too(recorded):
    dense = pruned()
    dlm = copy.deepcopy(dense).semi_structured()
    found = [dl.denoise(each, ids(each), cfg_scale=1.0, **RUN).tokens for each in (dense, dlm)]
    assert torch.equal(*found)
    assert [shapes[0] for shapes in recorded] == [(2, 40)]


@pytest.mark.parametrize(
    "run",
    [
        {"prompt": [[3, 4, 5], [6]]},
        {"policy": dl.PulseCol(group_size=16)},
        {"policy": dl.Dense("math")},
        {"most": 39},
    ],
    ids=["padding", "sparse", "a backend asked for", "too large"],
)
def test_other_steps_are_not_recorded(run, recorded, monkeypatch):
    dlm = pruned().semi_structured()
    monkeypatch.setattr(step_graphs, "MOST_POSITIONS", run.pop("most", 16_384))
    prompt = run.pop("prompt", ids(dlm))
    dl.denoise(dlm, prompt, **RUN, **run)
    assert recorded == []


def test_captured_steps_and_dense_weights_are_not_recorded(recorded):
    dlm = pruned()
    dl.denoise(dlm, ids(dlm), **RUN)
    dl.capture(dlm.semi_structured(), ids(dlm), statistics=[dl.ColumnMass()], **RUN)
    assert recorded == []


@pytest.fixture(scope="module")
def on_gpu():
    return pruned(**SHAPE).semi_structured(256)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [24, 200])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_replayed_run_is_the_computed_one(on_gpu, length, compiled, monkeypatch):
    dlm = copy.deepcopy(on_gpu)
    if compiled:
        dlm.compile()
    logits, graphs = [], []
    replay, record = step_graphs._Graph.replay, step_graphs._Graph.record

    def noted(self, inputs):
        logits.append(replay(self, inputs).float().cpu())
        return self.logits

    def counted(*arguments):
        graphs.append(record(*arguments))
        return graphs[-1]

    monkeypatch.setattr(step_graphs._Graph, "replay", noted)
    monkeypatch.setattr(step_graphs._Graph, "record", counted)
    replayed = dl.denoise(dlm, ids(dlm, 2, length), **RUN, history=True)
    assert len(logits) == RUN["steps"]
    assert len(graphs) == 1
    monkeypatch.setattr(step_graphs, "MOST_POSITIONS", 0)
    computed = dl.denoise(dlm, ids(dlm, 2, length), **RUN)
    assert torch.equal(replayed.tokens, computed.tokens)
    for step in (0, 7, 15):
        block = range(length + step // 8 * 8, length + step // 8 * 8 + 8)
        keep = block if logits[step].shape[1] == 8 else range(length, length + 16)
        wanted = dlm.logits(replayed.history[step].cuda(), keep=keep).float().cpu()
        torch.testing.assert_close(logits[step], wanted, rtol=0.02, atol=0.05)


@pytest.mark.gpu
def test_runs_of_other_lengths_and_interrupted_ones_leave_nothing_behind(on_gpu):
    first = dl.denoise(on_gpu, ids(on_gpu, 1, 40), **RUN).tokens

    def stop(done, total, what):
        if done == 3:
            raise KeyboardInterrupt

    assert dl.denoise(on_gpu, ids(on_gpu, 1, 64), **RUN | {"progress": stop}).interrupted
    dl.denoise(on_gpu, ids(on_gpu, 3, 17), cfg_scale=1.0, **RUN)
    dl.denoise(on_gpu, ids(on_gpu, 1, 40), policy=dl.WindowDiffusion(), **RUN | {"sampler": None})
    dl.denoise(on_gpu, ids(on_gpu, 1, 40), policy=dl.PulseCol(), **RUN)
    dl.denoise(on_gpu, [[3, 4, 5], [6]], **RUN)
    assert torch.equal(dl.denoise(on_gpu, ids(on_gpu, 1, 40), **RUN).tokens, first)
