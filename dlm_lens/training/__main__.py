"""``python -m dlm_lens.training prepare|train|export``: make the corpus, a model from it, and the bundled files."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlm_lens.training.card import write_card
from dlm_lens.training.corpus import prepare
from dlm_lens.training.export import evaluate, export
from dlm_lens.training.train import Recipe, Trainer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dlm_lens.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("prepare", help="write tokenizer and token streams of the standard library")
    corpus.add_argument("--corpus", type=Path, required=True)
    train = commands.add_parser("train", help="train one model on one GPU")
    train.add_argument("--corpus", type=Path, required=True)
    train.add_argument("--out", type=Path, required=True)
    train.add_argument(
        "--causal", action="store_true", help="the autoregressive twin instead of the diffusion model"
    )
    train.add_argument("--steps", type=int, default=Recipe.steps)
    train.add_argument("--seconds", type=float, help="stop, decayed, after this long")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--workers", type=int, default=8)
    bundle = commands.add_parser("export", help="write, evaluate and describe the model of a finished run")
    bundle.add_argument("--run", type=Path, required=True)
    bundle.add_argument("--corpus", type=Path, required=True)
    bundle.add_argument("--out", type=Path, required=True)
    bundle.add_argument("--items", type=int, default=256, help="questions per variant and length")
    args = parser.parse_args()
    if args.command == "prepare":
        print(prepare(args.corpus))
        return
    if args.command == "export":
        export(args.run, args.corpus, args.out)
        evaluate(args.out, items=args.items)
        write_card(args.run, args.corpus, args.out)
        return
    recipe = Recipe(causal=args.causal, steps=args.steps, seconds=args.seconds, seed=args.seed)
    Trainer(recipe, args.corpus, args.out, workers=args.workers).run()


if __name__ == "__main__":
    main()
