"""What a policy can save at best: its steps by kind, the work they need, Amdahl's bound on the speed-up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlm_lens.measure.linear import matrix_cost
from dlm_lens.measure.shapes import spec_of
from dlm_lens.models import DLM
from dlm_lens.policies import Dense, Policy, RunInfo, StepPlan

if TYPE_CHECKING:
    from dlm_lens.models import Spec


@dataclass(frozen=True)
class StepWork:
    """What one step computes for one sample: ``positions`` go through the model, and each attends to ``keys``."""

    kind: str
    positions: float
    keys: float


@dataclass(frozen=True)
class KindOfStep:
    """The steps of one kind: how many, their mean ``positions`` and ``keys``, and their ``flops`` together."""

    kind: str
    steps: int
    positions: float
    keys: float
    flops: float


@dataclass(frozen=True, repr=False)
class Schedule:
    """The steps of one run by kind and the floating-point operations they need, dense and under the policy.

    ``by_kind`` has an entry per kind in the order of appearance; ``length`` counts the positions of prompt and
    generation, ``attention_share`` is attention's part of a dense step. ``dense_flops`` and ``flops`` are totals of
    one sample over all steps.
    """

    label: str
    model: str
    length: int
    by_kind: tuple[KindOfStep, ...]
    attention_share: float
    dense_flops: float
    flops: float

    @property
    def kinds(self) -> dict[str, int]:
        """How many steps there are of each kind."""
        return {entry.kind: entry.steps for entry in self.by_kind}

    @property
    def bound(self) -> float:
        """Amdahl's bound: the speed-up if what is computed were as efficient as in dense steps, and choosing free."""
        return self.dense_flops / self.flops

    def __repr__(self) -> str:
        steps = sum(self.kinds.values())
        lines = [
            f"Schedule of {self.label} on {self.model}: {self.length:,} positions, {steps:,} steps",
            f"  {'kind':<9}{'steps':>8}{'positions':>12}{'keys each':>12}{'work a step':>16}",
        ]
        lines += [
            f"  {entry.kind:<9}{entry.steps:>8,}{entry.positions:>12,.0f}{entry.keys:>12,.0f}"
            f"{_operations(entry.flops / entry.steps):>16}"
            for entry in self.by_kind
        ]
        lines += [
            f"  attention is {self.attention_share:.1%} of a dense step",
            f"  {_operations(self.flops)} instead of {_operations(self.dense_flops)}:"
            f" at most {self.bound:.2f}× faster",
        ]
        return "\n".join(lines)


def _operations(flops: float) -> str:
    exponent = max(3, min(18, 3 * int(math.log10(flops) // 3)))
    return f"{flops / 10**exponent:.3g} {'kMGTPE'[exponent // 3 - 1]}FLOP"


def schedule(
    policy: Policy, steps: int, model: DLM | Spec | str, *, prompt_length: int, gen_length: int
) -> Schedule:
    """Tell what a run of ``steps`` steps will do and can save, without running a model.

    Parameters
    ----------
    policy : what plans the steps.
    model : a model, its ``Spec``, or the name of a shape: ``"llada-8b"``, ``"dream-7b"`` or ``"tiny"``. Weights that a
        model stores as 2:4 count half.
    prompt_length, gen_length : positions of the prompt and of the generation.

    Policies that look at what is decided already plan on a simulated run, in which tokens are decided from left to
    right, about as many at every step, and no text ends early. What a policy makes of the attention it sees is not
    simulated. Raises ValueError for numbers that are not positive, an unknown name, or a policy that cannot work there.
    """
    for name, value in {"steps": steps, "prompt_length": prompt_length, "gen_length": gen_length}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    spec = spec_of(model)
    info = RunInfo(
        spec=spec,
        prompt_length=prompt_length,
        gen_length=gen_length,
        steps=steps,
        batch=1,
        start=None,
        device=torch.device("cpu"),
        seed=0,
    )
    special = {spec.mask_id, spec.eos_id, spec.pad_id, spec.bos_id}
    word = next(token for token in range(spec.vocab) if token not in special)
    tokens = torch.full((1, info.length), word)
    decided_at = torch.full((1, info.length), -1)
    decided_at[:, prompt_length:] = torch.arange(gen_length) * steps // gen_length
    works = list(replay(policy, info, tokens, decided_at, steps))
    cost = matrix_cost(model) if isinstance(model, DLM) else 1.0
    return schedule_of(policy, works, spec, length=info.length, gen_length=gen_length, matrix_cost=cost)


def replay(
    policy: Policy, info: RunInfo, tokens: Tensor, committed_at: Tensor, steps: int
) -> Iterator[StepWork]:
    """The work of the first ``steps`` steps as ``policy`` plans it on the states of a run.

    The run is given by its outcome, as :class:`dlm_lens.denoising.Denoised` tells it: ``tokens`` [B, L] and the step
    ``committed_at`` [B, L] which decided each, negative for the prompt (-1) and where none did (-2).
    """
    blank = info.spec.pad_id if info.spec.mask_id is None else info.spec.mask_id
    # A plan needs no backend, and those of a GPU refuse to start on the CPU, where runs are planned.
    run = (Dense() if isinstance(policy, Dense) else policy).start(info)
    for step in range(steps):
        state = tokens.masked_fill((committed_at >= step) | (committed_at < -1), blank)
        given_up = run.given_up(state)
        if given_up is not None:
            state = state.masked_fill(given_up, info.spec.eos_id)
        yield _work(run.plan(step, state), policy, info.length)


def _work(plan: StepPlan, policy: Policy, length: int) -> StepWork:
    positions = length if plan.queries is None else _there(plan.queries, length)
    if plan.keys is not None:
        keys = _there(plan.keys, length)
    else:
        keys = length * policy.density if plan.kind == "sparse" else length
    return StepWork(plan.kind, float(positions), float(keys))


def _there(positions: Tensor | int, length: int) -> float:
    """Positions of one sample, mean over the batch: a number as it is, or of [B, n] those below ``length``."""
    if isinstance(positions, Tensor):
        return float((positions < length).sum(-1).double().mean())
    return positions


def schedule_of(
    policy: Policy,
    works: Sequence[StepWork],
    spec: Spec,
    *,
    length: int,
    gen_length: int,
    matrix_cost: float = 1.0,
) -> Schedule:
    """The schedule of steps whose work is known, the matrices of the layers costing so much of what they do dense.

    A refresh counts as what it computes: making scores and lists costs more, so the bound cannot be too low.
    """
    dense = step_flops(spec, StepWork("dense", length, length), gen_length, matrix_cost)
    flops = [step_flops(spec, work, gen_length, matrix_cost) for work in works]
    by_kind = []
    for kind in dict.fromkeys(work.kind for work in works):
        own = [(work, cost) for work, cost in zip(works, flops, strict=True) if work.kind == kind]
        count = len(own)
        positions, keys = (
            sum(getattr(work, name) for work, _ in own) / count for name in ("positions", "keys")
        )
        by_kind.append(KindOfStep(kind, count, positions, keys, sum(cost for _, cost in own)))
    return Schedule(
        label=policy.label,
        model=spec.name,
        length=length,
        by_kind=tuple(by_kind),
        attention_share=attention_flops(spec, length, length) / dense,
        dense_flops=dense * len(works),
        flops=sum(flops),
    )


def step_flops(spec: Spec, work: StepWork, gen_length: int, matrix_cost: float = 1.0) -> float:
    """Operations of one step for one sample; logits are made of the generation, as far as it is computed."""
    logits = 1 if spec.causal else min(gen_length, work.positions)
    attention = attention_flops(spec, work.positions, work.keys)
    return attention + other_flops(spec, work.positions, logits, matrix_cost)


def attention_flops(spec: Spec, positions: float, keys: float) -> float:
    """Operations of attention over all layers for one sample: q·kᵀ and p·v, two each per multiply-add.

    A causal model needs half of them where it attends from all positions to all. Layers with a window count none:
    they are cheap, and no policy makes them cheaper, so that a bound leaving them out cannot be too low.
    """
    full = 4.0 * positions * keys * spec.heads * spec.head_dim * (spec.layers - len(spec.windowed))
    return full / 2 if spec.causal and positions == keys else full


def other_flops(spec: Spec, positions: float, logits: float, matrix_cost: float = 1.0) -> float:
    """Operations of everything else: projections and MLP of ``positions``, and so many positions' logits.

    ``matrix_cost`` is the share of those of projections and MLP that is done: half on sparse tensor cores.
    """
    heads = 2 * spec.heads + 2 * spec.kv_heads  # q and output; k and v
    layer = matrix_cost * (spec.hidden * spec.head_dim * heads + 3 * spec.hidden * spec.mlp)
    return 2.0 * (positions * spec.layers * layer + logits * spec.hidden * spec.vocab)
