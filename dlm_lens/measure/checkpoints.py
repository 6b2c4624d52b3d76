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
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch

import dlm_lens as dl
from dlm_lens.measure.environment import can_attend, provenance
from dlm_lens.measure.session import Row, Session
from dlm_lens.measure.shapes import SHAPES, random_of_shape
from dlm_lens.measure.speed import peak_memory
from dlm_lens.measure.step_bench import Bench, NoAttention, line_of, times_of
from dlm_lens.memory import release
from dlm_lens.policies import Policy

if TYPE_CHECKING:
    from dlm_lens.models import DLM

STATISTICS = (dl.ColumnMass(), dl.PooledMap(), dl.RowEntropy())


def captured(bench: Bench, length: int, path: Path | None) -> Row:
    """Two steps with every statistic of all layers and heads, written to ``path``."""
    told = bench.told(dl.Dense(), length, STATISTICS) | {"job": "capture", "policy": "Dense, captured"}
    with peak_memory(bench.dlm.device) as peak:
        trace = dl.capture(
            bench.dlm,
            bench.prompt(length),
            gen_length=bench.gen_length,
            steps=2,
            sampler=dl.LowConfidence(block_length=bench.gen_length),
            statistics=STATISTICS,
            path=path,
            memory_budget="1 TB",
            overwrite=True,
            progress=False,
        )
    timings = trace.dataset[["kind", "step_ms"]].rename(step_ms="ms").to_dataframe()
    release(bench.dlm.device)
    return told | times_of(timings) | {"peak_gb": peak[0] / 1e9}


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
        session = Session(options, about, {"checkpoint": checkpoint}, line_of)
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
            warming = partial(captured, bench, min(options.lengths), None)
            rows.append(partial(_second, warming, partial(captured, bench, length, options.trace)))
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _short(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


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
