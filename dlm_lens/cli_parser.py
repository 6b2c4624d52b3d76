"""The commands of ``dlm-lens`` and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

import dlm_lens as dl
from dlm_lens.policy_names import POLICIES, SAMPLERS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"dlm-lens: error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    root = _Parser(prog="dlm-lens", description=dl.__doc__.splitlines()[0] if dl.__doc__ else None)
    root.add_argument("--version", action="version", version=f"dlm-lens {dl.__version__}")
    root.set_defaults(anew="--overwrite")
    commands = root.add_subparsers(required=True, dest="command", metavar="command")

    demo = commands.add_parser("demo", help="capture, explore and compare on the bundled model")
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write to (%(default)s)")

    capture = commands.add_parser("capture", help="denoise a prompt once and record what attention does")
    _add_run_options(capture)
    capture.add_argument("--policy", choices=POLICIES, default="dense", help="how to attend (%(default)s)")
    capture.add_argument("--layers", type=_numbers, help="record only these, such as 0,2-5 (default: all)")
    capture.add_argument("--heads", type=_numbers, help="record only these, such as 0,2-5 (default: all)")
    capture.add_argument("--memory-budget", default="2 GB", help="refuse to need more (%(default)s)")
    capture.add_argument("--out", required=True, type=Path, help="trace to write, a folder such as t.zarr")
    capture.add_argument("--overwrite", action="store_true", help="replace a trace that is there already")

    explore = commands.add_parser("explore", help="write a trace as one HTML file that works offline")
    explore.add_argument("trace", type=Path)
    explore.add_argument(
        "--against", type=Path, metavar="TRACE", help="a second trace, shown beside the first"
    )
    explore.add_argument("--html", required=True, type=Path, help="file to write")
    explore.add_argument("--size", default="25 MB", help="largest size of the file (%(default)s)")

    compare = commands.add_parser("compare", help="measure speed and quality of policies side by side")
    _add_run_options(compare)
    compare.add_argument(
        "--policies",
        type=_policy_names,
        default=["dense", "pulsecol"],
        help=f"comma-separated, of {', '.join(POLICIES)} (dense,pulsecol; dense and random are always added)",
    )
    compare.add_argument(
        "--pruned",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="pruned models to measure beside --model, alone and with every policy",
    )
    compare.add_argument("--repeats", type=int, default=1, help="timed runs of each policy (%(default)s)")
    compare.add_argument("--tasks", type=int, default=0, metavar="N", help="also ask N retrieval questions")
    compare.add_argument("--out", type=Path, help="table to write: .csv, or .json with its provenance")
    compare.add_argument("--path", type=Path, help="folder to keep measurements in, and to go on from")
    compare.add_argument("--overwrite", action="store_true", help="start anew whatever --path holds")
    compare.add_argument(
        "--audit",
        action="store_true",
        help="keep a trace of the retained mass of every sparse policy in --path",
    )

    prune = commands.add_parser("prune", help="prune a model without retraining and write the pruned one")
    prune.add_argument("model", help="bundled name, folder or hub id")
    prune.add_argument("--method", default="magnitude", help="or wanda, or sparsegpt (%(default)s)")
    amount = prune.add_mutually_exclusive_group(required=True)
    amount.add_argument("--sparsity", type=float, help="share of every matrix's weights that becomes zero")
    amount.add_argument(
        "--pattern", metavar="N:M", help="such as 2:4: N of every M neighbouring weights stay"
    )
    amount.add_argument("--structured", type=float, metavar="SHARE", help="of heads and MLP channels removed")
    prune.add_argument(
        "--sink-aware",
        nargs="?",
        const=True,
        default=False,
        choices=["random"],
        help="discount attention sinks in calibration; 'random': as much at other tokens, the control",
    )
    prune.add_argument(
        "--calibration",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="text to calibrate on (default: bundled code)",
    )
    prune.add_argument("--samples", type=int, default=128, help="windows drawn from it (%(default)s)")
    prune.add_argument("--length", type=int, default=512, help="tokens of a window (%(default)s)")
    prune.add_argument("--seed", type=int, default=0)
    prune.add_argument("--path", type=Path, help="folder to keep finished layers in, and to go on from")
    prune.add_argument("--restart", action="store_true", help="start anew whatever --path holds")
    _add_model_options(prune)
    prune.add_argument(
        "--compute-on", metavar="DEVICE", help="bring one layer at a time there (default: --device)"
    )
    prune.add_argument("--out", required=True, type=Path, help="folder to write model and report to")
    prune.add_argument(
        "--overwrite", action="store_true", help="replace a pruned model that is there already"
    )
    prune.set_defaults(anew="--restart")

    schedule = commands.add_parser("schedule", help="say what a policy will do and can save, without a run")
    schedule.add_argument("--policy", choices=POLICIES, default="pulsecol", help="(%(default)s)")
    schedule.add_argument("--sparsity", type=float, help="share of keys left out")
    schedule.add_argument("--shape", default="llada-8b", help="llada-8b, dream-7b or tiny (%(default)s)")
    schedule.add_argument(
        "--tokens", type=int, default=65536, help="positions, prompt and generation (%(default)s)"
    )
    schedule.add_argument("--gen-length", type=int, default=1024, help="of them generated (%(default)s)")
    schedule.add_argument("--steps", type=int, help="denoising steps (default: as many as are generated)")

    retrieval = commands.add_parser("retrieval-task", help="write retrieval questions as a task for lm-eval")
    retrieval.add_argument("--out", required=True, type=Path, help="folder to write to")
    retrieval.add_argument("--name", default="retrieval", help="of the task (%(default)s)")
    retrieval.add_argument("--model", default="tiny", help="whose tokenizer counts the tokens (%(default)s)")
    retrieval.add_argument("--questions", type=int, default=32, metavar="N", help="(%(default)s)")
    retrieval.add_argument("--length", type=int, default=512, help="tokens, answer included (%(default)s)")
    retrieval.add_argument("--variant", default="single", help="as in dlm_lens.tasks.retrieval (%(default)s)")
    retrieval.add_argument("--seed", type=int, default=0)

    commands.add_parser(
        "eval", add_help=False, help="lm-eval's own command line, with the model type dlm_lens"
    )

    info = commands.add_parser("info", help="say what a trace holds")
    info.add_argument("trace", type=Path)
    return root


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="tiny", help="bundled name, folder or hub id (%(default)s)")
    command.add_argument("--prompt", required=True, help="text; '-' reads it from standard input")
    command.add_argument("--gen-length", type=int, default=64, help="tokens to generate (%(default)s)")
    command.add_argument("--steps", type=int, help="denoising steps (default: as many as tokens)")
    command.add_argument("--sampler", choices=SAMPLERS, help="default: the one the model was published with")
    command.add_argument("--sparsity", type=float, help="share of keys left out by sparse policies")
    command.add_argument("--seed", type=int, default=0)
    _add_model_options(command)


def _add_model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="such as cuda or cpu (default: a GPU if there is one)")
    command.add_argument("--device-map", choices=["auto"], help="spread the model over all GPUs")
    command.add_argument("--dtype", help="of the weights, such as bfloat16 (default: float32 on a CPU)")
    command.add_argument("--max-length", type=int, help="positions to allow beyond the published number")


def _policy_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES:
            raise argparse.ArgumentTypeError(f"unknown policy {name!r}: choose from {', '.join(POLICIES)}")
    return names


def _numbers(text: str) -> list[int]:
    """``"0,2-5"`` → [0, 2, 3, 4, 5]."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            numbers += range(int(first), int(last or first) + 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,2-5") from None
    return numbers
