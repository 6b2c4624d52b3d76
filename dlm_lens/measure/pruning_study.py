"""Does it help to discount attention sinks in calibration? The bundled model pruned in every way, over several seeds.

python -m dlm_lens.measure.pruning_study --workers 12 --minutes 8 --out figures/data/pruning-study-<device>.json

Every cell is one :func:`dlm_lens.prune`: a method, an amount, what is discounted (nothing, the sinks, or as much at
random positions) and a seed, which draws the windows of the calibration, their noise and the random positions. What is
pruned with one seed is calibrated on the same tokens, so differences are compared seed by seed
(:mod:`dlm_lens.measure.pruning_gains`). Magnitude looks at no activations: it has one cell per amount. Cells with a
smaller κ, by which far more is discounted, come last; they tell whether a difference that is not there is none
because hardly anything was discounted.

All are asked the same: the diffusion bound of pieces of held-out code, retrieval questions and holes in held-out code,
each kept by blocks, so that the error over what is asked can be told from that over calibrations. Seeds are finished
one after the other. ``--out`` is written anew after every cell, and a run with the same settings goes on from there.
With several workers a cell that fails is told at the end, and the others are measured all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

import dlm_lens as dl
from dlm_lens.errors import DlmLensError
from dlm_lens.measure.environment import provenance
from dlm_lens.measure.pruning_gains import AMOUNTS, DISCOUNTS, short_table
from dlm_lens.measure.tasks.infilling import infill
from dlm_lens.whole_file import whole_file

if TYPE_CHECKING:
    from dlm_lens.models import DLM

Row = dict[str, Any]

METHODS = ("magnitude", "wanda", "sparsegpt")
KAPPA = 2.0
# Arguments that change what a cell gives: a file goes on only with the same.
_SETTINGS = (
    "model",
    "samples",
    "length",
    "questions",
    "holes",
    "span",
    "pieces",
    "draws",
    "task_length",
    "block",
)


@dataclass(frozen=True)
class Cell:
    """One pruned model; ``method`` None for the dense one."""

    method: str | None
    discount: str = "plain"
    amount: str = ""
    kappa: float = KAPPA
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """What every model is asked, in blocks: pieces of held-out code, retrieval questions, holes to be filled."""

    pieces: list[torch.Tensor]
    questions: list[list[Any]]
    holes: list[Any]
    block: int
    draws: int
    batch_size: int

    def answers(self, dlm: DLM) -> Row:
        """Nats per token of every piece, and shares answered and filled exactly of every block, in order."""
        batch, draws = self.batch_size, self.draws
        nats = [
            dl.tasks.perplexity(
                dlm, piece, samples=draws, length=len(piece), batch_size=batch, progress=False
            ).nats
            for piece in self.pieces
        ]
        right = [dl.tasks.accuracy(dlm, block, batch_size=batch, progress=False) for block in self.questions]
        filled = infill(dlm, self.holes, batch_size=batch, progress=False)
        by_block = (
            filled[["exact", "token_accuracy"]].astype(float).groupby(np.arange(len(filled)) // self.block)
        )
        exact, tokens = (by_block[name].mean().tolist() for name in ("exact", "token_accuracy"))
        return {
            "nats": _mean(nats),
            "ppl": float(np.exp(_mean(nats))),
            "retrieval": _mean(right),
            "infilling": _mean(exact),
            "infilling_tokens": _mean(tokens),
            "by_block": {
                "nats": [round(value, 5) for value in nats],
                "retrieval": right,
                "infilling": exact,
                "infilling_tokens": [round(value, 5) for value in tokens],
            },
        }


def asked(dlm: DLM, options: argparse.Namespace) -> Asked:
    """The same for every model with the same tokenizer."""
    assert dlm.tokenizer is not None
    ids = torch.tensor(dlm.tokenizer.encode(dl.tasks.held_out_text(), add_special_tokens=False))
    windows = ids[: len(ids) // options.task_length * options.task_length].split(options.task_length)
    if not 2 <= options.pieces <= len(windows):
        raise ValueError(
            f"pieces={options.pieces} must be in 2…{len(windows)}, the windows of the held-out code"
        )
    chosen = np.linspace(0, len(windows) - 1, options.pieces).round().astype(int)
    questions = dl.tasks.retrieval(dlm, options.questions, length=options.task_length)
    holes = dl.tasks.infilling(dlm, options.holes, length=options.task_length, span=options.span)
    blocks = [questions[at : at + options.block] for at in range(0, len(questions), options.block)]
    return Asked(
        [windows[at] for at in chosen], blocks, holes, options.block, options.draws, _batch_size(dlm)
    )


def plan(options: argparse.Namespace) -> list[Cell]:
    """All cells in the order of work: the dense model and magnitude, seed after seed, then smaller κ and more
    amounts, seed after seed as well."""
    first, activations = [Cell(None)], [method for method in options.methods if method != "magnitude"]
    if "magnitude" in options.methods:
        first += [Cell("magnitude", amount=amount) for amount in (*options.amounts, *options.more_amounts)]
    main, later = [], []
    for seed in range(options.seeds):
        for method in activations:
            for discount in DISCOUNTS:
                main += [Cell(method, discount, amount, seed=seed) for amount in options.amounts]
                later += [Cell(method, discount, amount, seed=seed) for amount in options.more_amounts]
            later += [
                Cell(method, discount, amount, kappa, seed)
                for kappa in options.kappas
                for discount in DISCOUNTS[1:]
                for amount in options.kappa_amounts
            ]
    return [*first, *main, *later]


def how_much(amount: str) -> dict[str, Any]:
    """Arguments of :func:`dlm_lens.prune` for an amount as the command line has it: 0.5, 2:4, structured-0.3."""
    if amount.startswith("structured-"):
        return {"structured": float(amount.removeprefix("structured-"))}
    return {"pattern": amount} if ":" in amount else {"sparsity": float(amount)}


def measure_cell(dlm: DLM, questions: Asked, cell: Cell, options: argparse.Namespace) -> Row:
    """Prune as the ``cell`` says, and ask."""
    began = perf_counter()
    row: Row = asdict(cell) | {"sparsity": 0.0, "error": 0.0, "discounted": None}
    pruned = dlm
    if cell.method is not None:
        calibration = dl.Calibration(
            samples=options.samples, length=options.length, seed=cell.seed, batch_size=_batch_size(dlm)
        )
        pruned, report = dl.prune(
            dlm,
            cell.method,
            sink_aware={"plain": False, "sinks": True, "random": "random"}[cell.discount],
            kappa=cell.kappa,
            calibration=calibration,
            progress=False,
            **how_much(cell.amount),
        )
        row |= {"sparsity": report.sparsity, "error": report.error}
        if cell.discount != "plain":
            row["discounted"] = float(report.table["discounted"].mean())
    row["prune_s"] = round(perf_counter() - began, 3)
    row |= questions.answers(pruned)
    row["total_s"] = round(perf_counter() - began, 3)
    return row


class Worker:
    """A model and what it is asked, loaded once per process."""

    def __init__(self, options: argparse.Namespace, device: str | None) -> None:
        if device is not None:
            torch.cuda.set_device(device)
        self.options = options
        self.dlm = dl.load(options.model, device=device)
        self.questions = asked(self.dlm, options)

    def __call__(self, cell: Cell) -> Row:
        return measure_cell(self.dlm, self.questions, cell, self.options)


_WORKER: list[Worker] = []  # of this process, where it is one of several


def _begin(options: argparse.Namespace, number: Any) -> None:
    torch.set_num_threads(1)
    with number.get_lock():
        own, number.value = number.value, number.value + 1
    gpus = torch.cuda.device_count()
    _WORKER.append(Worker(options, f"cuda:{own % gpus}" if gpus else None))


def _work(cell: Cell) -> Row:
    return _WORKER[0](cell)


def measured(
    cells: list[Cell], options: argparse.Namespace, over: Callable[[], bool]
) -> Iterator[tuple[Cell, Row | BaseException]]:
    """The rows of ``cells`` as they are finished, or why they failed; none is begun any more once it is ``over``."""
    if options.workers == 1:
        worker = Worker(options, None)
        for cell in cells:
            if over():
                return
            yield cell, worker(cell)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the processes when they start
    context = get_context("spawn")
    with ProcessPoolExecutor(
        options.workers, mp_context=context, initializer=_begin, initargs=(options, context.Value("i", 0))
    ) as pool:
        waiting, running = iter(cells), dict[Future[Row], Cell]()
        try:
            while True:
                room = 0 if over() else options.workers - len(running)
                running |= {pool.submit(_work, cell): cell for cell in islice(waiting, room)}
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.exception() or done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Study:
    """The rows of finished cells, kept in a file where one is asked for.

    ``about`` is the provenance of the latest session that measured a cell, with the dates of all if there are several.
    """

    def __init__(self, options: argparse.Namespace, about: dict[str, Any]) -> None:
        self._out, self.about = options.out, about
        self.settings = {name: getattr(options, name) for name in _SETTINGS} | {"device": about["device"]}
        self.rows: dict[Cell, Row] = {}
        if self._out and self._out.exists():
            self._take_up(json.loads(self._out.read_text(encoding="utf-8")))

    def _take_up(self, found: dict[str, Any]) -> None:
        stored = found.get("settings")
        if stored != self.settings:
            raise DlmLensError(
                f"{self._out} was measured with {stored}, not with {self.settings}; give the same settings to go on, or"
                " another --out"
            )
        names = Cell.__dataclass_fields__
        self.rows = {Cell(**{name: row[name] for name in names}): row for row in found["rows"]}
        before = found["provenance"]
        self.about = self.about | {
            "sessions": [*before.get("sessions", [before["date"]]), self.about["date"]]
        }

    def add(self, cell: Cell, row: Row, order: list[Cell]) -> None:
        """Keep a row; rows stand in the order of work, whichever is finished first."""
        self.rows[cell] = row
        if self._out:
            place = {cell: at for at, cell in enumerate(order)}
            rows = sorted(self.rows.items(), key=lambda item: place.get(item[0], len(place)))
            found = {"provenance": self.about, "settings": self.settings, "rows": [row for _, row in rows]}
            with whole_file(self._out) as new:
                new.write_text(_compact(found), encoding="utf-8")


def _compact(found: dict[str, Any]) -> str:
    """JSON with a line per row."""
    head = json.dumps({name: found[name] for name in ("provenance", "settings")}, indent=1)
    rows = ",\n".join(json.dumps(row) for row in found["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n'


def main(arguments: list[str] | None = None) -> int:
    """Measure what is not measured yet, and print what was found."""
    options = _options(arguments)
    began = perf_counter()
    dlm = dl.load(options.model)
    asked(dlm, options)  # what cannot be asked is said before anything is pruned
    study = Study(options, provenance(dlm, seed=0) | {"seeds": options.seeds, "workers": options.workers})
    del dlm
    cells = plan(options)
    failed: list[str] = []
    left = [cell for cell in cells if cell not in study.rows]
    with tqdm(total=len(cells), initial=len(cells) - len(left), desc="Pruning study", unit="cell") as bar:
        for cell, row in measured(left, options, lambda: perf_counter() - began > 60 * options.minutes):
            if isinstance(row, BaseException):
                failed.append(f"{cell}: {row!r}")
            else:
                study.add(cell, row, cells)
            bar.update()
    print(short_table([study.rows[cell] for cell in cells if cell in study.rows]))
    missing = sum(cell not in study.rows for cell in cells)
    print(f"{len(cells) - missing} of {len(cells)} cells in {perf_counter() - began:.0f} s", flush=True)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--amounts", nargs="+", default=list(AMOUNTS), help="(default: %(default)s)")
    parser.add_argument(
        "--more-amounts", nargs="*", default=["4:8"], help="measured after all others (default: %(default)s)"
    )
    parser.add_argument(
        "--kappas",
        type=float,
        nargs="*",
        default=[1.0, 0.25],
        help="stronger discounts (default: %(default)s)",
    )
    parser.add_argument("--kappa-amounts", nargs="*", default=["0.75"], help="pruned with --kappas")
    parser.add_argument("--seeds", type=int, default=5, help="calibrations (%(default)s)")
    parser.add_argument("--samples", type=int, default=128, help="windows of a calibration (%(default)s)")
    parser.add_argument("--length", type=int, default=512, help="tokens of such a window (%(default)s)")
    parser.add_argument(
        "--task-length", type=int, default=256, help="tokens of all that is asked (%(default)s)"
    )
    parser.add_argument("--pieces", type=int, default=64, help="of held-out code (%(default)s)")
    parser.add_argument(
        "--draws", type=int, default=16, help="of the diffusion bound per piece (%(default)s)"
    )
    parser.add_argument("--questions", type=int, default=640, help="(%(default)s)")
    parser.add_argument("--holes", type=int, default=640, help="(%(default)s)")
    parser.add_argument("--span", type=int, default=3, help="tokens of a hole (%(default)s)")
    parser.add_argument("--block", type=int, default=32, help="questions or holes of a block (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes, over all GPUs (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="no cell is begun later (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file to write, and to go on from")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.workers < 1:
        parser.error("--seeds and --workers must be at least 1")
    return options


def _batch_size(dlm: DLM) -> int:
    """Sequences at a time: as many as keep a GPU busy, and few where they are not computed at the same time."""
    return 8 if dlm.device.type == "cpu" else 64


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


if __name__ == "__main__":
    sys.exit(main())
