"""What a policy would keep at one given state, looked at before anything is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlm_lens.attention import StepContext
from dlm_lens.measure.predict import first_sparse_step
from dlm_lens.policies import Policy, RunInfo, StepPlan

if TYPE_CHECKING:
    from dlm_lens.models import DLM


@dataclass(frozen=True)
class Preview:
    """What one step of a policy keeps.

    ``retained_mass`` float32 [layer, head] is the share of the dense attention on the kept keys, mean over queries;
    None for a policy that computes only some of the positions, whose other predictions are old ones. ``density`` is the
    share of the work of dense attention that the step does, mean over layers. ``kept`` float32 [bins, bins], if asked
    for, is the share of pairs kept, by bins of queries and keys. ``computed`` and ``attended`` count positions.
    """

    kind: str
    retained_mass: np.ndarray | None
    density: float
    kept: np.ndarray | None
    computed: int
    attended: int


def preview(
    dlm: DLM,
    tokens: Tensor,
    policy: Policy,
    *,
    prompt_length: int,
    steps: int,
    start: int = 0,
    bins: int = 0,
    layer: int | None = None,
    head: int | None = None,
    seed: int = 0,
    watch: Callable[[], None] = lambda: None,
) -> Preview:
    """The first sparse step of ``policy`` at the state ``tokens`` [L], its pattern chosen at that very state.

    The first ``prompt_length`` tokens are the prompt, of which the first ``start`` are padding. Layers attend as the
    policy says, so each sees what the sparsity of those before it has made of the state. A policy that is never sparse
    keeps everything. Of one that keeps keys and values from step to step (Window-Diffusion, Fast-dLLM) this is the step
    after a refresh in a run of ``steps``, for which the model need not be run.

    ``bins`` asks for ``kept``, of one ``head`` of a ``layer``, or the mean over all of either that is None. ``watch``
    is called in every layer and may raise to end the preview. Raises what :func:`dlm_lens.denoise` does.
    """
    state = tokens[None].to(dlm.device)
    info = RunInfo(
        spec=dlm.spec,
        prompt_length=prompt_length,
        gen_length=len(tokens) - prompt_length,
        steps=max(steps, 3),  # the last step of a run may be special, and so is the first
        batch=1,
        start=torch.tensor([start], device=dlm.device) if start else None,
        device=dlm.device,
        seed=seed,
    )
    first = policy.start(info).plan(0, state)
    if first.queries is not None:
        return _of_cached(policy, info, state, bins)
    observer = _Observer(info, bins, layer, head, watch)
    kind = first_sparse_step(dlm, state, policy, info, keep=range(0), observer=observer).kind
    valid = len(tokens) - start
    kept = observer.kept() if bins else None
    return Preview(kind, observer.retained, float(observer.densities.mean()), kept, valid, valid)


class _Observer:
    """Notes what every layer keeps; of several steps the last."""

    def __init__(
        self, info: RunInfo, bins: int, layer: int | None, head: int | None, watch: Callable[[], None]
    ) -> None:
        self._info, self._bins, self._layer, self._head, self._watch = info, bins, layer, head, watch
        self.retained = np.ones((info.spec.layers, info.spec.heads), np.float32)
        self.densities = np.ones(info.spec.layers)
        self._kept: dict[int, Tensor] = {}

    def observe(self, layer: int, q: Tensor, k: Tensor, context: StepContext) -> None:
        self._watch()
        pattern = context.run.pattern(layer) if context.mask is None else None
        if pattern is not None:
            self.retained[layer] = pattern.retained_mass(q, k)[0][0].float().cpu().numpy()
            self.densities[layer] = pattern.density
        if not self._bins or self._layer not in (None, layer):
            return
        if context.mask is not None:
            self._kept[layer] = _within(context.mask[0, 0].cpu(), self._info, self._bins)
        elif pattern is None:
            valid = _valid(self._info)
            self._kept[layer] = _pairs(valid, valid, self._info, self._bins)
        else:
            share = pattern.kept_share(self._bins, q.shape[1])[0]
            self._kept[layer] = share.mean(0) if self._head is None else share[self._head]

    def kept(self) -> np.ndarray:
        return torch.stack(list(self._kept.values())).mean(0).numpy()


def _of_cached(policy: Policy, info: RunInfo, state: Tensor, bins: int) -> Preview:
    """Refresh, and plan the step after it: all that a policy does which keeps keys and values."""
    run = policy.start(info)
    attended = _named(run.plan(0, state), info)
    plan = run.plan(1, state)
    computed = _named(plan, info)
    valid = len(_valid(info))
    kept = _pairs(computed, attended, info, bins).numpy() if bins else None
    density = len(computed) * len(attended) / valid**2
    return Preview(plan.kind, None, density, kept, len(computed), len(attended))


def _named(plan: StepPlan, info: RunInfo) -> Tensor:
    """The positions that a plan computes, without the filling."""
    assert plan.queries is not None
    queries = plan.queries[0].cpu()
    return queries[queries < info.length]


def _valid(info: RunInfo) -> Tensor:
    return torch.arange(0 if info.start is None else int(info.start[0]), info.length)


def _within(mask: Tensor, info: RunInfo, bins: int) -> Tensor:
    """Share of all pairs of valid positions that are in ``mask`` bool [L, L], float32 [bins, bins]."""
    valid = _valid(info)
    of_bin = torch.nn.functional.one_hot(valid * bins // info.length, bins).float()
    there = of_bin.sum(0).clamp_min(1)
    return of_bin.T @ mask[valid][:, valid].float() @ of_bin / there.outer(there)


def _pairs(queries: Tensor, keys: Tensor, info: RunInfo, bins: int) -> Tensor:
    """Share of all pairs of valid positions that are of ``queries`` and ``keys``, float32 [bins, bins]."""

    def count(positions: Tensor) -> Tensor:
        return torch.bincount(positions * bins // info.length, minlength=bins)

    there = count(_valid(info)).clamp_min(1)
    return (count(queries) / there).outer(count(keys) / there)
