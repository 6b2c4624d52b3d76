"""The matrices of a model's layers alone: milliseconds for so many tokens, as called and inside a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from dlm_lens.measure.session import Row
from dlm_lens.models import DLM
from dlm_lens.models.semi_structured import dense_weight
from dlm_lens.pruning.structured import DOWN, GATE_UP, OUT, QKV

GROUPS = {"q, k, v": QKV, "o": (OUT,), "gate, up": GATE_UP, "down": (DOWN,)}
"""The matrices of a layer that are given the same input."""
ALL = "all"


def matrix_rows(
    models: Mapping[str, DLM], tokens: int, *, graphs: bool, rounds: int = 7, layers: int = 8
) -> list[Row]:
    """Times of the matrices of the ``models``, all in turn in each of the ``rounds``.

    Milliseconds are of one layer: the mean over ``layers`` of them, spread over the model, whose weights together are
    many times as large as a GPU's cache. With ``graphs`` also inside a CUDA graph, without the time that launching
    takes. TFLOP/s count what a dense matrix of these sides would compute. A row each for the groups of matrices and for
    :data:`ALL` of them together.
    """
    timed = {}
    for name, dlm in models.items():
        chosen = _spread(dlm.layers, layers)
        for group, parts in GROUPS.items():
            linears = [layer.get_submodule(part) for layer in chosen for part in parts]
            run = _products(linears, tokens)
            timed[name, group, False] = run
            run()  # the first call loads kernels
            if graphs:
                timed[name, group, True] = _recorded(run)
    taken: dict[tuple, list[float]] = {key: [] for key in timed}
    device = next(iter(models.values())).device
    for _ in range(rounds):
        for (name, group, graph), run in timed.items():
            ms = _milliseconds(run, device) / min(layers, len(models[name].layers))
            taken[name, group, graph].append(ms)
    rows = []
    for name, dlm in models.items():
        for graph in (False, True)[: 1 + graphs]:
            by_group = {group: taken[name, group, graph] for group in GROUPS}
            by_group[ALL] = [sum(parts) for parts in zip(*by_group.values(), strict=True)]
            rows += [_row(name, dlm, tokens, group, ms, graph) for group, ms in by_group.items()]
    return rows


@torch.no_grad()
def output_error(linear: nn.Linear, dense: Tensor, positions: int = 512) -> Row:
    """How far the output of a matrix is from that of its ``dense`` weights in float64, beside the dense product's own.

    Relative errors ‖y − ŷ‖ / ‖ŷ‖ over all outputs of random inputs, and whether the weights are the same.
    """
    x = torch.randn(positions, dense.shape[1], device=dense.device, dtype=dense.dtype)
    exact = x.double() @ dense.double().T
    errors = {
        "error": linear(x) if linear.bias is None else linear(x) - linear.bias,
        "dense_error": x @ dense.T,
    }
    found: Row = {name: float((y.double() - exact).norm() / exact.norm()) for name, y in errors.items()}
    return found | {
        "weights_equal": torch.equal(dense_weight(linear.weight), dense),
        "sides": list(dense.shape),
    }


def _spread(layers: nn.ModuleList, count: int) -> list[nn.Module]:
    """So many of the layers, evenly spread; all if there are no more."""
    count = min(count, len(layers))
    return [layers[at * len(layers) // count] for at in range(count)]


def _products(linears: list[Any], tokens: int) -> Callable[[], None]:
    first = linears[0].weight
    x = torch.randn(1, tokens, first.shape[1], device=first.device, dtype=first.dtype)

    @torch.no_grad()
    def run() -> None:
        for linear in linears:
            linear(x)

    return run


def _recorded(run: Callable[[], None]) -> Callable[[], None]:
    """``run`` as a CUDA graph; it has run before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _milliseconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        began = perf_counter()
        run()
        return (perf_counter() - began) * 1000
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end)


def _row(name: str, dlm: DLM, tokens: int, group: str, ms: list[float], graph: bool) -> Row:
    parts = [part for parts in GROUPS.values() for part in parts] if group == ALL else GROUPS[group]
    linears: list[Any] = [dlm.layers[0].get_submodule(part) for part in parts]
    weights = sum(linear.weight.numel() for linear in linears)
    return {
        "job": "matrices",
        "model": name,
        "context": tokens,
        "matrices": group,
        "graph": graph,
        "ms": {"median": median(ms), "low": min(ms), "high": max(ms), "rounds": len(ms)},
        "tflops": 2 * tokens * weights / median(ms) / 1e9,
    }
