"""Loading models: bundled ones, and folders and hub ids in the published layouts."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from dlm_lens import attention
from dlm_lens.errors import CheckpointError
from dlm_lens.models.autoregressive import LLAMA, QWEN2
from dlm_lens.models.checkpoint import STORED_DTYPES, StoredWeight, fill_weights, find_weights
from dlm_lens.models.dlm import DLM
from dlm_lens.models.dream import DREAM
from dlm_lens.models.family import Family
from dlm_lens.models.llada import LLADA
from dlm_lens.models.placement import (
    DeviceMap,
    MaxMemory,
    Placement,
    allocate,
    connect,
    default_device,
    device_named,
    place,
)
from dlm_lens.models.rope import ntk_theta
from dlm_lens.models.spec import make_spec
from dlm_lens.models.tokenizer import check_ids, load_tokenizer, special_ids

BUNDLED = {"tiny": "tiny-dlm", "tiny-dlm": "tiny-dlm", "tiny-ar": "tiny-ar"}
FAMILIES: dict[str, Family] = {"llada": LLADA, "Dream": DREAM, "llama": LLAMA, "qwen2": QWEN2}
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: str | DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    max_length: int | None = None,
    rope_theta: float | str | None = None,
    family: str | None = None,
    progress: bool = True,
) -> DLM:
    """Load a diffusion language model, or an autoregressive one to hold against it.

    Parameters
    ----------
    name_or_path : ``"tiny"`` or ``"tiny-ar"`` (bundled), a folder, or a hub id such as
        ``"GSAI-ML/LLaDA-8B-Instruct"``. No code from the hub or the folder is ever run.
    device : where to put it; a CUDA device where there is one, else the CPU.
    dtype : of the weights, such as ``torch.bfloat16`` or ``"bfloat16"``; by default the checkpoint's on a GPU and
        float32 on a CPU.
    device_map : ``"auto"`` spreads whole layers over all GPUs evenly, by accelerate; or a table of module names and
        devices, such as ``{"model.layers.0": 0, "": 1}``. All policies and recordings work, without CUDA graphs.
    max_memory : the most that ``"auto"`` may put where, such as ``{0: "20GB", 1: "40GB"}``.
    max_length : positions that a run may have, where the published number is not to be the bound. Beyond it the
        rotary embedding is extrapolated to positions that were never trained, with a warning.
    rope_theta : the base of the rotary embedding, in place of the published one; ``"ntk"`` for the one that stretches
        the published positions to ``max_length`` (:func:`dlm_lens.models.rope.ntk_theta`).
    family : ``"llada"``, ``"dream"`` or ``"ar"``, where anything else is to be an error.
    progress : show a bar where reading takes more than two seconds.

    Raises
    ------
    ValueError
        for a name that is none of these, arguments that exclude each other or cannot be, and for a model without a
        mask token.
    CheckpointError
        for a folder without a readable config, of another network or kind of model, with missing, surplus,
        misshapen or quantised weights, lacking some of its shards, or with a tokenizer that is not the model's.
    MemoryBudgetError
        for weights that do not fit into the free memory of the GPUs. All of this is found before weights are read.
    """
    with checkpoint_folder(name_or_path) as folder:
        chosen, published = _read_config(folder, family)
        config = _config(folder, chosen, published)
        published_length = config.max_position_embeddings
        _stretch(config, max_length, rope_theta)
        tokenizer = load_tokenizer(folder)
        ids = {} if tokenizer is None else special_ids(tokenizer)
        spec = make_spec(str(name_or_path), config, chosen, ids)
        check_ids(spec, tokenizer)
        if spec.max_length != published_length:
            spec = replace(spec, published_length=published_length)
        if spec.max_length > published_length:
            warnings.warn(_beyond(spec.name, published_length, config, rope_theta), stacklevel=2)

        model = empty_model(chosen, config)
        weights = find_weights(model, folder, to_native=chosen.to_native, to_published=chosen.to_published)
        on_cpu = device_map is None and device_named(device or default_device()).type == "cpu"
        model.to(_dtype(dtype, published, weights, folder, on_cpu))
        placement = place(model, device, device_map, max_memory)
        put(model, placement)
        fill_weights(model, weights, progress=progress)
        if placement.several:
            connect(model, placement)
        return DLM(model, tokenizer, spec, chosen)


@contextmanager
def checkpoint_folder(name_or_path: str | Path) -> Iterator[Path]:
    """The folder that :func:`load` reads for a name; a hub id is downloaded. ``ValueError`` for an unknown name."""
    name = str(name_or_path)
    if name in BUNDLED:
        with as_file(files("dlm_lens").joinpath("assets", BUNDLED[name])) as folder:
            yield folder
        return
    folder = Path(name_or_path).expanduser()
    yield folder if folder.is_dir() else _download(name)


def _read_config(folder: Path, family: str | None) -> tuple[Family, dict[str, Any]]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it holds no config.json")
    try:
        published = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    kind = published.get("model_type") if isinstance(published, dict) else None
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{path} says model_type={kind!r}; dlm-lens loads {', '.join(map(repr, FAMILIES))}, and takes other models"
            " of transformers that see both sides by dl.adapt"
        )
    found = FAMILIES[kind]
    known = {each.name for each in FAMILIES.values()}
    if family is not None and family not in known:
        raise ValueError(f"unknown family {family!r}: choose one of {', '.join(sorted(known))}")
    if family not in (None, found.name):
        what = "an autoregressive model" if found.causal else f"a {found.name} model"
        types = [repr(name) for name, each in FAMILIES.items() if each.name == family]
        raise CheckpointError(
            f"{path} says model_type={kind!r}, {what}, but family={family!r} was asked for, whose model_type is"
            f" {' or '.join(types)}; leave family out, or give {found.name!r}, to load it as what it is"
        )
    if "quantization_config" in published:
        raise CheckpointError(
            f"{path} has a quantization_config: quantised weights are not read, take the checkpoint in bfloat16"
        )
    return found, published


def _config(folder: Path, family: Family, published: dict[str, Any]) -> Any:
    try:
        return family.read_config(published)
    except (KeyError, TypeError, ValueError) as error:
        # The message is whole; a second traceback would only hide it.
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a {family.name} model: {error}"
        ) from None


def _stretch(config: Any, max_length: int | None, rope_theta: float | str | None) -> None:
    """Change the number of positions and the base of the rotary embedding of a configuration, as asked for."""
    trained, rope = config.max_position_embeddings, config.rope_parameters
    if max_length is not None:
        if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 1:
            raise ValueError(f"max_length={max_length!r} must be a number of positions, at least 1")
        config.max_position_embeddings = max_length
    if rope_theta is None:
        return
    if rope_theta == "ntk":
        if max_length is None or max_length <= trained or rope["rope_type"] != "default":
            raise ValueError(
                f'rope_theta="ntk" stretches a plain rotary embedding beyond its {trained} positions; give a max_length'
                f" above that (max_length={max_length}, rope_type={rope['rope_type']!r})"
            )
        head_dim = config.hidden_size // config.num_attention_heads
        rope_theta = ntk_theta(rope["rope_theta"], head_dim=head_dim, trained=trained, length=max_length)
    elif not isinstance(rope_theta, (int, float)) or rope_theta <= 1:
        raise ValueError(f'rope_theta={rope_theta!r} must be a base above 1, or "ntk"')
    config.rope_parameters = rope | {"rope_theta": float(rope_theta)}


def _beyond(name: str, published: int, config: Any, rope_theta: float | str | None) -> str:
    advice = ' rope_theta="ntk" stretches the embedding instead.' if rope_theta is None else ""
    return (
        f"{name} was published for {published} positions; up to {config.max_position_embeddings} its rotary"
        f" embedding (base {config.rope_parameters['rope_theta']:g}) is extrapolated to distances that were not"
        f" trained. Speed and memory are what they would be; the quality of the text is not promised.{advice}"
    )


def dtype_of(asked: torch.dtype | str) -> torch.dtype:
    """``torch.bfloat16`` from itself, ``"bfloat16"`` or ``"torch.bfloat16"``; ``ValueError`` for what no model has."""
    chosen = DTYPES.get(asked.removeprefix("torch.")) if isinstance(asked, str) else asked
    if chosen is None or chosen not in DTYPES.values():
        raise ValueError(f"dtype={asked!r} is none that models compute in; use one of {', '.join(DTYPES)}")
    return chosen


def _dtype(
    asked: torch.dtype | str | None,
    published: dict[str, Any],
    weights: dict[str, StoredWeight],
    folder: Path,
    on_cpu: bool,
) -> torch.dtype:
    """The dtype asked for; by default float32 on a CPU, elsewhere what the config names, or else the weights have."""
    if asked is not None:
        return dtype_of(asked)
    named = published.get("dtype") or published.get("torch_dtype")
    if named is not None and str(named) not in DTYPES:
        raise CheckpointError(
            f"{folder / 'config.json'} says torch_dtype={named!r}; expected one of {', '.join(DTYPES)}"
        )
    if on_cpu:
        return torch.float32
    if named is not None:
        return DTYPES[named]
    stored: Counter[str] = Counter()
    for weight in weights.values():
        stored[weight.dtype] += math.prod(weight.shape)
    return STORED_DTYPES[stored.most_common(1)[0][0]]


def empty_model(family: Family, config: Any) -> PreTrainedModel:
    """The family's module on the meta device: initialising weights only to replace them is slow."""
    config._attn_implementation = attention.NAME
    with torch.device("meta"):
        return family.model_class(config).eval().requires_grad_(False)


def put(model: PreTrainedModel, placement: Placement) -> None:
    """Allocate the weights of an :func:`empty_model` where they are to be, unset."""
    allocate(model, placement)
    # Not among the weights, so not restored by loading them.
    where = placement.of("model.rotary_emb") or model.device
    with where:
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)


def _download(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(
            f"unknown model {name!r}: give {', '.join(map(repr, BUNDLED))}, an existing folder, or a hub id "
            "such as 'GSAI-ML/LLaDA-8B-Instruct'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"model {name!r} is neither a folder nor to be had from the hub ({type(error).__name__}); check the "
            "name and the connection, or download it and give the folder"
        ) from error
