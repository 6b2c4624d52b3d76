"""Files and folders that are either there whole or not at all, whenever a process ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, whose place it takes at once when all of it is on disk.

    After an error within, ``path`` is as it was. Of several writers at the same time the last one stays.
    """
    new = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield new
        with new.open("rb") as written:
            os.fsync(written.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside ``path``, whose place it takes when it is full; what was there before is removed.

    After an error within, ``path`` is as it was.
    """
    path = path.expanduser().resolve()
    new, old = (path.with_name(f".{path.name}.{uuid4().hex}") for _ in range(2))
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
