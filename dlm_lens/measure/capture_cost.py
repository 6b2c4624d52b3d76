"""What capturing costs in time and memory on this machine, beside plain denoising and PulseCol, in one process.

python -m dlm_lens.measure.capture_cost --shape llada-8b --tokens 65536 --steps 2

The weights are random: neither time nor memory depends on them, and no download is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import dlm_lens as dl
from dlm_lens.byte_sizes import format_bytes
from dlm_lens.measure.environment import provenance
from dlm_lens.measure.shapes import SHAPES, random_of_shape
from dlm_lens.measure.speed import peak_memory

if TYPE_CHECKING:
    import pandas as pd

    from dlm_lens.models import DLM


@dataclass(frozen=True)
class Cost:
    """Milliseconds of every step by its kind, and the most bytes held meanwhile (NaN where nothing tells)."""

    name: str
    steps: list[tuple[str, float]]
    peak_bytes: float

    def ms(self, kind: str) -> float:
        """Mean over the steps of a kind."""
        chosen = [ms for step_kind, ms in self.steps if step_kind == kind]
        return sum(chosen) / len(chosen)


def measure(dlm: DLM, tokens: int, gen_length: int, steps: int) -> list[Cost]:
    """Costs of plain dense denoising, of capturing all layers and heads, and of PulseCol at 80%."""
    random = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, dlm.spec.vocab - 2, (tokens - gen_length,), generator=random)
    sampler = dl.LowConfidence(block_length=gen_length)
    common: dict[str, Any] = {"gen_length": gen_length, "sampler": sampler, "progress": False}

    def plain(length: int) -> pd.DataFrame:
        return dl.denoise(dlm, prompt[:length], steps=steps, **common).timings

    def captured(length: int) -> pd.DataFrame:
        trace = dl.capture(dlm, prompt[:length], steps=steps, memory_budget="1 TB", **common)
        return trace.dataset[["kind", "step_ms"]].rename(step_ms="ms").to_dataframe()

    def pulsecol(length: int) -> pd.DataFrame:
        policy = dl.PulseCol(sparsity=0.8, refresh_count=1)
        return dl.denoise(dlm, prompt[:length], steps=steps, policy=policy, **common).timings

    jobs: dict[str, Callable[[int], pd.DataFrame]] = {
        "dense": plain,
        "captured": captured,
        "PulseCol 80%": pulsecol,
    }
    costs = []
    for name, job in jobs.items():
        job(min(len(prompt), 1024))  # compiles, and touches the memory that every length needs
        with peak_memory(dlm.device) as peak:
            timings = job(len(prompt))
        costs.append(
            Cost(name, list(zip(timings["kind"], timings["ms"].astype(float), strict=True)), peak[0])
        )
    return costs


def describe(costs: list[Cost]) -> str:
    """A line per kind of step: milliseconds, ratio to a plain dense step, peak memory."""
    dense = costs[0].ms("dense")
    lines = []
    for cost in costs:
        for kind in dict(cost.steps):
            ms = cost.ms(kind)
            name = f"{cost.name}, {kind} step" if kind != cost.name else "dense step"
            lines.append(
                f"  {name:<28}{ms:10.1f} ms {ms / dense:6.2f} × dense   peak {_size(cost.peak_bytes)}"
            )
    return "\n".join(lines)


def _size(size: float) -> str:
    return "unknown" if size != size else format_bytes(int(size))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write JSON where ``--out`` asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=SHAPES, default="llada-8b" if gpu else "tiny")
    parser.add_argument("--tokens", type=int, default=65536 if gpu else 1024, help="prompt and generation")
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.tokens <= options.gen_length:
        parser.error(
            f"--tokens must exceed the {options.gen_length} that are generated, got {options.tokens}"
        )
    dlm = random_of_shape(options.shape, options.tokens)
    costs = measure(dlm, options.tokens, options.gen_length, options.steps)
    print(f"{options.shape} at {options.tokens:,} tokens, all layers and heads, {options.steps} steps")
    print(describe(costs))
    if options.out:
        rows = [vars(cost) for cost in costs]
        about = provenance(dlm, seed=0) | {"shape": options.shape, "tokens": options.tokens}
        options.out.write_text(json.dumps({"provenance": about, "costs": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
