"""Dense attention: every step attends to everything."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.backends import cuda
from torch.nn.attention import SDPBackend

from dlm_lens.attention import StepContext, dense_attention, dense_attention_and_lse
from dlm_lens.policies.base import Policy, PolicyRun, RunInfo, StepPlan

# Backends of PyTorch by short name, and what people call them.
BACKENDS = {
    "cudnn": (SDPBackend.CUDNN_ATTENTION, "cuDNN"),
    "flash": (SDPBackend.FLASH_ATTENTION, "FlashAttention-2"),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION, "memory-efficient"),
    "math": (SDPBackend.MATH, "math"),
}


@dataclass(frozen=True, repr=False)
class Dense(Policy):
    """Full attention at every step: the measure of all others.

    By the fastest backend present, or by one of PyTorch's asked for by name: ``"cudnn"``, ``"flash"``
    (FlashAttention-2), ``"efficient"`` or ``"math"``. All but ``"math"`` need a CUDA device, and what one of them
    cannot do (FlashAttention-2 computes in fp16 and bf16 only) is a ``ValueError``: nothing else is put in its place.
    """

    backend: str | None = None

    def __post_init__(self) -> None:
        if self.backend is not None and self.backend not in BACKENDS:
            raise ValueError(
                f"backend={self.backend!r} is unknown: choose one of {', '.join(map(repr, BACKENDS))},"
                " or None for the fastest present"
            )

    def __repr__(self) -> str:
        return "Dense()" if self.backend is None else f"Dense(backend={self.backend!r})"

    @property
    def label(self) -> str:
        return "Dense" if self.backend is None else f"Dense ({BACKENDS[self.backend][1]})"

    def start(self, info: RunInfo) -> PolicyRun:
        if self.backend is None:
            return DenseRun()
        if self.backend != "math" and info.device.type != "cuda":
            raise ValueError(
                f"backend={self.backend!r} needs a CUDA device, but the model is on {info.device};"
                ' Dense() takes the fastest backend there, Dense("math") works everywhere'
            )
        return _ForcedRun(self.backend)


class DenseRun(PolicyRun):
    """A run that remembers nothing: every step is the same work on other tokens."""

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        return StepPlan(step, "dense")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        if context.recorder is None:
            return dense_attention(q, k, v, start=context.start, causal=context.causal)
        out, context.lse = dense_attention_and_lse(q, k, v, start=context.start, causal=context.causal)
        return out


class _ForcedRun(DenseRun):
    """A run on one backend only."""

    def __init__(self, name: str) -> None:
        self._name = name

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        if layer == 0 and not can_compute(self._name, q, k, causal=context.causal):
            raise ValueError(
                f"backend={self._name!r} cannot attend with {q.shape[1]} heads of {q.shape[3]} over {k.shape[1]}"
                f" in {str(q.dtype).removeprefix('torch.')} on {q.device}; choose another, or None for the fastest"
            )
        backend, _ = BACKENDS[self._name]
        return dense_attention(q, k, v, start=context.start, causal=context.causal, backend=backend)


def can_compute(backend: str, q: Tensor, k: Tensor, *, causal: bool) -> bool:
    """Whether a backend works for queries like ``q`` [B, H, L, D] and keys like ``k`` [B, Hkv, L, D]."""
    if backend == "math":
        return True
    shapes = cuda.SDPAParams(q, k, k, None, 0.0, causal, q.shape[1] != k.shape[1])
    ask = {
        "cudnn": cuda.can_use_cudnn_attention,
        "flash": cuda.can_use_flash_attention,
        "efficient": cuda.can_use_efficient_attention,
    }
    return ask[backend](shapes)
