"""Checkpoint folders in the published layouts: config, tokenizer and sharded safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from dlm_lens.errors import CheckpointError
from dlm_lens.models.semi_structured import dense_weight, is_semi_structured

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

    A tied output head is not written twice, and 2:4 weights are written as the dense matrices that they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        rename(name): _written(tensor)
        for name, tensor in model.state_dict().items()
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings)
    }
    save_torch_state_dict(state, folder, max_shard_size=max_shard_size, safe_serialization=True)
    dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}, indent=2) + "\n")


def _written(weight: Tensor) -> Tensor:
    if is_semi_structured(weight):  # to the CPU, or the GPU would hold the whole model a second time
        return dense_weight(weight).cpu()
    return weight.detach().contiguous()


@dataclass(frozen=True)
class StoredWeight:
    """Where a weight is stored, and its shape and type there (as safetensors call it, such as ``"BF16"``)."""

    shard: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


# Types that weights may be stored in, by their names in safetensors. All others hold quantised values.
STORED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def find_weights(
    model: PreTrainedModel,
    folder: Path,
    *,
    to_native: Callable[[str], str],
    to_published: Callable[[str], str],
) -> dict[str, StoredWeight]:
    """Where the safetensors files of ``folder`` hold each weight of ``model``, translating their published keys.

    Files are compared with the model by name, shape and type; nothing is read but their headers.

    Raises
    ------
    CheckpointError
        if there are no safetensors, a shard of the set is missing, or keys are missing, surplus, misshapen or
        quantised.
    """
    shards = _shards(folder)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = model.config.tie_word_embeddings
    if tied:
        del wanted["lm_head.weight"]
    sources = _sources(shards, to_native, folder, skip={"lm_head.weight"} if tied else set())
    _check_keys(wanted, sources, folder, to_published)
    return sources


def fill_weights(model: PreTrainedModel, sources: dict[str, StoredWeight], *, progress: bool = True) -> None:
    """Copy every weight from where it is stored into ``model``, one at a time, each to the device it is on there.

    A bar appears where that takes more than two seconds.
    """
    state = model.state_dict()
    by_shard: dict[Path, list[str]] = {}
    for name, source in sources.items():
        by_shard.setdefault(source.shard, []).append(name)
    with (
        torch.no_grad(),
        tqdm(total=len(sources), desc="loading", unit="tensor", disable=not progress, delay=2) as bar,
    ):
        for shard, names in by_shard.items():
            with safe_open(shard, framework="pt") as file:
                for name in names:
                    state[name].copy_(file.get_tensor(sources[name].key))
                    bar.update()


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            raise CheckpointError(f"{folder} holds no *.safetensors file; other formats are not read")
        _check_complete(folder, _siblings(shards[0].name), "their names tell of")
        return shards
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({error}); download it again") from error
    _check_complete(folder, names, "its index names")
    return [folder / name for name in names]


def _siblings(shard: str) -> list[str]:
    """The names of a whole set, from that of one shard: ``model-00002-of-00006.safetensors`` is one of six."""
    numbered = re.fullmatch(r"(.*-)(\d+)(-of-)(\d+)(\.safetensors)", shard)
    if numbered is None:
        return []
    before, _, of, count, after = numbered.groups()
    return [f"{before}{each + 1:0{len(count)}}{of}{count}{after}" for each in range(int(count))]


def _check_complete(folder: Path, names: list[str], told: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {len(names)} shards {told}: {_some(missing)}; download it again"
        )


def _sources(
    shards: list[Path], rename: Callable[[str], str], folder: Path, skip: set[str]
) -> dict[str, StoredWeight]:
    sources: dict[str, StoredWeight] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (no mapping)
                    name = rename(key)
                    if name not in skip:
                        part = file.get_slice(key)
                        sources[name] = StoredWeight(shard, key, tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise CheckpointError(
                f"{shard} is not a whole safetensors file ({error}); download it again"
            ) from error
    return sources


def _check_keys(
    wanted: dict[str, tuple[int, ...]],
    sources: dict[str, StoredWeight],
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
    quantised = [stored for stored in sources.values() if stored.dtype not in STORED_DTYPES]
    if quantised:
        problems.append(
            f"{len(quantised)} stored as {quantised[0].dtype}, such as {quantised[0].key}: quantised weights are not"
            " read, take the checkpoint in bfloat16"
        )
    if problems:
        raise CheckpointError(
            f"the weights in {folder} are not those its config.json describes: {'; '.join(problems)}. Take both"
            " from the same download"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
