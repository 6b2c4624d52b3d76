"""Finished layers of a pruning, kept on disk so that it can be taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dlm_lens.errors import DlmLensError
from dlm_lens.measure.rounds import Measurements
from dlm_lens.pruning.structured import set_linear
from dlm_lens.whole_file import whole_file


class FinishedLayers:
    """The weights and the row of the report of every finished layer, in a folder or nowhere.

    The folder holds ``layer_000.safetensors`` and so on, and beside them the rows, in the file that also says what is
    pruned, and how. A layer counts as finished once its row is there, after its weights.

    Parameters are those of :class:`Measurements`, which raises ``ValueError`` naming what differs where the folder
    belongs to another pruning.
    """

    def __init__(
        self,
        path: str | PathLike | None,
        settings: Mapping[str, Any],
        session: Mapping[str, Any],
        overwrite: bool,
    ) -> None:
        self._rows = Measurements(path, settings, session, overwrite)
        self._folder = self._rows.folder

    def __contains__(self, layer: int) -> bool:
        return self._folder is not None and ("layer", layer) in self._rows

    @property
    def sessions(self) -> list[Mapping[str, Any]]:
        """Provenance of every process that pruned a layer."""
        return self._rows.sessions

    def row(self, layer: int) -> dict[str, Any]:
        return self._rows["layer", layer]

    def add(self, layer: int, module: nn.Module, row: dict[str, Any]) -> None:
        """Keep a finished layer; on disk when this returns."""
        if self._folder is not None:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
            with whole_file(self._file(layer)) as new:
                save_file(state, new)
        self._rows.add(("layer", layer), row)

    def restore(self, layer: int, module: nn.Module) -> None:
        """Give ``module`` the weights of a finished layer. Raises ``DlmLensError`` if their file is gone or damaged."""
        file = self._file(layer)
        try:
            state = load_file(file)
            adopt(module, state)
        except (OSError, SafetensorError, KeyError) as error:
            raise DlmLensError(
                f"layer {layer} is finished, but {file} cannot be read ({type(error).__name__}: {error}); prune anew"
                " with overwrite=True, or into another folder"
            ) from error

    def _file(self, layer: int) -> Path:
        assert self._folder is not None
        return self._folder / f"layer_{layer:03}.safetensors"


@torch.no_grad()
def adopt(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the matrices of ``module`` the weights of ``state``, of whatever shape; all else of it is never pruned."""
    for name, linear in module.named_modules():
        if isinstance(linear, nn.Linear):
            device = linear.weight.device
            bias = None if linear.bias is None else state[f"{name}.bias"].to(device)
            set_linear(linear, state[f"{name}.weight"].to(device), bias)
