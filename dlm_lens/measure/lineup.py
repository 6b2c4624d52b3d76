"""What is measured: policies with their controls on one or more models, how they are told apart, and prompt sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlm_lens.models import DLM
from dlm_lens.policies import Dense, Policy, RandomColumns

# What two models must have in common for their predictions to be compared token by token.
_SHARED = ("family", "causal", "vocab", "mask_id", "eos_id", "pad_id")


@dataclass(frozen=True)
class Entry:
    """A policy on a model, and the ``label`` that its rows have.

    ``pruned`` names a pruned model; None says that it is the dense one, which everything is measured against.
    """

    label: str
    policy: Policy
    dlm: DLM
    pruned: str | None = None

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.dlm.spec.name if self.pruned is None else self.pruned


def entries_of(
    dlm: DLM,
    policies: Sequence[Policy],
    *,
    control: bool,
    flash2: bool,
    pruned: Mapping[str, DLM] | None = None,
) -> list[Entry]:
    """The lineup of the dense model, then that of every pruned one by name, which FlashAttention-2 is not added to."""
    lineup = lineup_of(policies, control=control, flash2=flash2)
    entries = [Entry(*pair, dlm) for pair in zip(labels_of(lineup), lineup, strict=True)]
    lineup = lineup_of(policies, control=control, flash2=False)
    for name, model in (pruned or {}).items():
        entries += [
            Entry(f"{label}, {name}", policy, model, name)
            for label, policy in zip(labels_of(lineup), lineup, strict=True)
        ]
    return entries


def pruned_models(dlm: DLM, pruned: DLM | Sequence[DLM] | Mapping[str, DLM] | None) -> dict[str, DLM]:
    """Pruned models by name: that of a mapping, or what pruning called them.

    Raises ValueError for two of one name and for those that cannot stand beside ``dlm``: of another kind or vocabulary,
    on another device or in another dtype, or compiled where it is not.
    """
    if pruned is None:
        return {}
    if isinstance(pruned, DLM):
        pruned = [pruned]
    named = isinstance(pruned, Mapping)
    pairs = list(pruned.items()) if isinstance(pruned, Mapping) else [(None, model) for model in pruned]
    found: dict[str, DLM] = {}
    for given, model in pairs:
        if not isinstance(model, DLM):
            raise TypeError(
                f"pruned holds a {type(model).__name__}; expected models, such as the first of the two that"
                " prune() returns"
            )
        name = str(given) if named else short_name(model)
        if name in found or name in ("", dlm.spec.name):
            raise ValueError(
                f"pruned names a model {name!r}, which does not tell it apart from the others; give them as a dict of"
                " name → model"
            )
        _check_comparable(dlm, name, model)
        found[name] = model
    return found


def short_name(dlm: DLM) -> str:
    """What pruning called a model, ``"Wanda 2:4"`` of ``"tiny (Wanda 2:4)"``; the end of its path for others."""
    name = dlm.spec.name
    if name.endswith(")") and "(" in name:
        return name[name.rindex("(") + 1 : -1]
    return name.rstrip("/").rsplit("/", 1)[-1]


def _check_comparable(dlm: DLM, name: str, model: DLM) -> None:
    for fact in _SHARED:
        own, expected = getattr(model.spec, fact), getattr(dlm.spec, fact)
        if own != expected:
            raise ValueError(
                f"the pruned model {name!r} has {fact}={own!r}, but {dlm.spec.name!r} has {expected!r}: their tokens"
                " cannot be compared; pass the model that it was pruned from"
            )
    if model.devices != dlm.devices or model.dtype != dlm.dtype:
        lies, expected = _lies(model), _lies(dlm)
        raise ValueError(
            f"the pruned model {name!r} is in {lies}, but {dlm.spec.name!r} in {expected}: a speed-up would be that of"
            " the device or the dtype; have both alike, by DLM.to()"
        )
    if model.compiled != dlm.compiled:
        raise ValueError(
            f"of {dlm.spec.name!r} and the pruned model {name!r} one is compiled and the other is not: a speed-up would"
            " be that of compiling; call DLM.compile() on both, for a pruned copy is not compiled"
        )


def _lies(dlm: DLM) -> str:
    return f"{str(dlm.dtype).removeprefix('torch.')} on {', '.join(map(str, dlm.devices))}"


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
