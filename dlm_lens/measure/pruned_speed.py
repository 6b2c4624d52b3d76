"""What pruned weights gain in time: 2:4 on sparse tensor cores, and matrices that structured pruning made smaller.

python -m dlm_lens.measure.pruned_speed --shape llada-8b --out FILE.json

A model of random weights is pruned by magnitude, 2:4 (then ``DLM.semi_structured``) and by structure. This tells of
speed and memory only: random weights have no quality to lose, and calibration is a few tokens. Timed are

- the matrices of the layers alone, as they are called and inside a CUDA graph, in turns (``job`` "matrices"; ms are of
  one layer);
- whole denoising steps (``job`` "denoise"), layers compiled: dense attention at every length, and at the last one
  PulseCol 80%, in groups of 128 and as published, with random columns of the same number as the control. Dense steps of
  2:4 weights run as CUDA graphs where :mod:`dlm_lens.step_graphs` records them. Peaks of memory are less the other
  models that lie on the GPU meanwhile; they stand beside the estimates that were made before.

First of all, the 2:4 output of one matrix is compared with that of the same weights in float64 (``job`` "check"). Where
2:4 cannot run its rows are left out, and the file says why. The rows that matter most come first; the file is written
anew after every row, and ``--minutes`` ends the measurement between two of them. What fails is a row too, and the exit
status 1.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import dlm_lens as dl
from dlm_lens.measure.environment import provenance
from dlm_lens.measure.matrix_speed import ALL, matrix_rows, output_error
from dlm_lens.measure.session import Row, Session
from dlm_lens.measure.shapes import SHAPES, random_of_shape
from dlm_lens.measure.step_bench import Bench, line_of
from dlm_lens.memory import release
from dlm_lens.models import DLM
from dlm_lens.models.semi_structured import is_semi_structured, linears_of, stored_bytes
from dlm_lens.policies import Policy
from dlm_lens.pruning import Calibration

DENSE, TWO_OF_FOUR = "dense", "2:4"
PRUNED: dict[str, dict[str, Any]] = {
    TWO_OF_FOUR: {"pattern": "2:4"},
    "structured 50%": {"structured": 0.5},
    "structured 30%": {"structured": 0.3},
}
# Matrices are recorded in graphs up to so many tokens: beyond, launching takes no time that anyone waits for.
_GRAPHED = 16_384


def build(options: argparse.Namespace, facts: Row) -> dict[str, DLM]:
    """The dense model and what it is pruned to, by name; ``facts`` say what each is, and why one is missing."""
    dense = random_of_shape(options.shape, max(options.lengths))
    models = {DENSE: dense}
    tokens = torch.randint(3, dense.spec.vocab - 2, (16,), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(tokens, samples=1, length=16, times=(25,))
    facts |= {"models": {}, "skipped": {}}
    for name, amount in PRUNED.items():
        began = perf_counter()
        pruned, _ = dl.prune(dense, method="magnitude", calibration=calibration, progress=False, **amount)
        if name == TWO_OF_FOUR:
            before = next(linears_of(pruned.layers))[1].weight.detach().clone()
            try:
                pruned.semi_structured()
            except ValueError as error:
                facts["skipped"][name] = str(error)
                print(f"{name} is left out: {error}", flush=True)
                continue
            facts["check"] = output_error(next(linears_of(pruned.layers))[1], before)
            facts["algorithms"] = _algorithms(pruned)
            print(f"check {facts['check']}, algorithms {facts['algorithms']}", flush=True)
        models[name] = pruned
        release(dense.device)
        facts["models"][name] = {"seconds": perf_counter() - began}
    for name, dlm in models.items():
        facts["models"].setdefault(name, {})["gb"] = _bytes(dlm) / 1e9
    return models


def step_row(models: dict[str, DLM], name: str, policy: Policy, length: int, steps: int, **run: Any) -> Row:
    """A run of one model: its times by kind of step, its memory and the estimate of that.

    With ``warm``, a run of that many positions goes before it, which builds the kernels.
    """
    dlm = models[name]
    bench = Bench(dlm, run.pop("gen_length"), steps)
    if warm := run.pop("warm", None):
        bench.run(policy, warm, 3)
        release(dlm.device)
    others = torch.cuda.memory_allocated(dlm.device) - _bytes(dlm) if dlm.device.type == "cuda" else 0
    row = bench.row(policy, length, steps, **run) | {"model": name}
    if "peak_gb" in row:
        row["peak_gb"] -= others / 1e9
    return row


def jobs(models: dict[str, DLM], options: argparse.Namespace) -> list[Callable[[], list[Row]]]:
    """What is measured, the most important first; each gives some rows."""
    short, *between, far = sorted(set(options.lengths))
    matrices = partial(matrix_rows, models, rounds=options.rounds)
    on_gpu = models[DENSE].device.type == "cuda"

    def step(name: str, policy: Policy, length: int, steps: int, **run: Any) -> Callable[[], list[Row]]:
        return lambda: [step_row(models, name, policy, length, steps, gen_length=options.gen_length, **run)]

    todo: list[Callable[[], list[Row]]] = [lambda: matrices(short, graphs=on_gpu)]
    todo += [step(name, dl.Dense(), short, options.steps, first=True) for name in models]
    fine = dl.PulseCol.dream() if models[DENSE].spec.family == "dream" else dl.PulseCol.llada()
    fine = replace(fine, refresh_count=1)
    coarse = replace(fine, group_size=128)
    leading = [name for name in models if name != "structured 30%"]
    todo += [step(name, dl.Dense(), far, 2, first=True) for name in leading]
    for policy in (coarse, dl.RandomColumns(sparsity=coarse.sparsity, group_size=128)):
        todo += [step(name, policy, far, 3, warm=short) for name in leading]
    for length in (*between, far):
        graphed = on_gpu and length <= _GRAPHED
        todo.append(partial(matrices, length, graphs=graphed))
    for length in between:
        todo += [step(name, dl.Dense(), length, 3, first=True) for name in models]
    todo += [step(name, dl.Dense(), far, 2, first=True) for name in models if name not in leading]
    todo += [step(name, fine, far, 3, warm=short) for name in leading]
    todo.append(step(DENSE, dl.Dense(), far, 1))  # tells whether the machine has drifted meanwhile
    return todo


def measure(options: argparse.Namespace) -> Session:
    """All rows that there is time for, printed as they come."""
    began = perf_counter()
    facts: Row = {}
    models = build(options, facts)
    about = provenance(models[DENSE], seed=0) | {"shape": options.shape, "model": f"random-{options.shape}"}
    session = Session(options, about, facts, told, began=began)
    session.keep()
    if not options.eager:
        for dlm in models.values():
            dlm.compile(dynamic=True)  # one compilation for all lengths
    session.about["finished"] = True
    for make in jobs(models, options):
        if session.over:
            session.about["finished"] = False
            break
        try:
            rows = make()
        except (RuntimeError, dl.DlmLensError) as error:  # the rows after it may still work
            traceback.print_exc()
            rows = [{"job": "failed", "error": f"{type(error).__name__}: {error}"}]
        for row in rows:
            session.add(row)
        release(models[DENSE].device)
    session.keep()
    return session


def told(row: Row) -> str:
    """A row as a line of text."""
    if row["job"] == "failed":
        return f"failed: {row['error']}"
    if row["job"] != "matrices":
        return f"{row['model']:15s}{line_of(row)}"
    ms, how = row["ms"], "in a graph" if row["graph"] else "as called"
    return (
        f"{row['model']:15s}{row['context']:7,} matrices {row['matrices']:8s} {how:10s}  {ms['median']:8.3f} ms a layer"
        f" ({ms['low']:.3f} to {ms['high']:.3f})  {row['tflops']:6.1f} TFLOP/s"
    )


def summary(rows: list[Row]) -> list[str]:
    """A line for all matrices and for every policy and length: ms of each model, and times as fast as dense weights."""
    found: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if row["job"] == "matrices" and row["matrices"] == ALL:
            key = (row["context"], f"matrices of a layer{', graph' if row['graph'] else ''}")
            found.setdefault(key, {})[row["model"]] = row["ms"]["median"]
        elif row["job"] == "denoise" and "ms" in row:
            for kind, ms in row["ms"].items():
                label = f"{_named(row)}, {kind} step"
                found.setdefault((row["context"], label), {}).setdefault(row["model"], ms["median"])
    lines = []
    for (context, label), ms in found.items():
        base = ms.get(DENSE, float("nan"))
        each = ", ".join(f"{name} {value:,.1f} ms ({base / value:.2f}×)" for name, value in ms.items())
        lines.append(f"{context:7,} {label}: {each}")
    return lines


def _named(row: Row) -> str:
    grouped = "group_size=128" in row["parameters"] and row["policy"].startswith("PulseCol")
    return row["policy"] + (", groups of 128" if grouped else "")


def _bytes(dlm: DLM) -> int:
    return sum(map(stored_bytes, dlm.model.parameters()))


def _algorithms(dlm: DLM) -> dict[str, int]:
    """The algorithm that was found fastest for each shape of 2:4 matrix."""
    weights: list[Any] = [linear.weight for _, linear in linears_of(dlm.layers)]
    return {
        " × ".join(map(str, weight.shape)): weight.alg_id_cusparselt
        for weight in weights
        if is_semi_structured(weight)
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write JSON where ``--out`` asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=SHAPES, default="llada-8b" if gpu else "tiny")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 65536] if gpu else [256, 512])
    parser.add_argument("--gen-length", type=int, default=1024 if gpu else 64)
    parser.add_argument("--steps", type=int, default=8, help="at the shortest length (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="of the matrices (%(default)s)")
    parser.add_argument("--minutes", type=float, default=4.5, help="begin no row after so many (%(default)s)")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if min(options.lengths) <= options.gen_length:
        parser.error(f"--lengths must exceed the {options.gen_length} tokens that are generated")
    if len(set(options.lengths)) < 2:
        parser.error("--lengths needs two different lengths: all policies are measured at the longest")
    session = measure(options)
    print("\n".join(summary(session.rows)))
    failed = sum(row["job"] == "failed" for row in session.rows)
    print(
        f"{len(session.rows) - failed} rows, {failed} failed, {len(session.facts['skipped'])} models left out;"
        f" {'finished' if session.about['finished'] else 'not finished'}"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
