"""Whole denoising schedules at the shape of a published model: steps timed by kind, and totals put together from them.

python -m dlm_lens.measure.full_schedules --lengths 16384 65536 --steps 1024 --check 64 --window --out FILE.json

The weights are random, so this tells of speed only. A thousand steps at 64k tokens would take hours: each policy is run
for as many steps as show every kind that it takes, and the total of a schedule is the sum over its kinds, marked
``projected``. ``--check N`` really runs schedules of N steps at the first length, beside what the same times project.
``--window`` runs policies whose cost changes from step to step, whole, at ``--window-prompt`` tokens and
``--window-gen`` generated ones.

Layers are compiled (``DLM.compile``) for all alike, except in the first rows of each length.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

import dlm_lens as dl
from dlm_lens.denoising_loop import Loop
from dlm_lens.measure.environment import provenance
from dlm_lens.measure.schedule import schedule
from dlm_lens.measure.shapes import SHAPES, random_of_shape
from dlm_lens.measure.speed import peak_memory
from dlm_lens.memory import release

if TYPE_CHECKING:
    import pandas as pd

    from dlm_lens.models import DLM
    from dlm_lens.policies import Policy

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A model and what is common to all of its runs; ``compiled`` says whether its layers are."""

    dlm: DLM
    gen_length: int
    compiled: bool = False

    def run(self, policy: Policy, length: int, steps: int) -> pd.DataFrame:
        """Timings of a run over random tokens, ``length`` of them with those generated."""
        gen_length = self.gen_length
        random = torch.Generator().manual_seed(0)
        prompt = torch.randint(3, self.dlm.spec.vocab - 2, (length - gen_length,), generator=random)
        sampler = dl.LowConfidence(block_length=gen_length)
        result = dl.denoise(
            self.dlm,
            prompt,
            policy=policy,
            gen_length=gen_length,
            steps=steps,
            sampler=sampler,
            progress=False,
        )
        return result.timings

    def row(self, policy: Policy, timings: pd.DataFrame, length: int, peak: float, **more: Any) -> Row:
        kinds = timings.groupby("kind")["ms"]
        return {
            "policy": policy.label,
            "parameters": repr(policy),
            "context": length,
            "compiled": self.compiled,
            "ms": {
                kind: {"median": ms.median(), "low": ms.min(), "high": ms.max(), "steps": len(ms)}
                for kind, ms in kinds
            },
            "peak_gb": peak / 1e9,
            **more,
        }

    def by_kind(self, policy: Policy, length: int, steps: int) -> Row:
        """A few steps of every kind, and the total of a schedule of ``steps`` steps put together from them."""
        few = replace(policy, refresh_count=1) if isinstance(policy, dl.PulseCol) else policy
        count = 6 if isinstance(policy, dl.SparseD) else 4  # SparseD's third step is the one that selects
        self.run(few, length, count - 2)  # compiles, and touches the memory
        with peak_memory(self.dlm.device) as peak:
            timings = self.run(few, length, count)
        row = self.row(policy, timings, length, peak[0], steps=steps, projected=True)
        plan = self.kinds(policy, length, steps)
        return row | {"schedule": plan, "total_ms": _total(plan, row)}

    def kinds(self, policy: Policy, length: int, steps: int) -> dict[str, int]:
        """How many steps of each kind a schedule has."""
        shape = {"prompt_length": length - self.gen_length, "gen_length": self.gen_length}
        return schedule(policy, steps, self.dlm, **shape).kinds

    def check(self, policy: Policy, length: int, steps: int, projected: Row) -> Row:
        """A schedule really run, beside what the times of the row ``projected`` say of it."""
        with peak_memory(self.dlm.device) as peak:
            timings = self.run(policy, length, steps)
        plan = self.kinds(policy, length, steps)
        more = {"steps": steps, "schedule": plan, "total_ms": float(timings["ms"].sum()), "projected": False}
        return self.row(policy, timings, length, peak[0], projection_ms=_total(plan, projected), **more)

    def whole(self, policy: Policy, length: int) -> Row:
        """A run of as many steps as tokens, after a short one that compiles."""
        gen = self.gen_length
        self.run(policy, length, -(-gen // 16))
        with peak_memory(self.dlm.device) as peak:
            timings = self.run(policy, length, gen)
        total = float(timings["ms"].sum())
        return self.row(policy, timings, length, peak[0], steps=gen, total_ms=total, projected=False)


def replay_ms(dlm: DLM, policy: Policy, prompt_length: int, gen_length: int, repeats: int = 20) -> Row:
    """The forward pass of a cached step alone, without planning and sampling, beside the weights' share of it.

    ``stream_ms`` is how long reading every weight that the pass needs once takes at the rate of a copy, 4.3 TB/s on an
    H200 as measured (half of it reading, half writing, as copies are counted).
    """
    prompt = dlm.encode(torch.arange(3, 3 + prompt_length))
    loop = Loop.begin(
        dlm,
        prompt,
        gen_length=gen_length,
        steps=gen_length,
        policy=policy,
        sampler=dl.LowConfidence(block_length=gen_length),
        cfg_scale=0.0,
        seed=0,
        recorder=None,
        keep_states=False,
    )
    for step in range(16):
        loop.advance(step)
    plan = loop.run.plan(16, loop.tokens)
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        loop.predict(plan, loop.wanted(plan))
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    embedding = dlm.model.get_input_embeddings().weight
    weights = sum(p.numel() * p.element_size() for p in dlm.model.parameters())
    weights -= embedding.numel() * embedding.element_size()  # of which only a few rows are read
    assert plan.queries is not None
    return {
        "policy": policy.label,
        "positions": plan.queries.shape[1],
        "keys": plan.keys,
        "ms": median(times),
        "low": min(times),
        "high": max(times),
        "weights_gb": weights / 1e9,
        "stream_ms": weights / 4.3e12 * 1e3,
    }


def long_context_policies(*, flash: bool) -> list[Policy]:
    """What is compared where every step computes every position; dense at both ends shows the machine's drift."""
    best: list[Policy] = [dl.Dense(), *([dl.Dense("flash")] if flash else [])]
    pulsecol = dl.PulseCol.llada(0.8)
    return [*best, pulsecol, replace(pulsecol, group_size=128), dl.SparseD.long(), dl.Dense()]


def window_policies() -> list[Policy]:
    """What is compared where steps compute few positions; without early stop, which random weights never cause."""
    return [
        dl.Dense(),
        dl.WindowDiffusion.llada(early_stop=False),
        dl.WindowDiffusion.dream(early_stop=False),
        dl.FastDLLM(threshold=None, block=32),
        dl.FastDLLM(threshold=None, block=32, dual=False),
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rows that were asked for, printed as they come."""
    longest = max([*options.lengths, options.window_prompt + options.window_gen])
    dlm = random_of_shape(options.shape, longest)
    gpu = dlm.device.type == "cuda"
    bench = Bench(dlm, options.gen_length)
    rows: list[Row] = []
    replays: list[Row] = []

    def collect(make: Callable[[Policy], Row], policies: Sequence[Policy]) -> None:
        for policy in policies:
            rows.append(make(policy))
            print(_line(rows[-1]), flush=True)
            release(dlm.device)

    for length in options.lengths:
        collect(lambda p, n=length: bench.by_kind(p, n, options.steps), [dl.Dense()])  # type: ignore[misc]
    dlm.compile()
    bench = replace(bench, compiled=True)
    if options.window:
        wide = replace(bench, gen_length=options.window_gen)
        length = options.window_prompt + options.window_gen
        collect(lambda p: wide.whole(p, length), window_policies())
        if gpu:
            replays = [
                replay_ms(dlm, policy, options.window_prompt, options.window_gen)
                for policy in window_policies()[1:4]
            ]
            for replay in replays:
                print(f"  replay {replay}", flush=True)
    policies = long_context_policies(flash=gpu)
    for length in options.lengths:
        collect(lambda p, n=length: bench.by_kind(p, n, options.steps), policies)  # type: ignore[misc]
    if options.check:
        length = options.lengths[0]
        timed = {row["parameters"]: row for row in rows if row["context"] == length and row["compiled"]}
        checked = [dl.Dense(), *policies[-3:-1]]
        collect(lambda p: bench.check(p, length, options.check, timed[repr(p)]), checked)
    return {"provenance": provenance(dlm, seed=0), "rows": rows, "replays": replays}


def _total(kinds: dict[str, int], row: Row) -> float:
    """Milliseconds of so many steps of each kind at the medians of a row."""
    return float(sum(number * row["ms"][kind]["median"] for kind, number in kinds.items()))


def _line(row: Row) -> str:
    kinds = ", ".join(f"{kind} {ms['median']:.1f}" for kind, ms in row["ms"].items())
    total = f"{row['total_ms'] / 1000:9.1f} s {'projected' if row['projected'] else 'run'}"
    if "projection_ms" in row:
        total += f" ({row['projection_ms'] / 1000:.1f} s projected)"
    name = row["policy"] + ("" if row["compiled"] else ", not compiled")
    return f"{row['context']:7,} {name:38s}{row['steps']:6} steps {total}   ms: {kinds}   {row['peak_gb']:.1f} GB"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write JSON where ``--out`` asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=SHAPES, default="llada-8b" if gpu else "tiny")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16384, 65536] if gpu else [512])
    parser.add_argument("--steps", type=int, default=1024, help="of the schedules projected (%(default)s)")
    parser.add_argument("--gen-length", type=int, default=1024 if gpu else 64)
    parser.add_argument("--check", type=int, default=0, metavar="N", help="really run schedules of N steps")
    parser.add_argument(
        "--window", action="store_true", help="also run the policies that compute few positions"
    )
    parser.add_argument("--window-prompt", type=int, default=512 if gpu else 128)
    parser.add_argument("--window-gen", type=int, default=1024 if gpu else 64)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if min(options.lengths) <= options.gen_length:
        parser.error(f"--lengths must exceed the {options.gen_length} tokens that are generated")
    results = measure(options)
    if options.out:
        results["provenance"] |= {"shape": options.shape}
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
