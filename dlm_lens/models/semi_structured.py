"""Weights of which two of every four are zero, stored and multiplied as such: sparse tensor cores do half of the work.

A matrix is held as PyTorch's ``SparseSemiStructuredTensorCUSPARSELT``: the two weights that stay of every four and
where they stand, 9/16 of the bytes in 16 bits. What is multiplied is exactly the dense matrix; only the order in which
products are summed, and with it the rounding, is another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUSPARSELT

if TYPE_CHECKING:
    from dlm_lens.models.dlm import DLM

# On an H200 products in float16 broke the GPU's context, or never ended (PyTorch 2.11, cuSPARSELt 0.8).
DTYPE = torch.bfloat16
# Ampere, the first with sparse tensor cores.
_CAPABILITY = (8, 0)
# cuSPARSELt takes 16-bit matrices whose sides are multiples of this.
_SIDE = 16
# One more than the last algorithm that is asked for; cuSPARSELt 0.8 has 21 and refuses others.
_ALGORITHMS = 32
# Products in a graph, and replays of it of which the median counts.
_CALLS, _ROUNDS = 8, 5


def is_semi_structured(weight: Tensor) -> bool:
    """Whether a weight is stored as 2:4."""
    return isinstance(weight, SparseSemiStructuredTensor)


@torch.no_grad()
def convert(dlm: DLM, positions: int) -> None:
    """Store the matrices of all layers as 2:4, with the algorithm that is fastest for so many positions; see
    :meth:`DLM.semi_structured`."""
    if positions < 1:
        raise ValueError(f"positions={positions} must be at least 1: how many go through a matrix at a time")
    check_hardware(dlm.spec.name, dlm.devices, dlm.dtype)
    linears = dict(linears_of(dlm.layers))
    for where, linear in linears.items():
        check_matrix(linear.weight, f"{where} of {dlm.spec.name!r}")
    found: dict[tuple[int, ...], int] = {}
    was_dense = not dlm.is_semi_structured
    try:
        for linear in linears.values():
            weight: Any = linear.weight
            packed = weight if is_semi_structured(weight) else _packed(weight.detach())
            shape = tuple(packed.shape)
            if shape not in found:
                found[shape] = _fastest(packed, dense_weight(weight), positions)
            linear.weight = nn.Parameter(_settled(packed, found[shape]), requires_grad=False)
    except BaseException:  # out of memory or Ctrl-C midway: all as it was
        if was_dense:
            densify(dlm.layers)
        raise


def densify(layers: Iterable[nn.Module]) -> None:
    """Store all weights of layers as dense matrices again, with the same values."""
    for _, linear in linears_of(layers):
        if is_semi_structured(linear.weight):
            linear.weight = nn.Parameter(dense_weight(linear.weight), requires_grad=False)


def linears_of(layers: Iterable[nn.Module]) -> Iterator[tuple[str, nn.Linear]]:
    """The matrices of layers, and where each is: ``"layer 3, mlp.up_proj"``."""
    for index, layer in enumerate(layers):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                yield f"layer {index}, {name}", module


def check_hardware(name: str, devices: Sequence[torch.device], dtype: torch.dtype) -> None:
    """Raise ValueError unless a model there, in that dtype, can be multiplied on sparse tensor cores."""
    if len(devices) > 1 or devices[0].type != "cuda":
        raise ValueError(
            f"{name!r} is on {', '.join(map(str, devices))}, but sparse tensor cores are a GPU's, and the model must"
            " lie on one; load or move it with device='cuda'"
        )
    if dtype != DTYPE:
        raise ValueError(
            f"{name!r} is in {_plain(dtype)}, but 2:4 weights must be in {_plain(DTYPE)}; convert it with"
            " dlm.to(dtype=torch.bfloat16)"
        )
    if not torch.backends.cusparselt.is_available():
        raise ValueError(
            f"PyTorch {torch.__version__} here has no cuSPARSELt, which multiplies 2:4 weights; install a build with"
            " CUDA that has it, as those of pytorch.org for Linux do"
        )
    capability = torch.cuda.get_device_capability(devices[0])
    if capability < _CAPABILITY:
        raise ValueError(
            f"{torch.cuda.get_device_name(devices[0])} has compute capability {_dotted(capability)}, but sparse tensor"
            f" cores begin at {_dotted(_CAPABILITY)} (Ampere); keep the weights dense on it"
        )


@torch.no_grad()
def check_matrix(weight: Tensor, where: str) -> None:
    """Raise ValueError unless a matrix [out, in] has at most two nonzero weights in every four neighbours of a row."""
    if is_semi_structured(weight):
        return
    rows, columns = weight.shape
    if rows % _SIDE or columns % _SIDE:
        raise ValueError(
            f"{where} is {rows} × {columns}, but sparse tensor cores take sides that are multiples of {_SIDE}; keep"
            " the weights of this model dense"
        )
    over = weight.unflatten(1, (-1, 4)).ne(0).sum(-1, dtype=torch.int8) > 2
    if over.any():
        row, group = divmod(int(over.flatten().int().argmax()), over.shape[1])
        values = ", ".join(f"{value:.3g}" for value in weight[row, 4 * group : 4 * group + 4].tolist())
        raise ValueError(
            f"{where} is not 2:4: of the four weights from input {4 * group} of row {row} at most two may be other than"
            f" zero, but they are {values}; prune the model first, by dl.prune(dlm, ..., pattern='2:4')"
        )


def dense_weight(weight: Tensor) -> Tensor:
    """The dense matrix of a 2:4 one: exact, since every product is that of a weight with one or zero."""
    if not isinstance(weight, SparseSemiStructuredTensorCUSPARSELT):
        return weight
    return _rebuilt(weight, fuse_transpose_cusparselt=False, alg_id_cusparselt=0).to_dense().contiguous()


def stored_bytes(weight: Tensor) -> int:
    """Bytes that a weight takes as it is stored."""
    if isinstance(weight, SparseSemiStructuredTensor) and weight.packed is not None:
        weight = weight.packed
    return weight.numel() * weight.element_size()


def copies(layers: Iterable[nn.Module]) -> dict[int, Any]:
    """A copy of every 2:4 weight by its identity, as ``copy.deepcopy`` wants them: not every PyTorch can copy them."""
    weights = (linear.weight for _, linear in linears_of(layers))
    return {
        id(weight): nn.Parameter(_rebuilt(weight, packed=weight.packed.clone()), requires_grad=False)
        for weight in weights
        if isinstance(weight, SparseSemiStructuredTensorCUSPARSELT) and weight.packed is not None
    }


def _packed(weight: Tensor) -> SparseSemiStructuredTensorCUSPARSELT:
    with (
        warnings.catch_warnings()
    ):  # PyTorch calls its interface a prototype; that is ours to bear, not the user's
        warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructuredTensor")
        return SparseSemiStructuredTensorCUSPARSELT.from_dense(weight.contiguous())


def _fastest(packed: SparseSemiStructuredTensorCUSPARSELT, dense: Tensor, positions: int) -> int:
    """The algorithm by which the product with so many positions is fastest, of those whose result is the dense one's.

    PyTorch's own search, ``mm_search``, is not asked: it checks no result, and in float16 it broke the GPU's context.
    """
    numbers = torch.Generator(packed.device).manual_seed(0)
    x = torch.randn(positions, packed.shape[1], generator=numbers, device=packed.device, dtype=packed.dtype)
    expected = F.linear(x, dense)
    runs: dict[int, Callable[[], Tensor]] = {}
    refused = ""
    for algorithm in range(_ALGORITHMS):
        run = partial(F.linear, x, _settled(packed, algorithm))
        try:
            error = (run() - expected).norm(dtype=torch.float32)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as raised:
            torch.cuda.synchronize(x.device)  # raises where it has broken the context
            refused = str(raised)
            continue
        if error <= torch.finfo(x.dtype).eps * expected.norm(dtype=torch.float32):
            runs[algorithm] = run
    if not runs:
        raise RuntimeError(
            f"no algorithm of cuSPARSELt multiplies a 2:4 matrix of {' × '.join(map(str, dense.shape))} in"
            f" {_plain(x.dtype)} to what the dense one gives; keep the weights dense. {refused}".rstrip()
        )
    taken = _graph_ms(runs, x.device)
    return min(taken, key=taken.__getitem__)


def _graph_ms(runs: Mapping[int, Callable[[], Tensor]], device: torch.device) -> dict[int, float]:
    """Median milliseconds of each, which have run before: in CUDA graphs, for the host takes longer to launch a product
    than the GPU to compute it, and in turns."""
    graphs: dict[int, Any] = {}
    with torch.cuda.device(device):
        pool = torch.cuda.graph_pool_handle()  # none runs beside another
        for algorithm, run in runs.items():
            graphs[algorithm] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[algorithm], pool=pool):
                for _ in range(_CALLS):
                    run()
        taken: dict[int, list[float]] = {algorithm: [] for algorithm in graphs}
        for _ in range(_ROUNDS):
            for algorithm, graph in graphs.items():
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graph.replay()
                end.record()
                end.synchronize()
                taken[algorithm].append(begin.elapsed_time(end) / _CALLS)
    return {algorithm: median(ms) for algorithm, ms in taken.items()}


def _settled(
    weight: SparseSemiStructuredTensorCUSPARSELT, algorithm: int
) -> SparseSemiStructuredTensorCUSPARSELT:
    """The same weight, multiplied by ``algorithm``, with outputs row by row, as all that follows in a layer wants."""
    return _rebuilt(weight, fuse_transpose_cusparselt=True, alg_id_cusparselt=algorithm)


def _rebuilt(
    weight: SparseSemiStructuredTensorCUSPARSELT, **changed: Any
) -> SparseSemiStructuredTensorCUSPARSELT:
    fields = ("packed", "meta", "packed_t", "meta_t", "compressed_swizzled_bitmask",
              "fuse_transpose_cusparselt", "alg_id_cusparselt")  # fmt: skip
    kept: dict[str, Any] = {name: getattr(weight, name) for name in fields}
    return SparseSemiStructuredTensorCUSPARSELT(weight.shape, **(kept | changed), requires_grad=False)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
