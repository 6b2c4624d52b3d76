"""How far ahead decoding looks: what undecided context contributes to a prediction, by its distance.

Window-Diffusion (arXiv 2601.20332) rests on the observation that masked positions far ahead of those being decided
hardly matter, and leaves them out. Here they are left out of single predictions along a dense run, and so are, for
comparison, as many positions near by and as many that are decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from dlm_lens.attention import StepContext, dense_attention
from dlm_lens.denoising import Denoised, denoise
from dlm_lens.measure.fidelity import divergence
from dlm_lens.measure.predict import mask_token
from dlm_lens.measure.speed import uninterrupted
from dlm_lens.policies import PolicyRun, StepPlan
from dlm_lens.samplers import Sampler

if TYPE_CHECKING:
    from dlm_lens.models import DLM

LEFT_OUT = ("far", "near", "decided")
"""What :func:`context_influence` leaves out of a prediction: undecided positions far from it, and two controls."""


def context_influence(
    dlm: DLM,
    prompt: Any,
    *,
    gen_length: int = 128,
    steps: int | None = None,
    sampler: Sampler | None = None,
    distances: Sequence[int] = (0, 2, 4, 8, 16, 32, 64),
    targets: int | None = 16,
    states: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """How predictions change when undecided context beyond a distance is left out of the computation.

    The dense run of each prompt is walked. At some of its states the ``targets`` first masked positions (those that
    Window-Diffusion computes at every step; None: those that the run commits at this step) are predicted from
    everything, and again without the positions that ``left_out`` names. These take no part in any layer; all others
    keep their RoPE index. In rows with the same state and ``distance`` d the same number of positions is left out:

    ``"far"``      the undecided positions more than d away from every target
    ``"near"``     as many undecided positions, the nearest first: if distance is what matters, this costs more
    ``"decided"``  as many decided positions, drawn at random from prompt and text: if being undecided is what makes
                   context dispensable, this costs more. No row where fewer are decided.

    Targets are never left out, nor are the positions that their predictions are read at (one before, in Dream).

    Parameters
    ----------
    prompt : as in :func:`dlm_lens.denoise`; several prompts are run one after the other, unpadded
    gen_length, steps, sampler, seed : those of the dense run; ``seed`` draws the decided positions, too
    distances : in positions, 0 or more
    states : of the run's states at which the largest distance leaves something out, this many, at even distances;
        all distances are compared on the same states

    Returns one row per prompt, state, distance and kind: prompt (its number), step, left_out, distance, count
    (positions left out), positions (targets), kl (nats, mean KL(all ‖ some) over the targets), agreement (share of
    the targets with the same most probable token).

    Raises ValueError for autoregressive models, distances or counts out of range, and a run none of whose states has
    undecided positions beyond the largest distance. Source of the question: arXiv 2601.20332, its analysis of
    undecided context.
    """
    mask_id = mask_token(dlm, "the influence of undecided context")
    _check(distances, targets, states)
    sampled = []
    for number, row in enumerate(rows_of(dlm, prompt)):
        done = dense_run(dlm, row, gen_length, steps, sampler, seed, progress)
        found = list(_states(done, mask_id, targets, max(distances)))
        if not found:
            raise ValueError(
                f"at no step of prompt {number} are undecided positions more than {max(distances)} away from all that"
                f" are predicted; use smaller distances, fewer targets or a gen_length above {gen_length}"
            )
        sampled += [(number, found[index]) for index in _evenly(len(found), states)]
    rows = []
    with tqdm(total=len(sampled), desc="Influence", unit="state", disable=not progress) as bar:
        for number, state in sampled:
            rows += [{"prompt": number, **row} for row in _compare(dlm, state, distances, seed)]
            bar.update()
    return pd.DataFrame(rows)


def rows_of(dlm: DLM, prompt: Any) -> list[Tensor]:
    """The prompts one by one, LongTensor [P] each, without padding."""
    encoded = dlm.encode(prompt)
    return [row[start:] for row, start in zip(encoded.tokens, encoded.start.tolist(), strict=True)]


def dense_run(
    dlm: DLM,
    row: Tensor,
    gen_length: int,
    steps: int | None,
    sampler: Sampler | None,
    seed: int,
    progress: bool,
) -> Denoised:
    """The dense run after one prompt [P] with all its states, which an interrupted one would not have."""
    done = denoise(
        dlm,
        row,
        gen_length=gen_length,
        steps=steps,
        sampler=sampler,
        seed=seed,
        history=True,
        progress=progress,
    )
    uninterrupted(done)
    return done


def away_from(places: Tensor, length: int) -> Tensor:
    """LongTensor [length]: how many positions each is away from the nearest of ``places`` [n], n ≥ 1."""
    position = torch.arange(length, device=places.device)
    return (position[:, None] - places).abs().amin(1)


@dataclass(frozen=True)
class _State:
    """A state ``tokens`` [1, L] of a run, what is to be predicted at it, and what may be left out: ``undecided`` and
    ``decided`` LongTensors, the former from the nearest to the farthest, at distances ``away``."""

    step: int
    tokens: Tensor
    targets: Tensor
    undecided: Tensor
    away: Tensor
    decided: Tensor


def _states(done: Denoised, mask_id: int, targets: int | None, beyond: int) -> Iterator[_State]:
    """The states of a run with undecided positions more than ``beyond`` away from their targets."""
    assert done.history is not None
    for step, tokens in enumerate(done.history):
        masked = tokens[0].eq(mask_id)
        masked[: done.prompt_length] = False
        chosen = (masked if targets else done.committed_at[0].eq(step)).nonzero()[:targets, 0]
        if not len(chosen):
            continue
        free = torch.ones_like(masked)
        free[chosen] = False
        if done.spec.logit_shift:
            free[chosen - 1] = False
        away = away_from(chosen, len(masked))
        undecided = (masked & free).nonzero()[:, 0]
        undecided = undecided[away[undecided].argsort(stable=True)]
        if (away[undecided] > beyond).any():
            decided = (~masked & free).nonzero()[:, 0]
            yield _State(step, tokens, chosen, undecided, away[undecided], decided)


def _compare(dlm: DLM, state: _State, distances: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
    dense = _predict(dlm, state, state.undecided[:0])
    # One order for all distances: more positions are left out, never others.
    generator = torch.Generator().manual_seed(seed)
    drawn = state.decided[torch.randperm(len(state.decided), generator=generator)]
    for distance in distances:
        far = state.undecided[state.away > distance]
        for name, positions in zip(
            LEFT_OUT, (far, state.undecided[: len(far)], drawn[: len(far)]), strict=True
        ):
            if len(positions) < len(far):
                continue
            kl, same = divergence(dense, _predict(dlm, state, positions))
            yield {
                "step": state.step,
                "left_out": name,
                "distance": distance,
                "count": len(far),
                "positions": len(state.targets),
                "kl": kl,
                "agreement": same,
            }


def _predict(dlm: DLM, state: _State, left_out: Tensor) -> Tensor:
    """Logits [n, V] of the targets, computed without the positions ``left_out``."""
    kept = torch.ones(state.tokens.shape[1], dtype=torch.bool)
    kept[left_out] = False
    run = _SomePositions(kept.nonzero()[:, 0].to(dlm.device))
    tokens, targets = state.tokens.to(dlm.device), state.targets.to(dlm.device)
    context = StepContext(state.step, run.plan(state.step, tokens), run)
    return dlm.logits(tokens, keep=targets[None], context=context)[0]


class _SomePositions(PolicyRun):
    """Computes ``positions`` [n] and nothing else, every one of them attending to all of them."""

    def __init__(self, positions: Tensor) -> None:
        self._positions = positions

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        return StepPlan(step, "sparse", queries=self._positions[None], keys=len(self._positions))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        return dense_attention(q, k, v)


def _evenly(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the indices below ``count`` at even distances, the first among them."""
    return [index * count // wanted for index in range(wanted)] if wanted < count else list(range(count))


def _check(distances: Sequence[int], targets: int | None, states: int) -> None:
    if not distances or min(distances) < 0:
        raise ValueError(f"distances={list(distances)} must be at least one number of positions, 0 or more")
    if targets is not None and targets < 1:
        raise ValueError(f"targets={targets} must be at least 1 masked position, or None for those committed")
    if states < 1:
        raise ValueError(f"states={states} must be at least 1 state of every run")
