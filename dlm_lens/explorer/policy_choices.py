"""The policies that the explorer's panel offers, and the one number that each is chosen with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import dlm_lens as dl
from dlm_lens.policy_names import POLICIES, policy_of
from dlm_lens.trace import Trace

if TYPE_CHECKING:
    from dlm_lens.policies import Policy


@dataclass(frozen=True)
class Number:
    """A parameter as a slider: ``parameter`` of the policy, what to call it, its range and where it begins.

    In units of ``unit``, which are ``scale`` times the parameter's own.
    """

    parameter: str
    label: str
    unit: str
    lo: int
    hi: int
    step: int
    value: int
    scale: int = 1


@dataclass(frozen=True)
class Choice:
    """A policy by its name at the command line, and what one list of the best columns says about it."""

    name: str
    label: str
    number: Number
    note: str

    @property
    def has_budget(self) -> bool:
        """Whether the number is the share of the keys left out."""
        return self.number is _SPARSITY


_SPARSITY = Number("sparsity", "Sparsity", "% of keys left out", 0, 99, 1, 80, 100)
_HEADS = Number("prune", "Skipped heads", "% of heads", 0, 95, 5, 40, 100)
_WINDOW = Number("window", "Window", "masked positions", 16, 512, 16, 128)
_THRESHOLD = Number("threshold", "Confidence to commit", "% probability", 50, 100, 1, 90, 100)

_BOUND = "chooses a list for every group of queries: chosen afresh it keeps at least this much."
_PLACE = "chooses keys by their place, which column mass does not tell: its own share may lie far below."
_NO_BUDGET = "has no budget of keys, so one list of columns says nothing about it."

CHOICES = (
    Choice("pulsecol", "PulseCol", _SPARSITY, f"PulseCol {_BOUND}"),
    Choice(
        "sparsed",
        "SparseD",
        _SPARSITY,
        "SparseD keeps whole blocks of keys for every block of queries: its own share may be less or more.",
    ),
    Choice("window-diffusion", "Window-Diffusion", _WINDOW, f"Window-Diffusion {_NO_BUDGET}"),
    Choice("fast-dllm", "Fast-dLLM", _THRESHOLD, f"Fast-dLLM {_NO_BUDGET}"),
    Choice("streaming-llm", "StreamingLLM", _SPARSITY, f"StreamingLLM {_PLACE}"),
    Choice("sliding-window", "Sliding window", _SPARSITY, f"A sliding window {_PLACE}"),
    Choice(
        "sink-aware-kv",
        "Sink-aware KV",
        _SPARSITY,
        "Sink-aware KV chooses by the mass of the step before and keeps a window: its own share may be less or more.",
    ),
    Choice("sink-aware-heads", "Sink-aware heads", _HEADS, f"Sink-aware heads {_NO_BUDGET}"),
    Choice("oracle", "Oracle columns", _SPARSITY, f"The oracle {_BOUND}"),
    Choice(
        "random",
        "Random columns",
        _SPARSITY,
        "Random columns keep on average as much as their share of the keys.",
    ),
)


def policy_chosen(name: str, value: float) -> Policy:
    """The policy of a choice with the slider at ``value``; raises ValueError for what is no choice."""
    choice = next((choice for choice in CHOICES if choice.name == name), None)
    if choice is None:
        raise ValueError(f"policy {name!r} is none of {', '.join(choice.name for choice in CHOICES)}")
    number = choice.number
    parameter = round(value / number.scale, 12) if number.scale > 1 else int(value)
    if choice.has_budget:
        return policy_of(name, parameter)
    return getattr(dl, POLICIES[name])(**{number.parameter: parameter})


def controls(trace: Trace, *, with_model: bool) -> dict[str, Any]:
    """What the browser builds the panel from, ready for JSON; ``with_model`` if a kernel could measure."""
    steps = int(trace.attrs.get("steps", trace.steps[-1] + 1))
    return {
        "choices": [
            asdict(choice) | {"budget": choice.has_budget, "random": choice.name == "random"}
            for choice in CHOICES
        ],
        "run": {"gen_length": trace.length - trace.prompt_length, "steps": steps, "repeats": 1},
        "layers": list(trace.layers),
        "heads": list(trace.heads),
        "with_model": with_model,
    }
