"""The matrices of the layers: which they are, what is left of them, and the order in which they are timed."""

import pytest
import torch
from torch import nn

import dlm_lens as dl
from dlm_lens.measure import linear
from dlm_lens.measure.linear import linear_ms, matrices_of, matrix_cost, weight_sparsity
from tests.sparse_cores import sparse_cores

SHAPE = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 64}


@pytest.fixture
def dlm() -> dl.DLM:
    return dl.random_model("llada", **SHAPE, device="cpu")


def test_matrices_are_those_of_the_layers(dlm):
    expected = [
        tuple(w.shape) for name, w in dlm.model.named_parameters() if w.ndim == 2 and "layers" in name
    ]
    assert len(expected) == 2 * 7
    assert sorted(tuple(matrix.weight.shape) for matrix in matrices_of(dlm)) == sorted(expected)
    dlm.chunk_mlp(4)
    assert len(matrices_of(dlm)) == 2 * 7


def test_sparsity_counts_zeros_and_what_is_cut_away(dlm):
    few = {
        "calibration": dl.Calibration([torch.arange(40)], samples=2, length=16, times=(30,)),
        "progress": False,
    }
    half, cut = dl.prune(dlm, sparsity=0.5, **few)[0], dl.prune(dlm, structured=0.5, **few)[0]
    assert weight_sparsity(dlm, dlm) == 0
    for pruned in (half, cut):
        gone = total = 0
        for layer, dense in zip(pruned.layers, dlm.layers, strict=True):
            for (name, weight), whole in zip(layer.named_parameters(), dense.parameters(), strict=True):
                if "proj" in name:
                    total += whole.numel()
                    gone += whole.numel() - sum(value != 0 for value in weight.flatten().tolist())
        assert weight_sparsity(pruned, dlm) == pytest.approx(gone / total)


def test_weights_stored_as_2_4_do_half_of_the_work(monkeypatch):
    dlm = dl.random_model("llada", **SHAPE, device="cpu")
    assert matrix_cost(dlm) == 1
    few = dl.Calibration([torch.arange(40)], samples=2, length=16, times=(30,))
    half = dl.prune(dlm, pattern="2:4", calibration=few, progress=False)[0]
    assert matrix_cost(half) == 1  # zeros that nothing skips
    run = {"prompt_length": 20, "gen_length": 8}
    with sparse_cores(monkeypatch):
        half.semi_structured()
        assert matrix_cost(half) == 0.5
        assert weight_sparsity(half, dlm) == 0.5
        own = dl.schedule(dl.Dense(), 4, half, **run).flops
        logits, attention = 2 * 8 * 32 * 64, 2 * 4 * 28 * 28 * 4 * 8
        matrices = 2 * 28 * sum(matrix.weight.numel() for matrix in matrices_of(dlm))
        assert own == 4 * (matrices / 2 + attention + logits)
        found = dl.compare(dlm, torch.arange(1, 21), [], pruned=half, steps=4, gen_length=8, progress=False)
    assert own < dl.schedule(dl.Dense(), 4, dlm, **run).flops
    whole = matrices + attention + logits
    assert found["amdahl_bound"].tolist() == [1, pytest.approx(whole / (whole - matrices / 2))]
    assert found["kl"][1] > 0


def test_models_take_turns_and_every_matrix_gets_all_positions(dlm, monkeypatch):
    other = dl.random_model("llada", **{**SHAPE, "mlp": 24}, device="cpu")
    seen = []
    forward = nn.Linear.forward
    monkeypatch.setattr(
        nn.Linear, "forward", lambda self, x: seen.append((self, x.shape)) or forward(self, x)
    )
    told = []
    found = linear_ms(
        {"dense": dlm, "cut": other}, batch=2, length=5, repetition=1, told=lambda *how: told.append(how)
    )
    assert found.keys() == {"dense", "cut"}
    assert all(ms > 0 for ms in found.values())
    once = {name: [(m, (2, 5, m.in_features)) for m in matrices_of(model)] for name, model in
            (("dense", dlm), ("cut", other))}  # fmt: skip
    order = ["cut", "dense", "dense", "cut"] * 3
    assert [(matrix, tuple(shape)) for matrix, shape in seen] == [
        call for name in order for call in once[name]
    ]
    assert [done for done, total, _ in told] == list(range(1, 13))
    assert {total for _, total, _ in told} == {12}


def test_the_first_pass_does_not_count(dlm, monkeypatch):
    clock = iter([9.0, 1.0, 2.0, 7.0, 3.0, 4.0])
    monkeypatch.setattr(linear, "_pass_ms", lambda *_: next(clock))
    assert linear_ms({"dense": dlm}, batch=1, length=4, repetition=0, told=False) == {"dense": 3.0}


def test_timing_leaves_the_random_numbers_of_others_alone(dlm):
    before = torch.get_rng_state()
    linear_ms({"dense": dlm}, batch=1, length=4, repetition=0, told=False)
    assert torch.equal(torch.get_rng_state(), before)
