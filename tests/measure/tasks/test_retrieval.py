"""Retrieval questions: what they hold, how long they are, and how answers are judged."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.measure import tasks


def lookup(text: str, key: str) -> list[str]:
    return [line.split("=")[1] for line in text.splitlines() if line.startswith(f"{key}=")]


@pytest.mark.parametrize("variant", tasks.VARIANTS)
@pytest.mark.parametrize("length", [128, 512, 4096])
def test_the_answer_follows_from_the_prompt(tiny, variant, length):
    for item in tasks.retrieval(tiny, 6, length=length, variant=variant, seed=1):
        assert len(item.prompt) + item.gen_length == length
        body, _, asked = item.text.rpartition("?")
        keys = asked.removesuffix("=").split(",")
        found = [value for key in keys for value in lookup(body, key)]
        if variant == "two_hop":
            found = [f"{found[0]}={lookup(body, found[0])[0]}"]
        assert item.answer == ",".join(found)
        assert len(tiny.tokenizer.encode(item.answer)) <= item.gen_length


@given(seed=st.integers(0, 2**32), length=st.integers(110, 400), code=st.floats(0, 1))
def test_prompts_have_the_length_asked_for(seed, length, code):
    rng = random.Random(seed)
    question = tasks.ask(rng, rng.choice(tasks.VARIANTS))
    ids = tasks.compose(rng, question, length, lambda text: tuple(text.encode()), list(b"x = 1\n"), code=code)
    assert len(ids) == length
    text = bytes(ids).decode()
    assert text.endswith(question.question)
    places = [f"\n{text}".find(f"\n{row}\n") for row in question.rows]
    assert min(places) >= 0


@pytest.mark.parametrize(
    ("variant", "length"), [("single", 24), ("two_hop", 40), ("multi_value", 76), ("multi_key", 112)]
)
def test_questions_fit_into_hardly_more_than_their_rows(tiny, variant, length):
    for item in tasks.retrieval(tiny, 16, length=length, variant=variant):
        assert len(item.prompt) + item.gen_length == length


def test_seeds_make_the_questions(tiny):
    first, again, other = (tasks.retrieval(tiny, 3, length=256, seed=seed) for seed in (0, 0, 1))
    assert [item.text for item in first] == [item.text for item in again]
    assert [item.text for item in first] != [item.text for item in other]


def test_bad_questions_are_refused(tiny, random_dlm):
    with pytest.raises(ValueError, match=r"unknown task variant 'doble'.*two_hop"):
        tasks.retrieval(tiny, variant="doble")
    with pytest.raises(
        ValueError, match=r"prompt of 10 tokens has no room for .* which take 1\d.* at least \d more"
    ):
        tasks.retrieval(tiny, length=18)
    with pytest.raises(
        ValueError, match=r"length=32 must exceed the 32 positions of an answer to 'multi_key'"
    ):
        tasks.retrieval(tiny, length=32, variant="multi_key")
    with pytest.raises(ValueError, match="length=4097 exceeds the 4096 positions of 'tiny'"):
        tasks.retrieval(tiny, length=4097)
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        tasks.retrieval(tiny, 0)
    with pytest.raises(ValueError, match=r"code=1.5 must be a share in \[0, 1\]"):
        tasks.retrieval(tiny, code=1.5)
    with pytest.raises(ValueError, match="no tokenizer"):
        tasks.retrieval(random_dlm)
    with pytest.raises(ValueError, match="at least one"):
        tasks.accuracy(tiny, [])


def test_answers_are_compared_exactly_but_for_white_space(tiny):
    item = tasks.retrieval(tiny, 1, length=256)[0]
    assert tasks.correct(item, f" {item.answer}\n")
    assert not tasks.correct(item, item.answer + "0")


@pytest.mark.parametrize(("name", "folder"), [("tiny", "tiny-dlm"), ("tiny-ar", "tiny-ar")])
def test_the_bundled_models_answer_as_their_cards_say(name, folder, root):
    """Of four questions of every kind, at most one fewer than was published is answered; of short ones, which are no
    harder than those of 256 tokens that were published, and take half as long."""
    dlm = dl.load(name)
    scores = json.loads((root / "dlm_lens/assets" / folder / "evaluation.json").read_text())["scores"]
    published = {score["variant"]: score["accuracy"] for score in scores if score["length"] == 256}
    answered = {}
    for variant in tasks.VARIANTS:
        items = tasks.retrieval(dlm, 4, length=144, variant=variant, seed=5)
        answered[variant] = tasks.accuracy(dlm, items, progress=False)
    assert 4 * sum(answered.values()) >= 4 * sum(published.values()) - 1, answered


def test_a_wrong_answer_is_not_counted(tiny):
    items = tasks.retrieval(tiny, 4, length=64, seed=5)
    assert tasks.accuracy(tiny, items, progress=False) == 1
    wrong = [tasks.TaskItem(i.prompt, i.text, "none", i.variant, i.gen_length) for i in items]
    assert tasks.accuracy(tiny, wrong, progress=False) == 0
