"""From finished runs to the rows of a comparison's table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlm_lens.measure.linear import matrix_cost
from dlm_lens.measure.schedule import replay, schedule_of
from dlm_lens.measure.tables import KINDS
from dlm_lens.policies import Dense, Policy, RunInfo
from dlm_lens.policies.dense import BACKENDS

if TYPE_CHECKING:
    from dlm_lens.measure.fidelity import Fidelity
    from dlm_lens.measure.lineup import Entry
    from dlm_lens.measure.schedule import Schedule
    from dlm_lens.measure.speed import Run

FLASH2 = "FlashAttention-2"


def round_rows(entries: Sequence[Entry], runs: Sequence[Run], steps: int) -> list[dict[str, Any]]:
    """What every run of one round took, in the order of ``entries``, of which the first is :class:`Dense`.

    ``steps`` were asked for. Values are ready for JSON.
    """
    ordered = sorted(runs, key=lambda run: run.entry)
    dense = ordered[0]
    dense_flops = _work(entries[0], dense, steps).flops
    rows = []
    for run in ordered:
        entry = entries[run.entry]
        work = _work(entry, run, steps)
        rows.append(
            {
                "policy": entry.label,
                "repetition": run.repetition,
                **_cost(entry.policy, run),
                "amdahl_bound": dense_flops / work.flops,
                "token_agreement": _token_agreement(run, dense),
            }
        )
    return rows


def _cost(policy: Policy, run: Run) -> dict[str, Any]:
    result = run.result
    ms, by_kind = result.timings["ms"], result.timings.groupby("kind")["ms"].median()
    batch, length = result.tokens.shape
    return {
        "context": length,
        "gen_length": result.gen_length,
        "batch": batch,
        "steps": len(ms),
        "density": policy.density,
        "ms_per_step": float(ms.median()),
        "ms_iqr": float(ms.quantile(0.75) - ms.quantile(0.25)),
        **{f"ms_{kind}": float(by_kind.get(kind, math.nan)) for kind in KINDS},
        "total_ms": float(ms.sum()),
        "peak_memory_mb": run.peak_bytes / 1e6,
    }


def _work(entry: Entry, run: Run, steps: int) -> Schedule:
    """The work of the steps that were taken: their kinds as timed, what each computed as planned once more."""
    result = run.result
    batch, length = result.tokens.shape
    info = RunInfo(
        spec=result.spec,
        prompt_length=result.prompt_length,
        gen_length=result.gen_length,
        steps=steps,
        batch=batch,
        start=result.start if result.start.any() else None,
        device=torch.device("cpu"),
        seed=result.seed,
    )
    planned = replay(entry.policy, info, result.tokens, result.committed_at, len(result.timings))
    works = [replace(work, kind=kind) for work, kind in zip(planned, result.timings["kind"], strict=True)]
    return schedule_of(
        entry.policy,
        works,
        result.spec,
        length=length,
        gen_length=result.gen_length,
        matrix_cost=matrix_cost(entry.dlm),
    )


def _token_agreement(run: Run, dense: Run) -> float:
    result, reference = run.result, dense.result
    generated = slice(result.prompt_length, None)
    return float((result.tokens[:, generated] == reference.tokens[:, generated]).double().mean())


def with_speedups(
    rounds: Sequence[Sequence[Mapping[str, Any]]], backends: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows of all rounds of one prompt set by policy and repetition, with ``backend`` and speed-ups.

    ``backends`` names the dense policies and what each runs on. The baseline is the one of them whose median total
    is least; a speed-up is a ratio of totals within a round.
    """
    totals = [{row["policy"]: row["total_ms"] for row in rows} for rows in rounds]
    baseline = min(backends, key=lambda label: np.median([total[label] for total in totals]))
    flash = next((label for label, backend in backends.items() if backend == FLASH2), None)
    ordered = [
        (place, row, total)
        for rows, total in zip(rounds, totals, strict=True)
        for place, row in enumerate(rows)
    ]
    return [
        {
            **row,
            "backend": backends[baseline],
            "speedup": total[baseline] / row["total_ms"],
            "speedup_vs_flash2": math.nan if flash is None else total[flash] / row["total_ms"],
        }
        for _, row, total in sorted(ordered, key=lambda entry: (entry[0], entry[1]["repetition"]))
    ]


def nearness(found: Fidelity) -> dict[str, float]:
    """The columns that a fidelity fills; what cached steps leave out is not measured, so it must not look like none."""
    known = not found.steps["kind"].eq("cached").any()
    return {
        "argmax_agreement": found.agreement,
        "kl": found.kl,
        "retained_mass": found.retained_mean if known else math.nan,
        "retained_worst_layer": found.retained_worst_layer if known else math.nan,
    }


def backends_of(entries: Sequence[Entry], fastest: str) -> dict[str, str]:
    """Dense policies of the dense model by label, and what each runs on; ``fastest`` is what :class:`Dense` takes."""
    return {
        entry.label: fastest if entry.policy.backend is None else BACKENDS[entry.policy.backend][1]
        for entry in entries
        if isinstance(entry.policy, Dense) and entry.pruned is None
    }
