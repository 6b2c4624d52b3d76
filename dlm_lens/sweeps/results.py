"""A sweep as a table of its finished cells, and as traces that are read when they are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import pandas as pd
import xarray as xr

from dlm_lens.sweeps.folder import SweepFolder
from dlm_lens.trace import open_trace

# Of steps that a run did not take because it had ended before: NaN in statistics, and these elsewhere.
_NO_STEP = {"tokens": -1, "masked": False, "kind": ""}


class Sweep:
    """The finished cells of a grid, or of all grids in a folder.

    Made by :func:`dlm_lens.sweep` and :func:`dlm_lens.open_sweep`.
    """

    def __init__(
        self,
        points: Sequence[Mapping[str, Any]],
        records: Mapping[str, Mapping[str, Any]],
        folder: SweepFolder | None,
    ) -> None:
        self._points, self._records, self._folder = points, records, folder

    @property
    def table(self) -> pd.DataFrame:
        """One row per finished cell, in the order of the grid: a new DataFrame every time.

        The columns are those of :func:`dlm_lens.compare`, with ``seed``, ``sparsity`` (share of the keys left out),
        ``planned_steps`` (``steps`` are those taken), ``parameters`` of the policy, ``sampler`` (None: its own),
        ``model``, ``trace`` (the folder of the cell's trace, for :func:`dlm_lens.open_trace`), ``worker``, and
        ``error``: what a cell failed with, or None.
        ``ms…`` and ``total_ms`` hold for the ``device`` of their row. ``table.attrs["provenance"]`` is that of the
        latest cell, with the ``devices`` of all.
        """
        labels = self._labels()
        rows = [self._row(point, labels) for point in self._points if point["key"] in self._records]
        table = pd.DataFrame(rows)
        if len(table):
            table["projected"] = False
            for name in ("sampler", "trace", "error"):
                table[name] = pd.Series([row[name] for row in rows], dtype=object)  # None, not NaN
        measured = [record["provenance"] for record in self._records.values() if "error" not in record]
        latest: Mapping[str, Any] = max(measured, key=lambda record: record["date"], default={})
        devices = sorted({f"{record['device']}, {record['dtype']}" for record in measured})
        table.attrs["provenance"] = {**latest, "devices": devices}
        return table

    @property
    def traces(self) -> dict[str, xr.Dataset]:
        """The traces of the finished cells by prompt set, each one dataset of Dask arrays along ``cell``.

        ``sweep.traces["code"].sel(policy="PulseCol 80%", seed=0)["column_mass"]`` reads its own chunks only, and only
        when it is computed. What a policy has no use for, such as ``retained_mass`` of Dense, is NaN there; so are
        the steps after a run had ended (``steps_taken`` says how many it took; −1 in ``tokens``). Traces of several
        lengths, or of several numbers of steps or prompts, are never padded: each is by itself, with that in its name.

        Needs Dask: ``pip install "dlm-lens[scale]"``.
        """
        labels = self._labels()
        kept = [
            self._row(point, labels)
            for point in self._points
            if self._records.get(point["key"], {}).get("trace")
        ]
        groups: dict[tuple, list[dict[str, Any]]] = {}
        for row in kept:
            shape = (row["context"], row["gen_length"], row["planned_steps"], row["batch"])
            groups.setdefault((row["model"], row["prompts"], shape), []).append(row)
        names = Counter(name for _, name, _ in groups)
        return {
            name if names[name] == 1 else _full_name(model, name, *shape): _together(rows)
            for (model, name, shape), rows in groups.items()
        }

    @property
    def missing(self) -> int:
        """How many cells are not finished: still to be measured, or failed."""
        return sum(
            point["key"] not in self._records or "error" in self._records[point["key"]]
            for point in self._points
        )

    def _labels(self) -> dict[str, str]:
        """Labels by parameters, which are spelt out where policies of several grids would share one."""
        found = {point["parameters"]: point["policy"] for point in self._points}
        counts = Counter(found.values())
        return {full: label if counts[label] == 1 else full for full, label in found.items()}

    def _row(self, point: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
        record = self._records[point["key"]]
        path = None if self._folder is None or not record.get("trace") else self._folder.trace(point["key"])
        return {
            **{
                name: point[name]
                for name in ("policy", "prompts", "seed", "sparsity", "gen_length", "planned_steps")
            },
            "policy": labels[point["parameters"]],
            **record.get("values", {}),
            "parameters": point["parameters"],
            "sampler": point["sampler"],
            "model": point["model"],
            "trace": None if path is None else str(path),
            "worker": record.get("worker", ""),
            "error": record.get("error"),
        }

    def __repr__(self) -> str:
        where = "" if self._folder is None else f" in {str(self._folder.path)!r}"
        total, failed = len(self._points), sum("error" in record for record in self._records.values())
        traces = sum(bool(record.get("trace")) for record in self._records.values())
        return (
            f"Sweep{where}: {total - self.missing} of {total} cells finished"
            + (f", {failed} failed" if failed else "")
            + (f", {traces} traces" if traces else "")
        )


def open_sweep(path: str | PathLike) -> Sweep:
    """The finished cells in the folder of a sweep, of all grids measured there; also while one is being measured.

    The same ``sweep(grid, path=…)`` as before returns those of one grid, and measures what is missing. Cells whose file
    is damaged count as not finished. Raises ``DlmLensError`` if it is no folder of a sweep.
    """
    folder = SweepFolder(path)
    folder.check()
    points = folder.points()
    found = {point["key"]: folder.finished(point["key"]) for point in points}
    return Sweep(points, {key: record for key, record in found.items() if record is not None}, folder)


def _together(rows: Sequence[Mapping[str, Any]]) -> xr.Dataset:
    joined = xr.concat(
        [open_trace(row["trace"], chunks={}).dataset for row in rows],
        dim="cell",
        data_vars="all",
        coords="minimal",
        compat="override",
        join="outer",
        fill_value=_NO_STEP,
        combine_attrs="drop_conflicts",
    )
    columns = {"policy": "policy", "seed": "seed", "sparsity": "sparsity", "steps_taken": "steps"}
    labels = {name: ("cell", [row[column] for row in rows]) for name, column in columns.items()}
    return joined.assign_coords(labels).set_index(cell=["policy", "seed"])


def _full_name(model: str, name: str, context: int, gen_length: int, steps: int, batch: int) -> str:
    return f"{name}: {model}, {batch} × {context} positions, {gen_length} tokens in {steps} steps"
