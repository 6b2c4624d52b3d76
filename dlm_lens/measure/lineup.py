"""What is measured: the policies with their controls, how they are told apart, and the prompt sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dlm_lens.policies import Dense, Policy, RandomColumns


def lineup_of(policies: Sequence[Policy], *, control: bool, flash2: bool) -> list[Policy]:
    """Dense first, then FlashAttention-2 if asked for, then the policies given, each once, then a random control
    for every budget that lacks one."""
    if isinstance(policies, Policy):
        policies = [policies]
    lineup: list[Policy] = [Dense(), *([Dense("flash")] if flash2 else [])]
    for policy in policies:
        if not isinstance(policy, Policy):
            raise TypeError(
                f"policies holds {policy!r}, a {type(policy).__name__}; expected policies such as Dense()"
            )
        if policy not in lineup:
            lineup.append(policy)
    if control:
        present = {sparsity_of(policy) for policy in lineup if isinstance(policy, RandomColumns)}
        for policy in list(lineup):
            if policy.density < 1 and (sparsity := sparsity_of(policy)) not in present:
                group_size = getattr(policy, "group_size", RandomColumns.group_size)
                lineup.append(RandomColumns(sparsity=sparsity, group_size=group_size))
                present.add(sparsity)
    return lineup


def sparsity_of(policy: Policy) -> float:
    """Share of the keys, or heads, that a sparse step leaves out; 0 for a policy that is dense."""
    return round(1 - policy.density, 6)  # without the digits that subtracting from 1 leaves


def labels_of(policies: Sequence[Policy]) -> list[str]:
    """Labels, spelt out in full where two policies would share one."""
    counts = Counter(policy.label for policy in policies)
    return [policy.label if counts[policy.label] == 1 else repr(policy) for policy in policies]


def prompt_sets(prompts: Any) -> dict[str, Any]:
    """Prompt sets by name: a mapping as it is, anything else as the one called ``"prompt"``."""
    if not isinstance(prompts, Mapping):
        return {"prompt": prompts}
    if not prompts:
        raise ValueError("prompts={} holds no prompt set; expected a dict of name → prompt")
    return {str(name): prompt for name, prompt in prompts.items()}
