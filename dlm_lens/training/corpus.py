"""The training text: the Python standard library's own source, split by file into training and held-out parts."""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

MASK, EOS, PAD = "<|mask|>", "<|eos|>", "<|pad|>"
# Test suites, generated tables and vendored trees teach a small model nothing but themselves.
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "encodings", "ensurepip", "pydoc_data"}


def source_files(root: Path | None = None) -> list[Path]:
    """Paths of the standard library's modules, sorted, without tests, tables and vendored packages."""
    root = root or Path(sysconfig.get_path("stdlib"))
    files = (path for path in root.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(root).parts))
    return sorted(path for path in files if path.stat().st_size > 500)


def split(files: list[Path], *, held_out_every: int = 20) -> tuple[list[str], list[str]]:
    """Texts to train on and texts held out: every ``held_out_every``-th file by the hash of its name.

    Splitting by file, not by line, keeps near-copies of a passage on one side.
    """
    train: list[str] = []
    held_out: list[str] = []
    for path in files:
        digest = int(hashlib.sha256(path.name.encode()).hexdigest(), 16)
        side = held_out if digest % held_out_every == 0 else train
        side.append(path.read_text(encoding="utf-8", errors="replace"))
    return train, held_out


def train_tokenizer(texts: list[str], vocab: int = 4096) -> Tokenizer:
    """A byte-level BPE tokenizer of ``vocab`` entries in which every digit is a token of its own.

    Lone digits make a four-digit value four tokens whatever it is, so that no value is easier than another.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[MASK, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one uint16 array of token ids, an end-of-text token after each."""
    eos = tokenizer.token_to_id(EOS)
    ids = [np.array([*encoding.ids, eos], dtype=np.uint16) for encoding in tokenizer.encode_batch(texts)]
    return np.concatenate(ids)


def prepare(
    folder: Path, *, held_out_bytes: int = 200_000, calibration_bytes: int = 150_000
) -> dict[str, object]:
    """Write what training needs into ``folder``: tokenizer, token streams and two excerpts.

    The held-out one, at most ``held_out_bytes`` of it, is what perplexity and the filler of tasks are later
    taken from; the other, at most ``calibration_bytes`` of every 16th training file, what pruning is calibrated on.
    Returns (and writes as ``corpus.json``) where the text came from, so that a model card can say it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = source_files()
    train, held_out = split(files)
    tokenizer = train_tokenizer(train)
    tokenizer.save(str(folder / "tokenizer.json"))
    streams = {"train": token_stream(tokenizer, train), "held_out": token_stream(tokenizer, held_out)}
    for name, stream in streams.items():
        np.save(folder / f"{name}.npy", stream)
    (folder / "heldout.txt").write_text(_excerpt(held_out, held_out_bytes), encoding="utf-8")
    (folder / "calibration.txt").write_text(_excerpt(train[::16], calibration_bytes), encoding="utf-8")
    facts: dict[str, object] = {
        "source": f"Python {platform.python_version()} standard library",
        "files": len(files),
        "train_files": len(train),
        "held_out_files": len(held_out),
        "train_bytes": sum(len(text.encode()) for text in train),
        "train_tokens": len(streams["train"]),
        "held_out_tokens": len(streams["held_out"]),
        "train_sha256": hashlib.sha256("".join(train).encode()).hexdigest(),
    }
    (folder / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def _excerpt(texts: list[str], limit: int) -> str:
    """Whole lines from the start of every text in turn, an equal share of ``limit`` bytes each."""
    share = limit // len(texts)
    return "\n".join(text.encode()[:share].decode(errors="ignore").rpartition("\n")[0] for text in texts)
