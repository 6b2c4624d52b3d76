"""Code infilling: a hole in the middle of held-out code, to be filled from what stands before and behind it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from dlm_lens.denoising import default_sampler
from dlm_lens.measure.predict import mask_token, negative_log_likelihood, predict
from dlm_lens.measure.tasks.held_out import held_out_text, tokenizer_of
from dlm_lens.progress import Bar, Progress
from dlm_lens.samplers import Candidates, LowConfidence, Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from dlm_lens.models import DLM
    from dlm_lens.policies import Policy

SPANS = ("line_end", "line", "lines")
_MOST_LINES = 4


@dataclass(frozen=True)
class InfillingItem:
    """Code with a hole.

    Attributes
    ----------
    tokens : the code ``[L]``, int64, mask tokens in the hole.
    hole : the positions hidden.
    hidden : the token ids ``[len(hole)]`` that stood there.
    answer : those as text; what counts as correct, white space at the ends aside.
    """

    tokens: Tensor = field(repr=False)
    hole: range
    hidden: Tensor = field(repr=False)
    answer: str


def infilling(
    dlm: DLM, n: int = 16, *, length: int = 512, span: int | str = "line_end", seed: int = 0
) -> list[InfillingItem]:
    """Cut ``n`` pieces of ``length`` tokens from the held-out code and hide something in the middle of each.

    Parameters
    ----------
    dlm : the model whose tokenizer counts the tokens. Lines are told apart by the tokens that hold a line break, which
        stay visible, with the indentation that many of them hold; holes never begin or end with one.
    span : what is hidden: the last so many tokens of a line, if a number; the end of a line from anywhere in it
        (``"line_end"``), a whole ``"line"``, or 2-4 ``"lines"``.

    Raises ValueError for what cannot be made, and for an autoregressive model: it cannot read what follows the hole.
    """
    mask = mask_token(dlm, "infilling")
    tokenizer = tokenizer_of(dlm, "infilling tasks")
    _check(dlm, n, length, span)
    ids = tokenizer.encode(held_out_text(), add_special_tokens=False)
    rng = random.Random(f"{span}-{length}-{seed}")
    holes = [hole for hole in _holes(rng, _lines(ids, tokenizer), span) if _fits(hole, length, len(ids))]
    if n > len(holes):
        raise ValueError(
            f"n={n} holes with span={span!r} and length={length} were asked for, but the held-out code of"
            f" {len(ids):,} tokens has only {len(holes)}; ask for fewer, a smaller span or another length"
        )
    return [_item(ids, hole, length, mask, tokenizer) for hole in rng.sample(holes, n)]


def infill(
    dlm: DLM,
    items: Sequence[InfillingItem],
    *,
    policy: Policy | None = None,
    sampler: Sampler | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool | Progress = True,
) -> pd.DataFrame:
    """Fill the holes of ``items`` by denoising, and compare with what stood there.

    A hole is filled in ``steps`` steps (by default, and at most, as many as it has tokens) by ``sampler`` (by default
    the model's own, the hole being one block). At each step ``policy`` predicts as it does once it is sparse, its
    pattern chosen at that very state: what shows is the sparsity, not a schedule of refreshes or a pattern's age.

    Returns one row per item: ``hidden`` (tokens), ``answer``, ``filled`` (text), ``exact`` (whether these are equal,
    white space at the ends aside), ``token_accuracy`` (share of the hidden tokens, 0-1) and ``nats``: the mean −log p
    of a hidden token while all are hidden.
    """
    if not items:
        raise ValueError("infill needs at least one item, from infilling()")
    groups: dict[tuple[range, int], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault((item.hole, len(item.tokens)), []).append(index)
    rows: dict[int, dict[str, Any]] = {}
    with Bar(progress, total=len(items), desc="filling", unit="hole", leave=False) as bar:
        for (hole, _), members in groups.items():
            count = len(hole) if steps is None else min(steps, len(hole))
            chosen = _sampler(dlm, len(hole)) if sampler is None else sampler
            chosen.check(len(hole), count)
            for at in range(0, len(members), batch_size):
                part = members[at : at + batch_size]
                told = bar.within(counts=False)
                filled = _fill(dlm, [items[i] for i in part], policy, chosen, count, seed, told)
                rows.update(zip(part, filled, strict=True))
                bar.update(len(part))
    return pd.DataFrame([rows[index] for index in range(len(items))])


def _fill(
    dlm: DLM,
    batch: Sequence[InfillingItem],
    policy: Policy | None,
    sampler: Sampler,
    steps: int,
    seed: int,
    progress: bool | Progress,
) -> list[dict[str, Any]]:
    """The rows of items whose holes and lengths are the same."""
    hole, mask = batch[0].hole, mask_token(dlm, "infilling")
    tokens = torch.stack([item.tokens for item in batch]).to(dlm.device)
    hidden = torch.stack([item.hidden for item in batch]).to(dlm.device)
    region = tokens[:, hole.start : hole.stop]  # a view: what is written here is read at the next step
    generator = torch.Generator(dlm.device).manual_seed(seed)
    for step in range(steps):
        logits = predict(dlm, tokens, policy, keep=hole, seed=seed).logits
        if step == 0:
            nats = negative_log_likelihood(logits.flatten(0, 1), hidden.flatten()).view_as(hidden).mean(1)
        chosen = sampler.commit(Candidates.everywhere(step, steps, region == mask, logits, generator))
        region.copy_(torch.where(chosen.where, chosen.tokens, region))
        if callable(progress):
            progress(step + 1, steps, "filling")
        if not (region == mask).any():
            break
    assert dlm.tokenizer is not None
    texts = dlm.tokenizer.batch_decode(region.tolist())
    right = (region == hidden).double().mean(1)
    return [
        {
            "hidden": len(hole),
            "answer": item.answer,
            "filled": text,
            "exact": text.strip() == item.answer.strip(),
            "token_accuracy": share,
            "nats": loss,
        }
        for item, text, share, loss in zip(batch, texts, right.tolist(), nats.tolist(), strict=True)
    ]


def _sampler(dlm: DLM, hole: int) -> Sampler:
    """The model's own sampler; a hole is one block, for with text on both sides there is no reason to go left to
    right."""
    own = default_sampler(dlm.spec, hole)
    return LowConfidence(block_length=hole) if isinstance(own, LowConfidence) else own


def _check(dlm: DLM, n: int, length: int, span: int | str) -> None:
    if n < 1:
        raise ValueError(f"n={n} must be at least 1 item")
    if length > dlm.spec.max_length:
        raise ValueError(f"length={length} exceeds the {dlm.spec.max_length} positions of {dlm.spec.name!r}")
    if isinstance(span, str) and span not in SPANS:
        raise ValueError(f"unknown span {span!r}: choose one of {', '.join(SPANS)}, or a number of tokens")
    if not isinstance(span, str) and span < 1:
        raise ValueError(f"span={span} must be at least 1 token")


def _lines(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[range]:
    """Where the lines of ``ids`` stand that hold more than white space, without the tokens of their line breaks."""
    texts = {token: tokenizer.decode([token]) for token in set(ids)}
    lines, begin = [], 0
    for at, token in enumerate(ids):
        if "\n" in texts[token]:
            if any(texts[inner].strip() for inner in ids[begin:at]):
                lines.append(range(begin, at))
            begin = at + 1
    return lines


def _holes(rng: random.Random, lines: Sequence[range], span: int | str) -> list[range]:
    """One hole of each line that can have one; several lines begin anywhere."""
    if span == "line":
        return list(lines)
    if span == "lines":
        counts = [rng.randint(2, _MOST_LINES) for _ in lines]
        return [
            range(line.start, lines[at + count - 1].stop)
            for at, (line, count) in enumerate(zip(lines, counts, strict=True))
            if at + count <= len(lines)
        ]
    if span == "line_end":
        return [range(rng.randrange(line.start + 1, line.stop), line.stop) for line in lines if len(line) > 1]
    return [range(line.stop - int(span), line.stop) for line in lines if len(line) >= int(span)]


def _fits(hole: range, length: int, available: int) -> bool:
    """Whether ``length`` tokens around ``hole`` leave some visible on both sides and lie within the code."""
    before = (length - len(hole)) // 2
    return before >= 1 and before <= hole.start <= available - length + before


def _item(
    ids: Sequence[int], hole: range, length: int, mask: int, tokenizer: PreTrainedTokenizerFast
) -> InfillingItem:
    before = (length - len(hole)) // 2
    tokens = torch.tensor(ids[hole.start - before : hole.start - before + length])
    place = range(before, before + len(hole))
    hidden = tokens[place.start : place.stop].clone()
    tokens[place.start : place.stop] = mask
    return InfillingItem(tokens, place, hidden, tokenizer.decode(hidden.tolist()))
