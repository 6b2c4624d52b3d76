"""Random models, and the checkpoints that are made of them."""

from __future__ import annotations

import pytest

import dlm_lens as dl

SHAPE = {"layers": 1, "hidden": 16, "heads": 2}


@pytest.mark.parametrize("family", ["llada", "dream", "ar"])
def test_a_checkpoint_with_a_tokenizer_is_made_on_the_spot(family, tmp_path):
    tokenizer = dl.load("tiny", device="cpu").tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    made = dl.random_model(family, **SHAPE, tokenizer=tokenizer)
    made.save(tmp_path)
    dlm = dl.load(tmp_path, device="cpu")
    assert dlm.spec.vocab == len(tokenizer)
    assert dlm.spec.eos_id == tokenizer.eos_token_id
    assert dlm.spec.mask_id == (None if family == "ar" else tokenizer.mask_token_id)
    chat = [{"role": "user", "content": "hi"}]
    assert dlm.encode(chat).texts == ("user: hi\nassistant: ",)
    out = dl.denoise(dlm, chat, gen_length=4, progress=False)
    assert out.spec.family == family


def test_a_tokenizer_must_fit_the_vocabulary_and_have_a_mask():
    tokenizer = dl.load("tiny", device="cpu").tokenizer
    with pytest.raises(dl.CheckpointError, match=r"ids up to 4095, but the model embeds 100"):
        dl.random_model(**SHAPE, tokenizer=tokenizer, vocab=100)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="no mask_token_id"):
        dl.random_model(**SHAPE, tokenizer=tokenizer)
    assert dl.random_model("ar", **SHAPE, tokenizer=tokenizer).spec.vocab == len(tokenizer)
