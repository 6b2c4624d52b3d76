"""lm-eval's arguments, of a model and of a generation, as policies, samplers and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import dlm_lens as dl
from dlm_lens.denoising import sampler_of
from dlm_lens.policy_names import SAMPLERS, at_sparsity, parameters_of, policy_class, policy_of
from dlm_lens.samplers import LowConfidence

if TYPE_CHECKING:
    from dlm_lens.models import Spec
    from dlm_lens.policies import Policy
    from dlm_lens.samplers import Sampler

# What tasks of lm-eval call the number of tokens to generate, the first that is there counting.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class Generation:
    """How to answer: ``tokens`` at most, in a region of ``positions``, until one of the strings in ``until``."""

    tokens: int
    positions: int
    until: tuple[str, ...]
    sampler: Sampler

    @property
    def random(self) -> bool:
        """Whether tokens are drawn, so that asking twice must not give the same answer twice."""
        return getattr(self.sampler, "temperature", 0) > 0


@dataclass(frozen=True)
class Method:
    """Policy and sampler as the model's arguments choose them, and the parameters that are the sampler's."""

    policy: Policy
    sampler: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        policy: str | Policy,
        sparsity: float | None,
        sampler: str | None,
        parameters: Mapping[str, Any],
        known: Sequence[str],
    ) -> Method:
        """Share out ``parameters`` by name, those of the policy and those of samplers.

        Raises ValueError for a name that nothing has, listing what there is, the ``known`` other arguments included.
        """
        if sampler is not None and sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}: choose from {', '.join(SAMPLERS)}")
        kinds = SAMPLERS.values() if sampler is None else [SAMPLERS[sampler]]
        of_sampler = {name for kind in kinds for name in parameters_of(getattr(dl, kind))} - {*_SAMPLING}
        of_policy = parameters_of(policy_class(policy)) if isinstance(policy, str) else []
        if unknown := sorted(parameters.keys() - {*of_policy, *of_sampler}):
            raise ValueError(
                f"unknown model argument {', '.join(unknown)}: there are {', '.join(known)}; {policy} takes"
                f" {', '.join(of_policy) or 'nothing more'}; samplers take {', '.join(sorted(of_sampler))}"
            )
        if isinstance(policy, str):
            policy = policy_of(policy, sparsity, **{n: v for n, v in parameters.items() if n in of_policy})
        elif sparsity is not None:
            asked, policy = policy, at_sparsity(policy, sparsity)
            if policy is asked:
                raise ValueError(
                    f"sparsity={sparsity} needs a policy that leaves out keys, which {policy!r} does not"
                )
        return cls(policy, sampler, {n: v for n, v in parameters.items() if n in of_sampler})

    def generation(
        self, spec: Spec, arguments: Mapping[str, Any], gen_length: int | None, default: int = 256
    ) -> Generation:
        """How to answer a request of a task with these ``arguments``.

        ``gen_length`` goes before the length that a task asks for, and ``default`` is for a task that asks for none.
        Raises ValueError for arguments that nothing or the sampler does not know.
        """
        rest = dict(arguments)
        asked = [int(value) for value in (rest.pop(name, None) for name in _LENGTHS) if value is not None]
        tokens = gen_length or next(iter(asked), default)
        until = rest.pop("until", None) or []
        drawn = {name: rest.pop(name) for name in _SAMPLING if rest.get(name) is not None}
        if not rest.pop("do_sample", drawn.get("temperature", 0) > 0):
            drawn = {}  # as everywhere in lm-eval: then nothing is drawn, whatever else is said
        if rest:
            known = ", ".join(("until", *_LENGTHS, "do_sample", *_SAMPLING))
            raise ValueError(f"unknown generation argument {', '.join(sorted(rest))}: there are {known}")
        sampler = self._sampler(spec, tokens, {**self.parameters, **drawn})
        if not isinstance(sampler, LowConfidence):  # the one whose blocks must fill the region
            return Generation(tokens, tokens, _strings(until), sampler)
        block = min(sampler.block_length, tokens)
        sampler = replace(sampler, block_length=block)
        return Generation(tokens, -(-tokens // block) * block, _strings(until), sampler)

    def _sampler(self, spec: Spec, tokens: int, parameters: Mapping[str, Any]) -> Sampler:
        if self.sampler is None:
            sampler = sampler_of(self.policy, spec, tokens)
        else:
            sampler = getattr(dl, SAMPLERS[self.sampler])()
        known = parameters_of(sampler)
        if unknown := sorted(parameters.keys() - set(known)):
            name = type(sampler).__name__
            raise ValueError(f"{name}, the sampler, has no {', '.join(unknown)}; it has {', '.join(known)}")
        return replace(cast(Any, sampler), **parameters)


def _strings(until: str | list[str]) -> tuple[str, ...]:
    return tuple(text for text in ([until] if isinstance(until, str) else until) if text)
