"""The matrices of a model's layers: what is left of their weights, and what they take by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlm_lens.models.semi_structured import dense_weight, is_semi_structured, linears_of
from dlm_lens.progress import Progress

if TYPE_CHECKING:
    from dlm_lens.models import DLM

# Passes that are timed in every round, after one that is not.
_PASSES = 5


def matrices_of(dlm: DLM) -> list[nn.Linear]:
    """All matrices of the layers, first to last. Embeddings and head are none of them."""
    return [linear for _, linear in linears_of(dlm.layers)]


def matrix_cost(dlm: DLM) -> float:
    """The share of the multiply-adds of the layers' matrices that is done: 1/2 of those that are stored as 2:4.

    Other zeros are multiplied like any number.
    """
    sizes = [linear.weight.numel() for linear in matrices_of(dlm)]
    halves = [is_semi_structured(linear.weight) for linear in matrices_of(dlm)]
    return sum(size / 2 if half else size for size, half in zip(sizes, halves, strict=True)) / sum(sizes)


def weight_sparsity(dlm: DLM, dense: DLM) -> float:
    """The share of the weights of the ``dense`` model's layer matrices that is zero or missing in ``dlm``."""
    weights = sum(linear.weight.numel() for linear in matrices_of(dense))
    return 1 - sum(int(dense_weight(linear.weight).count_nonzero()) for linear in matrices_of(dlm)) / weights


@torch.no_grad()
def linear_ms(
    models: Mapping[str, DLM], *, batch: int, length: int, repetition: int, told: bool | Progress
) -> dict[str, float]:
    """Median milliseconds that all matrices of the layers of each model take for ``batch`` × ``length`` positions.

    One after the other on random numbers, without what lies between them; launching their kernels is part of it.
    Models take turns, every other pass in the opposite order. ``told`` may be a function, told after every pass of a
    model: a chance to end the run.
    """
    passes = 1 + _PASSES
    widest = max(linear.in_features for dlm in models.values() for linear in matrices_of(dlm))
    numbers = {
        device: _numbers(batch * length * widest, device, dlm.dtype)
        for dlm in models.values()
        for device in dlm.devices
    }
    took: dict[str, list[float]] = {name: [] for name in models}
    for number in range(passes):
        turns = list(models.items())
        for name, dlm in turns if (number + repetition) % 2 == 0 else reversed(turns):
            took[name].append(_pass_ms(dlm, batch, length, numbers))
            if callable(told):
                told(sum(map(len, took.values())), passes * len(models), "matrices")
    return {name: median(found[1:]) for name, found in took.items()}


def _pass_ms(dlm: DLM, batch: int, length: int, numbers: Mapping[torch.device, Tensor]) -> float:
    """Milliseconds of every matrix once, each fed with the first of the ``numbers`` on its device."""
    fed = []
    for linear in matrices_of(dlm):
        size = batch * length * linear.in_features
        fed.append((linear, numbers[linear.weight.device][:size].view(batch, length, linear.in_features)))
    _wait(dlm)
    began = perf_counter()
    for linear, x in fed:
        linear(x)
    _wait(dlm)
    return 1000 * (perf_counter() - began)


def _numbers(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """So many normal random numbers, from a generator of their own."""
    return torch.randn(count, generator=torch.Generator(device).manual_seed(0), device=device, dtype=dtype)


def _wait(dlm: DLM) -> None:
    for device in dlm.devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
