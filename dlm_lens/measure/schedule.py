"""What a policy can save at best: its steps by kind, the work they need, Amdahl's bound on the speed-up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dlm_lens.policies import Policy, RunInfo

if TYPE_CHECKING:
    from dlm_lens.models import Spec


@dataclass(frozen=True)
class Schedule:
    """The steps of one run by kind and the floating-point operations they need, dense and under the policy.

    ``kinds`` counts the steps of each kind, ``density`` is the share of the keys that a sparse step attends
    to, ``attention_share`` attention's part of a dense step. ``dense_flops`` and ``flops`` are totals of one
    sample over all steps.
    """

    label: str
    kinds: dict[str, int]
    density: float
    attention_share: float
    dense_flops: float
    flops: float

    @property
    def bound(self) -> float:
        """Amdahl's bound: the speed-up if sparse attention were as efficient as dense, and all else equal."""
        return self.dense_flops / self.flops


def schedule(policy: Policy, spec: Spec, *, prompt_length: int, gen_length: int, steps: int) -> Schedule:
    """Plan a run of ``steps`` steps without running the model, and count its work."""
    length = prompt_length + gen_length
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
    run = policy.start(info)
    placeholder = spec.pad_id if spec.mask_id is None else spec.mask_id
    tokens = torch.full((1, length), placeholder)
    kinds = [run.plan(step, tokens).kind for step in range(steps)]
    return schedule_of(policy, kinds, spec, length=length, gen_length=gen_length)


def schedule_of(
    policy: Policy, kinds: Iterable[str], spec: Spec, *, length: int, gen_length: int
) -> Schedule:
    """The schedule of steps that were taken already, given the kind of each.

    Only attention shrinks, to ``policy.density``, and only in sparse steps. A refresh counts as a dense step:
    making scores and lists costs more, so the bound cannot be too low.
    """
    counts = Counter(kinds)
    attention = attention_flops(spec, length)
    rest = other_flops(spec, length, gen_length)
    steps = counts.total()
    saved = counts["sparse"] * attention * (1 - policy.density)
    dense = steps * (attention + rest)
    return Schedule(
        label=policy.label,
        kinds=dict(counts),
        density=policy.density,
        attention_share=attention / (attention + rest),
        dense_flops=dense,
        flops=dense - saved,
    )


def attention_flops(spec: Spec, length: int) -> float:
    """Operations of dense attention over all layers for one sample: q·kᵀ and p·v, two each per multiply-add.

    A causal model needs half of them.
    """
    full = 4.0 * length * length * spec.heads * spec.head_dim * spec.layers
    return full / 2 if spec.causal else full


def other_flops(spec: Spec, length: int, gen_length: int) -> float:
    """Operations of everything else: projections and MLP of every position, logits of the generation."""
    heads = 2 * spec.heads + 2 * spec.kv_heads  # q and output; k and v
    layer = spec.hidden * spec.head_dim * heads + 3 * spec.hidden * spec.mlp
    return 2.0 * (length * spec.layers * layer + gen_length * spec.hidden * spec.vocab)
