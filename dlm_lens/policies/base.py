"""What a policy is: the parameters of a method, from which every run gets a state of its own.

To add a method: one file with a frozen dataclass deriving from :class:`Policy` and a :class:`PolicyRun`, an
export line in ``policies/__init__.py`` and in ``dlm_lens/__init__.py``, and a test that mirrors the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dlm_lens.attention import StepContext
    from dlm_lens.models import Spec
    from dlm_lens.policies.columns import ColumnPattern


@dataclass(frozen=True)
class StepPlan:
    """What one step computes and attends to.

    ``kind`` is ``"dense"``, ``"refresh"`` (dense, and the pattern is rebuilt), ``"sparse"`` or
    ``"cached"``. ``queries`` and ``keys`` are LongTensors of the positions computed and attended; None
    stands for all.
    """

    step: int
    kind: str
    queries: Tensor | None = None
    keys: Tensor | None = None


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
        """Share of the keys that a sparse step attends to; 1.0 for dense attention."""
        return 1.0


class PolicyRun(ABC):
    """What a policy remembers during one run. Steps come in order, and within a step the layers do."""

    @abstractmethod
    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        """The plan of ``step``, given the LongTensor [B, L] state that enters it."""

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        """Output [B, H, Lq, D] of one layer for ``q`` [B, H, Lq, D] and ``k, v`` [B, Hkv, Lk, D]."""

    def pattern(self, layer: int) -> ColumnPattern | None:
        """What the current step kept in this layer, once it has attended; None if that was everything."""
        return None
