"""What PulseCol's two choices are worth at an equal budget: columns or blocks, refreshing or dense early steps.

python -m dlm_lens.measure.ablation --items 128 --length 640 --out figures/data/pulsecol-ablation-<device>.json

Two by two: what is kept are columns of groups of 32 queries, as PulseCol has them, or blocks of 32 × 32, as SparseD has
them; when it is chosen is at PulseCol's refreshes, or once, after as many dense early steps as SparseD takes. Dense
attention and random columns stand beside them. Pieces of held-out code are compared with dense attention on the states
of its run (KL, retained mass); retrieval questions for several keys are answered freely. Every variant keeps the same
share of the keys where it divides the length: at 80%, in multiples of 160 tokens.

The paper reports GSM8K and HumanEval on LLaDA-1.5 and Dream (arXiv 2605.20813, its ablation); this is the same question
asked of any model that loads here, on tasks whose answers are known. ``--out`` is written anew after every measurement,
so that an interrupted run leaves what it finished.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from dlm_kernels.block_sparse_attention.reference import blocks_to_columns
from dlm_kernels.column_scores import column_scores
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

import dlm_lens as dl
from dlm_lens.measure.environment import provenance
from dlm_lens.measure.fidelity import Fidelity, walk
from dlm_lens.measure.policy_table import code_prompts
from dlm_lens.measure.tasks import accuracy
from dlm_lens.policies.columns import Span, select_best
from dlm_lens.whole_file import whole_file

if TYPE_CHECKING:
    from dlm_lens.models import DLM
    from dlm_lens.policies import Policy

_BATCH = 16  # questions between two writings of the file


@dataclass(frozen=True)
class Ablated(dl.PulseCol):
    """PulseCol with ``unit`` "column" or "block", and ``schedule`` "refresh" or "skip".

    Blocks are ``group_size`` keys wide and best by their mean probability, round((1 − sparsity) · blocks) of them, at
    least one; they are listed as the columns they hold. Skipping takes :class:`dlm_lens.SparseD`'s dense steps, the
    last of which chooses for the rest of the run. SparseD's choosing of prompt and generation apart is left out: it
    would keep more.
    """

    unit: str = "column"
    schedule: str = "refresh"

    @property
    def label(self) -> str:
        return f"{self.unit} + {self.schedule}"

    def refresh_steps(self, steps: int) -> tuple[int, ...]:
        if self.schedule == "refresh":
            return super().refresh_steps(steps)
        return tuple(range(min(steps, dl.SparseD().selecting_step(steps) + 1)))

    def choose(self, span: Span, q: Tensor, k: Tensor, lse: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.unit == "column":
            return super().choose(span, q, k, lse)
        q, k, lse = span.of(q), span.of(k), None if lse is None else span.of(lse)
        size, keys = self.group_size, k.shape[2]
        blocks = -(-keys // size)
        members = torch.full((blocks,), size, device=q.device)
        members[-1] -= blocks * size - keys
        means = [
            pad(scores, (0, blocks * size - keys)).unflatten(-1, (blocks, size)).sum(-1) / members
            for _, scores in column_scores(q, k, group_size=size, lse=lse)
        ]
        chosen, counts = select_best(torch.cat(means, dim=2), max(1, round((1 - self.sparsity) * blocks)))
        columns, listed = blocks_to_columns(chosen, counts, size, keys)
        return columns.int(), listed.int()


def variants(sparsity: float, refreshes: int) -> list[Policy]:
    """The four cells, and random columns as a control."""
    cells: list[Policy] = [
        Ablated(sparsity, refresh_count=refreshes, unit=unit, schedule=schedule)
        for unit in ("column", "block")
        for schedule in ("refresh", "skip")
    ]
    return [*cells, dl.RandomColumns(sparsity)]


def frozen_from(policies: Sequence[Policy], steps: int) -> int:
    """The first step at which every variant has made its last choice: from then on all are sparse."""
    return 1 + max(policy.refresh_steps(steps)[-1] for policy in policies if isinstance(policy, Ablated))


def state_row(found: Fidelity, prompt: int, frozen: int) -> dict[str, Any]:
    """One variant on one prompt: over the whole run, and over the steps from ``frozen`` on alone."""
    late = found.steps[found.steps["step"] >= frozen]
    retained = found.retained_mass.mean(("layer", "head"))
    return {
        "variant": found.label,
        "prompt": prompt,
        "dense_steps": int((found.steps["kind"] != "sparse").sum()),
        "kl": found.kl,
        "kl_late": float((late["kl"] * late["masked"]).sum() / late["masked"].sum()),
        "agreement": found.agreement,
        "retained": found.retained_mean,
        "retained_late": float(retained.where(retained["step"] >= frozen).mean()),
        "worst_layer": found.retained_worst_layer,
    }


class Results:
    """What is measured so far, written to a file after every addition where one is asked for."""

    def __init__(self, about: dict[str, Any], out: Path | None) -> None:
        self.states: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        self._about, self._out = about, out

    def write(self) -> None:
        if self._out is None:
            return
        stored = {"provenance": self._about, "states": self.states, "answers": self.answers}
        with whole_file(self._out) as new:
            new.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def measure_states(
    dlm: DLM, policies: Sequence[Policy], options: argparse.Namespace, results: Results
) -> None:
    """Fidelity of every variant on the states of dense runs after pieces of held-out code."""
    frozen = frozen_from(policies, options.steps)
    prompts = code_prompts(dlm, options.prompts, options.length - options.gen_length)
    for number, tokens in enumerate(tqdm(prompts, desc="Comparing with dense attention", unit="prompt")):
        found = walk(
            dlm,
            tokens,
            policies,
            gen_length=options.gen_length,
            steps=options.steps,
            sampler=None,
            seed=options.seed,
            progress=False,
        )
        results.states += [state_row(fidelity, number, frozen) for fidelity in found]
        results.write()


def measure_answers(
    dlm: DLM, policies: Sequence[Policy], options: argparse.Namespace, results: Results
) -> None:
    """How many retrieval questions every variant, and dense attention, answers; some at a time in turn."""
    if not options.items:
        return
    items = dl.tasks.retrieval(
        dlm, options.items, length=options.length, variant=options.variant, seed=options.seed
    )
    rounds = [(at, policy) for at in range(0, len(items), _BATCH) for policy in [dl.Dense(), *policies]]
    for at, policy in tqdm(rounds, desc="Answering", unit="batch"):
        asked = items[at : at + _BATCH]
        share = accuracy(dlm, asked, policy=policy, progress=False)
        results.answers.append(
            {"variant": policy.label, "items": len(asked), "right": round(share * len(asked))}
        )
        results.write()


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write JSON where ``--out`` asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument(
        "--refreshes", type=int, default=2, help="dense steps of the refresh schedule (%(default)s)"
    )
    parser.add_argument("--length", type=int, default=640, help="prompt and answer (%(default)s)")
    parser.add_argument("--items", type=int, default=16, help="questions; 0 for none")
    parser.add_argument("--variant", default="multi_key", help="of the questions (%(default)s)")
    parser.add_argument("--prompts", type=int, default=4, help="pieces of code (%(default)s)")
    parser.add_argument("--gen-length", type=int, default=64, help="of the code (%(default)s)")
    parser.add_argument("--steps", type=int, default=64, help="of the code (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    dlm = dl.load(options.model)
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "model", "seed")}
    results = Results(provenance(dlm, seed=options.seed) | settings, options.out)
    policies = variants(options.sparsity, options.refreshes)
    measure_answers(dlm, policies, options, results)
    measure_states(dlm, policies, options, results)
    for row in summarise(results):
        print(row)
    return 0


def summarise(results: Results) -> list[str]:
    """A line per variant for a terminal."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in [*results.answers, *results.states]):
        answers = [row for row in results.answers if row["variant"] == variant]
        states = [row for row in results.states if row["variant"] == variant]
        line = f"{variant:22}"
        if answers:
            line += f" right {sum(a['right'] for a in answers)} of {sum(a['items'] for a in answers)}"
        if states:
            kl, retained = (
                sum(s[name] for s in states) / len(states) for name in ("kl_late", "retained_late")
            )
            line += f"   KL {kl:.4f} nats and retained mass {retained:.1%}, once patterns are frozen"
        lines.append(line)
    return lines


if __name__ == "__main__":
    sys.exit(main())
