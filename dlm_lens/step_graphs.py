"""Cached steps as CUDA graphs: they compute so few positions that launching their kernels would cost more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlm_lens.attention import tensors_of
from dlm_lens.policies.base import CachedPlan

if TYPE_CHECKING:
    from dlm_lens.attention import StepContext
    from dlm_lens.models.dlm import DLM


class StepGraphs:
    """The forward passes of one run. On a GPU those of cached steps are recorded, one graph for each shape of plan.

    A graph keeps the addresses of the run's cache, so that graphs and run live and end together. It holds the work of
    one device: models on several run without.
    """

    def __init__(self, dlm: DLM) -> None:
        self._dlm = dlm
        self._one_gpu = dlm.device.type == "cuda" and len(dlm.devices) == 1
        self._graphs: dict[tuple[tuple[int, ...], ...], _Graph] = {}

    def logits(
        self, tokens: Tensor, *, start: Tensor | None, keep: range | Tensor, context: StepContext
    ) -> Tensor:
        """What :meth:`DLM.logits` returns; after the next step of the same shape it is overwritten."""
        plan = context.plan
        replayable = isinstance(plan, CachedPlan) and not plan.whole and context.recorder is None
        if not (replayable and self._one_gpu and isinstance(keep, Tensor)):
            return self._dlm.logits(tokens, start=start, keep=keep, context=context)
        inputs = {"tokens": tokens, "keep": keep} | tensors_of(plan)
        key = tuple(tuple(tensor.shape) for tensor in inputs.values())
        with torch.cuda.device(tokens.device):  # streams and graphs belong to the current device
            if key not in self._graphs:
                self._graphs[key] = _Graph.record(self._dlm, inputs, start, context)
            return self._graphs[key].replay(inputs)


@dataclass(frozen=True)
class _Graph:
    """A recorded forward pass, the tensors that it reads its input from and the one that it writes to."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    logits: Tensor

    @classmethod
    def record(
        cls, dlm: DLM, inputs: dict[str, Tensor], start: Tensor | None, context: StepContext
    ) -> _Graph:
        held = {name: tensor.clone() for name, tensor in inputs.items()}
        changed: dict[str, Any] = {name: held[name] for name in tensors_of(context.plan)}
        fixed = replace(context, plan=replace(context.plan, **changed))
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # compiles and allocates what a recording may not
            dlm.logits(held["tokens"], start=start, keep=held["keep"], context=fixed)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside):  # by default all record on the first device that did
            logits = dlm.logits(held["tokens"], start=start, keep=held["keep"], context=fixed)
        return cls(graph, held, logits)

    def replay(self, inputs: dict[str, Tensor]) -> Tensor:
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)
        self.graph.replay()
        return self.logits
