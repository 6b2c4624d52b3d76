"""Training batches: code under the language-modelling loss, retrieval questions under a loss on their answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset, get_worker_info

from dlm_lens.measure.tasks import GEN_LENGTH, VARIANTS, ask, compose
from dlm_lens.training.corpus import EOS, MASK


@dataclass(frozen=True)
class Mixture:
    """Which lengths and question variants a run sees.

    Attributes
    ----------
    tokens_per_step : tokens in a batch; a batch of length ``L`` holds ``tokens_per_step / L`` sequences.
    lengths, length_shares : sequence lengths and the share of steps each gets once ``short_steps`` are over.
    short_steps : first steps, all at the shortest length: looking a key up is learnt soonest there.
    variant_shares : share of each of ``VARIANTS`` among the questions.
    """

    tokens_per_step: int = 131_072
    lengths: tuple[int, ...] = (256, 512, 1024, 2048)
    length_shares: tuple[float, ...] = (0.15, 0.25, 0.25, 0.35)
    short_steps: int = 1300
    variant_shares: tuple[float, ...] = (0.25, 0.3, 0.25, 0.2)


class Batches(IterableDataset):
    """Endless batches ``{"tokens": [B, L] int16, "answer": [B] int16}``: first half code, second half questions.

    ``answer`` is where the answer region starts (``L`` for code). Batch ``i`` depends on the seed and ``i``
    alone, whatever the number of workers.
    """

    def __init__(self, corpus: Path, mixture: Mixture, seed: int) -> None:
        self.corpus, self.mixture, self.seed = corpus, mixture, seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker: Any = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        stream = np.load(self.corpus / "train.npy")
        writer = QuestionWriter(self.corpus / "tokenizer.json", stream)
        step = first
        while True:
            yield self._batch(step, stream, writer)
            step += stride

    def _batch(self, step: int, stream: np.ndarray, writer: QuestionWriter) -> dict[str, torch.Tensor]:
        mixture = self.mixture
        rng = random.Random(f"{self.seed}-{step}")
        short = step < mixture.short_steps
        length = min(mixture.lengths) if short else rng.choices(mixture.lengths, mixture.length_shares)[0]
        half = max(1, mixture.tokens_per_step // length // 2)
        starts = [rng.randrange(len(stream) - length) for _ in range(half)]
        code = [stream[start : start + length] for start in starts]
        questions = [
            writer.write(rng, length, rng.choices(VARIANTS, mixture.variant_shares)[0]) for _ in range(half)
        ]
        tokens = np.stack([*code, *(ids for ids, _ in questions)]).astype(np.int16)
        answer = np.array([length] * half + [at for _, at in questions], dtype=np.int16)
        return {"tokens": torch.from_numpy(tokens), "answer": torch.from_numpy(answer)}


class QuestionWriter:
    """Writes retrieval questions with their answers as token ids."""

    def __init__(self, tokenizer: Path, filler: np.ndarray) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.encode = cache(lambda text: tuple(self.tokenizer.encode(text).ids))
        self.filler = filler
        self.code = filler.tolist()
        self.eos = int(self.tokenizer.token_to_id(EOS))  # type: ignore[arg-type]
        self.mask = int(self.tokenizer.token_to_id(MASK))  # type: ignore[arg-type]

    def write(
        self, rng: random.Random, length: int, variant: str, *, fixed: bool = False
    ) -> tuple[np.ndarray, int]:
        """Ids ``[length]`` of a prompt and its answer, padded with end-of-text, and where the answer starts.

        The answer region is as long as the task's (``fixed``) or of random length, at least the answer and one
        end-of-text token.
        """
        question = ask(rng, variant)
        answer = self.encode(question.answer)
        longest = GEN_LENGTH[variant]
        region = longest if fixed else rng.randint(min(len(answer) + 1, longest), 32)
        prompt = compose(rng, question, length - region, self.encode, self.code, code=rng.random())
        ids = np.array([*prompt, *answer, *[self.eos] * (region - len(answer))], dtype=np.int64)
        return ids, length - region
