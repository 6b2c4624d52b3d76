"""Measuring one cell: the policy beside dense attention, in turns in one process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_lens.measure.environment import can_attend, provenance
from dlm_lens.measure.fidelity import walk
from dlm_lens.measure.lineup import entries_of
from dlm_lens.measure.rows import FLASH2, backends_of, nearness, round_rows, with_speedups
from dlm_lens.measure.speed import timed_runs
from dlm_lens.measure.tasks import accuracy
from dlm_lens.progress import Bar, Progress
from dlm_lens.recording import capture

if TYPE_CHECKING:
    from dlm_lens.models import DLM
    from dlm_lens.sweeps.grid import Cell


def measure_cell(dlm: DLM, cell: Cell, trace: Path | None, progress: bool | Progress) -> dict[str, Any]:
    """The columns of a cell's row, where they were measured and whether ``trace``, a folder, has been filled, for JSON.

    Dense attention, FlashAttention-2 where it is another backend, and the policy are warmed up and run one after the
    other, in the opposite order for odd seeds, so that speed-ups compare neighbours on one device.
    """
    record = provenance(dlm, seed=cell.seed)
    flash2 = can_attend(dlm, "flash") and record["dense_backend"] != FLASH2
    entries = entries_of(dlm, [cell.policy], control=False, flash2=flash2)
    label = next(entry.label for entry in entries if entry.policy == cell.policy)
    run: dict[str, Any] = {
        "gen_length": cell.gen_length,
        "steps": cell.steps,
        "sampler": cell.sampler,
        "seed": cell.seed,
    }
    parts = len(entries) + 1 + bool(cell.tasks) + (trace is not None)
    with Bar(progress, total=parts, desc=str(cell), unit="run", leave=False) as bar:
        runs = list(
            timed_runs(entries, cell.prompt, repetitions=[cell.seed], bar=bar, heading=str(cell), **run)
        )
        rows = with_speedups(
            [round_rows(entries, runs, cell.steps)], backends_of(entries, record["dense_backend"])
        )
        values = next(row for row in rows if row["policy"] == label)
        bar.note(f"{cell}, fidelity")
        (found,) = walk(dlm, cell.prompt, [cell.policy], progress=bar.within(), **run)
        bar.update()
        values |= nearness(found) | {"accuracy": _accuracy(dlm, cell, bar), "device": record["device"]}
        # A step that computes part of the positions has no whole attention to record.
        recorded = trace is not None and not found.steps["kind"].eq("cached").any()
        if trace is not None and recorded:
            _record(dlm, cell, trace, bar, run)
    del values["policy"], values["repetition"]
    return {"values": values, "provenance": record, "trace": recorded}


def _accuracy(dlm: DLM, cell: Cell, bar: Bar) -> float:
    if not cell.tasks:
        return math.nan
    bar.note(f"{cell}, tasks")
    share = accuracy(dlm, cell.tasks, policy=cell.policy, seed=cell.seed, progress=bar.within())
    bar.update()
    return share


def _record(dlm: DLM, cell: Cell, path: Path, bar: Bar, run: dict[str, Any]) -> None:
    bar.note(f"{cell}, trace")
    found = capture(
        dlm,
        cell.prompt,
        policy=cell.policy,
        statistics=cell.statistics,
        path=path,
        progress=bar.within(),
        **run,
    )
    if not found.complete:  # half of a trace is none
        raise KeyboardInterrupt
    bar.update()
