"""How a trace lies on disk or in memory: one Zarr 3 group, filled step by step.

Every array is created for all planned steps at once, with one chunk per step, or several along the layers where
a step is large, and a step is marked in the array ``finished`` only after its chunks are there. Zarr replaces files
atomically, so a run that is killed leaves a trace of the steps it finished. Floats of this kind hardly compress;
leaving them as they are makes appending a step and reading one step cheap.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dlm_lens.errors import TraceError

# Zarr is imported where it is used: training and kernel benchmarks on a bare GPU machine store no trace.
if TYPE_CHECKING:
    import zarr
    from zarr.storage import LocalStore, MemoryStore

MARKER = "dlm_lens_trace"
FORMAT = 1
KINDS = ("dense", "refresh", "sparse", "cached")

# Dimensions (a batch puts `sample` in front, except where a value belongs to the whole run) and type of each
# variable. The base variables are in every trace; a statistic is there when it was asked for.
BASE: dict[str, tuple[tuple[str, ...], str]] = {
    "tokens": (("step", "position"), "int32"),
    "masked": (("step", "position"), "bool"),
    "confidence": (("step", "position"), "float32"),
    "kind": (("step",), "uint8"),
    "step_ms": (("step",), "float32"),
    "start": ((), "int32"),
    "committed_at": (("position",), "int32"),
    "final_tokens": (("position",), "int32"),
}
STATISTICS: dict[str, tuple[tuple[str, ...], str]] = {
    "column_mass": (("step", "layer", "head", "position"), "float32"),
    "pooled_map": (("step", "layer", "head", "query_bin", "key_bin"), "float32"),
    "row_entropy": (("step", "layer", "head", "query_bin"), "float32"),
    "retained_mass": (("step", "layer", "head"), "float32"),
    "recall": (("step", "layer", "head", "granularity", "budget"), "float32"),
    "full_map": (("step", "layer", "head", "query", "key"), "float32"),
}
VARIABLES = BASE | STATISTICS
OF_THE_RUN = ("kind", "step_ms")
COORDINATES = ("step", "layer", "head", "position")
# Dimensions whose labels are texts or fractions: those are kept as JSON in the attributes of the group.
LABELLED = ("granularity", "budget")
# A chunk holds as many layers of a step as fit, at least one: looking at one head of a large model then reads the
# layers around it, not all of them.
_CHUNK_BYTES = 2 << 20


def dimensions(name: str, batched: bool) -> tuple[str, ...]:
    """Dimensions of a variable, with ``sample`` first when the trace holds a batch."""
    dims = VARIABLES[name][0]
    return ("sample", *dims) if batched and name not in OF_THE_RUN else dims


class TraceWriter:
    """Creates the arrays of a trace and fills them step by step.

    Parameters
    ----------
    store : Zarr store, e.g. from :func:`create_store`; must be empty
    coordinates : step, layer, head and position labels
    sizes : sizes of the other dimensions in use (``sample`` only for a batch of several prompts)
    statistics : names of the statistics that every step will bring
    attrs : JSON attributes of the trace
    labels : texts or numbers by dimension, for those of ``LABELLED`` that are in use
    """

    def __init__(
        self,
        store: Any,
        coordinates: Mapping[str, Sequence[int]],
        sizes: Mapping[str, int],
        statistics: Sequence[str],
        attrs: Mapping[str, Any],
        labels: Mapping[str, Sequence[str | float]] | None = None,
    ) -> None:
        self.names = (*BASE, *statistics)
        self.steps = list(coordinates["step"])
        self._batched = "sample" in sizes
        self._sizes = {**sizes, **{name: len(labels) for name, labels in coordinates.items()}}
        attributes = {**attrs, MARKER: FORMAT, "variables": list(self.names), "vocabulary": "{}"}
        if labels:
            attributes["labels"] = {dim: list(values) for dim, values in labels.items()}
        import zarr

        self._group = zarr.open_group(store, mode="w-", zarr_format=3, attributes=attributes)
        for name in COORDINATES:
            self._create(name, (name,), "int64")[...] = np.asarray(coordinates[name], dtype=np.int64)
        self._arrays = {name: self._create(name, self._dims(name), VARIABLES[name][1]) for name in self.names}
        self._arrays["finished"] = self._create("finished", ("step",), "uint8")

    def _dims(self, name: str) -> tuple[str, ...]:
        return dimensions(name, self._batched)

    def _create(self, name: str, dims: tuple[str, ...], dtype: str) -> zarr.Array:
        shape = tuple(self._sizes[dim] for dim in dims)
        # A vector over steps stays one chunk: a thousand files of four bytes would only slow opening down.
        chunk = {dim: 1 if dim == "step" and len(dims) > 1 else max(self._sizes[dim], 1) for dim in dims}
        if "layer" in dims and "step" in dims:
            layer = np.dtype(dtype).itemsize * math.prod(
                size for dim, size in chunk.items() if dim != "layer"
            )
            chunk["layer"] = max(1, min(chunk["layer"], _CHUNK_BYTES // layer))
        return self._group.create_array(
            name,
            shape=shape,
            chunks=tuple(chunk.values()),
            dtype=dtype,
            dimension_names=dims,
            fill_value=float("nan") if dtype.startswith("float") else (0 if dtype != "int32" else -1),
            compressors=None,
            # Empty chunks are written too: a chunk that is missing then always means a damaged trace.
            config={"write_empty_chunks": True},
        )

    def write_start(self, start: np.ndarray) -> None:
        """First valid position of each sample, int [B]; written once, before the first step."""
        self._arrays["start"][...] = self._per_sample(start)

    def write_outcome(self, tokens: np.ndarray, committed_at: np.ndarray) -> None:
        """State reached so far: tokens [B, L] and the step at which each was committed [B, L]."""
        self._arrays["final_tokens"][...] = self._per_sample(tokens)
        self._arrays["committed_at"][...] = self._per_sample(committed_at)

    def write_vocabulary(self, vocabulary: Mapping[int, str]) -> None:
        """Display text of every token id that occurs."""
        self._group.attrs["vocabulary"] = json.dumps(vocabulary, ensure_ascii=False)

    def write_attributes(self, **attrs: Any) -> None:
        """Set attributes of the trace that are known only now."""
        self._group.attrs.update(attrs)

    def write_step(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one recorded step and mark it as finished.

        ``values`` holds every variable that has a step, arrays starting with the batch dimension [B, …];
        ``kind`` one of dense, refresh, sparse, cached; ``step_ms`` milliseconds.
        """
        index = self.steps.index(step)
        expected = {name for name in self.names if "step" in VARIABLES[name][0]}
        if expected != set(values):
            raise TraceError(f"step {step} brings {sorted(values)}, the trace expects {sorted(expected)}")
        for name, value in values.items():
            if name == "kind":
                self._arrays[name][index] = KINDS.index(value)
            elif name == "step_ms":
                self._arrays[name][index] = value
            elif self._batched:
                self._arrays[name][:, index] = value
            else:
                self._arrays[name][index] = np.asarray(value)[0]
        self._arrays["finished"][index] = 1

    def _per_sample(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values) if self._batched else np.asarray(values)[0]


def create_store(path: str | PathLike | None, overwrite: bool = False) -> LocalStore | MemoryStore:
    """An empty store: in memory for ``path=None``, else a new folder.

    Raises ``TraceError`` when something is there already; ``overwrite=True`` replaces a trace, nothing else.
    """
    from zarr.storage import LocalStore, MemoryStore

    if path is None:
        return MemoryStore()
    check_path(path, overwrite)
    folder = Path(path)
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return LocalStore(folder)


def check_path(path: str | PathLike, overwrite: bool) -> None:
    """Raise ``TraceError`` if a trace may not be written to ``path``."""
    folder = Path(path)
    if not folder.exists():
        return
    if not overwrite:
        raise TraceError(f"{folder} exists already; choose another path or pass overwrite=True")
    if not is_trace(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise TraceError(
            f"{folder} is not a trace, so overwrite=True does not replace it; remove it yourself"
        )


def is_trace(folder: Path) -> bool:
    """Whether the folder is a Zarr group with the marker of a trace, finished or not."""
    try:
        metadata = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        return MARKER in metadata["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_dataset(store: Any, chunks: Mapping[str, int] | None = None) -> xr.Dataset:
    """The finished steps of a store or path as a lazy dataset; of Dask arrays with ``chunks``.

    Raises ``TraceError`` saying what is wrong: not there, no trace, foreign or newer data, missing parts.
    """
    if chunks is not None and find_spec("dask") is None:
        raise ImportError('chunks make Dask arrays, but Dask is missing: pip install "dlm-lens[scale]"')
    where = f"{fspath(store)}" if isinstance(store, str | PathLike) else "the trace in memory"
    group = _open_group(store, where)
    finished = _check(group, where)
    if isinstance(store, str | PathLike):
        _check_files(Path(store), group, finished)
    try:
        dataset = xr.open_zarr(
            store, consolidated=False, zarr_format=3, chunks=None if chunks is None else dict(chunks)
        )
        dataset = dataset.assign_coords(group.attrs.get("labels", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{where} is damaged: {error}") from error
    dataset = dataset[group.attrs["variables"]].drop_attrs(deep=True).assign_attrs(group.attrs)
    for name in ("variables", "labels"):
        dataset.attrs.pop(name, None)
    if len(finished) < dataset.sizes["step"]:
        dataset = dataset.isel(step=finished)
    kinds = np.array(KINDS)[
        group["kind"][:][finished]
    ]  # read at once: so small, and no number on disk means a kind
    return dataset.assign(kind=("step", kinds))


def _open_group(store: Any, where: str) -> zarr.Group:
    import zarr

    if isinstance(store, str | PathLike):
        path = Path(store)
        if not path.exists():
            raise TraceError(f"no trace at {where}: the path does not exist")
        if not (path / "zarr.json").is_file():
            raise TraceError(
                f"{where} is not a trace: it is no Zarr 3 folder (capture and Trace.save write those)"
            )
    try:
        return zarr.open_group(store, mode="r", zarr_format=3)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{where} is not a trace, or its zarr.json is damaged: {error}") from error


def _check(group: zarr.Group, where: str) -> np.ndarray:
    """Indices of the finished steps, after checking that the group is a trace and complete."""
    version = group.attrs.get(MARKER)
    if version is None:
        raise TraceError(f"{where} is Zarr data but not a trace: it lacks the attribute {MARKER!r}")
    if version != FORMAT:
        raise TraceError(f"{where} has trace format {version}, this version of dlm-lens reads {FORMAT}")
    expected = [*group.attrs["variables"], *COORDINATES, "finished"]
    try:
        arrays = {name: group[name] for name in expected if name in group}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{where} is damaged: the metadata of an array cannot be read ({error})") from error
    if missing := [name for name in expected if name not in arrays]:
        raise TraceError(f"{where} is truncated: it lacks the arrays {', '.join(missing)}")
    finished = np.flatnonzero(arrays["finished"][:])
    if len(finished) == 0:
        raise TraceError(f"{where} holds no finished step: the run ended before its first recorded step")
    return finished


def _check_files(folder: Path, group: zarr.Group, finished: np.ndarray) -> None:
    """Raise ``TraceError`` unless every chunk of the finished steps is there in full.

    Zarr itself reads a missing chunk as fill values, so a copy that broke off would pass for data.
    """
    for name, array in group.arrays():
        dims = array.metadata.dimension_names or ()
        by_step = "step" in dims and array.ndim > 1
        size = math.prod(array.chunks) * array.dtype.itemsize
        along = [
            finished.tolist() if by_step and dim == "step" else range(-(-extent // chunk))
            for dim, extent, chunk in zip(dims, array.shape, array.chunks, strict=True)
        ]
        for index in product(*along):
            chunk = folder / name / array.metadata.encode_chunk_key(index)
            found = chunk.stat().st_size if chunk.exists() else 0
            if found != size:
                raise TraceError(
                    f"{folder} is truncated: {chunk.relative_to(folder)} has {found} of {size} bytes;"
                    " copy or capture the trace again"
                )
