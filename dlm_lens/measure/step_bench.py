"""Denoising steps timed by kind, each run beside the memory that was estimated for it.

What the scripts that time steps at the shapes of published models have in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

import dlm_lens as dl
from dlm_lens.measure.run_memory import estimate
from dlm_lens.measure.session import Row
from dlm_lens.measure.speed import peak_memory
from dlm_lens.memory import release
from dlm_lens.policies import Policy, PolicyRun, RunInfo, StepPlan

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from dlm_lens.attention import StepContext
    from dlm_lens.models import DLM


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
        row = told | times_of(timings[int(first) :]) | {"peak_gb": peak[0] / 1e9}
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


def times_of(timings: pd.DataFrame) -> Row:
    """Milliseconds of a run by kind of step."""
    kinds = {kind: list(map(float, ms)) for kind, ms in timings.groupby("kind")["ms"]}
    return {
        "ms": {
            str(kind): {"median": median(ms), "low": min(ms), "high": max(ms), "steps": len(ms)}
            for kind, ms in kinds.items()
        },
        "steps": len(timings),
        "total_ms": float(timings["ms"].sum()),
    }


def line_of(row: Row) -> str:
    """A row of :meth:`Bench.row` as a line of text."""
    name = row["policy"] + ("" if row["compiled"] else ", not compiled")
    start = f"{row['context']:7,} {name:34s}"
    if "error" in row:
        return f"{start} {row['error']}"
    kinds = ", ".join(f"{kind} {ms['median']:.1f}" for kind, ms in row["ms"].items())
    memory = f"{row['peak_gb']:.1f} GB ({row['estimate_gb']:.1f} estimated)"
    apart = f"   compiled in {row['compile_s']:.1f} s" if "compile_s" in row else ""
    return f"{start}{row['steps']:3} steps {row['total_ms'] / 1000:7.1f} s   {memory}   ms: {kinds}{apart}"
