"""Loading models: bundled ones, folders and hub ids in the published layouts, and random ones for tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Tokenizer

from dlm_lens import attention
from dlm_lens.errors import CheckpointError
from dlm_lens.models.autoregressive import LLAMA, QWEN2
from dlm_lens.models.checkpoint import fill_weights
from dlm_lens.models.dlm import DLM, make_spec
from dlm_lens.models.dream import DREAM
from dlm_lens.models.family import Family
from dlm_lens.models.llada import LLADA

BUNDLED = {"tiny": "tiny-dlm", "tiny-dlm": "tiny-dlm", "tiny-ar": "tiny-ar"}
FAMILIES: dict[str, Family] = {"llada": LLADA, "Dream": DREAM, "llama": LLAMA, "qwen2": QWEN2}


def load(
    name_or_path: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> DLM:
    """Load a diffusion language model, or an autoregressive one to hold against it.

    Parameters
    ----------
    name_or_path : ``"tiny"`` or ``"tiny-ar"`` (bundled), a folder, or a hub id such as
        ``"GSAI-ML/LLaDA-8B-Instruct"``. No code from the hub or the folder is ever run.
    device : where to put it; a CUDA device where there is one, else the CPU.
    dtype : of the weights; by default the checkpoint's on a GPU and float32 on a CPU.

    Raises
    ------
    ValueError
        for a name that is none of these, and for a model without a mask token.
    CheckpointError
        for a folder without a readable config, of an unknown kind of model, with missing, surplus or misshapen
        weights, or lacking some of its shards.
    """
    with checkpoint_folder(name_or_path) as folder:
        return _load_folder(folder, str(name_or_path), device, dtype)


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


def random_model(
    family: str = "llada",
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int | None = None,
    mlp: int | None = None,
    vocab: int = 256,
    max_length: int = 4096,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> DLM:
    """A model of the given shape with random weights and no tokenizer, for tests and speed measurements.

    ``family`` is ``"llada"``, ``"dream"`` or ``"ar"``. The last token id is the mask and the one before it both
    end-of-text and padding. The global random state is left as it was.
    """
    families = {"llada": LLADA, "dream": DREAM, "ar": LLAMA}
    if family not in families:
        raise ValueError(f"unknown family {family!r}: choose one of {', '.join(families)}")
    if hidden % heads or heads % (kv_heads or heads):
        raise ValueError(
            f"hidden={hidden}, heads={heads}, kv_heads={kv_heads}: each must divide the one before"
        )
    chosen = families[family]
    config = chosen.model_class.config_class(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=mlp or hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=max_length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        bos_token_id=None,
        eos_token_id=vocab - 2,
        pad_token_id=vocab - 2,
        **({} if chosen.causal else {"mask_token_id": vocab - 1}),
    )
    place = torch.device(device or _default_device())
    model = _empty_model(chosen, config, place, dtype)
    generator = torch.Generator(place).manual_seed(seed)
    with torch.no_grad():
        for tensor_name, parameter in model.named_parameters():
            if "norm" in tensor_name:
                parameter.fill_(1.0)
            elif parameter.ndim == 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                # Unit-variance outputs keep attention far from uniform, as in trained models.
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    return DLM(model, None, make_spec(f"random-{family}", config, chosen), chosen)


def _load_folder(
    folder: Path, name: str, device: torch.device | str | None, dtype: torch.dtype | None
) -> DLM:
    family, published = _read_config(folder)
    try:
        config = family.read_config(published)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a {family.name} model: {error}"
        ) from error
    tokenizer = _load_tokenizer(folder, family)
    ids = {} if tokenizer is None else _special_ids(tokenizer)
    spec = make_spec(name, config, family, ids)
    place = torch.device(device or _default_device())
    if dtype is None:
        stored = published.get("dtype") or published.get("torch_dtype") or "float32"
        dtype = torch.float32 if place.type == "cpu" else getattr(torch, stored)
    model = _empty_model(family, config, place, dtype)
    fill_weights(model, folder, to_native=family.to_native, to_published=family.to_published)
    return DLM(model, tokenizer, spec, family)


def _read_config(folder: Path) -> tuple[Family, dict[str, Any]]:
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
            f"{path} says model_type={kind!r}; dlm-lens loads {', '.join(map(repr, FAMILIES))}"
        )
    return FAMILIES[kind], published


def _load_tokenizer(folder: Path, family: Family) -> PreTrainedTokenizerFast | None:
    """The folder's tokenizer. Its class is chosen here: a checkpoint that names remote code is not asked."""
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return Qwen2Tokenizer.from_pretrained(folder)
    return None


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "mask": tokenizer.mask_token_id,
    }


def _empty_model(family: Family, config: Any, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The family's module with unset weights on ``device``; initialising weights only to replace them is slow."""
    config._attn_implementation = attention.NAME
    with torch.device("meta"):
        model = family.model_class(config)
    model = model.to(dtype).to_empty(device=device)
    # Not among the weights, so not restored by loading them.
    with device:
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


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
