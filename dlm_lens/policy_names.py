"""Policies and samplers by name: how people choose them at a command line or in the explorer."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, cast

import dlm_lens as dl

if TYPE_CHECKING:
    from dlm_lens.policies import Policy

# Names and the classes they stand for, by name: importing this loads none of them.
POLICIES = {
    "dense": "Dense",
    "pulsecol": "PulseCol",
    "sparsed": "SparseD",
    "window-diffusion": "WindowDiffusion",
    "fast-dllm": "FastDLLM",
    "sink-aware-kv": "SinkAwareKV",
    "sink-aware-heads": "SinkAwareHeads",
    "oracle": "OracleColumns",
    "sliding-window": "SlidingWindow",
    "streaming-llm": "StreamingLLM",
    "random": "RandomColumns",
}
SAMPLERS = {
    "low-confidence": "LowConfidence",
    "threshold": "Threshold",
    "dream": "DreamSampler",
    "left-to-right": "LeftToRight",
}
_BUDGETS = ("sparsity", "select", "budget")


def policy_of(name: str, sparsity: float | None = None, **parameters: Any) -> Policy:
    """The policy called ``name`` in ``POLICIES``, with its published parameters but for these and its ``sparsity``.

    ``sparsity`` is the share of keys left out, whatever the policy calls that (:func:`budget_of`). Raises ValueError
    for an unknown name or parameter, for values that the policy refuses, or for a sparsity if it has none.
    """
    kind = policy_class(name)
    if unknown := sorted(parameters.keys() - (known := parameters_of(kind))):
        raise ValueError(f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    policy = kind(**parameters)
    if sparsity is None:
        return policy
    if budget_of(name) is None:
        sparse = ", ".join(other for other in POLICIES if budget_of(other))
        raise ValueError(f"sparsity {sparsity} needs a sparse policy: {sparse}")
    return at_sparsity(policy, sparsity)


def policy_class(name: str) -> Any:
    """The class called ``name`` in ``POLICIES``; ``ValueError`` for an unknown name."""
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}: choose from {', '.join(POLICIES)}")
    return getattr(dl, POLICIES[name])


def at_sparsity(policy: Policy, sparsity: float) -> Policy:
    """``policy`` leaving out that share of the keys; itself if it saves something else than keys.

    Raises ValueError for a sparsity that the policy refuses.
    """
    if (parameter := _budget(type(policy))) is None:
        return policy
    # 1 − 0.8 is not quite 0.2, and shows in labels.
    value = sparsity if parameter == "sparsity" else round(1 - sparsity, 12)
    return replace(cast(Any, policy), **{parameter: value})


def budget_of(name: str) -> str | None:
    """The parameter of a policy that says which share of the keys it leaves out (``sparsity``) or keeps (any other).

    None for a policy that saves something else than keys.
    """
    return _budget(policy_class(name))


def parameters_of(kind: Any) -> list[str]:
    """Names of the parameters of a policy or sampler, given as a class or an object."""
    return [field.name for field in fields(kind)]


def _budget(policy: Any) -> str | None:
    parameters = parameters_of(policy)
    return next((known for known in _BUDGETS if known in parameters), None)
