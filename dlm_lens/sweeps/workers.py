"""Where cells are measured: in this process, or on the workers of a Dask cluster, one at a time on each."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from dlm_lens.models import DLM, load
from dlm_lens.progress import Progress
from dlm_lens.sweeps.cell import measure_cell
from dlm_lens.sweeps.folder import SweepFolder
from dlm_lens.sweeps.grid import Cell, checkpoint_fingerprint

if TYPE_CHECKING:
    from distributed import Client

# Of a worker's process: the model of the latest cell, and the right to measure.
_warm: dict[tuple, DLM] = {}
_measuring = threading.Lock()


def finish(
    dlm: DLM, cell: Cell, folder: SweepFolder | None, progress: bool | Progress, worker: str = ""
) -> dict[str, Any]:
    """Measure a cell and keep it; the record, or one that has the ``error`` as text if it could not be measured."""
    trace = folder.partial(cell.key) if folder is not None and cell.trace else None
    try:
        record = measure_cell(dlm, cell, trace, progress) | {"worker": worker}
        if folder is not None:
            folder.add(cell.key, record, trace if record["trace"] else None)
    except Exception as error:
        # Whoever finished the same cell meanwhile has cleared away what was being written here.
        twin = None if folder is None else folder.finished(cell.key)
        return twin or _failed(error)
    finally:
        if trace is not None:
            shutil.rmtree(trace, ignore_errors=True)
    return record


def on_worker(cell: Cell, path: str | None, device: str | None) -> dict[str, Any]:
    """:func:`finish` as a Dask task, with this process's warm model.

    A cell that has been finished meanwhile, by a worker that died before it could say so, is not measured again.
    """
    with _measuring:  # a neighbour on the same device would show in the milliseconds
        try:
            folder = None if path is None else SweepFolder(path)
            if folder is not None:
                folder.check()
                if (record := folder.finished(cell.key)) is not None:
                    return record
            dlm = _warm_model(cell, device or own_device(_worker_name()))
        except Exception as error:
            return _failed(error)
        return finish(dlm, cell, folder, progress=False, worker=str(_worker_name()))


def on_cluster(
    client: Client, cells: Sequence[Cell], path: str | None, device: str | None
) -> Generator[tuple[Cell, dict[str, Any]]]:
    """Measure cells on the workers of ``client``; each with its record as it comes in.

    Whoever stops listening takes back what no worker has begun.
    """
    from distributed import as_completed

    run = uuid.uuid4().hex[:8]  # a cell that failed would otherwise be remembered as failed
    futures = {
        client.submit(on_worker, cell, path, device, key=f"dlm-lens-{cell.key}-{run}", pure=False): cell
        for cell in cells
    }
    try:
        for future in as_completed(futures):
            try:
                record = future.result()
            except Exception as error:
                # The worker died more often than the cluster allows, or the task was cancelled.
                record = _failed(error)
            yield futures[future], record
    finally:
        client.cancel(list(futures))


def own_device(name: Any) -> str | None:
    """The device of the worker called ``name``; None for what :func:`dlm_lens.load` takes.

    dask-cuda gives every worker ``CUDA_VISIBLE_DEVICES`` with its own GPU first, so the first is right. The workers of
    a plain ``LocalCluster`` are called 0, 1, … and all see all GPUs: there the number is that of the GPU.
    """
    count = torch.cuda.device_count()
    if count < 2 or "CUDA_VISIBLE_DEVICES" in os.environ or not isinstance(name, int):
        return None
    return f"cuda:{name % count}"


def _worker_name() -> Any:
    from distributed import get_worker

    return get_worker().name


def _warm_model(cell: Cell, device: str | None) -> DLM:
    which = cell.model, cell.weights, cell.dtype, repr(cell.load), device
    if which not in _warm:
        if (found := checkpoint_fingerprint(cell.model)) != cell.weights:
            raise ValueError(
                f"model {cell.model!r} is not the same here ({found}) as where the sweep was started ({cell.weights})"
            )
        _warm.clear()  # two models may be more than the device holds
        _warm[which] = load(cell.model, device=device, dtype=cell.dtype, progress=False, **dict(cell.load))
    return _warm[which]


def _failed(error: Exception) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {error}"}
