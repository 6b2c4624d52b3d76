"""Policies side by side: what each costs and what it loses, in one table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from dlm_lens.denoising import default_sampler
from dlm_lens.measure import tasks as task_module
from dlm_lens.measure.environment import provenance
from dlm_lens.measure.fidelity import Fidelity, walk
from dlm_lens.measure.schedule import schedule_of
from dlm_lens.measure.speed import Run, timed_runs
from dlm_lens.measure.tables import KINDS
from dlm_lens.policies import Dense, Policy, RandomColumns
from dlm_lens.samplers import Sampler

if TYPE_CHECKING:
    from dlm_lens.measure.tasks import TaskItem
    from dlm_lens.models import DLM


def compare(
    dlm: DLM,
    prompts: Any,
    policies: Sequence[Policy],
    *,
    gen_length: int = 64,
    steps: int | None = None,
    sampler: Sampler | None = None,
    repeats: int = 1,
    seed: int = 0,
    tasks: Sequence[TaskItem] | None = None,
    control: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure policies against dense attention: speed and quality in the same rows.

    ``prompts`` is one prompt set (a string, a list of strings run as one batch, chat messages or a token
    tensor) or a dict of several by name. :class:`Dense` is measured first, added if missing, and unless
    ``control=False`` so is :class:`RandomColumns` at the sparsity of every sparse policy: a policy that is
    not better than random keys has chosen nothing. Runs are warmed up and take turns, ``repeats`` times.
    ``tasks`` are questions with answers, from :func:`dlm_lens.tasks.retrieval`.

    Returns a tidy table, one row per policy, prompt set and repetition:

    =====================  ==========================================================================
    ``policy``             label; ``prompts`` and ``repetition`` say the rest
    ``backend``            dense backend of the baseline, on ``device``
    ``context``            positions: prompt and generation; ``batch`` prompts at a time
    ``steps``              denoising steps; ``gen_length`` tokens are generated in them
    ``ms_per_step``        median milliseconds; ``ms_iqr`` the distance between its quartiles
    ``ms_<kind>``          median of the dense, refresh, sparse and cached steps; NaN if there are none
    ``total_ms``           the whole run
    ``speedup``            total of dense / total, in the same repetition
    ``amdahl_bound``       highest speed-up possible if only the attention of sparse steps shrinks
    ``peak_memory_mb``     GPU: allocated; Linux: resident memory of the process; NaN elsewhere
    ``token_agreement``    share of generated tokens equal to those of the dense run
    ``argmax_agreement``   on the states of the dense run: share of masked positions with the same argmax
    ``kl``                 there: mean KL(dense ‖ policy), nats
    ``retained_mass``      there: dense attention on the kept keys in sparse steps, mean;
                           ``retained_worst_layer`` of the layer that keeps least
    ``accuracy``           share of ``tasks`` answered exactly; NaN without tasks
    ``projected``          False: every number was measured
    =====================  ==========================================================================

    ``table.attrs["provenance"]`` names versions, device, seed and date. Raises ValueError or TypeError before
    anything is run for arguments that cannot work; Ctrl-C raises KeyboardInterrupt.
    """
    steps = gen_length if steps is None else steps
    sampler = default_sampler(dlm.spec, gen_length) if sampler is None else sampler
    sampler.check(gen_length, steps)
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be at least 1")
    measured = _lineup(policies, control=control and not dlm.spec.causal)
    sets = _prompt_sets(prompts)
    common: dict[str, Any] = {"gen_length": gen_length, "steps": steps, "sampler": sampler, "seed": seed}
    rows: list[dict[str, Any]] = []
    total = len(sets) * (len(measured) * repeats + 1) + (len(measured) if tasks else 0)
    with tqdm(total=total, desc="Comparing", unit="run", disable=not progress) as bar:
        accuracies = [_accuracy(dlm, tasks, policy, bar) for policy in measured]
        for name, prompt in sets.items():
            bar.set_postfix_str(f"{name}: fidelity")
            fidelities = walk(dlm, prompt, measured, **common, progress=False)
            bar.update()
            runs = []
            bar.set_postfix_str(f"{name}: warming up")
            for run in timed_runs(dlm, prompt, measured, repeats=repeats, **common):
                runs.append(run)
                bar.set_postfix_str(f"{name}: {measured[run.policy].label}")
                bar.update()
            rows += _rows(dlm, name, measured, runs, fidelities, accuracies)
    table = pd.DataFrame(rows)
    record = provenance(dlm, seed=seed)
    table.insert(2, "repetition", table.pop("repetition"))
    table["backend"], table["device"] = record["dense_backend"], record["device"]
    table["projected"] = False
    table.attrs["provenance"] = record
    return table


def _lineup(policies: Sequence[Policy], *, control: bool) -> list[Policy]:
    """Dense first, then the policies given, then a random control for every budget that lacks one."""
    if isinstance(policies, Policy):
        policies = [policies]
    for policy in policies:
        if not isinstance(policy, Policy):
            raise TypeError(
                f"policies holds {policy!r}, a {type(policy).__name__}; expected policies such as Dense()"
            )
    lineup = [Dense(), *(policy for policy in policies if not isinstance(policy, Dense))]
    if control:
        present = {_sparsity(policy) for policy in lineup if isinstance(policy, RandomColumns)}
        for policy in list(lineup):
            if policy.density < 1 and (sparsity := _sparsity(policy)) not in present:
                group_size = getattr(policy, "group_size", RandomColumns.group_size)
                lineup.append(RandomColumns(sparsity=sparsity, group_size=group_size))
                present.add(sparsity)
    return lineup


def _sparsity(policy: Policy) -> float:
    return round(1 - policy.density, 6)  # without the digits that subtracting from 1 leaves


def _labels(policies: Sequence[Policy]) -> list[str]:
    """Labels, spelt out in full where two policies would share one."""
    counts = Counter(policy.label for policy in policies)
    return [policy.label if counts[policy.label] == 1 else repr(policy) for policy in policies]


def _prompt_sets(prompts: Any) -> dict[str, Any]:
    if not isinstance(prompts, Mapping):
        return {"prompt": prompts}
    if not prompts:
        raise ValueError("prompts={} holds no prompt set; expected a dict of name → prompt")
    return {str(name): prompt for name, prompt in prompts.items()}


def _accuracy(dlm: DLM, tasks: Sequence[TaskItem] | None, policy: Policy, bar: tqdm) -> float:
    if not tasks:
        return math.nan
    bar.set_postfix_str(f"tasks: {policy.label}")
    share = task_module.accuracy(dlm, tasks, policy=policy, progress=False)
    bar.update()
    return share


def _rows(
    dlm: DLM,
    name: str,
    policies: Sequence[Policy],
    runs: Sequence[Run],
    fidelities: Sequence[Fidelity],
    accuracies: Sequence[float],
) -> list[dict[str, Any]]:
    dense = {run.repetition: run.result for run in runs if run.policy == 0}
    labels = _labels(policies)
    rows = []
    for run in sorted(runs, key=lambda run: (run.policy, run.repetition)):
        near = fidelities[run.policy]
        rows.append(
            {
                "policy": labels[run.policy],
                "prompts": name,
                "repetition": run.repetition,
                **_cost(dlm, policies[run.policy], run),
                "speedup": dense[run.repetition].timings["ms"].sum() / run.result.timings["ms"].sum(),
                "token_agreement": _token_agreement(run, dense),
                "argmax_agreement": near.agreement,
                "kl": near.kl,
                "retained_mass": near.retained_mean,
                "retained_worst_layer": near.retained_worst_layer,
                "accuracy": accuracies[run.policy],
            }
        )
    return rows


def _cost(dlm: DLM, policy: Policy, run: Run) -> dict[str, Any]:
    result = run.result
    ms, by_kind = result.timings["ms"], result.timings.groupby("kind")["ms"].median()
    batch, length = result.tokens.shape
    plan = schedule_of(policy, result.timings["kind"], dlm.spec, length=length, gen_length=result.gen_length)
    return {
        "context": length,
        "gen_length": result.gen_length,
        "batch": batch,
        "steps": len(ms),
        "density": policy.density,
        "ms_per_step": ms.median(),
        "ms_iqr": ms.quantile(0.75) - ms.quantile(0.25),
        **{f"ms_{kind}": by_kind.get(kind, math.nan) for kind in KINDS},
        "total_ms": ms.sum(),
        "amdahl_bound": plan.bound,
        "peak_memory_mb": run.peak_bytes / 1e6,
    }


def _token_agreement(run: Run, dense: Mapping[int, Any]) -> float:
    result, reference = run.result, dense[run.repetition]
    generated = slice(result.prompt_length, None)
    return float((result.tokens[:, generated] == reference.tokens[:, generated]).double().mean())
