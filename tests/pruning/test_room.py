"""What surely does not fit is refused before anything is copied, with what would."""

import pytest
import torch

import dlm_lens as dl
from dlm_lens.pruning import room

TEXT = [torch.arange(40) % 60]
QUIET = {"calibration": dl.Calibration(TEXT, samples=2, length=16, times=(10,)), "progress": False}


@pytest.fixture
def dlm():
    return dl.random_model(layers=2, hidden=32, heads=4, mlp=48, vocab=64, device="cpu")


def copied(dlm: dl.DLM) -> int:
    return 4 * sum(weight.numel() for weight in dlm.model.parameters())


# Of a layer: Hessians of 32 and 48 inputs in float32, and three of 48 in float64.
HESSIANS = 4 * (32**2 + 48**2) + 3 * 8 * 48**2


@pytest.mark.parametrize(("method", "work"), [("wanda", 0), ("sparsegpt", HESSIANS)])
def test_a_copy_and_hessians_that_do_not_fit_are_refused(dlm, method, work, monkeypatch):
    free = copied(dlm) + work
    monkeypatch.setattr(room, "free_bytes", lambda device: free)
    dl.prune(dlm, method, sparsity=0.5, **QUIET)
    monkeypatch.setattr(room, "free_bytes", lambda device: free - 1)
    with pytest.raises(
        dl.MemoryBudgetError, match=r"for the pruned copy and .* keep the model on the CPU"
    ) as refused:
        dl.prune(dlm, method, sparsity=0.5, **QUIET)
    assert ('method="wanda"' in str(refused.value)) == (work > 0)


def test_a_gpu_that_computes_for_a_model_on_the_cpu_holds_a_layer(dlm, monkeypatch):
    gpu = torch.device("meta")
    layer = 4 * sum(weight.numel() for weight in dlm.layers[0].parameters())
    for free, fits in ((layer + HESSIANS, True), (layer + HESSIANS - 1, False)):
        monkeypatch.setattr(room, "free_bytes", lambda device, free=free: free if device == gpu else None)
        if fits:
            room.check_room(dlm, gpu, hessians=True)
            continue
        with pytest.raises(dl.MemoryBudgetError, match="0 B for the pruned copy") as refused:
            room.check_room(dlm, gpu, hessians=True)
        assert "the CPU" not in str(refused.value)
