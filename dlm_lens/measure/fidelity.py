"""How far a policy's predictions are from dense ones, asked at every state that a dense run passes through.

Comparing two finished texts mixes a policy's own errors with what follows from the first different token.
Here both see the same states: the dense run is walked, and at each of its steps the policy predicts too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from dlm_lens.attention import StepContext
from dlm_lens.denoising import default_sampler, denoise
from dlm_lens.measure.speed import uninterrupted
from dlm_lens.policies import Dense, Policy, PolicyRun, RunInfo, StepPlan
from dlm_lens.progress import Bar, Progress
from dlm_lens.samplers import Candidates, Commitment, Sampler

if TYPE_CHECKING:
    from dlm_lens.models import DLM, Prompt

# Distributions are compared so many positions at a time: vocabularies are large.
_POSITIONS = 256


@dataclass(frozen=True)
class Fidelity:
    """A policy's predictions against dense ones on the states of the dense run.

    ``steps`` has one row per step: step, kind (the policy's), masked (positions compared, over the batch: all that are
    masked, or those of them that the policy predicts), kl (nats, mean KL(dense ‖ policy) over them), agreement (share
    of them with the same argmax).
    ``retained_mass`` (step, layer, head) is the share of the dense attention that falls on the kept keys,
    mean over queries and samples; NaN where a step was dense.
    """

    label: str
    steps: pd.DataFrame
    retained_mass: xr.DataArray

    @property
    def kl(self) -> float:
        """Mean over all masked positions of all steps, nats."""
        return float(np.average(self.steps["kl"], weights=self.steps["masked"]))

    @property
    def agreement(self) -> float:
        """Share of all masked positions of all steps whose most probable token is the dense one's."""
        return float(np.average(self.steps["agreement"], weights=self.steps["masked"]))

    @property
    def retained_by_layer(self) -> xr.DataArray:
        """Retained mass (layer), mean over heads and sparse steps; 1 if no step was sparse."""
        return self.retained_mass.mean(("step", "head"), skipna=True).fillna(1.0)

    @property
    def retained_mean(self) -> float:
        """Retained mass, mean over layers, heads and sparse steps."""
        return float(self.retained_by_layer.mean())

    @property
    def retained_worst_layer(self) -> float:
        """Retained mass of the layer that keeps least."""
        return float(self.retained_by_layer.min())

    def __repr__(self) -> str:
        worst = int(self.retained_by_layer.values.argmin())
        return (
            f"Fidelity of {self.label} on {len(self.steps)} dense states\n"
            f"  KL(dense ‖ policy)  {self.kl:.4g} nats\n"
            f"  same argmax         {self.agreement:.1%}\n"
            f"  retained mass       {self.retained_mean:.1%},"
            f" worst layer ({worst}) {self.retained_worst_layer:.1%}"
        )


def fidelity(
    dlm: DLM,
    prompt: Any,
    policy: Policy,
    *,
    gen_length: int = 128,
    steps: int | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    progress: bool | Progress = True,
) -> Fidelity:
    """Walk the dense denoising run of ``prompt`` and let ``policy`` predict at each of its states.

    The policy's own state (patterns, refreshes) advances with the steps, exactly as in a run of its own. All
    arguments are those of :func:`dlm_lens.denoise`. Memory does not grow with the number of steps.
    """
    (result,) = walk(
        dlm,
        prompt,
        [policy],
        gen_length=gen_length,
        steps=steps,
        sampler=sampler,
        seed=seed,
        progress=progress,
    )
    return result


def walk(
    dlm: DLM,
    prompt: Any,
    policies: Sequence[Policy],
    *,
    gen_length: int,
    steps: int | None,
    sampler: Sampler | None,
    seed: int,
    progress: bool | Progress,
    models: Sequence[DLM] | None = None,
) -> list[Fidelity]:
    """:func:`fidelity` of several policies on one walk of the dense run of ``dlm``.

    Each predicts with its own of the ``models``, all on the device of ``dlm``, or else with ``dlm`` too.
    """
    steps = gen_length if steps is None else steps
    sampler = default_sampler(dlm.spec, gen_length) if sampler is None else sampler
    encoded = dlm.encode(prompt)
    shadows = [
        _Shadow(model, policy, run_info(model, encoded, gen_length, steps, seed), like=dlm)
        for model, policy in zip(models or [dlm] * len(policies), policies, strict=True)
    ]
    with Bar(progress, total=steps * len(shadows), desc="Fidelity", unit="step") as bar:
        watcher = _Watcher(sampler, shadows, encoded.tokens.shape[1], bar)
        dense = denoise(
            dlm,
            prompt,
            gen_length=gen_length,
            steps=steps,
            policy=Dense(),
            sampler=watcher,
            seed=seed,
            recorder=watcher,
            progress=False,
        )
    uninterrupted(dense)
    return [shadow.result() for shadow in shadows]


def run_info(dlm: DLM, prompt: Prompt, gen_length: int, steps: int, seed: int) -> RunInfo:
    """What a policy may know of an unguided run after ``prompt``."""
    batch, prompt_length = prompt.tokens.shape
    return RunInfo(
        spec=dlm.spec,
        prompt_length=prompt_length,
        gen_length=gen_length,
        steps=steps,
        batch=batch,
        start=prompt.start.to(dlm.device) if prompt.start.any() else None,
        device=dlm.device,
        seed=seed,
    )


class _Shadow:
    """One policy's run alongside the dense one of ``like``: it predicts at every state, and commits nothing."""

    def __init__(self, dlm: DLM, policy: Policy, info: RunInfo, *, like: DLM) -> None:
        self._dlm, self._info, self._label = dlm, info, policy.label
        self._dense = policy == Dense() and dlm is like  # its predictions are there already
        self._run: PolicyRun = policy.start(info)
        self._rows: list[dict[str, Any]] = []
        self._retained = np.full((info.steps, info.spec.layers, info.spec.heads), np.nan, np.float32)

    def compare(self, step: int, tokens: Tensor, keep: range, dense: Tensor, masked: Tensor) -> None:
        """Predict at ``tokens`` [B, L] and compare with ``dense`` [B, n, V], the logits of ``keep``, where
        ``masked`` bool [B, n], and where the policy predicts at all."""
        info = self._info
        plan = self._run.plan(step, tokens)
        logits = dense
        if not self._dense:
            wanted = keep if plan.candidates is None else plan.candidates
            context = StepContext(step, plan, self._run, self, info.start, info.spec.causal)
            logits = self._dlm.logits(tokens, start=info.start, keep=wanted, context=context)
            if isinstance(wanted, Tensor):
                dense, masked = _at(wanted, keep, dense, masked)
        kl, same = divergence(dense[masked], logits[masked])
        self._rows.append(
            {"step": step, "kind": plan.kind, "masked": int(masked.sum()), "kl": kl, "agreement": same}
        )

    def observe(self, layer: int, q: Tensor, k: Tensor, context: StepContext) -> None:
        if context.mask is not None:  # a window of the model's own, which no policy replaces
            return
        pattern = self._run.pattern(layer)
        if pattern is not None:
            mean, _ = pattern.retained_mass(q, k)
            self._retained[context.step, layer] = mean.mean(0).cpu().numpy()

    def result(self) -> Fidelity:
        steps = pd.DataFrame(self._rows)
        retained = xr.DataArray(
            self._retained[steps["step"]],
            dims=("step", "layer", "head"),
            coords={
                "step": steps["step"].to_numpy(),
                "layer": np.arange(self._retained.shape[1]),
                "head": np.arange(self._retained.shape[2]),
            },
            name="retained_mass",
        )
        return Fidelity(self._label, steps, retained)


class _Watcher(Sampler):
    """The dense run's sampler and recorder in one: it learns the state as one and the logits as the other."""

    def __init__(self, inner: Sampler, shadows: Sequence[_Shadow], prompt_length: int, bar: Bar) -> None:
        self.causal = inner.causal  # type: ignore[misc]
        self._inner, self._shadows, self._prompt_length, self._bar = inner, shadows, prompt_length, bar

    def check(self, gen_length: int, steps: int) -> None:
        self._inner.check(gen_length, steps)

    def positions(self, step: int, gen_length: int) -> range:
        self._positions = self._inner.positions(step, gen_length)
        return self._positions

    def begin_step(self, step: int, tokens: Tensor, plan: StepPlan) -> None:
        self._tokens = tokens

    def observe(self, layer: int, q: Tensor, k: Tensor, context: StepContext) -> None:
        pass

    def end_step(
        self, step: int, confidence: Tensor, committed: Tensor, kind: str, ms: float, run: PolicyRun
    ) -> None:
        pass

    def commit(self, at: Candidates) -> Commitment:
        first = self._prompt_length
        keep = range(first + self._positions.start, first + self._positions.stop)
        for shadow in self._shadows:
            shadow.compare(at.step, self._tokens, keep, at.logits, at.open)
            self._bar.update()
        return self._inner.commit(at)


def _at(wanted: Tensor, keep: range, dense: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """``dense`` and ``masked`` at positions ``wanted`` LongTensor [B, m] instead of ``keep``; masked only inside."""
    inside = (wanted >= keep.start) & (wanted < keep.stop)
    index = (wanted - keep.start).clamp(0, len(keep) - 1)
    return dense.gather(1, index[..., None].expand(-1, -1, dense.shape[-1])), masked.gather(1, index) & inside


def divergence(dense: Tensor, policy: Tensor) -> tuple[float, float]:
    """Mean KL(dense ‖ policy) in nats and the share of equal argmax, over the rows of two [n, V] logits."""
    if not len(dense):
        return 0.0, 1.0
    kl = dense.new_zeros((), dtype=torch.float64)
    for p, q in zip(dense.split(_POSITIONS), policy.split(_POSITIONS), strict=True):
        log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
        kl += (log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64)
    same = (dense.argmax(-1) == policy.argmax(-1)).double().mean()
    return max(0.0, float(kl) / len(dense)), float(same)  # rounding alone can make it negative
