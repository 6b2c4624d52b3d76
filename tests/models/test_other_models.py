"""The README's section on other models, as written, on tiny models in the places of the named ones."""

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import dlm_lens as dl
from tests.models.adaptable import MASK, SEP, make
from tests.recording.test_generation import CANVAS
from tests.recording.test_generation import make as make_diffusion_gemma

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def tokenizer(words: str, **special: str) -> PreTrainedTokenizerFast:
    texts = {number: f"w{number}" for number in range(2, SEP)} | dict(enumerate(words.split(), 9))
    texts |= {0: "[PAD]", 1: "[UNK]", SEP: "[SEP]", MASK: "[MASK]"}
    vocabulary = {text: number for number, text in texts.items()}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_input_names=names, **special
    )


@pytest.fixture
def example(tmp_path) -> str:
    """The block of code, naming folders instead of the hub."""
    code = re.search(r"### Other models\n\n```python\n(.*?)```", README, re.DOTALL)
    assert code
    text = code[1]
    encoder, block = tmp_path / "encoder", tmp_path / "block"
    make("modernbert", max_position_embeddings=64).save_pretrained(encoder)
    tokenizer("The capital of France is", sep_token="[SEP]", mask_token="[MASK]").save_pretrained(encoder)
    model = make_diffusion_gemma()
    model.generation_config.max_denoising_steps = 2
    model.save_pretrained(block)
    tokenizer("Why is the sky blue ?").save_pretrained(block)
    for name, folder in (
        ("answerdotai/ModernBERT-base", encoder),
        ("google/diffusiongemma-26B-A4B-it", block),
    ):
        assert text.count(f'"{name}"') == 1
        text = text.replace(f'"{name}"', repr(str(folder)))
    assert text.count("max_new_tokens=256") == 1
    return text.replace("max_new_tokens=256", f"max_new_tokens={CANVAS}")


def test_the_readme_does_as_written(example):
    first, second = example.split("\n\n")[-2:]
    variables = {"dl": dl}
    exec(example.split("\n\n")[0] + "\n" + first, variables)
    trace = variables["trace"]
    assert trace.tokens_text()[0] == ["The", "capital", "of", "France", "is"] + ["[MASK]"] * 8
    assert variables["dlm"].spec.windowed == (1, 2)
    exec(second, variables)
    trace = variables["trace"]
    assert trace.prompt_length == 6
    assert trace.tokens_text()[0][:6] == ["Why", "is", "the", "sky", "blue", "?"]
    assert len(trace.steps) == 2
