"""Checkpoint folders in the published layouts: config, tokenizer and sharded safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from dlm_lens.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_weights(
    model: PreTrainedModel,
    config: dict[str, Any],
    folder: Path,
    *,
    rename: Callable[[str], str],
    max_shard_size: str | int = "5GB",
) -> None:
    """Write ``config`` and the model's weights, renamed, as safetensors shards with an index where there are several.

    A tied output head is not written twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        rename(name): tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings)
    }
    save_torch_state_dict(state, folder, max_shard_size=max_shard_size, safe_serialization=True)
    dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}, indent=2) + "\n")


def fill_weights(
    model: PreTrainedModel,
    folder: Path,
    *,
    to_native: Callable[[str], str],
    to_published: Callable[[str], str],
) -> None:
    """Read every weight of ``model`` from the safetensors files of ``folder``, translating their published keys.

    Files are compared with the model by name and shape before anything is read.

    Raises
    ------
    CheckpointError
        if there are no safetensors, a shard of the index is missing, or keys are missing, surplus or misshapen.
    """
    shards = _shards(folder)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = model.config.tie_word_embeddings
    if tied:
        del wanted["lm_head.weight"]
    sources = _sources(shards, to_native, folder, skip={"lm_head.weight"} if tied else set())
    _check_keys(wanted, sources, folder, to_published)
    state = model.state_dict()
    by_shard: dict[Path, list[str]] = {}
    for name, source in sources.items():
        by_shard.setdefault(source.shard, []).append(name)
    with (
        torch.no_grad(),
        tqdm(total=len(sources), desc="loading", unit="tensor", disable=len(shards) < 2) as bar,
    ):
        for shard, names in by_shard.items():
            with safe_open(shard, framework="pt") as file:
                for name in names:
                    state[name].copy_(file.get_tensor(sources[name].key))
                    bar.update()


@dataclass(frozen=True)
class _Source:
    """Where a weight is stored, and its shape there."""

    shard: Path
    key: str
    shape: tuple[int, ...]


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            raise CheckpointError(f"{folder} holds no *.safetensors file; other formats are not read")
        return shards
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {len(names)} shards its index names: {_some(missing)}; "
            "download it again"
        )
    return [folder / name for name in names]


def _sources(
    shards: list[Path], rename: Callable[[str], str], folder: Path, skip: set[str]
) -> dict[str, _Source]:
    sources: dict[str, _Source] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (no mapping)
                    name = rename(key)
                    if name not in skip:
                        sources[name] = _Source(shard, key, tuple(file.get_slice(key).get_shape()))
        except SafetensorError as error:
            raise CheckpointError(
                f"{shard} is not a whole safetensors file ({error}); download it again"
            ) from error
    return sources


def _check_keys(
    wanted: dict[str, tuple[int, ...]],
    sources: dict[str, _Source],
    folder: Path,
    to_published: Callable[[str], str],
) -> None:
    missing = sorted(wanted.keys() - sources.keys())
    surplus = sorted(sources.keys() - wanted.keys())
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing, such as {_some([to_published(key) for key in missing])}")
    if surplus:
        problems.append(
            f"{len(surplus)} not of this model, such as {_some([sources[key].key for key in surplus])}"
        )
    for name in sorted(wanted.keys() & sources.keys()):
        if wanted[name] != sources[name].shape:
            problems.append(
                f"{sources[name].key} has shape {sources[name].shape}, the config says {wanted[name]}"
            )
            break
    if problems:
        raise CheckpointError(
            f"the weights in {folder} are not those its config.json describes: {'; '.join(problems)}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
