"""Pruning a whole model, layer by layer, each calibrated on what the pruned layers before it give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from torch import nn

from dlm_lens.measure.environment import provenance
from dlm_lens.measure.rounds import fingerprint, weights_fingerprint
from dlm_lens.models.placement import device_named
from dlm_lens.progress import Bar, Progress
from dlm_lens.pruning.amount import Pattern, Share
from dlm_lens.pruning.calibration import Calibration
from dlm_lens.pruning.criteria import magnitude, wanda
from dlm_lens.pruning.finished import FinishedLayers, adopt
from dlm_lens.pruning.report import PruningReport
from dlm_lens.pruning.room import check_room
from dlm_lens.pruning.sinks import SinkDiscount
from dlm_lens.pruning.sparsegpt import sparsegpt
from dlm_lens.pruning.streaming import InputHessian, InputNorms, Statistic, Stream, linears_of
from dlm_lens.pruning.structured import Structure, cut_layer, set_linear

if TYPE_CHECKING:
    from dlm_lens.models import DLM, Spec

METHODS = {"magnitude": "magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT"}
_STATISTICS: dict[str, Callable[[int, torch.device], Statistic]] = {
    "wanda": InputNorms,
    "sparsegpt": InputHessian,
}
# A matrix with a larger share of zeros has been pruned before; trained weights are hardly ever exactly zero.
_PRUNED_ZEROS = 0.05


def prune(
    dlm: DLM,
    method: str = "magnitude",
    *,
    sink_aware: bool | Literal["random"] = False,
    sparsity: float | None = None,
    pattern: str | None = None,
    structured: float | None = None,
    calibration: Any = None,
    alpha: float = 5.0,
    kappa: float = 2.0,
    path: str | PathLike | None = None,
    overwrite: bool = False,
    device: torch.device | str | None = None,
    progress: bool | Progress = True,
) -> tuple[DLM, PruningReport]:
    """Prune the layers of a model without retraining; ``dlm`` itself stays as it is.

    Layer by layer: its inputs are what the calibration text gives in the layers pruned before; its matrices are
    pruned by them; its outputs are computed anew. Besides the model and its copy that takes the hidden states of the
    calibration before and after a layer, on the CPU where they do not fit, and what one layer is at work with.
    Embeddings, norms and the head are not pruned.

    All 32 layers of LLaDA-8B's shape in 2:4, with the default calibration, take an H200 43 s by magnitude, 54 s by
    Wanda and 87 s by SparseGPT, these two with sinks discounted, and 48 GB; with the model on the CPU, 2.1 s a layer by
    Wanda and 12.5 GB (``dlm_lens.measure.pruning_cost``).

    Parameters
    ----------
    method : ``"magnitude"``, |W| over each matrix; ``"wanda"`` (arXiv 2306.11695), |W_ij| · ‖X_j‖₂ over each output
        row; ``"sparsegpt"`` (arXiv 2301.00774), which also lets the weights that stay make up for those that go (block
        128, damping 1%).
    sink_aware : whether tokens that are attention sinks count less in calibration (arXiv 2602.17664), by the soft mask
        of :class:`~dlm_lens.pruning.SinkDiscount` with ``alpha`` and ``kappa``; ``"random"`` for its control, as much
        discounted at random positions.
    sparsity : share of the weights of every matrix that becomes zero, in [0, 1).
    pattern : ``"2:4"`` or ``"4:8"``: N of every M neighbouring inputs stay in each row.
    structured : share of the MLP channels and attention heads of every layer that is removed, in [0, 1). Matrices
        shrink. Heads that share a key head go together.
    calibration : texts, a list of token ids, or a :class:`~dlm_lens.pruning.Calibration`; by default 128 windows of
        bundled source code, each at ten times of the diffusion. Also what the errors of the report are measured on.
    path : folder in which finished layers are kept. A run that was interrupted goes on there, and gives the same bits
        as one that was not; ``overwrite=True`` starts anew.
    device : where layers are computed, one at a time; by default where they lie. With a model on the CPU, one layer of
        it is all that a GPU must hold.
    progress : whether to show a bar, or a function to tell how far it is.

    Returns
    -------
    The pruned copy, on the device of ``dlm``, and what was done to each layer. ``DLM.save`` writes it in the layout of
    the checkpoint.

    Raises ValueError before anything is run for arguments that cannot work (a calibration shorter than its length, an
    M that does not divide a matrix, a layer that has zeros already; a model whose matrices were shrunk may be pruned
    again), and where ``path`` belongs to another pruning; ``MemoryBudgetError`` where copy and Hessians surely do not
    fit on a GPU; ``DlmLensError`` if a layer gives NaN. Ctrl-C raises KeyboardInterrupt; finished layers stay in
    ``path``.
    """
    if not isinstance(calibration, Calibration):
        calibration = Calibration(calibration)
    how = _how(method, sink_aware, sparsity, pattern, structured, alpha, kappa, calibration.seed)
    how.check(dlm)
    if device is not None and len(dlm.devices) > 1:
        raise ValueError(
            f"device={str(device)!r} is for a model on one device, but {dlm.spec.name!r} lies on"
            f" {', '.join(map(str, dlm.devices))}; leave it out, and every layer is computed where it lies"
        )
    sequences = calibration.sequences(dlm)
    place = None if device is None else device_named(device)
    check_room(dlm, place, hessians=how.method == "sparsegpt")
    settings = {
        "model": {name: fact for name, fact in asdict(dlm.spec).items() if name != "name"},
        "weights": weights_fingerprint(dlm),
        "dtype": str(dlm.dtype),
        "how": how.settings(),
        "calibration": fingerprint(sequences),
        "batch_size": calibration.batch_size,
        "device": (place or dlm.device).type,
    }
    finished = FinishedLayers(path, settings, provenance(dlm, seed=calibration.seed), overwrite)
    pruned = copy.deepcopy(dlm, {id(dlm.tokenizer): dlm.tokenizer})
    rows = _prune_layers(dlm, pruned, how, sequences, calibration.batch_size, place, finished, progress)
    if isinstance(how.amount, Structure):
        how.amount.apply(pruned)
    pruned.spec = replace(pruned.spec, name=f"{dlm.spec.name} ({how.label})")
    table = pd.DataFrame(rows)
    table.attrs["provenance"] = finished.sessions[-1]
    return pruned, PruningReport(how.label, table, settings)


def _prune_layers(
    dlm: DLM,
    pruned: DLM,
    how: _How,
    sequences: torch.Tensor,
    batch_size: int,
    device: torch.device | None,
    finished: FinishedLayers,
    progress: bool | Progress,
) -> list[dict[str, Any]]:
    """Prune the layers of the copy ``pruned`` one after the other, and say what was done to each."""
    layers, chunks = len(pruned.layers), -(-len(sequences) // batch_size)
    # Through each layer before it is pruned and after it; the finished ones are pruned.
    passes = sum(1 if index in finished else 2 for index in range(layers))
    if layers - 1 in finished:
        for index, layer in enumerate(pruned.layers):
            finished.restore(index, layer)
        return [finished.row(index) for index in range(layers)]
    with Bar(progress, total=passes * chunks, desc=how.label, unit="chunk") as bar:
        stream = Stream(pruned, sequences, batch_size=batch_size, device=device, tick=bar.update)
        rows = []
        for index, layer in enumerate(pruned.layers):
            bar.note(f"layer {index + 1} of {layers}")
            if index in finished:
                finished.restore(index, layer)
                stream.advance(stream.placed(layer), index)
            else:
                _prune_layer(index, layer, how, stream, finished, dlm.spec)
            rows.append(finished.row(index))
    return rows


def _prune_layer(
    index: int, layer: nn.Module, how: _How, stream: Stream, finished: FinishedLayers, spec: Spec
) -> None:
    """Prune one layer of the copy in place, let calibration pass, and keep what was done."""
    work = stream.placed(layer)
    statistics, discounted = stream.collect(work, index, _STATISTICS.get(how.method), how.discount)
    weights = _weights(work, torch.numel)
    how.apply(work, statistics, spec)
    del statistics  # Hessians, which may be larger than all that is to come
    nonzero = _weights(work, torch.count_nonzero)
    error = stream.advance(work, index)
    if work is not layer:
        adopt(layer, work.state_dict())
    row = {"layer": index, "weights": weights, "nonzero": nonzero, "sparsity": 1 - nonzero / weights}
    finished.add(index, layer, row | {"error": error, "discounted": discounted})


def _weights(layer: nn.Module, count: Callable[[torch.Tensor], int | torch.Tensor]) -> int:
    """Weights of all matrices of a layer, as ``count`` counts those of one."""
    return sum(int(count(linear.weight)) for linear in linears_of(layer).values())


@dataclass(frozen=True)
class _How:
    """What is done to every layer."""

    method: str
    amount: Share | Pattern | Structure
    discount: SinkDiscount | None

    @property
    def label(self) -> str:
        """Name of it all, such as ``"sink-aware Wanda 2:4"``."""
        aware = (
            "" if self.discount is None else "random-discount " if self.discount.shuffled else "sink-aware "
        )
        return f"{aware}{METHODS[self.method]} {self.amount.label}"

    def settings(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "method": self.method,
            "amount": repr(self.amount),
            "sinks": None if self.discount is None else asdict(self.discount),
        }

    def check(self, dlm: DLM) -> None:
        """Raise ValueError if some layer cannot be pruned so."""
        if dlm.is_semi_structured:
            raise ValueError(
                f"{dlm.spec.name!r} is pruned already: its weights are 2:4; prune the model it was made from"
            )
        if isinstance(self.amount, Structure):
            self.amount.check(dlm)
        for index, layer in enumerate(dlm.layers):
            linears = linears_of(layer)
            matrices = sum(weight.numel() for weight in layer.parameters() if weight.ndim > 1)
            if not linears or matrices > sum(linear.weight.numel() for linear in linears.values()):
                raise ValueError(
                    f"layer {index} of {dlm.spec.name!r} holds weights that are in no nn.Linear, which pruning does not"
                    " reach; prune a model whose layers are made of linear ones"
                )
            for name, linear in linears.items():
                where = f"layer {index}, {name}"
                if isinstance(self.amount, Pattern):
                    self.amount.check(linear.in_features, where)
                zeros = 1 - int(linear.weight.count_nonzero()) / linear.weight.numel()
                if zeros > _PRUNED_ZEROS:
                    raise ValueError(
                        f"{where} of {dlm.spec.name!r} is pruned already: {100 * zeros:.3g}% of its weights are zero;"
                        " prune the model it was made from"
                    )

    def apply(self, layer: nn.Module, statistics: dict[str, Any], spec: Spec) -> None:
        """Prune a layer of a model of ``spec`` in place, by the ``statistics`` of the inputs of its matrices."""
        if isinstance(self.amount, Structure):
            cut_layer(layer, self.amount, spec, self.method, statistics)
            return
        linears = linears_of(layer)
        if self.method == "sparsegpt":
            # Matrices of the same input have the same statistic, and share the inverse of its Hessian.
            for statistic in {id(each): each for each in statistics.values()}.values():
                sharing = [linears[name] for name, each in statistics.items() if each is statistic]
                pruned = sparsegpt([linear.weight for linear in sharing], statistic.hessian, self.amount)
                for linear, weight in zip(sharing, pruned, strict=True):
                    set_linear(linear, weight, linear.bias)
            return
        for name, linear in linears.items():
            if self.method == "magnitude":
                weight = magnitude(linear.weight, self.amount)
            else:
                weight = wanda(linear.weight, statistics[name].norms, self.amount)
            set_linear(linear, weight, linear.bias)


def _how(
    method: str,
    sink_aware: bool | str,
    sparsity: float | None,
    pattern: str | None,
    structured: float | None,
    alpha: float,
    kappa: float,
    seed: int,
) -> _How:
    """The arguments of :func:`prune`, checked; ValueError for what cannot work on any model."""
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: choose one of {', '.join(map(repr, METHODS))}")
    asked = {"sparsity": sparsity, "pattern": pattern, "structured": structured}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            "say how much is pruned by one of sparsity, pattern and structured;"
            f" got {' and '.join(f'{name}={value!r}' for name, value in given.items()) or 'none of them'}"
        )
    amount: Share | Pattern | Structure
    if sparsity is not None:
        amount = Share(sparsity)
    elif pattern is not None:
        amount = Pattern.parse(pattern)
    else:
        assert structured is not None
        amount = Structure(structured)
    if sink_aware not in (True, False, "random"):
        raise ValueError(f"sink_aware={sink_aware!r} must be True, False or 'random', its control")
    if sink_aware and method == "magnitude":
        raise ValueError(
            "method='magnitude' looks at no activations, so no sinks can be discounted in them; prune with"
            " sink_aware=False, or by 'wanda' or 'sparsegpt'"
        )
    discount = SinkDiscount(alpha, kappa, sink_aware == "random", seed) if sink_aware else None
    return _How(method, amount, discount)
