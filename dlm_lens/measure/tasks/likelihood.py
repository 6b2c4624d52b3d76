"""How probable a text is after another: the conditional diffusion bound, and whether greedy decoding writes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dlm_lens.denoising_loop import UNDECIDED, Loop
from dlm_lens.errors import MemoryBudgetError
from dlm_lens.measure.predict import mask_token
from dlm_lens.measure.tasks.bound import Nats, draw_hidden, score, strata
from dlm_lens.measure.tasks.held_out import tokenizer_of
from dlm_lens.models.prompt import left_padded
from dlm_lens.policies import Dense, Policy
from dlm_lens.progress import Bar, Progress
from dlm_lens.samplers import LowConfidence

if TYPE_CHECKING:
    from dlm_lens.models import DLM

Pair = tuple[Tensor, Tensor]
"""Token ids of a context and of what continues it, int64 [c] and [n]."""


@dataclass(frozen=True, repr=False)
class Likelihood(Nats):
    """How improbable a continuation is to a model, in nats, all its ``tokens`` together.

    It is exact of an autoregressive model, and of the bound where all ways to hide tokens were gone through.
    """

    def __repr__(self) -> str:
        error = "" if self.exact else f" ± {self.standard_error:.2g}"
        how = "exact" if self.exact else f"{len(self.draws)} draws"
        return f"Likelihood under {self.label}: {self.nats:.4f}{error} nats for {self.tokens} tokens ({how})"


def likelihood(
    dlm: DLM,
    pairs: Sequence[tuple[Any, Any]],
    policy: Policy | None = None,
    *,
    samples: int = 128,
    seed: int = 0,
    cfg_scale: float = 0.0,
    batch_size: int = 8,
    progress: bool | Progress = True,
) -> list[Likelihood]:
    """Bound −log p(continuation | context) from above for every (context, continuation), as ``policy`` predicts.

    The context stays visible and only the continuation is hidden: the bound of its n tokens is the mean of n / l times
    the −log p of the hidden tokens, with their number l uniform in 1 … n and their positions uniform given l (LLaDA,
    arXiv 2502.09992, on evaluating likelihoods). Where there are no more than ``samples`` ways to hide tokens, 2ⁿ − 1,
    each is gone through once and the bound is exact: a letter to choose costs one prediction. Otherwise ``samples`` are
    drawn, stratified as by :func:`perplexity`; every pair gets the same strata from ``seed``, so that answers of one
    length to one question are compared on the same draws.

    Under a sparse policy each prediction comes from a sparse step whose pattern was chosen at that same state.

    Parameters
    ----------
    pairs : strings, encoded apart from each other, or token ids. A diffusion model takes an empty context too.
    samples : draws of each pair, an even number; each costs one forward pass, under PulseCol two, under SparseD three.
    cfg_scale : classifier-free guidance as in :func:`dlm_lens.denoise`; doubles what a prediction costs.
    batch_size : predictions at a time. Policies that draw at random draw anew for every batch.

    An autoregressive model needs no bound: each pair is scored once, exactly.

    Raises ValueError before anything is run for values that cannot work, and :class:`MemoryBudgetError` where a GPU's
    memory does not suffice.
    """
    for index, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"pairs[{index}]={pair!r} is no pair; give (context, continuation)")
    encoded = [
        (_ids(dlm, context, begins=True), _ids(dlm, continuation, begins=False))
        for context, continuation in pairs
    ]
    found: dict[int, Likelihood] = {}
    with Bar(progress, total=len(encoded), desc="likelihood", unit="text", leave=False) as bar:
        settings: dict[str, Any] = {"samples": samples, "seed": seed, "cfg_scale": cfg_scale}
        for index, estimate in likelihoods(dlm, encoded, policy, batch_size=batch_size, **settings):
            found[index] = estimate
            bar.update()
    return [found[index] for index in range(len(encoded))]


def likelihoods(
    dlm: DLM,
    pairs: Sequence[Pair],
    policy: Policy | None,
    *,
    samples: int,
    seed: int,
    cfg_scale: float,
    batch_size: int,
) -> Iterator[tuple[int, Likelihood]]:
    """:func:`likelihood` of token ids, each with the index of its pair, as they are done: the longest first."""
    policy = Dense() if policy is None else policy
    _check(dlm, pairs, samples, cfg_scale, batch_size)
    order = sorted(range(len(pairs)), key=lambda index: -sum(map(len, pairs[index])))
    rows = (
        (index, hidden) for index in order for hidden in _hidden(dlm, len(pairs[index][1]), samples, seed)
    )
    values: dict[int, list[float]] = {index: [] for index in order}
    weights: dict[int, list[float]] = {index: [] for index in order}
    at = 0
    while batch := list(islice(rows, batch_size)):
        windows = [_window(*pairs[index], hidden) for index, hidden in batch]
        given = [len(pairs[index][0]) for index, _ in batch]
        with _enough_memory(len(batch)):
            scored = score(dlm, windows, policy, seed + at, cfg_scale=cfg_scale, given=given)
        at += len(batch)
        for (index, hidden), nats in zip(batch, scored.nats.tolist(), strict=True):
            length = len(hidden)
            values[index].append(nats * length)
            weights[index].append(1 / comb(length, int(hidden.sum())))
            count, exact = _how_many(dlm, length, samples)
            if len(values[index]) == count:
                draws, of = np.array(values.pop(index)), weights.pop(index)
                draws = np.average(draws, weights=of)[None] if exact else draws
                yield index, Likelihood(policy.label, scored.kind, draws, length)


def greedy(
    dlm: DLM,
    pairs: Sequence[Pair],
    policy: Policy | None,
    *,
    seed: int,
    cfg_scale: float,
    batch_size: int,
) -> Iterator[tuple[int, bool]]:
    """Whether decoding greedily after each context writes the continuation, with the index of its pair.

    A diffusion model starts with the continuation masked and commits its most confident prediction, one token a step,
    as ``policy`` attends; it stops as soon as none of a batch can come true any more. An autoregressive model's tokens
    are each the most probable one.
    """
    policy = Dense() if policy is None else policy
    _check(dlm, pairs, 2, cfg_scale, batch_size)
    groups: dict[int, list[int]] = {}
    for index in sorted(range(len(pairs)), key=lambda index: -sum(map(len, pairs[index]))):
        groups.setdefault(len(pairs[index][1]), []).append(index)
    for length, members in groups.items():
        for at in range(0, len(members), batch_size):
            batch = [pairs[index] for index in members[at : at + batch_size]]
            with _enough_memory(len(batch)):
                if dlm.spec.causal:
                    everywhere = torch.ones(length, dtype=torch.bool)
                    right = score(dlm, [_window(*pair, everywhere) for pair in batch], policy, seed).right
                else:
                    right = _decoded(dlm, batch, policy, seed, cfg_scale)
            yield from zip(members[at : at + batch_size], right.tolist(), strict=True)


def _decoded(dlm: DLM, batch: Sequence[Pair], policy: Policy, seed: int, cfg_scale: float) -> Tensor:
    """bool [B]: whether the most confident predictions, one a step, are the continuations, all of one length."""
    truth = torch.stack([continuation for _, continuation in batch]).to(dlm.device)
    length = truth.shape[1]
    loop = Loop.begin(
        dlm,
        left_padded([context for context, _ in batch], [""] * len(batch), dlm.spec),
        gen_length=length,
        steps=length,
        policy=policy,
        sampler=LowConfidence(block_length=length),
        cfg_scale=cfg_scale,
        seed=seed,
        recorder=None,
        keep_states=False,
    )
    right = torch.ones(len(batch), dtype=torch.bool, device=dlm.device)
    for step in range(length):
        loop.advance(step)
        decided = loop.committed_at[:, -length:] != UNDECIDED
        right = ((loop.tokens[:, -length:] == truth) | ~decided).all(1)
        if not right.any():
            break
    return right


@contextmanager
def _enough_memory(rows: int) -> Iterator[None]:
    """Say what to change where the GPU's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error).splitlines()[0]
        raise MemoryBudgetError(
            f"out of memory with {rows} rows at a time ({said}); lower batch_size"
        ) from error


def _window(context: Tensor, continuation: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and where they are to be predicted, int64 and bool [c + n]."""
    return torch.cat([context, continuation]), torch.cat(
        [torch.zeros_like(context, dtype=torch.bool), hidden]
    )


def _how_many(dlm: DLM, length: int, samples: int) -> tuple[int, bool]:
    """Predictions that a continuation of ``length`` tokens takes, and whether these are all there are."""
    ways = 1 if dlm.spec.causal else 2**length - 1
    return (ways, True) if ways <= samples else (samples, False)


def _hidden(dlm: DLM, length: int, samples: int, seed: int) -> Iterator[Tensor]:
    """What to predict, bool [length], once for each prediction."""
    _, exact = _how_many(dlm, length, samples)
    generator = torch.Generator().manual_seed(seed)
    if dlm.spec.causal:
        yield torch.ones(length, dtype=torch.bool)
    elif exact:
        for count in range(1, length + 1):
            for at in combinations(range(length), count):
                yield torch.zeros(length, dtype=torch.bool).index_fill_(0, torch.tensor(at), True)
    else:
        for share in strata(samples, generator):
            yield draw_hidden(length, share, generator)


def _ids(dlm: DLM, text: Any, *, begins: bool) -> Tensor:
    """Token ids of a string or of ids, int64 [n]; special tokens, if the tokenizer adds any, only at the beginning."""
    if isinstance(text, str):
        text = tokenizer_of(dlm, "texts").encode(text, add_special_tokens=begins)
    return dlm.encode(text).tokens[0] if len(text) else torch.zeros(0, dtype=torch.long)


def _check(dlm: DLM, pairs: Sequence[Pair], samples: int, cfg_scale: float, batch_size: int) -> None:
    spec = dlm.spec
    if samples < 2 or samples % 2:
        raise ValueError(f"samples={samples} must be even and at least 2: two are drawn from each stratum")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1 prediction")
    if cfg_scale < 0 or (cfg_scale and spec.causal):
        raise ValueError(
            f"cfg_scale={cfg_scale} must be 0, or positive with a diffusion model; it masks the context"
        )
    for index, (context, continuation) in enumerate(pairs):
        if not len(continuation):
            raise ValueError(f"the continuation of pair {index} is empty; there is nothing to predict")
        if spec.causal and not len(context):
            raise ValueError(
                f"the context of pair {index} is empty; {spec.name!r} predicts from what stands before"
            )
        if (length := len(context) + len(continuation)) > spec.max_length:
            raise ValueError(
                f"pair {index} has {length} tokens, more than the {spec.max_length} positions of {spec.name!r}"
            )
        if not spec.causal and torch.cat([context, continuation]).eq(mask_token(dlm, "the bound")).any():
            raise ValueError(
                f"pair {index} holds the mask token {spec.mask_id}, which nothing can tell from a hidden one"
            )
