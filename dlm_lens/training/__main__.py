"""``python -m dlm_lens.training prepare|train|export``: make the corpus, a model from it, and the bundled files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dlm_lens.training.card import write_card
from dlm_lens.training.corpus import prepare
from dlm_lens.training.export import evaluate, export
from dlm_lens.training.train import Recipe, Trainer


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    if args.command == "prepare":
        print(prepare(args.corpus))
        return
    if args.command == "train":
        recipe = Recipe(causal=args.causal, steps=args.steps, seconds=args.seconds, seed=args.seed)
        Trainer(recipe, args.corpus, args.run, workers=args.workers, device=args.device).run()
    if args.out:
        export(args.run, args.corpus, args.out)
        evaluate(args.out, items=args.items)
        write_card(args.run, args.corpus, args.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dlm_lens.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("prepare", help="write tokenizer and token streams of the standard library")
    train = commands.add_parser("train", help="train one model on one GPU, and export it if --out is given")
    bundle = commands.add_parser("export", help="write, evaluate and describe the model of a finished run")
    for command in (corpus, train, bundle):
        command.add_argument("--corpus", type=Path, required=True, help="folder made by prepare")
    for command in (train, bundle):
        command.add_argument(
            "--run", type=Path, required=True, help="folder of log, recipe and float32 weights"
        )
        command.add_argument(
            "--out", type=Path, required=command is bundle, help="folder of the finished model"
        )
        command.add_argument("--items", type=int, default=256, help="questions per variant and length")
    train.add_argument(
        "--causal", action="store_true", help="the autoregressive twin, not the diffusion model"
    )
    train.add_argument("--steps", type=int, default=Recipe.steps)
    train.add_argument("--seconds", type=float, help="stop, decayed, after this long")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--workers", type=int, default=8)
    train.add_argument("--device", default="cuda")
    return parser


if __name__ == "__main__":
    main()
