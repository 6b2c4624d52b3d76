"""Checkpoints of published shapes at long context: written, loaded, denoised and captured; times beside memory.

python -m dlm_lens.measure.checkpoints --shape llada-8b --out FILE.json --trace FOLDER.zarr

The weights are random, so this tells of speed and memory only. They are written in the published layout, in shards, and
loaded as a user would load them. At every length the policies denoise ``--steps`` steps in turn; at the ``--longest``
few. The first rows are without attention and not compiled; then layers are compiled for all, and how long that takes at
each length stands apart (``compile_s``). Peaks of memory stand beside the estimate that was made before the run.

The file is written anew after every row, so that one that is cut off holds what there was time for. ``--minutes`` ends
the measurement between two rows. ``dlm-lens explore FOLDER.zarr --html FILE.html`` opens what was captured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

import dlm_lens as dl
from dlm_lens.measure.environment import can_attend, provenance
from dlm_lens.measure.run_memory import estimate
from dlm_lens.measure.shapes import SHAPES, random_of_shape
from dlm_lens.measure.speed import peak_memory
from dlm_lens.memory import release
from dlm_lens.policies import Policy, PolicyRun, RunInfo, StepPlan
from dlm_lens.whole_file import whole_file

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from dlm_lens.attention import StepContext
    from dlm_lens.models import DLM

Row = dict[str, Any]
STATISTICS = (dl.ColumnMass(), dl.PooledMap(), dl.RowEntropy())


@dataclass(frozen=True)
class NoAttention(Policy):
    """Everything but attention: its output is the queries."""

    @property
    def label(self) -> str:
        return "No attention"

    def start(self, info: RunInfo) -> PolicyRun:
        return _NoAttentionRun()


class _NoAttentionRun(PolicyRun):
    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        return StepPlan(step, "dense")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        return q


@dataclass
class Session:
    """The rows of one shape, kept in a file from the first on, and the time that is left."""

    options: argparse.Namespace
    about: dict[str, Any]
    checkpoint: Row
    rows: list[Row] = field(default_factory=list)
    began: float = field(default_factory=perf_counter)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(_line(row), flush=True)
        self.keep()

    def keep(self) -> None:
        if self.options.out:
            found = {"provenance": self.about, "checkpoint": self.checkpoint, "rows": self.rows}
            with whole_file(self.options.out) as new:
                new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    @property
    def over(self) -> bool:
        return perf_counter() - self.began > 60 * self.options.minutes


@dataclass(frozen=True)
class Bench:
    """A loaded model, how much it generates, and in how many steps."""

    dlm: DLM
    gen_length: int
    steps: int

    def prompt(self, length: int) -> Tensor:
        random = torch.Generator().manual_seed(0)
        return torch.randint(3, self.dlm.spec.vocab - 2, (length - self.gen_length,), generator=random)

    def run(self, policy: Policy, length: int, steps: int) -> pd.DataFrame:
        sampler = dl.LowConfidence(block_length=self.gen_length)
        common: dict[str, Any] = {"gen_length": self.gen_length, "sampler": sampler, "progress": False}
        return dl.denoise(self.dlm, self.prompt(length), policy=policy, steps=steps, **common).timings

    def row(self, policy: Policy, length: int, steps: int, *, first: bool = False) -> Row:
        """A run, its peak beside the estimate; what does not fit says so instead.

        The ``first`` run at a length has one step more, in which layers are compiled for that length: by how many
        seconds it is longer stands apart.
        """
        told = self.told(policy, length)
        try:
            with peak_memory(self.dlm.device) as peak:
                timings = self.run(policy, length, steps + first)
        except dl.MemoryBudgetError as error:
            return told | {"error": str(error)}
        finally:
            release(self.dlm.device)
        row = told | _times(timings[int(first) :]) | {"peak_gb": peak[0] / 1e9}
        if first:
            row["compile_s"] = max(0.0, (timings["ms"].iloc[0] - timings["ms"].iloc[1:].median()) / 1000)
        return row

    def told(self, policy: Policy, length: int, statistics: Any = None) -> Row:
        """What is known of a run before it."""
        needed = estimate(
            self.dlm,
            prompt_length=length - self.gen_length,
            gen_length=self.gen_length,
            policy=policy,
            sampler=dl.LowConfidence(block_length=self.gen_length),
            statistics=statistics,
        )
        return {
            "job": "denoise",
            "policy": policy.label,
            "parameters": repr(policy),
            "context": length,
            "compiled": self.dlm.compiled,
            "estimate_gb": needed.total / 1e9,
        }

    def captured(self, length: int, path: Path | None) -> Row:
        """Two steps with every statistic of all layers and heads, written to ``path``."""
        told = self.told(dl.Dense(), length, STATISTICS) | {"job": "capture", "policy": "Dense, captured"}
        with peak_memory(self.dlm.device) as peak:
            trace = dl.capture(
                self.dlm,
                self.prompt(length),
                gen_length=self.gen_length,
                steps=2,
                sampler=dl.LowConfidence(block_length=self.gen_length),
                statistics=STATISTICS,
                path=path,
                memory_budget="1 TB",
                overwrite=True,
                progress=False,
            )
        timings = trace.dataset[["kind", "step_ms"]].rename(step_ms="ms").to_dataframe()
        release(self.dlm.device)
        return told | _times(timings) | {"peak_gb": peak[0] / 1e9}


def line_up(family: str, *, flash: bool) -> list[Policy]:
    """What is compared; dense at both ends shows the machine's drift, random columns what choosing costs."""
    published = dl.PulseCol.dream() if family == "dream" else dl.PulseCol.llada()
    return [
        dl.Dense(),
        *([dl.Dense("flash")] if flash else []),
        replace(published, group_size=128),
        dl.SparseD.long(),
        published,
        dl.RandomColumns(group_size=128),
        dl.Dense(),
    ]


@contextmanager
def checkpoint_of(shape: str, length: int, folder: Path | None) -> Iterator[tuple[DLM, Row]]:
    """A model of random weights that was written to disk and loaded from there, and how long that took.

    What was written is deleted in the end.
    """
    target = Path(tempfile.mkdtemp(prefix=f"{shape}-", dir=folder))
    try:
        published = SHAPES[shape].max_length
        random = random_of_shape(shape, published)
        device, dtype = random.device, random.dtype
        writing = perf_counter()
        random.save(target)
        written = perf_counter() - writing
        del random
        release(device)
        loading = perf_counter()
        dlm = dl.load(target, dtype=dtype, max_length=max(length, published), progress=False)
        _wait(dlm.device)
        loaded = perf_counter() - loading
        files = sorted(target.glob("*.safetensors"))
        yield (
            dlm,
            {
                "shape": shape,
                "gb": sum(file.stat().st_size for file in files) / 1e9,
                "shards": len(files),
                "write_s": written,
                "load_s": loaded,
            },
        )
    finally:
        shutil.rmtree(target)


def measure(options: argparse.Namespace) -> Session:
    """All rows that there is time for, printed as they come."""
    longest = max([*options.lengths, *options.longest])
    with checkpoint_of(options.shape, longest, options.folder) as (dlm, checkpoint):
        about = provenance(dlm, seed=0) | {"shape": options.shape, "model": f"random-{options.shape}"}
        session = Session(options, about, checkpoint)
        print("  ".join(f"{name} {_short(value)}" for name, value in checkpoint.items()), flush=True)
        session.keep()
        bench = Bench(dlm, options.gen_length, options.steps)
        for length in options.lengths:
            bench.run(NoAttention(), length, 1)
            session.add(bench.row(NoAttention(), length, 3))
        if not options.eager:
            dlm.compile()
        todo = _todo(bench, options)
        for make in todo:
            if session.over:
                break
            session.add(make())
        session.about |= {"finished": len(session.rows) == len(options.lengths) + len(todo)}
        session.keep()
        return session


def _todo(bench: Bench, options: argparse.Namespace) -> list[Callable[[], Row]]:
    """The rows that are measured with compiled layers, in turn; the shortest length builds the kernels for all."""
    rows: list[Callable[[], Row]] = []
    for length in [*options.lengths, *options.longest]:
        for at, (policy, steps) in enumerate(_jobs(bench, length, few=length in options.longest)):
            row = partial(bench.row, policy, length, steps, first=at == 0)
            warm = length == options.lengths[0] and at > 0
            rows.append(partial(_second, partial(bench.row, policy, length, 4), row) if warm else row)
        if length == options.capture:
            warming = partial(bench.captured, min(options.lengths), None)
            rows.append(partial(_second, warming, partial(bench.captured, length, options.trace)))
    return rows


def _second(warming: Callable[[], Row], row: Callable[[], Row]) -> Row:
    """The row of the second of two runs."""
    warming()
    return row()


def _jobs(bench: Bench, length: int, *, few: bool) -> list[tuple[Policy, int]]:
    """Policies and their steps; with ``few``, dense attention and PulseCol, one step of each kind or two."""
    policies = line_up(bench.dlm.spec.family, flash=can_attend(bench.dlm, "flash"))
    if few:
        pulse = next(policy for policy in policies if isinstance(policy, dl.PulseCol))
        return [(policies[0], 1), (NoAttention(), 2), (replace(pulse, refresh_count=1), 3)]
    short = {"Dense(backend='flash')": 3, repr(policies[-2]): 4}
    # Where dense attention was measured once, two steps tell whether the machine has drifted since.
    jobs = [(policy, short.get(repr(policy), bench.steps)) for policy in policies]
    return [jobs[0], (NoAttention(), 3), *jobs[1:-1], (jobs[-1][0], 2)]


def _times(timings: pd.DataFrame) -> Row:
    kinds = {kind: list(map(float, ms)) for kind, ms in timings.groupby("kind")["ms"]}
    return {
        "ms": {
            str(kind): {"median": median(ms), "low": min(ms), "high": max(ms), "steps": len(ms)}
            for kind, ms in kinds.items()
        },
        "steps": len(timings),
        "total_ms": float(timings["ms"].sum()),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _short(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _line(row: Row) -> str:
    name = row["policy"] + ("" if row["compiled"] else ", not compiled")
    start = f"{row['context']:7,} {name:34s}"
    if "error" in row:
        return f"{start} {row['error']}"
    kinds = ", ".join(f"{kind} {ms['median']:.1f}" for kind, ms in row["ms"].items())
    memory = f"{row['peak_gb']:.1f} GB ({row['estimate_gb']:.1f} estimated)"
    apart = f"   compiled in {row['compile_s']:.1f} s" if "compile_s" in row else ""
    return f"{start}{row['steps']:3} steps {row['total_ms'] / 1000:7.1f} s   {memory}   ms: {kinds}{apart}"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write JSON where ``--out`` asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=SHAPES, default="llada-8b" if gpu else "tiny")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 65536] if gpu else [256, 512])
    parser.add_argument("--longest", type=int, nargs="*", default=[131072] if gpu else [])
    parser.add_argument("--capture", type=int, default=65536 if gpu else 512, help="length of the capture")
    parser.add_argument("--steps", type=int, default=8, help="denoised at every length (%(default)s)")
    parser.add_argument("--gen-length", type=int, default=1024 if gpu else 64)
    parser.add_argument("--minutes", type=float, default=8, help="begin no row after so many (%(default)s)")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument(
        "--folder", type=Path, help="where checkpoints are written; the temporary folder if not given"
    )
    parser.add_argument(
        "--trace", type=Path, help="where to write the captured trace; in memory if not given"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if min([*options.lengths, *options.longest]) <= options.gen_length:
        parser.error(f"--lengths must exceed the {options.gen_length} tokens that are generated")
    measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
