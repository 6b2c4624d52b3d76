"""The command ``dlm-lens``: the main functions of the package from a terminal, and nothing of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import dlm_lens as dl
from dlm_lens.byte_sizes import parse_bytes
from dlm_lens.cli_parser import parser
from dlm_lens.errors import DlmLensError
from dlm_lens.policy_names import SAMPLERS, budget_of, policy_of
from dlm_lens.whole_file import whole_folder

if TYPE_CHECKING:
    from dlm_lens.samplers import Sampler

INTERRUPTED = 130  # what shells report for a command ended by Ctrl-C
_REPORT = "pruning.json"  # beside a pruned model, and what tells it from other folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 after an error, 130 after Ctrl-C."""
    root = parser()
    options, rest = root.parse_known_args(arguments)
    if options.command == "eval":
        options.rest = rest
    elif rest:
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return COMMANDS[options.command](options)
    except (DlmLensError, ValueError, TypeError, OSError) as error:
        print(f"dlm-lens: error: {_one_line(error, options.anew)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dlm-lens: interrupted", file=sys.stderr)
        return INTERRUPTED


def _load(options: argparse.Namespace, name: str | None = None) -> dl.DLM:
    return dl.load(
        name or options.model,
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
            pruned=[_load(options, name) for name in options.pruned],
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


def _prune(options: argparse.Namespace) -> int:
    out = options.out.expanduser()
    _check_replaceable(out, options.overwrite)
    _check_apart(out, options.path)
    texts = None if options.calibration is None else [_text(file) for file in options.calibration]
    calibration = dl.Calibration(texts, options.samples, options.length, seed=options.seed)
    try:
        pruned, report = dl.prune(
            _load(options),
            options.method,
            sink_aware=options.sink_aware,
            sparsity=options.sparsity,
            pattern=options.pattern,
            structured=options.structured,
            calibration=calibration,
            path=options.path,
            overwrite=options.restart,
            device=options.compute_on,
        )
        _check_replaceable(out, options.overwrite)  # once more: something may have come there meanwhile
        with whole_folder(out) as new:
            pruned.save(new)
            report.save(new / _REPORT)
    except KeyboardInterrupt:
        kept = "nothing is kept without --path"
        if options.path is not None:
            kept = f"{options.path} keeps the finished layers, and the same command goes on from them"
        print(f"dlm-lens: interrupted; {kept}", file=sys.stderr)
        return INTERRUPTED
    print(f"{report}\n\n{out} loads as any model does: --model {out}")
    return 0


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    """Raise FileExistsError if a pruned model may not be written to ``folder``."""
    if not folder.exists():
        return
    if not (folder / _REPORT).is_file():
        raise FileExistsError(f"{folder} exists and is no pruned model; choose another --out")
    if not overwrite:
        raise FileExistsError(f"{folder} holds a pruned model; choose another --out, or --overwrite it")


def _check_apart(out: Path, path: Path | None) -> None:
    """Raise ValueError if finished layers would be kept in the folder whose place the pruned model takes."""
    if path is not None and path.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"--path {path} lies in --out {out}, which is replaced as a whole; keep the layers elsewhere"
        )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error.reason} at byte {error.start}") from None


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


def _one_line(error: Exception, anew: str) -> str:
    """The message; ``anew`` is what the command calls ``overwrite=True``."""
    return " ".join(str(error).split()).replace("overwrite=True", anew) or type(error).__name__


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "capture": _capture,
    "explore": _explore,
    "compare": _compare,
    "prune": _prune,
    "schedule": _schedule,
    "retrieval-task": _retrieval_task,
    "eval": _eval,
    "info": _info,
}


if __name__ == "__main__":
    sys.exit(main())
