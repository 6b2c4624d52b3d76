"""What a sweep leaves on disk, so that it can be taken up again by any process that sees the folder.

======================  ==============================================================================
``sweep.json``          what this is, and the versions its measurements were made with
``grids/<digest>.json`` the cells of one grid, in order
``cells/<key>.json``    a finished cell; its key is a digest of all that decides the measurement
``traces/<key>.zarr``   the trace of that cell, where one was asked for
======================  ==============================================================================

Everything is written beside its place and moved there when it is whole: a process that is killed leaves what it had
finished, and two that measure the same cell leave one. Nothing is a pickle.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from dlm_lens.errors import DlmLensError
from dlm_lens.measure.environment import versions_and_device
from dlm_lens.measure.rounds import fingerprint
from dlm_lens.whole_file import whole_file

MARKER = "dlm_lens_sweep"
FORMAT = 1
# Other versions round differently, or measure something else by the same name.
_SAME = ("dlm_lens", "torch", "triton", "transformers")


class SweepFolder:
    """A folder of finished cells; see the module."""

    def __init__(self, path: str | PathLike) -> None:
        self.path = Path(path).absolute()

    @property
    def _head(self) -> Path:
        return self.path / "sweep.json"

    def begin(self, overwrite: bool) -> None:
        """Make the folder ready; with ``overwrite`` without what it holds.

        Raises ``ValueError`` if it holds something else, or measurements of other versions.
        """
        if (
            self.path.exists()
            and not self._head.exists()
            and (not self.path.is_dir() or any(self.path.iterdir()))
        ):
            raise ValueError(
                f"cannot keep a sweep in {self.path}: it holds something else; choose another folder"
            )
        here = versions_and_device()
        versions = {name: here[name] for name in _SAME}
        if self._head.exists():
            found = self.check()["versions"]
            if not overwrite:
                different = [
                    f"{name} was {found.get(name)} and is {versions[name]}"
                    for name in _SAME
                    if found.get(name) != versions[name]
                ]
                if different:
                    raise ValueError(
                        f"{self.path} holds cells measured with other versions: {'; '.join(different)}."
                        " Choose another folder, or pass overwrite=True to start anew"
                    )
                return
            for name in ("cells", "traces", "grids"):
                shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("cells", "traces", "grids"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        _write(self._head, {MARKER: FORMAT, "versions": versions})

    def check(self) -> dict[str, Any]:
        """What ``sweep.json`` says; ``DlmLensError`` if this is no folder of a sweep, or not seen from here."""
        if (head := _read(self._head)) is None or MARKER not in head:
            raise DlmLensError(
                f"{self.path} holds no sweep that this process can read; on a cluster the folder must be one that all"
                " workers and this machine share"
            )
        if head[MARKER] != FORMAT:
            raise DlmLensError(
                f"{self.path} has sweep format {head[MARKER]}, this version of dlm-lens reads {FORMAT}"
            )
        return head

    def finished(self, key: str) -> dict[str, Any] | None:
        """The record of a finished cell, or None; half a file, or one whose trace is gone, is not finished."""
        record = _read(self.path / "cells" / f"{key}.json")
        if record is None or not {"values", "provenance", "trace"} <= set(record):
            return None
        if record["trace"] and not self.trace(key).is_dir():
            return None
        return record | {"values": {name: _number(value) for name, value in record["values"].items()}}

    def trace(self, key: str) -> Path:
        """Where the trace of a cell lies."""
        return self.path / "traces" / f"{key}.zarr"

    def partial(self, key: str) -> Path:
        """A place for a trace that is being written, which no other process has."""
        return self.path / "traces" / f".{key}.{uuid.uuid4().hex}"

    def add(self, key: str, record: dict[str, Any], trace: Path | None) -> None:
        """Keep a finished cell, its ``trace`` first, on disk when this returns."""
        if trace is not None:
            try:
                os.rename(trace, self.trace(key))
            except OSError:
                if not self.trace(key).is_dir():
                    raise
                # Somebody has measured the same before; either will do.
        values = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in record["values"].items()
        }
        _write(self.path / "cells" / f"{key}.json", record | {"values": values})
        for name in ("cells", "traces"):  # what killed processes have left of this cell
            for left in (self.path / name).glob(f".{key}.*"):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)

    def add_grid(self, points: Sequence[dict[str, Any]]) -> None:
        """Note which cells a grid has, so that :meth:`points` knows what is still to come."""
        digest = fingerprint(json.dumps(list(points)))
        path = self.path / "grids" / f"{digest}.json"
        if not path.exists():
            _write(path, {"date": datetime.now(UTC).isoformat(), "cells": list(points)})

    def points(self) -> list[dict[str, Any]]:
        """The coordinates of the cells of all grids, the oldest grid first, every cell once."""
        grids = [grid for path in (self.path / "grids").glob("*.json") if (grid := _read(path)) is not None]
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for grid in sorted(grids, key=lambda grid: grid["date"]):
            for point in grid["cells"]:
                found.setdefault((point["key"], point["prompts"]), point)
        return list(found.values())


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none, whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, value: dict[str, Any]) -> None:
    """Put a file in its place at once, and only when all of it is on disk."""
    with whole_file(path) as file:
        file.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
