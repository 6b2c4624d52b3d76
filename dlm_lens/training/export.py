"""From a finished training run to a bundled model: bf16 weights in the published layout, evaluation and card."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from dlm_lens.measure import tasks
from dlm_lens.models import DLM, load
from dlm_lens.models.autoregressive import LLAMA
from dlm_lens.models.llada import LLADA
from dlm_lens.models.spec import make_spec
from dlm_lens.training.corpus import EOS, MASK, PAD
from dlm_lens.training.data import Mixture, QuestionWriter
from dlm_lens.training.train import Recipe, build


def export(run: Path, corpus: Path, folder: Path) -> DLM:
    """Write the model of a training run into ``folder``, as :func:`dlm_lens.load` reads it, and return it."""
    recipe = read_recipe(run)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(corpus / "tokenizer.json"),
        mask_token=MASK,
        eos_token=EOS,
        pad_token=PAD,
    )
    stream = torch.zeros(1, dtype=torch.int32).numpy()
    model = build(recipe, QuestionWriter(corpus / "tokenizer.json", stream))
    model.model.load_state_dict(load_file(run / "weights.safetensors"))
    family = LLAMA if recipe.causal else LLADA
    DLM(model.to(torch.bfloat16), tokenizer, make_spec(folder.name, model.config, family), family).save(
        folder
    )
    return load(folder)


def read_recipe(run: Path) -> Recipe:
    """The recipe a run was started with."""
    stored = json.loads((run / "recipe.json").read_text())
    mixture: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored.pop("mixture").items()
    }
    return Recipe(**stored, mixture=Mixture(**mixture))


@dataclass(frozen=True)
class Score:
    """Exact match on one task: ``accuracy`` 0-1 over ``items`` questions of ``length`` tokens."""

    variant: str
    length: int
    items: int
    accuracy: float


def evaluate(
    folder: Path, *, items: int, lengths: tuple[int, ...] = (256, 512, 1024, 2048), batch_size: int = 32
) -> dict[str, Any]:
    """Exact match of the exported model on every task variant and length, with what it was measured on.

    Questions come from seeds that training never draws; every token is denoised in a step of its own. The
    result is also written as ``evaluation.json`` beside the weights.
    """
    dlm = load(folder)
    scores = []
    for variant in tasks.VARIANTS:
        for length in lengths:
            questions = tasks.retrieval(dlm, items, length=length, variant=variant, seed=12345, code=None)
            share = tasks.accuracy(dlm, questions, batch_size=batch_size)
            scores.append(Score(variant, length, items, share))
            print(scores[-1], flush=True)
    name = torch.cuda.get_device_name() if dlm.device.type == "cuda" else platform.processor() or "CPU"
    result = {
        "scores": [asdict(score) for score in scores],
        "device": name,
        "dtype": str(dlm.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
    }
    (folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    return result
