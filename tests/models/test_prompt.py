"""Prompts in every form a user may write them."""

from __future__ import annotations

import pytest
import torch

import dlm_lens as dl


def test_strings_are_padded_on_the_left(tiny):
    prompt = tiny.encode(["def f(x):", "x"])
    assert prompt.start.tolist() == [0, prompt.tokens.shape[1] - 1]
    assert (prompt.tokens[1, : prompt.start[1]] == tiny.spec.pad_id).all()
    assert prompt.texts == ("def f(x):", "x")
    assert tiny.decode(tiny.encode("def f(x):").tokens) == ["def f(x):"]


def test_token_ids_alone_and_in_lists(random_dlm):
    row = torch.tensor([3, 1, 4])
    for given in (row, row[None], [3, 1, 4], [row]):
        assert torch.equal(random_dlm.encode(given).tokens, row[None])
    ragged = random_dlm.encode([row, torch.tensor([5])])
    assert ragged.start.tolist() == [0, 2]


@pytest.mark.parametrize("prompt", ["", [], [""], torch.empty(0, dtype=torch.long)])
def test_nothing_is_no_prompt(tiny, prompt):
    with pytest.raises(ValueError, match=r"empty|P ≥ 1"):
        tiny.encode(prompt)


def test_what_is_no_prompt_is_named(tiny):
    with pytest.raises(TypeError, match="not int"):
        tiny.encode(3)
    with pytest.raises(TypeError, match=r"integers, not torch\.float32"):
        tiny.encode(torch.rand(3))
    with pytest.raises(ValueError, match=r"lie in 0…4095; the prompt holds 4096"):
        tiny.encode(torch.tensor([4096]))


def test_text_needs_a_tokenizer(random_dlm):
    with pytest.raises(ValueError, match="no tokenizer"):
        random_dlm.encode("hello")


def test_chat_messages_go_through_the_chat_template(tiny):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match="no chat template"):
        tiny.encode(messages)
    dlm = dl.load("tiny", device="cpu")
    dlm.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    assert dlm.encode(messages).texts == ("<user>hi<assistant>",)
    assert dlm.encode([messages, messages]).tokens.shape[0] == 2


def test_texts_of_tokens(tiny):
    spec = tiny.spec
    assert tiny.token_texts([spec.mask_id, spec.eos_id]) == ["[MASK]", "<eos>"]
    ids = tiny.encode("return 42").tokens
    assert "".join(tiny.token_texts(ids)) == "return 42"


def test_decoding_stops_at_the_end_of_text(tiny):
    ids = tiny.encode("ab").tokens[0]
    row = torch.cat([ids, torch.tensor([tiny.spec.eos_id]), ids])
    assert tiny.decode(row) == ["ab"]
