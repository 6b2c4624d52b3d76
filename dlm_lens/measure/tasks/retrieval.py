"""Retrieval tasks with known answers: rows of ``key=value`` between lines of code, and a question at the end.

The variants follow RULER (arXiv 2404.06654): one key, several keys asked at once, several values of one key,
and variable tracking over two hops. The bundled models are trained on the same generator with other seeds.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from dlm_lens.measure.tasks.held_out import held_out_text, tokenizer_of

if TYPE_CHECKING:
    from dlm_lens.models import DLM

VARIANTS = ("single", "multi_key", "multi_value", "two_hop")
# Positions left for the answer, an end-of-text token included where the answer is shorter.
GEN_LENGTH = {"single": 8, "multi_key": 32, "multi_value": 32, "two_hop": 16}

Encode = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True)
class TaskItem:
    """One question.

    Attributes
    ----------
    prompt : token ids ``[P]``, int64.
    text : the prompt as text.
    answer : the text that counts as correct, compared after stripping white space.
    variant : one of ``VARIANTS``.
    gen_length : positions to generate after the prompt.
    """

    prompt: torch.Tensor
    text: str
    answer: str
    variant: str
    gen_length: int


@dataclass(frozen=True)
class Question:
    """What a prompt asks: rows that must stand in it, the question line and the answer."""

    rows: list[str]
    question: str
    answer: str


def retrieval(
    dlm: DLM,
    n: int = 16,
    *,
    length: int = 512,
    variant: str = "single",
    seed: int = 0,
    code: float | None = 0.5,
) -> list[TaskItem]:
    """Make ``n`` retrieval questions whose prompt and answer region fill ``length`` tokens exactly.

    Parameters
    ----------
    dlm : the model whose tokenizer counts the tokens.
    length : from what the question, its rows and the answer take (20 to 110 tokens) to the model's positions.
    variant : ``"single"`` asks for the value of one key; ``"multi_key"`` for 2-6 keys in one question;
        ``"multi_value"`` for all 2-4 values that one key has, in order; ``"two_hop"`` for a key whose row names
        another key, to be answered by that key's row.
    code : share of the prompt that is held-out code instead of other rows, 0-1; None draws it per item.

    Raises ValueError for a length that does not hold the question or exceeds the model's, and other wrong values.
    """
    _check(dlm, n, length, variant, code)
    tokenizer = tokenizer_of(dlm, "retrieval questions")
    encode: Encode = cache(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))
    filler = encode(held_out_text())
    rng = random.Random(f"{variant}-{length}-{seed}")
    gen_length = GEN_LENGTH[variant]
    items = []
    for _ in range(n):
        share = rng.random() if code is None else code
        question = ask(rng, variant)
        prompt = torch.tensor(compose(rng, question, length - gen_length, encode, filler, code=share))
        text = tokenizer.decode(prompt.tolist())
        items.append(TaskItem(prompt, text, question.answer, variant, gen_length))
    return items


def _check(dlm: DLM, n: int, length: int, variant: str, code: float | None) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"unknown task variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    if n < 1:
        raise ValueError(f"n={n} must be at least 1 question")
    if code is not None and not 0 <= code <= 1:
        raise ValueError(f"code={code} must be a share in [0, 1], or None to draw it for every item")
    if length > dlm.spec.max_length:
        raise ValueError(f"length={length} exceeds the {dlm.spec.max_length} positions of {dlm.spec.name!r}")
    if length <= GEN_LENGTH[variant]:
        raise ValueError(
            f"length={length} must exceed the {GEN_LENGTH[variant]} positions of an answer to {variant!r}"
        )


def correct(item: TaskItem, generated: str) -> bool:
    """Whether ``generated`` is the answer exactly, white space at the ends aside."""
    return generated.strip() == item.answer


def ask(rng: random.Random, variant: str) -> Question:
    """Draw the keys, values and wording of one question."""
    if variant == "single":
        key, value = _key(rng), _value(rng)
        return Question([f"{key}={value}"], f"?{key}=", value)
    if variant == "multi_key":
        keys = _keys(rng, rng.randint(2, 6))
        values = [_value(rng) for _ in keys]
        rows = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        return Question(rows, f"?{','.join(keys)}=", ",".join(values))
    if variant == "multi_value":
        key, values = _key(rng), [_value(rng) for _ in range(rng.randint(2, 4))]
        return Question([f"{key}={value}" for value in values], f"?{key}=", ",".join(values))
    first, second = _keys(rng, 2)
    value = _value(rng)
    return Question([f"{first}={second}", f"{second}={value}"], f"?{first}=", f"{second}={value}")


def compose(
    rng: random.Random, question: Question, length: int, encode: Encode, filler: Sequence[int], *, code: float
) -> list[int]:
    """Token ids, ``length`` of them, of a prompt that holds the question's rows among others and among code.

    The rows asked for keep their order (several values of a key are answered in order) but stand anywhere.
    No other row uses a key of the question.
    """
    end = encode("\n")
    asked = [[*_pieces(row, encode), *end] for row in question.rows]
    tail = _pieces(question.question, encode)
    room = length - sum(map(len, asked)) - len(tail)
    if room < 0:
        raise ValueError(
            f"a prompt of {length} tokens has no room for {question.question!r} and its rows, which take"
            f" {length - room}; ask for a length of at least {-room} more"
        )
    others = _other_rows(rng, question, int(room * (1 - code)), encode, end)
    room -= sum(map(len, others))
    spots = sorted(rng.sample(range(len(others) + len(asked)), len(asked)))
    lines = others
    for spot, row in zip(spots, asked, strict=True):
        lines.insert(spot, row)
    return [*_with_code(rng, lines, room, filler, end), *tail]


def _other_rows(
    rng: random.Random, question: Question, room: int, encode: Encode, end: Sequence[int]
) -> list[list[int]]:
    taken = {piece for row in question.rows for piece in row.split("=")}
    rows: list[list[int]] = []
    while True:
        key = _key(rng)
        if key in taken:
            continue
        taken.add(key)
        # Some rows name a key instead of a value, so that a hop is not told by its looks alone.
        value = _key(rng) if rng.random() < 0.1 else _value(rng)
        row = [*_pieces(f"{key}={value}", encode), *end]
        room -= len(row)
        if room < 0:
            return rows
        rows.append(row)


def _with_code(
    rng: random.Random, lines: list[list[int]], room: int, filler: Sequence[int], end: tuple[int, ...]
) -> list[int]:
    """Join lines, with up to four pieces of code, ``room`` tokens in all, put between them."""
    pieces = min(4, room // 32) or 1
    cuts = sorted(rng.randint(0, room) for _ in range(pieces - 1))
    sizes = [stop - start for start, stop in zip([0, *cuts], [*cuts, room], strict=True)]
    spots = sorted(rng.randint(0, len(lines)) for _ in sizes)
    ids: list[int] = []
    done = 0
    for spot, size in zip(spots, sizes, strict=True):
        for line in lines[done:spot]:
            ids.extend(line)
        done = spot
        if size:
            start = rng.randrange(max(1, len(filler) - size))
            code = list(filler[start : start + size - len(end)]) if size > len(end) else []
            # A filler shorter than the gap is repeated; a row never starts in the middle of a line of code.
            while code and len(code) < size - len(end):
                code.extend(filler[: size - len(end) - len(code)])
            ids.extend([*code, *(end * size)[: size - len(code)]])
    for line in lines[done:]:
        ids.extend(line)
    return ids


def _pieces(text: str, encode: Encode) -> list[int]:
    """Token ids of ``text`` made from its keys, values and marks, each encoded once."""
    ids: list[int] = []
    word = ""
    for char in text:
        if char.isalnum():
            word += char
            continue
        ids.extend([*(encode(word) if word else ()), *encode(char)])
        word = ""
    return [*ids, *encode(word)] if word else ids


def _key(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=3))


def _keys(rng: random.Random, n: int) -> list[str]:
    keys: list[str] = []
    while len(keys) < n:
        key = _key(rng)
        if key not in keys:
            keys.append(key)
    return keys


def _value(rng: random.Random) -> str:
    return "".join(rng.choices(string.digits, k=4))
