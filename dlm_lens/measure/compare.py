"""Policies and pruned models side by side: what each costs and what it loses, in one table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import pandas as pd

from dlm_lens.denoising import sampler_of
from dlm_lens.measure import tasks as task_module
from dlm_lens.measure.audit import Audit, audit_names, reopened
from dlm_lens.measure.audit import audit as run_audit
from dlm_lens.measure.environment import can_attend, provenance
from dlm_lens.measure.fidelity import run_info, walk
from dlm_lens.measure.linear import linear_ms, weight_sparsity
from dlm_lens.measure.lineup import Entry, entries_of, prompt_sets, pruned_models
from dlm_lens.measure.rounds import Measurements, fingerprint, weights_fingerprint
from dlm_lens.measure.rows import FLASH2, backends_of, nearness, round_rows, with_speedups
from dlm_lens.measure.speed import Run, timed_runs
from dlm_lens.policies import Policy
from dlm_lens.progress import Bar, Progress
from dlm_lens.samplers import Sampler

if TYPE_CHECKING:
    from dlm_lens.measure.tasks import InfillingItem, TaskItem
    from dlm_lens.models import DLM
    from dlm_lens.trace import Trace

# What must be the same for measurements of two sessions to stand in one table.
_SAME = (
    "dtype", "device", "dense_backend", "cpu", "threads",
    "dlm_lens", "python", "torch", "triton", "transformers",
)  # fmt: skip


def compare(
    dlm: DLM,
    prompts: Any,
    policies: Sequence[Policy],
    *,
    pruned: DLM | Sequence[DLM] | Mapping[str, DLM] | None = None,
    gen_length: int = 64,
    steps: int | None = None,
    sampler: Sampler | None = None,
    repeats: int = 1,
    seed: int = 0,
    tasks: Sequence[TaskItem | InfillingItem] | None = None,
    control: bool = True,
    audit: bool = False,
    path: str | PathLike | None = None,
    overwrite: bool = False,
    progress: bool | Progress = True,
) -> pd.DataFrame:
    """Measure policies and pruned models against the dense model: speed and quality in the same rows.

    ``prompts`` is one prompt set (a string, a list of strings run as one batch, chat messages or a token
    tensor) or a dict of several by name, of any lengths. :class:`Dense` is measured first, added if missing, and so
    is PyTorch's FlashAttention-2 where it runs and is not what :class:`Dense` takes anyway. Unless ``control=False``
    :class:`RandomColumns` is added at the sparsity of every sparse policy: a policy that is not better than random
    keys has chosen nothing. Runs are warmed up and take turns, ``repeats`` times, every other round in the opposite
    order. Without a ``sampler`` a policy that is published with one of its own is measured with it, all others with the
    model's. ``tasks`` have known answers: from :func:`dlm_lens.tasks.retrieval` or :func:`dlm_lens.tasks.infilling`.

    ``pruned`` are models that :func:`dlm_lens.prune` has made of ``dlm``: one, several, or a dict by name. Each is
    measured with :class:`Dense`, all policies and the controls, labelled as in ``"PulseCol 80%, Wanda 2:4"``, against
    the dense model: every speed-up is over its fastest dense backend, and agreement and KL are on the states of its
    dense run. Weights that are zero save time only where they are skipped: after :meth:`DLM.semi_structured`, or where
    structured pruning has made matrices smaller.

    Returns a tidy table, one row per policy, model, prompt set and repetition:

    =====================  ==========================================================================
    ``policy``             label; ``prompts`` and ``repetition`` say the rest
    ``context``            positions: prompt and generation; ``batch`` prompts at a time
    ``steps``              denoising steps; ``gen_length`` tokens are generated in them
    ``ms_per_step``        median milliseconds; ``ms_iqr`` the distance between its quartiles
    ``ms_<kind>``          median of the dense, refresh, sparse and cached steps; NaN if there are none
    ``total_ms``           the whole run
    ``backend``            of the baseline: the dense backend with the lowest median total, on ``device``
    ``speedup``            total of the baseline / total, in the same repetition
    ``speedup_vs_flash2``  the same against PyTorch's FlashAttention-2, which papers use; NaN without it
    ``amdahl_bound``       speed-up over Dense if what is computed ran as efficiently (:func:`schedule`)
    ``peak_memory_mb``     GPU: allocated; Linux: resident memory of the process; NaN elsewhere. All models lie
                           in memory at once and count
    ``token_agreement``    share of generated tokens equal to those of the dense run
    ``argmax_agreement``   on the states of the dense run: share of masked positions with the same argmax
    ``kl``                 there: mean KL(dense ‖ policy), nats
    ``retained_mass``      there: dense attention on the kept keys in sparse steps, mean; NaN with cached
                           steps; ``retained_worst_layer`` of the layer that keeps least. A pruned model's own
    ``accuracy``           share of ``tasks`` answered exactly; NaN without tasks
    ``projected``          False: every number was measured
    ``model``              with ``pruned``: what ran, the dense model's name or that of a pruned one
    ``linear_ms``          then: median milliseconds that the matrices of its layers take for the context and batch,
                           timed apart, as called one by one
    ``linear_speedup``     then: that of the dense model / that of this one, in the same repetition
    ``weight_sparsity``    then: share of the dense layers' matrix weights that is zero or gone
    ``audit``              with ``audit=True``: name of the trace of this policy and prompt set, or None
    =====================  ==========================================================================

    ``table.attrs["provenance"]`` names versions, device, seed and date. With ``audit=True`` every sparse policy
    denoises each prompt set once more, and ``table.attrs["audit"][name]`` is a :class:`Trace` with ``retained_mass``
    of every step, layer and head on the states that the policy itself leads to.

    With a ``path``, a folder, measurements are kept there as they finish, and the same call takes up what a crash or
    Ctrl-C has left: whole rounds, for a speed-up holds only within one, fidelities, accuracies and audits. More
    ``repeats`` may be asked for later. ``overwrite=True`` starts anew.

    Instead of a bar, ``progress`` may be a function ``progress(done, total, what)``, told after every step of every run
    how many runs are ``done``, with a fraction for the one under way, and what that is. It may raise
    ``KeyboardInterrupt`` to end the comparison at that step.

    Raises ValueError or TypeError before anything is run for arguments that cannot work, and ValueError naming what
    differs where ``path`` holds measurements of something else; Ctrl-C raises KeyboardInterrupt.
    """
    steps = gen_length if steps is None else steps
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be at least 1")
    record = provenance(dlm, seed=seed)
    flash2 = can_attend(dlm, "flash") and record["dense_backend"] != FLASH2
    sets, models = prompt_sets(prompts), pruned_models(dlm, pruned)
    if models:
        record["pruned"] = {name: model.spec.name for name, model in models.items()}
    control = control and not dlm.spec.causal
    entries = entries_of(dlm, policies, control=control, flash2=flash2, pruned=models)
    what = _Comparison(
        dlm,
        prompts=sets,
        pruned=models,
        entries=entries,
        run={"gen_length": gen_length, "steps": steps, "sampler": sampler, "seed": seed},
        tasks=tasks or (),
        repeats=repeats,
        audits=audit_names(sets, entries) if audit else {},
    )
    identity = what.identity(record)
    done = Measurements(path, identity, record, overwrite)
    with Bar(progress, total=what.runs_left(done), desc="Comparing", unit="run") as bar:
        what.ask_tasks(done, bar)
        traces: dict[str, Trace] = {}
        for name in what.prompts:
            traces |= what.audit(name, done, bar)
            what.walk(name, done, bar)
            what.time(name, done, bar)
    table = pd.DataFrame(what.rows(done, record["dense_backend"]))
    table["device"] = record["device"]
    table["projected"] = False
    dates = [session["date"] for session in done.sessions]
    table.attrs["provenance"] = {**done.sessions[-1], "sessions": dates}
    if audit:
        pairs = zip(table["prompts"], table["policy"], strict=True)
        table["audit"] = pd.Series([what.audits.get(pair) for pair in pairs], dtype=object)
        table.attrs["audit"] = Audit(traces)
    return table


@dataclass(frozen=True)
class _Comparison:
    """What is measured: prompt sets by name, pruned models by name, policies on all models, Dense on the dense one
    first, the arguments of every run, and the name of the audit of each (prompt set, label) that has one."""

    dlm: DLM
    prompts: dict[str, Any]
    pruned: dict[str, DLM]
    entries: Sequence[Entry]
    run: dict[str, Any]
    tasks: Sequence[TaskItem | InfillingItem]
    repeats: int
    audits: dict[tuple[str, str], str]

    def identity(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """All that must be the same to take measurements up again, ready for JSON.

        Every prompt is encoded and every policy started for it, so that what cannot work is refused here.
        """
        pruned = {name: _model_identity(dlm) for name, dlm in self.pruned.items()}
        return {
            **_model_identity(self.dlm),
            **({"pruned": pruned} if pruned else {}),
            **({"compiled": True} if self.dlm.compiled else {}),
            "prompts": {name: self._checked(name) for name in self.prompts},
            "policies": {entry.label: repr(entry.policy) for entry in self.entries},
            **{name: value if isinstance(value, int) else repr(value) for name, value in self.run.items()},
            "tasks": fingerprint(*(value for item in self.tasks for value in vars(item).values())),
            **{name: record[name] for name in _SAME},
        }

    def _checked(self, name: str) -> str:
        """Fingerprint of a prompt set that every policy can start on, whatever the model."""
        prints = {model: self._checked_on(model, name) for model in (self.dlm, *self.pruned.values())}
        for model, found in prints.items():
            if found != prints[self.dlm]:
                raise ValueError(
                    f"prompt set {name!r} is not the same tokens for {model.spec.name!r} as for {self.dlm.spec.name!r};"
                    " give both the same tokenizer, or token ids as prompts"
                )
        return prints[self.dlm]

    def _checked_on(self, dlm: DLM, name: str) -> str:
        spec, gen_length = dlm.spec, self.run["gen_length"]
        prompt = dlm.encode(self.prompts[name])
        length = prompt.tokens.shape[1]
        if length + gen_length > spec.max_length:
            raise ValueError(
                f"prompt set {name!r} has {length} tokens, which with gen_length={gen_length} exceed the"
                f" {spec.max_length} positions of {spec.name!r}; shorten one of them"
            )
        info = run_info(dlm, prompt, gen_length, self.run["steps"], self.run["seed"])
        for entry in self.entries:
            if entry.dlm is dlm:
                sampler = self.run["sampler"] or sampler_of(entry.policy, spec, gen_length)
                sampler.check(gen_length, info.steps)
                entry.policy.start(info)
        return fingerprint(prompt.tokens, prompt.start)

    def runs_left(self, done: Measurements) -> int:
        """Length of the progress bar: runs of the model over a prompt set or the tasks that are still missing."""
        accuracies = [("accuracy", entry.label) for entry in self.entries] if self.tasks else []
        single = [
            *accuracies,
            *(("fidelity", name) for name in self.prompts),
            *(("audit", title) for title in self.audits.values()),
        ]
        rounds = sum(len(self._rounds_left(name, done)) for name in self.prompts)
        return sum(key not in done for key in single) + rounds * len(self.entries)

    def _rounds_left(self, name: str, done: Measurements) -> list[int]:
        return [number for number in range(self.repeats) if ("round", name, number) not in done]

    def ask_tasks(self, done: Measurements, bar: Bar) -> None:
        """Measure the accuracy of every policy on every model."""
        for entry in self.entries:
            if not self.tasks or ("accuracy", entry.label) in done:
                continue
            bar.note(f"tasks: {entry.label}")
            told = bar.within()
            share = task_module.accuracy(entry.dlm, self.tasks, policy=entry.policy, progress=told)
            done.add(("accuracy", entry.label), share)
            bar.update()

    def audit(self, name: str, done: Measurements, bar: Bar) -> dict[str, Trace]:
        """Record what every sparse policy keeps on a prompt set, or open what was recorded."""
        traces = {}
        for entry in self.entries:
            title = self.audits.get((name, entry.label))
            if title is None:
                continue
            if ("audit", title) in done and done.folder is not None:
                traces[title] = reopened(done.folder, title)
                continue
            bar.note(f"{name}: audit of {entry.label}")
            told = bar.within()
            traces[title] = run_audit(
                entry, self.prompts[name], name=title, folder=done.folder, progress=told, **self.run
            )
            done.add(("audit", title), {"prompts": name, "policy": entry.label})
            bar.update()
        return traces

    def walk(self, name: str, done: Measurements, bar: Bar) -> None:
        """Measure the fidelity of all policies on the states of one run of the dense model."""
        if ("fidelity", name) in done:
            return
        bar.note(f"{name}: fidelity")
        policies, models = [entry.policy for entry in self.entries], [entry.dlm for entry in self.entries]
        told = bar.within()
        found = walk(self.dlm, self.prompts[name], policies, models=models, **self.run, progress=told)
        labels = (entry.label for entry in self.entries)
        near = {label: nearness(fidelity) for label, fidelity in zip(labels, found, strict=True)}
        done.add(("fidelity", name), near)
        bar.update()

    def time(self, name: str, done: Measurements, bar: Bar) -> None:
        """Time the rounds that are missing."""
        if not (left := self._rounds_left(name, done)):
            return
        runs: list[Run] = []
        prompt = self.prompts[name]
        for run in timed_runs(self.entries, prompt, repetitions=left, bar=bar, heading=name, **self.run):
            runs.append(run)
            if len(runs) == len(self.entries):
                rows = round_rows(self.entries, runs, self.run["steps"])
                if self.pruned:
                    bar.note(f"{name}: matrices")
                    rows = self._with_linear(rows, bar.within(counts=False))
                done.add(("round", name, run.repetition), rows)
                runs = []

    def _with_linear(self, rows: list[dict[str, Any]], told: bool | Progress) -> list[dict[str, Any]]:
        """``rows`` of a round with what the matrices of each one's model take, timed at its end."""
        first = rows[0]
        took = linear_ms(
            self._models(),
            batch=first["batch"],
            length=first["context"],
            repetition=first["repetition"],
            told=told,
        )
        dense = took[self.dlm.spec.name]
        return [
            {**row, "linear_ms": took[entry.model], "linear_speedup": dense / took[entry.model]}
            for row, entry in zip(rows, self.entries, strict=True)
        ]

    def _models(self) -> dict[str, DLM]:
        """All models by name, the dense one first."""
        return {self.dlm.spec.name: self.dlm, **self.pruned}

    def rows(self, done: Measurements, fastest: str) -> list[dict[str, Any]]:
        """The rows of the table; ``fastest`` is the backend that Dense took."""
        backends = backends_of(self.entries, fastest)
        about = self._about_models()
        rows = []
        for name in self.prompts:
            rounds = [done["round", name, number] for number in range(self.repeats)]
            near = done["fidelity", name]
            for row in with_speedups(rounds, backends):
                label = row["policy"]
                accuracy = done["accuracy", label] if self.tasks else math.nan
                rows.append(
                    {
                        "policy": label,
                        "prompts": name,
                        **row,
                        **near[label],
                        "accuracy": accuracy,
                        **about.get(label, {}),
                    }
                )
        return rows

    def _about_models(self) -> dict[str, dict[str, Any]]:
        """By label the columns that tell of the model; none where there is only the dense one."""
        if not self.pruned:
            return {}
        gone = {name: weight_sparsity(dlm, self.dlm) for name, dlm in self._models().items()}
        return {
            entry.label: {"model": entry.model, "weight_sparsity": gone[entry.model]}
            for entry in self.entries
        }


def _model_identity(dlm: DLM) -> dict[str, Any]:
    return {"model": asdict(dlm.spec), "weights": weights_fingerprint(dlm)}
