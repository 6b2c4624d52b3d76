"""What pruning a model of a published shape costs: seconds by layer and phase, and the memory at its peak.

python -m dlm_lens.measure.pruning_cost --shape llada-8b --out FILE.json --minutes 7

The weights are random and so are the tokens of the calibration, so this tells of speed and memory only. Every row is
one :func:`dlm_lens.prune` of all layers, with a calibration of the default size; in the last the model lies on the CPU
and a GPU computes layer by layer. The phases of a layer are the pass in which it is not pruned yet (``statistics``),
the pruning of its matrices, and the pass in which it is (``advance``).

The file is written anew after every layer. ``--minutes`` ends the measurement after a layer: the total of the row that
it ends in is then projected from the layers that were finished, and says so.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from dlm_lens.measure.environment import provenance
from dlm_lens.measure.session import Row, Session
from dlm_lens.measure.shapes import SHAPES, random_of_shape
from dlm_lens.measure.speed import peak_memory
from dlm_lens.memory import release

if TYPE_CHECKING:
    from dlm_lens.models import DLM
    from dlm_lens.pruning import Calibration

PHASES = ("statistics", "pruning", "advance")
JOBS: list[dict[str, Any]] = [
    {"method": "wanda", "pattern": "2:4", "sink_aware": True},
    {"method": "sparsegpt", "pattern": "2:4", "sink_aware": True},
    {"method": "magnitude", "pattern": "2:4"},
    {"method": "wanda", "structured": 0.5},
]
STREAMED: dict[str, Any] = JOBS[0]


class OutOfTime(KeyboardInterrupt):
    """Ends a pruning after a layer, as Ctrl-C would."""


@dataclass
class Stopwatch:
    """The ``progress`` of a pruning: when its layers and their phases began and ended.

    It waits for the device only at the ends of passes and after their first chunks, which take what comes between the
    passes; what that is follows from how long the other chunks of a pass took.
    """

    device: torch.device
    chunks: int
    row: Row
    session: Session
    _marks: list[float] = field(default_factory=lambda: [perf_counter()])

    def __call__(self, done: float, total: float, what: str) -> None:
        chunk = int(done) % self.chunks
        if chunk > 1:
            return
        _wait(self.device)
        self._marks.append(perf_counter())
        if int(done) % (2 * self.chunks) == 0:
            self._layer(*self._marks[-5:])
            self.session.keep()
            if self.session.over and done < total:
                raise OutOfTime

    def _layer(self, began: float, first: float, dense: float, pruned: float, ended: float) -> None:
        """Take up a layer: when it began, and when the first and the last chunk of its two passes were done."""
        # Of all chunks of a pass, as if the first took as long as the others.
        share = self.chunks / (self.chunks - 1)
        statistics, advance = share * (dense - first), share * (ended - pruned)
        pruning = pruned - dense - advance / self.chunks
        between = first - began - statistics / self.chunks
        phases = dict(zip(PHASES, (statistics, pruning, advance), strict=True))
        if not self.row["per_layer"]:
            self.row["setup_s"], between = between, 0.0
        self.row["per_layer"].append(phases | {"total": sum(phases.values()) + between})
        done = self.row["per_layer"]
        self.row["layer_s"] = {name: median(layer[name] for layer in done) for name in done[0]}
        left = self.row["layers"] - len(done)
        self.row["total_s"] = ended - self._marks[0] + left * self.row["layer_s"]["total"]
        self.row["projected"] = left > 0


def pruned_row(
    dlm: DLM, job: dict[str, Any], calibration: Calibration, session: Session, device: torch.device
) -> None:
    """Prune a model and add the row that says what that took; what fails says why instead.

    ``device`` is where layers are computed; where the model lies elsewhere, they are brought there one by one.
    """
    import dlm_lens as dl

    streamed = dlm.device != device
    row: Row = {
        "job": ", ".join(f"{name}={value!r}" for name, value in job.items()),
        "model_on": str(dlm.device.type),
        "computed_on": str(device.type),
        "layers": dlm.spec.layers,
        "per_layer": [],
        "weights_gb": sum(p.numel() * p.element_size() for p in dlm.model.parameters()) / 1e9,
    }
    session.rows.append(row)
    chunks = -(-session.facts["calibration"]["sequences"] // calibration.batch_size)
    release(device)
    try:
        with peak_memory(device) as peak:
            watch = Stopwatch(device, chunks, row, session)
            began = perf_counter()
            pruned, report = dl.prune(
                dlm, **job, calibration=calibration, device=device if streamed else None, progress=watch
            )
            _wait(device)
            row |= {"total_s": perf_counter() - began, "label": report.label, "sparsity": report.sparsity}
            del pruned
    except OutOfTime:
        pass
    except Exception as error:  # the rows after it are still worth having
        row["error"] = f"{type(error).__name__}: {error}"
    row["peak_gb"] = peak[0] / 1e9 if peak else _peak(device)
    if device.type == "cuda":
        row["reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
    print(session.line(row), flush=True)
    session.keep()


def _peak(device: torch.device) -> float:
    """What a row that failed held on a GPU, in GB; NaN elsewhere."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else float("nan")


def measure(options: argparse.Namespace) -> Session:
    """All rows that there is time for, printed as they come."""
    import dlm_lens as dl

    dlm = random_of_shape(options.shape, max(SHAPES[options.shape].max_length, options.length))
    device = dlm.device
    random = torch.Generator().manual_seed(0)
    text = torch.randint(3, dlm.spec.vocab - 2, (options.samples * options.length * 2,), generator=random)
    calibration = dl.Calibration([text], samples=options.samples, length=options.length)
    sequences = options.samples * len(calibration.times)
    facts = {
        "calibration": {
            "samples": options.samples,
            "times": len(calibration.times),
            "length": options.length,
            "sequences": sequences,
            "tokens": sequences * options.length,
            "batch_size": calibration.batch_size,
        }
    }
    about = provenance(dlm, seed=0) | {"shape": options.shape, "model": f"random-{options.shape}"}
    session = Session(options, about, facts, line)
    jobs = [(job, False) for job in JOBS] + [(STREAMED, True)] * (device.type == "cuda")
    for job, streamed in jobs:
        if session.over:
            break
        pruned_row(dlm.to("cpu") if streamed else dlm, job, calibration, session, device)
    session.about["finished"] = len(session.rows) == len(jobs) and not session.rows[-1].get("projected", True)
    session.keep()
    return session


def line(row: Row) -> str:
    """A row in a line."""
    name = f"{row['job']}, model on {row['model_on']}"
    if not row["per_layer"]:
        return f"{name:70s} {row.get('error', 'no layer was finished')}"
    phases = ", ".join(f"{phase} {row['layer_s'][phase]:.2f}" for phase in PHASES)
    memory = f"{row['peak_gb']:.1f} GB" + (
        f" ({row['reserved_gb']:.1f} reserved)" if "reserved_gb" in row else ""
    )
    total = f"{row['total_s']:.1f} s" + (
        f" projected from {len(row['per_layer'])} layers" if row["projected"] else ""
    )
    return f"{name:70s} {total}, a layer {row['layer_s']['total']:.2f} s: {phases}; {memory} {row.get('error', '')}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write JSON where ``--out`` asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=SHAPES, default="llada-8b" if gpu else "tiny")
    parser.add_argument(
        "--samples", type=int, default=128 if gpu else 4, help="windows of text (%(default)s)"
    )
    parser.add_argument("--length", type=int, default=512 if gpu else 32, help="tokens of each (%(default)s)")
    parser.add_argument("--minutes", type=float, default=7, help="begin no layer after so many (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    session = measure(parser.parse_args(arguments))
    print(*("", *map(line, session.rows)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
