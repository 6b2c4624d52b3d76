"""The model card of a bundled model, written from its run, its corpus and its evaluation alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlm_lens.measure.tasks import VARIANTS
from dlm_lens.training.export import read_recipe
from dlm_lens.training.train import Recipe

_MEANING = {
    "single": "the value of one key",
    "multi_key": "the values of 2–6 keys asked at once",
    "multi_value": "all 2–4 values of one key, in order",
    "two_hop": "variable tracking over two rows",
}


def write_card(run: Path, corpus: Path, folder: Path) -> None:
    """Write ``README.md`` beside the weights in ``folder``; ``evaluate`` must have been run there."""
    recipe = read_recipe(run)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    facts = json.loads((corpus / "corpus.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    parts = [
        _head(folder.name, recipe),
        _data(facts),
        _recipe(recipe, log),
        _losses(recipe, log),
        _scores(evaluation),
    ]
    (folder / "README.md").write_text("\n\n".join([*parts, _limits()]) + "\n", encoding="utf-8")


def _head(name: str, recipe: Recipe) -> str:
    kind = (
        "An autoregressive language model, the causal twin of `tiny-dlm`: same data, tokenizer, shape and "
        "time of training. Llama checkpoint layout."
        if recipe.causal
        else "A masked diffusion language model in LLaDA's checkpoint layout, small enough for a laptop."
    )
    return f"""---
license: apache-2.0
language: [en, code]
library_name: dlm-lens
---

# {name}

{kind} It is bundled with dlm-lens so that everything in the package runs without downloads.

{recipe.layers} layers, width {recipe.hidden}, {recipe.heads} heads, SwiGLU {recipe.mlp}, RoPE (θ = {recipe.rope_theta:g}),
RMSNorm, tied embeddings, vocabulary 4,096, up to {recipe.max_length:,} positions, bf16."""


def _data(facts: dict[str, Any]) -> str:
    return f"""## Data and licence

- **Code**: the source of the {facts["source"]}, {facts["files"]} files without tests, tables and vendored packages;
  {facts["train_files"]} files ({facts["train_bytes"] / 1e6:.1f} MB, {facts["train_tokens"] / 1e6:.2f} M tokens) for training,
  {facts["held_out_files"]} files ({facts["held_out_tokens"] / 1e3:.0f} k tokens) held out. Python Software Foundation License.
- **Questions**: generated rows `abc=1234` between pieces of that code, and a question at the end
  (`dlm_lens/measure/tasks/retrieval.py`).
- **Tokenizer**: byte-level BPE of 4,096 entries trained on the same code; every digit is a token.

The weights are released under Apache-2.0. SHA-256 of the training text: `{facts["train_sha256"]}`."""


def _recipe(recipe: Recipe, log: list[dict[str, Any]]) -> str:
    mixture = recipe.mixture
    loss = (
        f"Of every batch {mixture.code_share:.0%} of the sequences are code under next-token prediction (a share "
        "U(0, 0.5) of the tokens read is masked, against learning the corpus by heart), the others questions with a "
        "loss on the answer."
        if recipe.causal
        else f"Of every batch {mixture.code_share:.0%} of the sequences are code under LLaDA's loss (mask rate "
        "t ~ U(0, 1), weight 1/t clipped at 20; in "
        f"{mixture.written_share:.0%} of it up to 256 tokens at the end are masked instead, as while they are written "
        "block by block), the others questions with only the answer masked."
    )
    return f"""## Recipe

{loss} {mixture.tokens_per_step:,} tokens a step; the first {mixture.short_steps:,} steps at length
{min(mixture.lengths)}, then lengths {", ".join(f"{n:,}" for n in mixture.lengths)} in shares
{", ".join(map(str, mixture.length_shares))}. Muon (lr {recipe.muon_lr}) for the matrices, AdamW (lr {recipe.adam_lr}) for the rest,
weight decay {recipe.weight_decay}, trapezoid schedule with the last {recipe.decay:.0%} decaying, seed {recipe.seed}.
One NVIDIA H200: {log[-1]["step"]:,} steps, {log[-1]["tokens"] / 1e9:.2f} B tokens, {log[-1]["seconds"]:.0f} s.

    python -m dlm_lens.training prepare --corpus corpus
    python -m dlm_lens.training train --corpus corpus --run run{" --causal" if recipe.causal else ""} --seconds {recipe.seconds or 0:.0f} --out {"tiny-ar" if recipe.causal else "tiny-dlm"}"""


def _losses(recipe: Recipe, log: list[dict[str, Any]]) -> str:
    rows = [row for row in log if "code" in row]
    held_out = log[-1]["held_out"]
    bound = "" if recipe.causal else " by LLaDA's bound alone"
    last = f"Held-out code at the end: {held_out:.2f} nats per token{bound}."
    if not rows:
        return f"## Losses\n\nThe run was too short to log training losses.\n\n{last}"
    if held_out > 1.5 * rows[-1]["code"]:
        last += (
            f" That is {held_out - rows[-1]['code']:.2f} above the last loss on training code: the model has learnt part of\n"
            "the training code by heart, and predicts code that it has not seen much worse."
        )
    every = max(1, len(rows) // 8)
    lines = [
        f"| {row['step']:,} | {row['tokens'] / 1e6:,.0f} | {row['code']:.2f} | {row['answer']:.3f} |"
        for row in [*rows[every - 1 :: every][:-1], rows[-1]]
    ]
    half = "the mean of LLaDA's bound and the loss of unwritten ends"
    kind = "next-token cross-entropy" if recipe.causal else half
    return "\n".join(
        [
            f"## Losses\n\nNats per token, means over the 100 steps before; code by {kind}.\n",
            "| step | M tokens | code | answers |",
            "|---:|---:|---:|---:|",
            *lines,
            f"\n{last}",
        ]
    )


def _scores(evaluation: dict[str, Any]) -> str:
    scores = evaluation["scores"]
    lengths = sorted({score["length"] for score in scores})
    share = {(score["variant"], score["length"]): score["accuracy"] for score in scores}
    lines = [
        f"| `{variant}`: {_MEANING[variant]} | "
        + " | ".join(f"{share[variant, n]:.1%}" for n in lengths)
        + " |"
        for variant in VARIANTS
    ]
    return "\n".join(
        [
            f"## Task accuracy\n\nExact match over {scores[0]['items']} questions each with seeds that training never draws, "
            f"one denoising step per token, by length in tokens ({evaluation['device']}, {evaluation['dtype']}, "
            f"torch {evaluation['torch']}, {evaluation['date']}).\n",
            "| question | " + " | ".join(f"{n:,}" for n in lengths) + " |",
            "|---|" + "---:|" * len(lengths),
            *lines,
        ]
    )


def _limits() -> str:
    return """## Limits

Made to look inside and to measure with, not to write code: it knows one small corpus, by name and by habit, and
answers the questions it was trained on. Figures on it say nothing of how large models would fare."""
