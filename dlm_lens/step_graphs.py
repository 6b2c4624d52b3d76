"""Steps as CUDA graphs where launching their kernels would cost more than the kernels do.

That is so of cached steps, which compute few positions, and of 2:4 weights: to launch each of their products takes
cuSPARSELt half a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlm_lens.attention import tensors_of
from dlm_lens.policies.base import CachedPlan, StepPlan
from dlm_lens.policies.dense import DenseRun

if TYPE_CHECKING:
    from dlm_lens.attention import StepContext
    from dlm_lens.models.dlm import DLM


MOST_POSITIONS = 16_384
"""Rows × length of the largest dense step that is recorded: computing larger ones takes longer than launching them."""


class StepGraphs:
    """The forward passes of one run. On a GPU those of cached steps are recorded, one graph for each shape of plan, and
    so are small dense steps of a model with 2:4 weights.

    A graph keeps the addresses of the run's cache, so that graphs and run live and end together. It holds the work of
    one device: models on several run without. So do steps of rows with padding, where dense attention asks the GPU how
    long each is, steps that are recorded, and sparse ones, whose lists of keys are made anew at every refresh.

    The graphs of a run share their memory, in which every step does all its work: what a step needs besides weights and
    cache is held from the first one on.
    """

    def __init__(self, dlm: DLM) -> None:
        self._dlm = dlm
        self._one_gpu = dlm.device.type == "cuda" and len(dlm.devices) == 1
        self._semi_structured = dlm.is_semi_structured
        self._graphs: dict[tuple[tuple[int, ...], ...], _Graph] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if self._one_gpu else None

    def logits(
        self, tokens: Tensor, *, start: Tensor | None, keep: range | Tensor, context: StepContext
    ) -> Tensor:
        """What :meth:`DLM.logits` returns; the next step overwrites it, for the graphs of a run share their memory."""
        plan = context.plan
        if not self._recorded(tokens, start, keep, context):
            return self._dlm.logits(tokens, start=start, keep=keep, context=context)
        if isinstance(keep, range):  # as a tensor, so that one graph serves the blocks of a sampler
            keep = torch.arange(keep.start, keep.stop, keep.step, device=tokens.device)
            keep = keep.repeat(len(tokens), 1)
        inputs = {"tokens": tokens, "keep": keep} | tensors_of(plan)
        key = tuple(tuple(tensor.shape) for tensor in inputs.values())
        with torch.cuda.device(tokens.device):  # streams and graphs belong to the current device
            if key not in self._graphs:
                self._graphs[key] = _Graph.record(self._dlm, inputs, start, context, self._pool)
            return self._graphs[key].replay(inputs)

    def _recorded(
        self, tokens: Tensor, start: Tensor | None, keep: range | Tensor, context: StepContext
    ) -> bool:
        """Whether this forward pass is recorded, or replayed where it has been."""
        plan = context.plan
        if not self._one_gpu or context.recorder is not None:
            return False
        if isinstance(plan, CachedPlan):
            return not plan.whole and isinstance(keep, Tensor)
        dense = type(plan) is StepPlan and plan.queries is None and type(context.run) is DenseRun
        return self._semi_structured and dense and start is None and tokens.numel() <= MOST_POSITIONS


@dataclass(frozen=True)
class _Graph:
    """A recorded forward pass, the tensors that it reads its input from and the one that it writes to."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    logits: Tensor

    @classmethod
    def record(
        cls, dlm: DLM, inputs: dict[str, Tensor], start: Tensor | None, context: StepContext, pool: Any
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
        # On a stream of its own: by default all record on the first device that did.
        with torch.cuda.graph(graph, pool=pool, stream=aside):
            logits = dlm.logits(held["tokens"], start=start, keep=held["keep"], context=fixed)
        return cls(graph, held, logits)

    def replay(self, inputs: dict[str, Tensor]) -> Tensor:
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)
        self.graph.replay()
        return self.logits
