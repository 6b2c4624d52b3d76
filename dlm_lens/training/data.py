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
from dlm_lens.training.objectives import Objective, diffusion, next_token


@dataclass(frozen=True)
class Mixture:
    """Which lengths and question variants a run sees.

    Attributes
    ----------
    tokens_per_step : tokens in a batch; a batch of length ``L`` holds ``tokens_per_step / L`` sequences.
    code_share : share of the sequences of a batch that are code; the others are questions.
    lengths, length_shares : sequence lengths and the share of steps each gets once ``short_steps`` are over.
    short_steps : first steps, all at the shortest length: looking a key up is learnt soonest there.
    variant_shares : share of each of ``VARIANTS`` among the questions.
    written_share : share of the code that the diffusion model sees in the midst of being written.
    """

    tokens_per_step: int = 131_072
    code_share: float = 0.4
    lengths: tuple[int, ...] = (256, 512, 1024, 2048)
    length_shares: tuple[float, ...] = (0.15, 0.25, 0.25, 0.35)
    short_steps: int = 1000
    variant_shares: tuple[float, ...] = (0.25, 0.3, 0.25, 0.2)
    written_share: float = 0.5


class Batches(IterableDataset):
    """Endless training batches, code and questions, with what is to be learnt of them.

    Batch ``i`` depends on the seed and ``i`` alone, whatever the number of workers. Masks are drawn here, on the
    CPU: where their number decides a shape, drawing them on the GPU would stop it at every step.
    """

    def __init__(self, corpus: Path, mixture: Mixture, seed: int, *, causal: bool) -> None:
        self.corpus, self.mixture, self.seed, self.causal = corpus, mixture, seed, causal

    def __iter__(self) -> Iterator[Objective]:
        worker: Any = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        stream = np.load(self.corpus / "train.npy")
        writer = QuestionWriter(self.corpus / "tokenizer.json", stream)
        step = first
        while True:
            tokens, answer = self.draw(step, stream, writer)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            share = self.mixture.written_share
            yield objective(
                tokens, answer, writer, generator, causal=self.causal, written_share=share
            ).padded()
            step += stride

    def draw(
        self, step: int, stream: np.ndarray, writer: QuestionWriter
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens ``[B, L]``, code first, and where each row's answer starts ``[B]`` (``L`` for code)."""
        mixture = self.mixture
        rng = random.Random(f"{self.seed}-{step}")
        short = step < mixture.short_steps
        length = min(mixture.lengths) if short else rng.choices(mixture.lengths, mixture.length_shares)[0]
        rows = max(2, mixture.tokens_per_step // length)
        n_code = max(1, min(rows - 1, round(rows * mixture.code_share)))
        starts = [rng.randrange(len(stream) - length) for _ in range(n_code)]
        code = [stream[start : start + length] for start in starts]
        variants = rng.choices(VARIANTS, mixture.variant_shares, k=rows - n_code)
        questions = [writer.write(rng, length, variant) for variant in variants]
        tokens = np.stack([*code, *(ids for ids, _ in questions)]).astype(np.int64)
        return torch.from_numpy(tokens), torch.tensor([length] * n_code + [at for _, at in questions])


def objective(
    tokens: torch.Tensor,
    answer: torch.Tensor,
    writer: QuestionWriter,
    generator: torch.Generator,
    *,
    causal: bool,
    written_share: float = 0.0,
) -> Objective:
    """What the diffusion model, or its causal twin, learns from a batch; see :mod:`dlm_lens.training.objectives`."""
    if causal:
        return next_token(tokens, answer, writer.mask, writer.eos, generator)
    return diffusion(tokens, answer, writer.mask, writer.eos, generator, written_share)


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
