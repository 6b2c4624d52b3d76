"""Running a sweep: what is missing is measured, what is finished is kept."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from os import PathLike
from typing import TYPE_CHECKING, Any

from dlm_lens.errors import DlmLensError
from dlm_lens.models import DLM, load
from dlm_lens.progress import Bar, Progress
from dlm_lens.sweeps.folder import SweepFolder
from dlm_lens.sweeps.grid import Cell, Grid
from dlm_lens.sweeps.results import Sweep
from dlm_lens.sweeps.workers import finish, on_cluster

if TYPE_CHECKING:
    from distributed import Client


def sweep(
    grid: Grid,
    client: Client | None = None,
    *,
    path: str | PathLike | None = None,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool | Progress = True,
) -> Sweep:
    """Measure every cell of a grid, in this process or on a Dask cluster, and keep each as it finishes.

    A cell is one policy at one budget on one prompt set with one seed. It is measured as :func:`dlm_lens.compare` does:
    Dense and the policy are timed in turns in the same process, so every speed-up is between neighbours on one device;
    the policy predicts at each state of the dense run; tasks are answered; with ``capture`` a trace is kept.
    :class:`Grid` adds the control of random columns.

    Parameters
    ----------
    client : a ``dask.distributed.Client``, on whose workers cells are measured, one at a time on each. None measures
        here, without Dask. Start one worker per GPU: dask-cuda's ``LocalCUDACluster``, ``dask worker`` with a
        ``CUDA_VISIBLE_DEVICES`` of its own, or a plain ``LocalCluster`` on a machine where that is not set. Each loads
        the model once, from the name or folder of the grid. Workers that share cores disturb each other's milliseconds.
        Dask pickles what it sends between processes and runs it: use clusters that you trust.
    path : a folder, on a cluster one that all machines share. Cells that are finished there are not measured again,
        whichever grid they were part of. None keeps nothing, and so no traces
    device : for all; by default a worker's own GPU, or the CPU
    overwrite : start the folder anew
    progress : how many cells there are and a bar of those to be measured, with the time left; or a function, as for
        :func:`dlm_lens.compare`

    A cell that fails, say because a policy cannot work at its length or its worker died again and again, is a row with
    the message in the column ``error`` and NaN elsewhere; the others go on, a warning counts them at the end, and the
    same call tries them again. A policy that computes part of the positions has no trace. Ctrl-C raises
    ``KeyboardInterrupt``: finished cells stay, and those that workers have begun come to their end and are kept.

    Raises ``ValueError`` or ``TypeError`` for arguments that cannot work, ``ValueError`` naming what differs if
    ``path`` holds cells of other versions, and ``DlmLensError`` with the first message if every single cell failed.
    """
    _check(grid, client, path, device)
    every = grid.cells()
    cells, points = {cell.key: cell for cell in every}, [cell.coordinates for cell in every]
    folder = None if path is None else SweepFolder(path)
    records: dict[str, dict[str, Any]] = {}
    if folder is not None:
        folder.begin(overwrite)
        folder.add_grid(points)
        records = {key: record for key in cells if (record := folder.finished(key)) is not None}
    missing = [cell for key, cell in cells.items() if key not in records]
    if progress is True:
        where = "" if client is None or not missing else f" on {len(client.nthreads())} workers"
        print(f"sweep: {len(cells)} cells, {len(records)} finished before, {len(missing)} to measure{where}")
    with Bar(progress, total=len(missing), desc="Sweep", unit="cell") as bar:
        found = (
            _here(grid, missing, folder, device, bar)
            if client is None
            else on_cluster(client, missing, None if folder is None else str(folder.path), device)
        )
        with closing(found):
            for cell, record in found:
                records[cell.key] = record
                bar.note(str(cell))
                bar.update()
    _tell_failures(cells, records)
    return Sweep(points, records, folder)


def _here(
    grid: Grid, cells: Sequence[Cell], folder: SweepFolder | None, device: str | None, bar: Bar
) -> Generator[tuple[Cell, dict[str, Any]]]:
    if not cells:
        return
    model = grid.model
    options = {"device": device, "dtype": grid.dtype, "progress": False, **grid.load}
    dlm = model if isinstance(model, DLM) else load(os.fspath(model), **options)
    for cell in cells:
        bar.note(str(cell))
        yield cell, finish(dlm, cell, folder, bar.within())


def _check(grid: Grid, client: Any, path: str | PathLike | None, device: str | None) -> None:
    if not isinstance(grid, Grid):
        raise TypeError(f"grid={grid!r} is a {type(grid).__name__}; expected a Grid(model=…, policies=…, …)")
    if client is not None and not hasattr(client, "submit"):
        raise TypeError(f"client={client!r} is a {type(client).__name__}; expected a dask.distributed.Client")
    if isinstance(grid.model, DLM) and client is not None:
        raise TypeError(
            "a loaded model does not travel to a cluster; give the grid its name, or save it in a folder that the"
            " workers see (DLM.save) and give that"
        )
    if isinstance(grid.model, DLM) and device is not None:
        raise ValueError(f"device={device!r} asked for, but the model is loaded on {grid.model.device}")
    if grid.capture and path is None:
        raise ValueError("capture=… needs a path, where the traces are kept")


def _tell_failures(cells: dict[str, Cell], records: dict[str, dict[str, Any]]) -> None:
    failed = {key: record["error"] for key, record in records.items() if "error" in record}
    if not failed:
        return
    key, first = next(iter(failed.items()))
    if len(failed) == len(cells):
        raise DlmLensError(f"none of {len(cells)} cells could be measured; {cells[key]}: {first}")
    warnings.warn(
        f"{len(failed)} of {len(cells)} cells failed, first {cells[key]}: {first} (see the column 'error';"
        " the same call tries them again)",
        stacklevel=3,
    )
