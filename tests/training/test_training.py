"""The recipe, at a size where a laptop runs it: data, objectives, a few steps, and the way to a bundled model."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure.tasks import VARIANTS
from dlm_lens.training import __main__ as command
from dlm_lens.training import corpus as corpora
from dlm_lens.training.card import write_card
from dlm_lens.training.data import Batches, Mixture, QuestionWriter
from dlm_lens.training.export import evaluate, export, read_recipe
from dlm_lens.training.objectives import after_the_end, diffusion, next_token
from dlm_lens.training.train import Recipe, Trainer, rate

MIXTURE = Mixture(tokens_per_step=1024, lengths=(128, 256), length_shares=(0.5, 0.5), short_steps=2)

FACTS = {
    "source": "Python",
    "files": 12,
    "train_files": 12,
    "train_bytes": 1,
    "train_tokens": 1,
    "train_sha256": "0",
    "held_out_files": 0,
    "held_out_tokens": 0,
}


@dataclass(frozen=True)
class SmallRecipe(Recipe):
    layers: int = 1
    hidden: int = 32
    heads: int = 2
    mlp: int = 48
    mixture: Mixture = MIXTURE


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus of a few modules, prepared as the real one is."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [path.read_text(errors="replace") for path in corpora.source_files()[:12]]
    tokenizer = corpora.train_tokenizer(texts, vocab=600)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name in ("train", "held_out"):
        np.save(folder / f"{name}.npy", corpora.token_stream(tokenizer, texts))
    return folder


def test_every_digit_is_a_token(corpus):
    writer = QuestionWriter(corpus / "tokenizer.json", np.zeros(1, dtype=np.uint16))
    assert len(writer.encode("1234")) == 4


def test_files_are_held_out_whole():
    files = corpora.source_files()
    train, held_out = corpora.split(files)
    assert len(train) + len(held_out) == len(files)
    assert 0.02 < len(held_out) / len(files) < 0.1


def test_questions_end_in_their_answer(corpus):
    writer = QuestionWriter(corpus / "tokenizer.json", np.load(corpus / "held_out.npy"))
    for variant in ("single", "multi_key", "multi_value", "two_hop"):
        ids, at = writer.write(random.Random(3), 256, variant)
        answer = writer.tokenizer.decode(ids[at:].tolist(), skip_special_tokens=True)
        assert len(ids) == 256
        assert answer
        assert writer.tokenizer.decode(ids[:at].tolist()).endswith("=")


def test_batches_depend_on_seed_and_step_alone(corpus):
    one, two = (next(iter(Batches(corpus, MIXTURE, 0, causal=False))) for _ in range(2))
    assert torch.equal(one.inputs, two.inputs)
    assert torch.equal(one.weight, two.weight)
    assert one.inputs.shape == (8, 128)
    assert len(one.index) == len(one.target) == len(one.weight) == 4096
    writer = QuestionWriter(corpus / "tokenizer.json", np.load(corpus / "train.npy"))
    _, answer = Batches(corpus, MIXTURE, 0, causal=False).draw(0, np.load(corpus / "train.npy"), writer)
    assert (answer[:3] == 128).all()
    assert (answer[3:] < 128).all()


def test_diffusion_masks_code_and_answers_but_never_a_question(corpus):
    tokens = torch.randint(3, 600, (8, 64))
    answer = torch.tensor([64] * 4 + [50] * 4)
    goal = diffusion(tokens, answer, 0, 1, torch.Generator().manual_seed(0))
    masked = goal.inputs == 0
    assert not masked[4:, :50].any()
    assert torch.equal(goal.inputs[~masked], tokens[~masked])
    assert torch.equal(goal.index, masked.flatten().nonzero().squeeze(1))
    assert torch.equal(goal.target, tokens.flatten()[goal.index])
    in_answer = goal.index >= 4 * 64
    assert (goal.weight[in_answer, 0] == 0).all()
    assert (goal.weight[~in_answer, 1] == 0).all()
    assert goal.weight[:, 1].sum() == pytest.approx(1.0, abs=1e-5)
    # E[masked / t] = 1 for every token, so that the weights of code add up to about one as well.
    generator = torch.Generator().manual_seed(0)
    sums = [float(diffusion(tokens, answer, 0, 1, generator).weight[:, 0].sum()) for _ in range(200)]
    assert np.mean(sums) == pytest.approx(1.0, abs=0.1)


def test_code_in_the_midst_of_being_written_ends_in_masks():
    tokens, answer = torch.randint(3, 600, (400, 128)), torch.tensor([128] * 400)
    goal = diffusion(tokens, answer, 0, 1, torch.Generator().manual_seed(0), written_share=1.0)
    masked = goal.inputs == 0
    assert masked.any(1).all()
    first = masked.float().argmax(1)
    assert first.min() < 66
    assert first.max() > 120
    for row, begin in zip(masked, first.tolist(), strict=True):
        assert row[begin + 32 :].all()
    # Every row counts the same, however few of its tokens are masked.
    of_row = torch.zeros(400).scatter_add_(0, goal.index // 128, goal.weight[:, 0])
    torch.testing.assert_close(of_row, torch.full((400,), 1 / 400))


def test_the_end_of_an_answer_is_learnt_and_what_follows_it_hardly():
    tokens = torch.tensor([[5, 6, 7, 8, 1, 1, 1]])
    assert after_the_end(tokens, 1).tolist() == [[False] * 5 + [True] * 2]
    goal = next_token(tokens, torch.tensor([2]), 0, 1, torch.Generator())
    relative = (goal.weight[:, 1] / goal.weight[0, 1]).tolist()
    assert relative == pytest.approx([1, 1, 1, 0.1, 0.1])


def test_next_token_reads_one_to_the_left():
    tokens = torch.randint(3, 600, (4, 32))
    goal = next_token(tokens, torch.tensor([32, 32, 20, 20]), 0, 1, torch.Generator())
    assert torch.equal(goal.target, tokens.flatten()[goal.index + 1])
    assert torch.equal(goal.inputs[2:], tokens[2:])
    assert goal.weight.sum(0).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_padding_an_objective_adds_nothing_to_the_loss():
    goal = next_token(torch.randint(3, 600, (2, 32)), torch.tensor([32, 20]), 0, 1, torch.Generator())
    padded = goal.padded()
    assert len(padded.index) == 4096
    assert torch.equal(padded.weight.sum(0), goal.weight.sum(0))


def test_the_rate_is_a_trapezoid():
    rates = [rate(progress, Recipe()) for progress in (0.0, 0.5, 0.8, 1.0)]
    assert rates == pytest.approx([0.01, 1.0, 0.5, 0.0])


@pytest.mark.parametrize("causal", [False, True])
def test_a_run_learns_exports_and_loads(causal, corpus, tmp_path):
    recipe = SmallRecipe(causal=causal, steps=12)
    log = Trainer(recipe, corpus, tmp_path / "run", workers=0, device="cpu").run(
        log_every=4, evaluate_every=100
    )
    assert log[2]["answer"] < log[0]["answer"]
    assert vars(read_recipe(tmp_path / "run")) == vars(recipe)
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4
    dlm = export(tmp_path / "run", corpus, tmp_path / "model")
    assert dlm.spec.causal is causal
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == (
        "llama" if causal else "llada"
    )
    text = dl.denoise(dlm, "def f(", gen_length=8, progress=False).texts[0]
    assert isinstance(text, str)


@pytest.mark.parametrize(
    ("code", "says", "not_said"),
    [
        (None, "too short to log", "| step |"),
        (2.0, "2.90 nats per token by LLaDA's bound alone.\n\n##", "by heart"),
        (1.0, "1.90 above the last loss on training code: the model has learnt part", "too short"),
    ],
)
def test_the_card_says_what_the_losses_say(code, says, not_said, tmp_path):
    """Of a run that logged none, of one not much worse on unseen code, and of one that learnt by heart."""
    row = {"step": 100, "tokens": 100, "seconds": 1.0}
    log = [] if code is None else [row | {"code": code, "answer": 0.1}]
    lines = [*log, row | {"held_out": 2.9}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(Recipe())))
    (tmp_path / "corpus.json").write_text(json.dumps(FACTS))
    scores = [{"variant": v, "length": 256, "items": 1, "accuracy": 1.0} for v in VARIANTS]
    measured = {"scores": scores, "device": "CPU", "dtype": "float32", "torch": "2", "date": "2026"}
    (tmp_path / "evaluation.json").write_text(json.dumps(measured))
    write_card(tmp_path, tmp_path, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Held-out code at the end: 2.90 nats per token by LLaDA's bound alone." in card
    assert says in card
    assert not_said not in card


def test_one_command_trains_evaluates_and_describes_a_model(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "Recipe", SmallRecipe)
    monkeypatch.setattr(command, "evaluate", partial(evaluate, lengths=(128, 256)))
    (corpus / "corpus.json").write_text(json.dumps(FACTS))
    folders = ["--corpus", str(corpus), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "tiny")]
    monkeypatch.setattr(Trainer.run, "__kwdefaults__", {"log_every": 2, "evaluate_every": 100})
    command.main(["train", *folders, "--steps", "4", "--workers", "0", "--device", "cpu", "--items", "2"])
    scores = json.loads((tmp_path / "tiny" / "evaluation.json").read_text())["scores"]
    assert {(score["variant"], score["length"]) for score in scores} == {
        (variant, length) for variant in VARIANTS for length in (128, 256)
    }
    card = (tmp_path / "tiny" / "README.md").read_text()
    for words in ("Data and licence", "4 steps", "Held-out code at the end", "| `two_hop`"):
        assert words in card
    assert "variant='single'" in capsys.readouterr().out
