"""Train a bundled model: Muon for the matrices, AdamW for the rest, a trapezoid schedule, one GPU."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from dlm_lens.measure.tasks import VARIANTS
from dlm_lens.models.llada import LladaConfig, LladaForMaskedLM
from dlm_lens.training.corpus import PAD
from dlm_lens.training.data import Batches, Mixture, QuestionWriter, objective
from dlm_lens.training.objectives import Objective, after_the_end


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run makes, but for the corpus.

    Attributes
    ----------
    causal : False for the diffusion model, True for its autoregressive twin.
    steps : optimiser steps planned; ``seconds`` shortens the plan to what fits.
    seconds : wall-clock limit; the learning rate then decays by elapsed time. None: no limit.
    warm_up, decay : share of the run over which the rate rises and falls.
    """

    causal: bool = False
    layers: int = 8
    hidden: int = 256
    heads: int = 8
    mlp: int = 704
    max_length: int = 4096
    rope_theta: float = 5e5
    steps: int = 14_000
    seconds: float | None = None
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    weight_decay: float = 0.05
    warm_up: float = 0.01
    decay: float = 0.4
    seed: int = 0
    mixture: Mixture = field(default_factory=Mixture)


def build(recipe: Recipe, tokenizer: QuestionWriter) -> LlamaForCausalLM:
    """A freshly initialised model of the recipe's shape with tied embeddings, in float32."""
    shape: dict[str, Any] = {
        "vocab_size": tokenizer.tokenizer.get_vocab_size(),
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.mlp,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "max_position_embeddings": recipe.max_length,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": recipe.rope_theta},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.tokenizer.token_to_id(PAD),
    }
    torch.manual_seed(recipe.seed)
    if recipe.causal:
        return LlamaForCausalLM(LlamaConfig(**shape))
    return LladaForMaskedLM(LladaConfig(**shape, mask_token_id=tokenizer.mask))


def optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon on the matrices inside the blocks, AdamW on embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, momentum=0.95),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(progress: float, recipe: Recipe) -> float:
    """Trapezoid: the factor on the learning rates at ``progress`` 0-1 of the run."""
    return max(0.0, min(1.0, progress / recipe.warm_up + 0.01, (1.0 - progress) / recipe.decay))


def weighted_loss(
    hidden: torch.Tensor, head: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Losses ``[2]`` in nats of code and of answers, from ``hidden [K, D], head [V, D], target [K], weight [K, 2]``."""
    logits = F.linear(hidden, head).float()
    return (F.cross_entropy(logits, target, reduction="none")[:, None] * weight).sum(0)


class Trainer:
    """One training run: ``run()`` trains, logs to ``log.jsonl`` and leaves ``weights.safetensors`` in the folder."""

    def __init__(
        self, recipe: Recipe, corpus: Path, out: Path, *, workers: int = 8, device: str = "cuda"
    ) -> None:
        self.recipe, self.out, self.device = recipe, out, torch.device(device)
        out.mkdir(parents=True, exist_ok=True)
        self.writer = QuestionWriter(corpus / "tokenizer.json", np.load(corpus / "held_out.npy"))
        self.model = build(recipe, self.writer).to(self.device)
        self.optimizers = optimizers(self.model, recipe)
        self.base_rates = [group["lr"] for o in self.optimizers for group in o.param_groups]
        self.loss = weighted_loss
        batches = Batches(corpus, recipe.mixture, recipe.seed, causal=recipe.causal)
        self.loader = DataLoader(
            batches, batch_size=None, num_workers=workers, pin_memory=self.device.type == "cuda"
        )
        if self.device.type == "cuda":
            torch.set_num_threads(1)  # what is left to the CPU is small, and the workers have its cores
            torch.backends.cuda.matmul.allow_tf32 = True
            for layer in self.model.model.layers:
                layer.forward = torch.compile(layer.forward)
            self.loss = torch.compile(weighted_loss, dynamic=True)
        self.log: list[dict[str, Any]] = []

    def run(self, *, log_every: int = 100, evaluate_every: int = 1000) -> list[dict[str, Any]]:
        started = time.perf_counter()
        totals = torch.zeros(2, device=self.device)
        tokens = 0
        for step, goal in enumerate(self.loader):
            elapsed = time.perf_counter() - started
            progress = max(
                step / self.recipe.steps, elapsed / self.recipe.seconds if self.recipe.seconds else 0.0
            )
            if progress >= 1.0:
                break
            totals += self._step(goal.to(self.device), rate(progress, self.recipe))
            tokens += goal.inputs.numel()
            if (step + 1) % log_every == 0:
                code, answer = (totals / log_every).tolist()
                totals.zero_()
                row = {"step": step + 1, "tokens": tokens, "seconds": elapsed, "code": code, "answer": answer}
                if (step + 1) % evaluate_every == 0:
                    row |= self.evaluate(items=32)
                    self.save()
                self._record(row)
        self._record({"step": step, "tokens": tokens, "seconds": elapsed, **self.evaluate(items=32)})
        self.save()
        return self.log

    def _step(self, goal: Objective, factor: float) -> torch.Tensor:
        """One optimiser step; returns the losses ``[2]`` of code and of answers, in nats."""
        self.model.train()
        groups = [group for o in self.optimizers for group in o.param_groups]
        for group, base in zip(groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        losses = self._losses(goal, self.loss)
        losses.sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return losses.detach()

    def _losses(self, goal: Objective, loss: Callable[..., torch.Tensor]) -> torch.Tensor:
        with self._autocast():
            hidden = self.model.model(goal.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            return loss(hidden[goal.index], self.model.lm_head.weight, goal.target, goal.weight)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # compiling for a handful of batches takes longer than they do
    def evaluate(self, *, items: int) -> dict[str, float]:
        """Held-out code loss, and exact match of answers predicted all at once, per variant and length."""
        self.model.eval()
        results: dict[str, float] = {}
        for length in self.recipe.mixture.lengths:
            for variant in VARIANTS:
                results[f"{variant}@{length}"] = self._exact_match(variant, length, items)
        results["held_out"] = self._held_out()
        return results

    def _exact_match(self, variant: str, length: int, items: int) -> float:
        rng = random.Random(f"evaluate-{variant}-{length}")
        drawn = [self.writer.write(rng, length, variant, fixed=True) for _ in range(items)]
        tokens = torch.from_numpy(np.stack([ids for ids, _ in drawn])).to(self.device)
        at = drawn[0][1]
        right = 0
        for part in tokens.split(16):
            inputs = part.clone()
            if not self.recipe.causal:
                inputs[:, at:] = self.writer.mask
            with self._autocast():
                hidden = self.model.model(inputs, use_cache=False).last_hidden_state
                read = slice(at - 1, -1) if self.recipe.causal else slice(at, None)
                guess = F.linear(hidden[:, read], self.model.lm_head.weight).argmax(-1)
            given = after_the_end(part, self.writer.eos)[:, at:]
            right += int(((guess == part[:, at:]) | given).all(1).sum())
        return right / items

    def _held_out(self, length: int = 512) -> float:
        stream = torch.from_numpy(self.writer.filler.astype(np.int64))
        rows = stream[: len(stream) // length * length].view(-1, length)[:256]
        generator = torch.Generator().manual_seed(1)
        total = 0.0
        for part in rows.split(64):
            answer = torch.full((len(part),), length)
            goal = objective(part, answer, self.writer, generator, causal=self.recipe.causal).to(self.device)
            total += float(self._losses(goal, weighted_loss)[0]) * len(part) / len(rows)
        return total

    def save(self) -> None:
        """Write the float32 weights and the recipe; a killed run keeps its last ones."""
        save_file(
            {name: tensor.contiguous() for name, tensor in self.model.model.state_dict().items()},
            self.out / "new",
        )
        (self.out / "new").replace(self.out / "weights.safetensors")
        (self.out / "recipe.json").write_text(json.dumps(asdict(self.recipe), indent=2) + "\n")

    def _record(self, row: dict[str, Any]) -> None:
        self.log.append(row)
        line = json.dumps(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        )
        with (self.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
