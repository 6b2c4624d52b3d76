"""Calibration passing through a model one layer at a time: only hidden states and one layer are at work."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from dlm_lens.attention import StepContext
from dlm_lens.errors import DlmLensError
from dlm_lens.models.placement import free_bytes
from dlm_lens.policies import Dense
from dlm_lens.policies.base import RunInfo, StepPlan
from dlm_lens.pruning.sinks import MassReader, SinkDiscount

if TYPE_CHECKING:
    from dlm_lens.models import DLM

# Share of a GPU's free memory that hidden states may take; they lie on the CPU where they need more.
_SHARE_FOR_STATES = 0.4
_TINY = torch.finfo(torch.float32).tiny


class Statistic(Protocol):
    """What is kept of the inputs of a matrix."""

    def add(self, rows: Tensor, left: Tensor | None) -> None:
        """Take up so many tokens more, [tokens, in] in the model's dtype, each times what is ``left`` of it, if given.

        ``left`` is 1 − φ, float32 [tokens, 1].
        """


class InputNorms:
    """‖X_j‖₂ of every input of a matrix, [in] float64, over all tokens so far."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self._squares = torch.zeros(inputs, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, left: Tensor | None) -> None:
        rows = rows.float() if left is None else rows.float() * left
        self._squares += rows.square().sum(0, dtype=torch.float64)

    @property
    def norms(self) -> Tensor:
        return self._squares.sqrt()


class InputHessian:
    """H = 2 X Xᵀ of the inputs of a matrix, [in, in] float32, over all tokens so far.

    On a GPU inputs of 16 bits go into the matrix units as they are, at ten times the speed of float32: their products
    are exact in float32, in which they are summed. What a discount makes of them no longer has 16 bits, and goes in as
    the sum of two that have.
    """

    def __init__(self, inputs: int, device: torch.device) -> None:
        self._half = torch.zeros(inputs, inputs, device=device)  # with its own transpose it makes H

    def add(self, rows: Tensor, left: Tensor | None) -> None:
        narrow = rows.is_cuda and rows.dtype.itemsize == 2
        if narrow and left is None:
            self._half += torch.mm(rows.T, rows, out_dtype=torch.float32)
            return
        scaled = rows.float() if left is None else rows.float() * left
        if not narrow:
            self._half.addmm_(scaled.T, scaled)
            return
        high, low = halves(scaled, rows.dtype)
        self._half += torch.mm(high.T, high, out_dtype=torch.float32)
        self._half.add_(torch.mm(high.T, low, out_dtype=torch.float32), alpha=2)

    @property
    def hessian(self) -> Tensor:
        return self._half + self._half.T


def halves(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two tensors of a narrower ``dtype`` that make up ``values`` together, to twice its digits."""
    high = values.to(dtype)
    return high, (values - high).to(dtype)


def linears_of(layer: nn.Module) -> dict[str, nn.Linear]:
    """The matrices of a layer, by their names in it."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


class Stream:
    """The hidden states [N, L, D] of all calibration sequences, in chunks, as they enter the layer that is next.

    The model embeds all of them once, and tells on a single one what else it gives each layer (positions, masks).
    Chunks lie on the device of the first layer where they fit beside everything else, and on the CPU otherwise.

    Parameters
    ----------
    dlm : the model whose layers are run, as it is when the stream is made
    sequences : int64 [N, L], without padding
    batch_size : sequences to a chunk
    device : where layers are computed; None for where each of them lies
    tick : called after every chunk that a layer has computed
    """

    def __init__(
        self,
        dlm: DLM,
        sequences: Tensor,
        *,
        batch_size: int,
        device: torch.device | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._spec, self._device, self._tick = dlm.spec, device, tick
        self._given = _given(dlm, sequences[:1])
        place = _place_for_states(dlm, sequences.numel(), device or dlm.device)
        self.chunks = [_entering(dlm, chunk).to(place) for chunk in sequences.split(batch_size)]
        self._dense: list[Tensor] = []

    def placed(self, layer: nn.Module) -> nn.Module:
        """``layer`` where it is to be computed: itself, or a copy on that device."""
        device = next(layer.parameters()).device
        if self._device is None or self._device == device:
            return layer
        return copy.deepcopy(layer).to(self._device)

    @torch.no_grad()
    def collect(
        self,
        layer: nn.Module,
        index: int,
        make: Callable[[int, torch.device], Statistic] | None = None,
        discount: SinkDiscount | None = None,
    ) -> tuple[dict[str, Any], float]:
        """Run the next ``layer``, which is not pruned yet, and keep what it gives, to compare the pruned one with.

        Also keeps what ``make`` makes of the inputs of each of its matrices, by name; matrices with the same input
        share one object. With a ``discount`` every token's input is multiplied by 1 − φ. Returns that, and the mean of
        φ, NaN without a discount. The hidden states stay as they are.
        """
        linears = {} if make is None else linears_of(layer)
        statistics: dict[str, Any] = {}
        generator = None if discount is None else discount.generator(index)
        phis = []
        self._dense = []
        for chunk in self.chunks:
            reader = None if discount is None else MassReader()
            with _inputs_of(linears) as inputs:
                self._dense.append(self._run(layer, index, chunk, reader).to(chunk.device))
            left = None
            if discount is not None and reader is not None and generator is not None:
                phis.append(discount.phi(reader.mass, generator))
                left = 1 - phis[-1].flatten()[:, None]
            for names, rows in _distinct(inputs, chunk.shape[:2]):
                if make is not None and names[0] not in statistics:
                    statistics |= dict.fromkeys(names, make(rows.shape[-1], rows.device))
                statistics[names[0]].add(rows.flatten(0, 1), left)
            self._tick()
        if unused := sorted(linears.keys() - statistics.keys()):
            raise ValueError(
                f"layer {index} of {self._spec.name!r} does not use {', '.join(unused)} for every token, so calibration"
                ' tells nothing of it; method="magnitude" needs none'
            )
        return statistics, torch.cat(phis).mean().item() if phis else float("nan")

    @torch.no_grad()
    def advance(self, layer: nn.Module, index: int) -> float:
        """Let the hidden states pass through ``layer``, the pruned one, and turn to the next.

        Returns how far it is from the one that :meth:`collect` ran, Σ ‖f′(x) − f(x)‖² / Σ ‖f(x) − x‖²: the error over
        what the layer adds, both fed with what the pruned model gives. NaN if nothing was collected. Raises
        ``DlmLensError`` if either gives NaN.
        """
        dense, self._dense = self._dense, []
        totals = []
        for at, chunk in enumerate(self.chunks):
            out = self._run(layer, index, chunk)
            if dense:
                whole, entering = dense[at].to(out.device).float(), chunk.to(out.device).float()
                gaps = out.float() - whole, whole - entering
                totals.append(torch.stack([gap.square().sum() for gap in gaps]).double())
                dense[at] = whole.new_empty(0)
            self.chunks[at] = out.to(chunk.device)
            self._tick()
        if not totals:
            return float("nan")
        error, added = torch.stack(totals).sum(0).tolist()
        if not math.isfinite(error + added):
            raise DlmLensError(
                f"layer {index} of {self._spec.name!r} gives NaN or infinity for the calibration; check its weights,"
                " and whether its dtype can hold them"
            )
        return error / max(added, _TINY)

    def _run(self, layer: nn.Module, index: int, chunk: Tensor, reader: MassReader | None = None) -> Tensor:
        """One chunk through one layer, [b, L, D]; a ``reader`` is shown its attention."""
        device = next(layer.parameters()).device
        more, named = _moved(self._given[index], device)
        if reader is not None:
            named |= {"lens": self._context(reader, device)}
        out = layer(chunk.to(device), *more, **named)
        return out[0] if isinstance(out, tuple) else out

    def _context(self, reader: MassReader, device: torch.device) -> StepContext:
        length = self.chunks[0].shape[1]
        info = RunInfo(self._spec, 0, length, 1, len(self.chunks[0]), None, device, 0)
        return StepContext(
            0, StepPlan(0, "dense"), Dense().start(info), recorder=reader, causal=self._spec.causal
        )


class _Entered(Exception):
    """Ends a forward pass at its first layer."""


@torch.no_grad()
def _entering(dlm: DLM, sequences: Tensor) -> Tensor:
    """The hidden states [b, L, D] that the first layer is given for ``sequences`` [b, L]."""
    found: list[Tensor] = []

    def stop(module: nn.Module, args: tuple) -> None:
        found.append(args[0])
        raise _Entered

    handle = dlm.layers[0].register_forward_pre_hook(stop)
    try:
        dlm.logits(sequences.to(dlm.device), keep=range(0))
    except _Entered:
        pass
    finally:
        handle.remove()
    return found[0]


def _given(dlm: DLM, sequence: Tensor) -> list[tuple[tuple, dict[str, Any]]]:
    """What each layer is given besides hidden states, positional and by name, when ``sequence`` [1, L] runs.

    Without padding it is the same for every sequence, and holds for any number of them. Nor does it depend on the
    hidden states, so that only the first layer is computed: on a CPU all of a large model would take minutes.
    """
    given: list[tuple[tuple, dict[str, Any]]] = []
    made: list[Any] = []

    def note(module: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        given.append((args[1:], named))

    def standing_in(*_: Any, **__: Any) -> Any:
        return made[0]

    first, *others = dlm.layers
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in dlm.layers]
    handles.append(first.register_forward_hook(lambda module, args, out: made.append(out)))
    own = [vars(layer).get("forward") for layer in others]  # accelerate sets one on the layer itself
    try:
        for layer in others:
            vars(layer)["forward"] = standing_in
        dlm.logits(sequence.to(dlm.device), keep=range(0))
    finally:
        for layer, forward in zip(others, own, strict=True):
            del vars(layer)["forward"]
            if forward is not None:
                vars(layer)["forward"] = forward
        for handle in handles:
            handle.remove()
    return given


def _moved(value: Any, device: torch.device) -> Any:
    """``value`` with all tensors in it on ``device``; its containers are new."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(each, device) for each in value)
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    return value


@contextmanager
def _inputs_of(linears: dict[str, nn.Linear]) -> Iterator[dict[str, list[Tensor]]]:
    """While open, every input of every matrix, by name; several where an MLP is computed in chunks."""
    inputs: dict[str, list[Tensor]] = {}

    def noting(name: str) -> Callable[[nn.Module, tuple], None]:
        return lambda module, args: inputs.setdefault(name, []).append(args[0])

    handles = [linear.register_forward_pre_hook(noting(name)) for name, linear in linears.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _distinct(inputs: dict[str, list[Tensor]], shape: torch.Size) -> Iterator[tuple[list[str], Tensor]]:
    """Each input [b, L, in] once, with the names of the matrices that share it; none of those of another ``shape``."""
    shared: dict[tuple[int, ...], list[str]] = {}
    for name, parts in inputs.items():
        shared.setdefault(tuple(map(id, parts)), []).append(name)
    for names in shared.values():
        parts = inputs[names[0]]
        if all(part.ndim == 3 for part in parts):
            whole = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            if whole.shape[:2] == shape:
                yield names, whole


def _place_for_states(dlm: DLM, tokens: int, device: torch.device) -> torch.device:
    """``device`` if the hidden states of so many tokens take a moderate share of what is free there, else the CPU."""
    free = free_bytes(device)
    # Those that enter a layer, and what it makes of them.
    states = 2 * tokens * dlm.spec.hidden * dlm.dtype.itemsize
    if free is not None and states < _SHARE_FOR_STATES * free:
        return device
    return torch.device("cpu")
