"""What a policy is: the parameters of a method, from which every run gets a state of its own.

To add a method: one file with a frozen dataclass deriving from :class:`Policy` and a :class:`PolicyRun`, an
export line in ``policies/__init__.py`` and in ``dlm_lens/__init__.py``, and a test that mirrors the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dlm_lens.policies.held import Held, RunSize

if TYPE_CHECKING:
    from dlm_lens.attention import StepContext
    from dlm_lens.models import Spec
    from dlm_lens.samplers import Sampler


@dataclass(frozen=True)
class StepPlan:
    """What one step computes and attends to.

    ``kind`` is ``"dense"``, ``"refresh"`` (a pattern or a cache is rebuilt), ``"sparse"`` or ``"cached"``. A plan
    that computes part of the positions names them in ``queries`` LongTensor [B, n], ascending, and among them those
    whose tokens may be committed in ``candidates`` LongTensor [B, m]; rows with fewer are filled up with L, the length
    of the sequence, which stands for nothing. ``keys`` is the most keys that a query of any row attends to. None
    stands for all.
    """

    step: int
    kind: str
    queries: Tensor | None = None
    candidates: Tensor | None = None
    keys: int | None = None


@dataclass(frozen=True)
class CachedPlan(StepPlan):
    """The plan of a step that keeps keys and values: all that attention needs to know of it, as tensors.

    ``slots`` LongTensor [B, n] says where in the cache each of the ``queries`` is kept, and ``lengths`` int32 [B] how
    many slots, from the first, a row attends to. With ``whole``, every row computes all that it attends to.
    """

    slots: Tensor | None = None
    lengths: Tensor | None = None
    whole: bool = False


@dataclass(frozen=True)
class RunInfo:
    """What a policy may know of a run before its first step.

    ``batch`` counts the rows that go through the model: twice the prompts under classifier-free guidance.
    ``start`` is a LongTensor [batch] with each row's first valid position, or None when nothing is padded.
    """

    spec: Spec
    prompt_length: int
    gen_length: int
    steps: int
    batch: int
    start: Tensor | None
    device: torch.device
    seed: int

    @property
    def length(self) -> int:
        """Positions in the sequence, prompt (with its padding) and generation together."""
        return self.prompt_length + self.gen_length


class Pattern(Protocol):
    """What a sparse step kept in a layer, as far as measurements need to know it."""

    @property
    def density(self) -> float:
        """Share of the work of dense attention that was done, mean over samples and heads."""

    def retained_mass(self, q: Tensor, k: Tensor, *, lse: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Share of the dense attention that was kept: mean and minimum over valid queries, float32 [B, H] each.

        ``q`` [B, H, L, D], ``k`` [B, Hkv, L, D]; ``lse`` [B, H, L], the dense log-sum-exp, where it is known.
        """

    def kept_share(self, bins: int, heads: int) -> Tensor:
        """Share of the pairs of a query and a key that were kept, by bins of queries and of keys, for pictures.

        float32 [B, heads, bins, bins] on the CPU, rows being queries. Position p is in bin floor(p · bins / L), as in a
        trace's ``pooled_map``; pairs with padding do not count, and bins of padding alone are 0.
        """


class Policy(ABC):
    """The parameters of a method that decides what attention computes; one object serves any run."""

    @abstractmethod
    def start(self, info: RunInfo) -> PolicyRun:
        """The state of one run; raises ValueError when the method cannot work on this model or length."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Short name for tables and legends, such as ``"PulseCol 80%"``."""

    @property
    def density(self) -> float:
        """Share of the work of dense attention, keys or heads, that a sparse step does; 1.0 for dense attention."""
        return 1.0

    def held(self, size: RunSize) -> Held:
        """Bytes that a run of this size keeps from step to step, and takes besides in one layer; nothing by default."""
        return Held()

    @property
    def sampler(self) -> Sampler | None:
        """The sampler that belongs to the method, used where none is asked for; None for the model's own."""
        return None


class PolicyRun(ABC):
    """What a policy remembers during one run. Steps come in order, and within a step the layers do."""

    @abstractmethod
    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        """The plan of ``step``, given the LongTensor [B, L] state that enters it, a row for each of the model's."""

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        """Output [B, H, Lq, D] of one layer for ``q`` [B, H, Lq, D] and ``k, v`` [B, Hkv, Lk, D]."""

    def given_up(self, tokens: Tensor) -> Tensor | None:
        """bool [B, L]: masked positions of the state ``tokens`` that are never to be decided; None for none.

        They become end-of-text, and a run ends when nothing else is masked.
        """
        return None

    def pattern(self, layer: int) -> Pattern | None:
        """What the current step kept in this layer, once it has attended; None if that was everything."""
        return None
