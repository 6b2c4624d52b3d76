"""``python -m dlm_lens.training prepare|train``: make the corpus, then a model from it."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlm_lens.training.corpus import prepare
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
    args = parser.parse_args()
    if args.command == "prepare":
        print(prepare(args.corpus))
        return
    recipe = Recipe(causal=args.causal, steps=args.steps, seconds=args.seconds, seed=args.seed)
    Trainer(recipe, args.corpus, args.out, workers=args.workers).run()


if __name__ == "__main__":
    main()
