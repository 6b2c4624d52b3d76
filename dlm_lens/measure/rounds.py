"""Finished measurements of one comparison, kept on disk as they finish, so that it can be taken up again.

A folder holds ``measurements.jsonl``: a line that says what is compared, then one per finished measurement. A line is
there in full or, after a crash in the middle of writing it, ignored. Timings come in whole rounds, one run of every
policy, for a speed-up holds only between runs of one session; an unfinished round leaves nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dlm_lens.errors import DlmLensError
from dlm_lens.models.semi_structured import dense_weight
from dlm_lens.whole_file import whole_file

if TYPE_CHECKING:
    from dlm_lens.models import DLM

MARKER = "dlm_lens_measurements"
FORMAT = 1
FILE = "measurements.jsonl"


class Measurements:
    """Values by key, in memory and, where there is a folder, on disk.

    A key is a tuple of texts and numbers, such as ``("round", "long prompt", 2)``; a value is anything that JSON
    holds. ``sessions`` has one record for every process that measured something, the last one the latest.

    Parameters
    ----------
    path : folder, created if missing; None keeps everything in memory
    arguments : what is compared and where, ready for JSON: only measurements of the same are taken up
    session : provenance of what this process adds
    overwrite : start anew, whatever was measured

    Raises ``ValueError`` naming what differs if the folder holds measurements of something else, and
    ``DlmLensError`` if it holds something that is damaged or none of ours.
    """

    def __init__(
        self,
        path: str | PathLike | None,
        arguments: Mapping[str, Any],
        session: Mapping[str, Any],
        overwrite: bool = False,
    ) -> None:
        self._file = None if path is None else Path(path) / FILE
        self._values: dict[tuple, Any] = {}
        self.sessions: list[Mapping[str, Any]] = []
        self._session: Mapping[str, Any] | None = session
        if self._file is not None:
            if self._file.parent.exists() and not self._file.parent.is_dir():
                raise ValueError(
                    f"cannot keep measurements in {self._file.parent}: it is a file, not a folder"
                )
            arguments = json.loads(json.dumps(arguments))
            if self._file.exists():
                found = self._read(self._file)
                if not overwrite:
                    self._take_up(self._file, found, arguments)
                    return
            _write_first_line(self._file, {MARKER: FORMAT, "arguments": arguments})

    @property
    def folder(self) -> Path | None:
        """Where they are kept; None in memory."""
        return None if self._file is None else self._file.parent

    def __contains__(self, key: tuple) -> bool:
        return key in self._values

    def __getitem__(self, key: tuple) -> Any:
        return self._values[key]

    def add(self, key: tuple, value: Any) -> None:
        """Keep a finished measurement; on disk when this returns."""
        if self._session is not None:
            self.sessions.append(self._session)
            self._append("session", self._session)
            self._session = None
        self._values[key] = value
        self._append(list(key), value)

    def _append(self, key: Any, value: Any) -> None:
        if self._file is None:
            return
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "value": value}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _read(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
        """First line, finished measurements, and how many bytes of the file they fill."""
        data = file.read_bytes()
        whole = data.rfind(b"\n") + 1
        try:
            first, *rest = (json.loads(line) for line in data[:whole].splitlines())
            version = first[MARKER]
        except (ValueError, KeyError, TypeError) as error:
            raise DlmLensError(
                f"{file} holds no measurements, or is damaged ({error}); remove it, or choose another folder"
            ) from error
        if version != FORMAT:
            raise DlmLensError(f"{file} has format {version}, this version of dlm-lens reads {FORMAT}")
        return first, rest, whole

    def _take_up(self, file: Path, found: tuple, arguments: Mapping[str, Any]) -> None:
        first, rest, whole = found
        if different := list(_differences(first["arguments"], arguments)):
            raise ValueError(
                f"{file.parent} holds measurements of something else: {'; '.join(different)}."
                " Choose another folder, or pass overwrite=True to start anew"
            )
        os.truncate(file, whole)
        for record in rest:
            if record["key"] == "session":
                self.sessions.append(record["value"])
            else:
                self._values[tuple(record["key"])] = record["value"]


def _write_first_line(file: Path, first: Mapping[str, Any]) -> None:
    """Create the file, or replace the one that is there, at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as new:
        new.write_text(json.dumps(first) + "\n", encoding="utf-8")


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from _differences(old.get(key), new.get(key), f"{name}[{key}]" if name else key)
    elif old != new:
        yield f"{name} was {_short(old)} and is {_short(new)}"


def _short(value: Any) -> str:
    return "absent" if value is None else textwrap.shorten(str(value), 90, placeholder=" …")


def fingerprint(*values: Any) -> str:
    """A short digest of tensors, texts and numbers: equal for equal content."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {list(value.shape)}".encode())
            value = value.cpu().numpy().tobytes()
        digest.update(value if isinstance(value, bytes) else f"{value!r};".encode())
    return digest.hexdigest()[:16]


def weights_fingerprint(dlm: DLM) -> str:
    """A digest of a few values of every weight: pruning or training a model further changes it.

    So does storing weights as 2:4: what is measured with them takes another time.
    """
    samples = []
    for parameter in dlm.model.parameters():
        flat = dense_weight(parameter.detach()).reshape(-1)
        samples.append(flat[:: max(1, len(flat) // 64)][:64].float().cpu())
    return fingerprint(*samples, *(["2:4"] if dlm.is_semi_structured else []))
