"""The command ``dlm-lens``: the main functions of the package from a terminal, and nothing of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import dlm_lens as dl
from dlm_lens.byte_sizes import parse_bytes
from dlm_lens.errors import DlmLensError
from dlm_lens.policy_names import POLICIES, SAMPLERS, budget_of, policy_of

if TYPE_CHECKING:
    from dlm_lens.samplers import Sampler

INTERRUPTED = 130  # what shells report for a command ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 after an error, 130 after Ctrl-C."""
    root = parser()
    options, rest = root.parse_known_args(arguments)
    if options.run is _eval:
        options.rest = rest
    elif rest:
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return options.run(options)
    except (DlmLensError, ValueError, TypeError, OSError) as error:
        print(f"dlm-lens: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dlm-lens: interrupted", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"dlm-lens: error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    root = _Parser(prog="dlm-lens", description=dl.__doc__.splitlines()[0] if dl.__doc__ else None)
    root.add_argument("--version", action="version", version=f"dlm-lens {dl.__version__}")
    commands = root.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="capture, explore and compare on the bundled model")
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write to (%(default)s)")
    demo.set_defaults(run=_demo)

    capture = commands.add_parser("capture", help="denoise a prompt once and record what attention does")
    _add_run_options(capture)
    capture.add_argument("--policy", choices=POLICIES, default="dense", help="how to attend (%(default)s)")
    capture.add_argument("--layers", type=_numbers, help="record only these, such as 0,2-5 (default: all)")
    capture.add_argument("--heads", type=_numbers, help="record only these, such as 0,2-5 (default: all)")
    capture.add_argument("--memory-budget", default="2 GB", help="refuse to need more (%(default)s)")
    capture.add_argument("--out", required=True, type=Path, help="trace to write, a folder such as t.zarr")
    capture.add_argument("--overwrite", action="store_true", help="replace a trace that is there already")
    capture.set_defaults(run=_capture)

    explore = commands.add_parser("explore", help="write a trace as one HTML file that works offline")
    explore.add_argument("trace", type=Path)
    explore.add_argument(
        "--against", type=Path, metavar="TRACE", help="a second trace, shown beside the first"
    )
    explore.add_argument("--html", required=True, type=Path, help="file to write")
    explore.add_argument("--size", default="25 MB", help="largest size of the file (%(default)s)")
    explore.set_defaults(run=_explore)

    compare = commands.add_parser("compare", help="measure speed and quality of policies side by side")
    _add_run_options(compare)
    compare.add_argument(
        "--policies",
        type=_policy_names,
        default=["dense", "pulsecol"],
        help=f"comma-separated, of {', '.join(POLICIES)} (dense,pulsecol; dense and random are always added)",
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
    compare.set_defaults(run=_compare)

    schedule = commands.add_parser("schedule", help="say what a policy will do and can save, without a run")
    schedule.add_argument("--policy", choices=POLICIES, default="pulsecol", help="(%(default)s)")
    schedule.add_argument("--sparsity", type=float, help="share of keys left out")
    schedule.add_argument("--shape", default="llada-8b", help="llada-8b, dream-7b or tiny (%(default)s)")
    schedule.add_argument(
        "--tokens", type=int, default=65536, help="positions, prompt and generation (%(default)s)"
    )
    schedule.add_argument("--gen-length", type=int, default=1024, help="of them generated (%(default)s)")
    schedule.add_argument("--steps", type=int, help="denoising steps (default: as many as are generated)")
    schedule.set_defaults(run=_schedule)

    retrieval = commands.add_parser("retrieval-task", help="write retrieval questions as a task for lm-eval")
    retrieval.add_argument("--out", required=True, type=Path, help="folder to write to")
    retrieval.add_argument("--name", default="retrieval", help="of the task (%(default)s)")
    retrieval.add_argument("--model", default="tiny", help="whose tokenizer counts the tokens (%(default)s)")
    retrieval.add_argument("--questions", type=int, default=32, metavar="N", help="(%(default)s)")
    retrieval.add_argument("--length", type=int, default=512, help="tokens, answer included (%(default)s)")
    retrieval.add_argument("--variant", default="single", help="as in dlm_lens.tasks.retrieval (%(default)s)")
    retrieval.add_argument("--seed", type=int, default=0)
    retrieval.set_defaults(run=_retrieval_task)

    evaluate = commands.add_parser(
        "eval", add_help=False, help="lm-eval's own command line, with the model type dlm_lens"
    )
    evaluate.set_defaults(run=_eval)

    info = commands.add_parser("info", help="say what a trace holds")
    info.add_argument("trace", type=Path)
    info.set_defaults(run=_info)
    return root


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="tiny", help="bundled name, folder or hub id (%(default)s)")
    command.add_argument("--prompt", required=True, help="text; '-' reads it from standard input")
    command.add_argument("--gen-length", type=int, default=64, help="tokens to generate (%(default)s)")
    command.add_argument("--steps", type=int, help="denoising steps (default: as many as tokens)")
    command.add_argument("--sampler", choices=SAMPLERS, help="default: the one the model was published with")
    command.add_argument("--sparsity", type=float, help="share of keys left out by sparse policies")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", help="such as cuda or cpu (default: a GPU if there is one)")
    command.add_argument("--device-map", choices=["auto"], help="spread the model over all GPUs")
    command.add_argument("--dtype", help="of the weights, such as bfloat16 (default: float32 on a CPU)")
    command.add_argument("--max-length", type=int, help="positions to allow beyond the published number")


def _load(options: argparse.Namespace) -> dl.DLM:
    return dl.load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        device_map=options.device_map,
        max_length=options.max_length,
    )


def _demo(options: argparse.Namespace) -> int:
    from dlm_lens.demo import demo

    demo(options.out)
    return 0


def _capture(options: argparse.Namespace) -> int:
    policy = policy_of(options.policy, options.sparsity)
    dlm = _load(options)
    trace = dl.capture(
        dlm,
        _prompt(options.prompt),
        gen_length=options.gen_length,
        steps=options.steps,
        policy=policy,
        sampler=_sampler(options.sampler, options.gen_length),
        layers=options.layers,
        heads=options.heads,
        path=options.out,
        memory_budget=options.memory_budget,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    print(trace)
    if not trace.complete:
        message = f"interrupted; {options.out} keeps the {len(trace.steps)} finished steps"
        print(f"dlm-lens: {message}", file=sys.stderr)
        return INTERRUPTED
    print(f"\nLook at it: dlm-lens explore {options.out} --html {options.out.with_suffix('.html')}")
    return 0


def _explore(options: argparse.Namespace) -> int:
    from dlm_lens.explorer.page import page

    against = None if options.against is None else dl.open_trace(options.against)
    size = parse_bytes(options.size)
    text = page(dl.open_trace(options.trace), max_bytes=size, against=against, progress=True)
    options.html.write_text(text, encoding="utf-8")
    print(f"{options.html} ({options.html.stat().st_size / 1e6:.1f} MB); open it in a browser")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from dlm_lens import measure

    if options.out is not None:
        measure.check_table_path(options.out)
    if options.audit and options.path is None:
        raise ValueError("--audit needs --path, a folder to keep the traces in")
    policies = [policy_of(name, options.sparsity if budget_of(name) else None) for name in options.policies]
    dlm = _load(options)
    try:
        table = measure.compare(
            dlm,
            _prompt(options.prompt),
            policies,
            gen_length=options.gen_length,
            steps=options.steps,
            sampler=_sampler(options.sampler, options.gen_length),
            repeats=options.repeats,
            seed=options.seed,
            tasks=measure.tasks.retrieval(dlm, options.tasks) if options.tasks else None,
            audit=options.audit,
            path=options.path,
            overwrite=options.overwrite,
        )
    except KeyboardInterrupt:
        if options.path is None:
            raise
        message = f"interrupted; {options.path} keeps what was finished, and the same command goes on from it"
        print(f"dlm-lens: {message}", file=sys.stderr)
        return INTERRUPTED
    print(measure.format_summary(table))
    if options.out is not None:
        measure.save_table(table, options.out)
    return 0


def _schedule(options: argparse.Namespace) -> int:
    if options.tokens <= options.gen_length:
        raise ValueError(f"--tokens {options.tokens} must exceed --gen-length {options.gen_length}")
    policy = policy_of(options.policy, options.sparsity)
    steps = options.gen_length if options.steps is None else options.steps
    prompt_length = options.tokens - options.gen_length
    gen_length = options.gen_length
    print(dl.schedule(policy, steps, options.shape, prompt_length=prompt_length, gen_length=gen_length))
    return 0


def _retrieval_task(options: argparse.Namespace) -> int:
    _need_lm_eval()
    from dlm_lens.eval import write_task

    dlm = dl.load(options.model, device="cpu")
    items = dl.tasks.retrieval(
        dlm, options.questions, length=options.length, variant=options.variant, seed=options.seed
    )
    print(f"{write_task(items, options.out, options.name)}; ask it with")
    how = f"--model_args pretrained={options.model},policy=pulsecol"
    print(f"  dlm-lens eval --model dlm_lens {how} --include_path {options.out} --tasks {options.name}")
    return 0


def _eval(options: argparse.Namespace) -> int:
    _need_lm_eval()
    from dlm_lens.eval import main as lm_eval_main

    lm_eval_main(options.rest)
    return 0


def _need_lm_eval() -> None:
    if find_spec("lm_eval") is None:
        raise DlmLensError("lm-eval is not installed; pip install 'dlm-lens[eval]'")


def _info(options: argparse.Namespace) -> int:
    trace = dl.open_trace(options.trace)
    print(trace)
    for name in ("created", "device", "seed", "versions", "git_revision"):
        if name in trace.attrs:
            print(f"  {name:<15}{trace.attrs[name]}")
    return 0


def _prompt(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


def _sampler(name: str | None, gen_length: int) -> Sampler | None:
    if name is None:
        return None
    in_blocks = {"block_length": min(32, gen_length)} if name in ("low-confidence", "threshold") else {}
    return getattr(dl, SAMPLERS[name])(**in_blocks)


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).replace("overwrite=True", "--overwrite") or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
