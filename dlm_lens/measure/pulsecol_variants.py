"""Does PulseCol gain from refreshing by measured drift, or from budgets per head? Both at equal cost, on this machine.

python -m dlm_lens.measure.pulsecol_variants --out variants.json

Fixed schedules get, prompt by prompt, as many refreshes as the adaptive one took there: spread over the first 30% of
the steps as published (or as many steps as there are refreshes), or over the whole run, which is the schedule to beat.
Budgets per head are compared with equal ones of the same total. Half of the prompts continue held-out code, half ask
for keys and values; besides, "single" questions are answered freely. The adaptive runs' own looks at drift are no part
of the cost compared: see :class:`dlm_lens.PulseCol` for what they take. The settings by default took 20 minutes on one
busy core; ``--prompts 2 --questions 2`` take a quarter of that.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from tqdm.auto import tqdm

import dlm_lens as dl
from dlm_lens.measure.environment import provenance
from dlm_lens.measure.fidelity import walk
from dlm_lens.measure.tasks import correct, held_out_text, retrieval

if TYPE_CHECKING:
    from dlm_lens.models import DLM
    from dlm_lens.policies import Policy

DRIFTS = (0.03, 0.015, 0.005)
SPARSITIES = (0.5, 0.8, 0.9)
BUDGETS = ("uniform", "mass:0.9", "mass:0.95")
QUALITIES = ("kl", "agreement", "retained", "worst_layer", "right")


@dataclass(frozen=True)
class Prompt:
    """Tokens [P] and what to generate after them; ``answer`` is checked by free generation, where there is one."""

    name: str
    tokens: torch.Tensor
    gen_length: int
    steps: int
    right: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Outcome:
    """One policy on one prompt, with the refreshes it took: quality on the states of the dense run, or ``right``."""

    experiment: str
    setting: str
    variant: str
    prompt: str
    refreshes: int
    kl: float = math.nan
    agreement: float = math.nan
    retained: float = math.nan
    worst_layer: float = math.nan
    right: float = math.nan


Measure = Callable[[Prompt, str, dict[tuple[str, str], "Policy"]], list[Outcome]]


def code_prompts(dlm: DLM, n: int, length: int, steps: int, seed: int) -> list[Prompt]:
    """Pieces of held-out code; 64 tokens are generated after each, 32 where ``length`` is below 128."""
    assert dlm.tokenizer is not None
    ids = dlm.tokenizer.encode(held_out_text(), add_special_tokens=False)
    gen_length = 64 if length >= 128 else 32
    rng = random.Random(seed)
    starts = [rng.randrange(len(ids) - length) for _ in range(n)]
    return [
        Prompt(f"code {i}", torch.tensor(ids[at : at + length - gen_length]), gen_length, steps)
        for i, at in enumerate(starts)
    ]


def question_prompts(dlm: DLM, variant: str, n: int, length: int, steps: int, seed: int) -> list[Prompt]:
    """Retrieval questions of one variant, their answers checked."""
    return [
        Prompt(f"{variant} {i}", item.prompt, item.gen_length, steps, partial(correct, item))
        for i, item in enumerate(retrieval(dlm, n, length=length, variant=variant, seed=seed))
    ]


def compare_states(dlm: DLM, seed: int) -> Measure:
    """Measures policies, given by (setting, variant), against dense attention on the states of its run."""

    def measure(prompt: Prompt, experiment: str, policies: dict[tuple[str, str], Policy]) -> list[Outcome]:
        found = walk(
            dlm,
            prompt.tokens,
            list(policies.values()),
            gen_length=prompt.gen_length,
            steps=prompt.steps,
            sampler=None,
            seed=seed,
            progress=False,
        )
        return [
            Outcome(
                experiment,
                *key,
                prompt.name,
                refreshes=int(near.steps["kind"].eq("refresh").sum()),
                kl=near.kl,
                agreement=near.agreement,
                retained=near.retained_mean,
                worst_layer=near.retained_worst_layer,
            )
            for key, near in zip(policies, found, strict=True)
        ]

    return measure


def answer_freely(dlm: DLM, seed: int) -> Measure:
    """Measures whether the answer that a policy leads to is right."""

    def measure(prompt: Prompt, experiment: str, policies: dict[tuple[str, str], Policy]) -> list[Outcome]:
        assert prompt.right is not None
        common: dict[str, Any] = {"gen_length": prompt.gen_length, "steps": prompt.steps, "seed": seed}
        outcomes = []
        for key, policy in policies.items():
            out = dl.denoise(dlm, prompt.tokens, policy=policy, progress=False, **common)
            refreshes = int(out.timings["kind"].eq("refresh").sum())
            right = float(prompt.right(out.texts[0]))
            outcomes.append(Outcome(experiment, *key, prompt.name, refreshes, right=right))
        return outcomes

    return measure


def compare_schedules(measure: Measure, prompt: Prompt) -> list[Outcome]:
    """Adaptive refreshes at 80%, then fixed schedules with as many refreshes as each took on this prompt."""
    adaptive: dict[tuple[str, str], Policy] = {
        (f"drift {drift:g}", "adaptive"): dl.PulseCol(
            0.8, refresh="adaptive", drift=drift, refresh_count=prompt.steps
        )
        for drift in DRIFTS
    }
    taken = measure(prompt, "schedule", adaptive)
    fixed: dict[tuple[str, str], Policy] = {}
    for outcome in taken:
        count = outcome.refreshes
        early = max(0.3, count / prompt.steps)
        for variant, window in (("first 30%", early), ("whole run", 1.0)):
            policy = dl.PulseCol(0.8, refresh_count=count, refresh_window=window)
            fixed[outcome.setting, variant] = policy
    return taken + measure(prompt, "schedule", fixed)


def compare_budgets(measure: Measure, prompt: Prompt) -> list[Outcome]:
    """Budgets per head and equal ones; two refreshes over the run."""
    policies: dict[tuple[str, str], Policy] = {
        (f"{sparsity:.0%}", budget): dl.PulseCol(sparsity, refresh_count=2, refresh_window=1.0, budget=budget)
        for sparsity in SPARSITIES
        for budget in BUDGETS
    }
    return measure(prompt, "budget", policies)


def summarise(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Means over prompts and their standard errors, one row per (experiment, setting, variant)."""
    table = pd.DataFrame([asdict(outcome) for outcome in outcomes])
    keys = ["experiment", "setting", "variant"]
    table["refreshes_free"] = table["refreshes"].where(table["right"].notna())
    table["refreshes"] = table["refreshes"].where(table["right"].isna())
    values = table.drop(columns="prompt").groupby(keys, sort=False)
    mean, error = values.mean(), values.sem()
    columns = {"refreshes": mean["refreshes"]}
    for name in QUALITIES:
        columns |= {name: mean[name], f"{name}_se": error[name]}
    return pd.DataFrame(columns | {"refreshes_free": mean["refreshes_free"]}).reset_index()


def paired_kl(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """KL of every variant less that of the variant to beat, prompt by prompt: mean and standard error.

    To beat are the fixed schedule over the whole run, and equal budgets. Below zero the variant is better.
    """
    table = pd.DataFrame([asdict(outcome) for outcome in outcomes if not math.isnan(outcome.kl)])
    keys = ["experiment", "setting"]
    kl = table.pivot(index=[*keys, "prompt"], columns="variant", values="kl")
    to_beat = kl["whole run"].fillna(kl["uniform"])
    less = kl.drop(columns=["whole run", "uniform"]).sub(to_beat, axis=0)
    less = less.reset_index().melt([*keys, "prompt"], value_name="difference").dropna()
    grouped = less.groupby([*keys, "variant"], sort=False)["difference"]
    return pd.DataFrame({"difference": grouped.mean(), "se": grouped.sem()}).reset_index()


def describe(summary: pd.DataFrame, paired: pd.DataFrame) -> str:
    """Both tables for a terminal; after each mean its standard error."""
    shown = summary[["experiment", "setting", "variant"]].copy()
    shown["refreshes"] = summary["refreshes"].map("{:.1f}".format)
    units = {"kl": ("KL nats", 1), "agreement": ("same argmax %", 100), "retained": ("kept mass %", 100)}
    units |= {"worst_layer": ("worst layer %", 100), "right": ("right %", 100)}
    for name, (head, unit) in units.items():
        digits = 4 if unit == 1 else 1
        pairs = zip(summary[name] * unit, summary[f"{name}_se"] * unit, strict=True)
        shown[head] = [f"{mean:.{digits}f} ± {error:.{digits}f}" for mean, error in pairs]
    against = paired.assign(
        difference=[f"{d:+.4f} ± {e:.4f}" for d, e in zip(paired["difference"], paired["se"], strict=True)]
    ).drop(columns="se")
    return (
        f"{shown.to_string(index=False)}\n\nKL beside the fixed schedule over the whole run, or equal budgets,"
        f" prompt by prompt (below 0: better)\n{against.to_string(index=False)}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write JSON where ``--out`` asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=8, help="half code, half questions")
    parser.add_argument("--questions", type=int, default=8, help="answered freely")
    parser.add_argument("--length", type=int, default=512, help="prompt and generation")
    parser.add_argument("--steps", type=int, default=16, help="of the schedules; budgets take half as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    dlm = dl.load(options.model)
    outcomes = measure_all(
        dlm, options.prompts, options.questions, options.length, options.steps, options.seed
    )
    summary, paired = summarise(outcomes), paired_kl(outcomes)
    print(describe(summary, paired))
    if options.out:
        settings = {name: getattr(options, name) for name in ("prompts", "questions", "length", "steps")}
        stored = {
            "provenance": provenance(dlm, seed=options.seed) | settings,
            "summary": json.loads(summary.to_json(orient="records")),
            "paired_kl": json.loads(paired.to_json(orient="records")),
            "outcomes": json.loads(pd.DataFrame(map(asdict, outcomes)).to_json(orient="records")),
        }
        options.out.write_text(json.dumps(stored, indent=1) + "\n")
    return 0


def measure_all(dlm: DLM, prompts: int, questions: int, length: int, steps: int, seed: int) -> list[Outcome]:
    """Every variant on ``prompts`` prompts of two kinds, and on ``questions`` that are answered freely."""
    states, answers = compare_states(dlm, seed), answer_freely(dlm, seed)
    jobs = []
    for experiment, taken in ((compare_schedules, steps), (compare_budgets, steps // 2)):
        half = prompts // 2
        walked = code_prompts(dlm, prompts - half, length, taken, seed)
        walked += question_prompts(dlm, "multi_key", half, length, taken, seed)
        jobs += [(experiment, states, prompt) for prompt in walked]
        asked = question_prompts(dlm, "single", questions, length, min(8, taken), seed)
        jobs += [(experiment, answers, prompt) for prompt in asked]
    outcomes = []
    for experiment, measure, prompt in tqdm(jobs, desc="PulseCol variants", unit="prompt"):
        outcomes += experiment(measure, prompt)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
