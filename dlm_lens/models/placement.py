"""Where the weights of a model go: to one device, or to several by a device map of accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dlm_lens.byte_sizes import format_bytes
from dlm_lens.errors import MemoryBudgetError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DeviceMap = Mapping[str, int | str | torch.device]
MaxMemory = Mapping[int | str, int | str]


@dataclass(frozen=True)
class Placement:
    """The device of every module: that of the longest name in ``devices`` which it is, or is within; ``""`` is all."""

    devices: dict[str, torch.device]

    def of(self, module: str) -> torch.device | None:
        """The device of a module; None where the map has none for it."""
        while module not in self.devices:
            if not module:
                return None
            module = module.rpartition(".")[0]
        return self.devices[module]

    @property
    def several(self) -> bool:
        return len(set(self.devices.values())) > 1

    def __str__(self) -> str:
        return ", ".join(sorted({str(device) for device in self.devices.values()}))


def place(
    model: PreTrainedModel,
    device: torch.device | str | None,
    device_map: str | DeviceMap | None,
    max_memory: MaxMemory | None,
) -> Placement:
    """Decide where the modules of ``model``, which is on the meta device in its final dtype, are to go.

    Raises ``ValueError`` for arguments that exclude each other or a map that does not fit the model, and
    ``MemoryBudgetError`` if the weights do not fit into the free memory of the GPUs.
    """
    if max_memory is not None and device_map != "auto":
        raise ValueError('max_memory bounds what device_map="auto" puts where; give both or neither')
    if device_map is None:
        chosen = Placement({"": device_named(device or default_device())})
    elif device is not None:
        raise ValueError(f"device={device!r} and device_map={device_map!r} exclude each other; give one")
    elif device_map == "auto":
        chosen = (
            _spread(model, max_memory) if torch.cuda.is_available() else Placement({"": device_named("cpu")})
        )
    elif isinstance(device_map, Mapping):
        chosen = Placement({name: device_named(where) for name, where in device_map.items()})
    else:
        raise ValueError(f'device_map={device_map!r} must be "auto" or a table of module names and devices')
    _check_map(model, chosen)
    _check_memory(model, chosen)
    return chosen


def default_device() -> str:
    """A CUDA device where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def allocate(model: PreTrainedModel, placement: Placement) -> None:
    """Give every module of a model on the meta device unset weights on its own device."""
    for name, module in model.named_modules():
        module.to_empty(device=placement.of(name) or "meta", recurse=False)
    model.tie_weights()


def connect(model: PreTrainedModel, placement: Placement) -> None:
    """Let what passes from module to module of a model on several devices follow them, by hooks of accelerate."""
    from accelerate import dispatch_model

    dispatch_model(model, device_map=blocks(model, placement), main_device=model.device)


def blocks(model: PreTrainedModel, placement: Placement) -> dict[str, torch.device]:
    """The device of every layer, and of every module outside of layers that holds tensors; none is within another.

    accelerate would first put what is in a larger module on that one's device, all of it at once for ``""``.
    """
    whole = set(model._no_split_modules or [])
    found: dict[str, torch.device] = {}
    for name, module in model.named_modules():
        within = any(name.startswith(f"{block}.") for block in found)
        holds = type(module).__name__ in whole or any(True for _ in tensors_in(module))
        if holds and not within:
            found[name] = placement.of(name) or model.device
    return found


def tensors_in(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a module itself, not of those within it."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def weight_bytes(model: PreTrainedModel, placement: Placement) -> dict[torch.device, int]:
    """Bytes of the weights on each device; a tied weight counts once."""
    sizes: dict[torch.device, int] = {}
    for name, parameter in model.named_parameters():
        device = placement.of(name.rpartition(".")[0])
        assert device is not None
        sizes[device] = sizes.get(device, 0) + parameter.numel() * parameter.element_size()
    return sizes


def device_named(where: int | str | torch.device) -> torch.device:
    """The device of that name or number; ``ValueError`` for one that is not there."""
    try:
        device = torch.device("cuda", where) if isinstance(where, int) else torch.device(where)
    except (RuntimeError, TypeError):
        raise ValueError(
            f'{where!r} is no device that a model can run on; use such as "cuda:0" or "cpu"'
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device() if count else 0)
        if device.index >= count:
            raise ValueError(f"{device} does not exist: {count} CUDA devices are present")
    return device


def _spread(model: PreTrainedModel, max_memory: MaxMemory | None) -> Placement:
    """The weights over all GPUs evenly, whole layers each."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = list(model._no_split_modules or [])
    bounds = None if max_memory is None else dict(max_memory)
    memory = get_balanced_memory(model, bounds, no_split_module_classes=whole)
    devices = infer_auto_device_map(model, memory, no_split_module_classes=whole)
    if left := [name for name, where in devices.items() if where in ("cpu", "disk")]:
        total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        raise MemoryBudgetError(
            f"the weights take {format_bytes(total)}, more than the GPUs have room for"
            f" ({', '.join(f'{key}: {_amount(size)}' for key, size in memory.items() if key != 'cpu')}): {left[0]} and"
            f" {len(left) - 1} more modules are left over. Use a dtype of fewer bytes, more GPUs, or raise max_memory"
        )
    placed = {name: device_named(where) for name, where in devices.items()}
    # Where the first layer is: it is shown the hidden states only for their dtype, but they would be copied to it.
    return Placement(placed | {"model.rotary_emb": placed.get("", placed["model.embed_tokens"])})


def _check_map(model: PreTrainedModel, chosen: Placement) -> None:
    names = {name for name, _ in model.named_modules()}
    if unknown := sorted(chosen.devices.keys() - names):
        raise ValueError(f"device_map names {unknown[0]!r}, but the model has no such module")
    kinds = {device.type for device in chosen.devices.values()}
    if len(kinds) > 1 or "meta" in kinds:
        raise ValueError(
            f"device_map puts modules on {chosen}: weights that wait in main memory or on disk would be copied at every"
            " step, which dlm-lens does not do. Use GPUs only, or the CPU for all"
        )
    for name, _ in model.named_parameters():
        if chosen.of(name.rpartition(".")[0]) is None:
            raise ValueError(f"device_map has no device for {name}; name its module, or '' for the rest")
    if model.config.tie_word_embeddings and chosen.of("lm_head") != chosen.of("model.embed_tokens"):
        raise ValueError(
            "device_map puts lm_head and model.embed_tokens on different devices, but they share one weight;"
            " put both on the same"
        )
    whole = set(model._no_split_modules or [])
    for name, module in model.named_modules():
        if type(module).__name__ in whole:
            parts = {chosen.of(f"{name}.{part}" if part else name) for part, _ in module.named_modules()}
            if len(parts) > 1:
                raise ValueError(f"device_map splits {name} over several devices; a layer must lie on one")


def _check_memory(model: PreTrainedModel, chosen: Placement) -> None:
    for device, needed in weight_bytes(model, chosen).items():
        free = free_bytes(device)
        if free is not None and needed > free:
            raise MemoryBudgetError(
                f"the weights take {format_bytes(needed)} in {str(model.dtype).removeprefix('torch.')}, but"
                f' {format_bytes(free)} of {device} are free. Use dtype="bfloat16" if they are wider,'
                ' device_map="auto" to spread them over several GPUs, or free memory that others hold'
            )


def free_bytes(device: torch.device) -> int | None:
    """Bytes that PyTorch could still allocate on a GPU, its own cached blocks included; None elsewhere."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def _amount(size: Any) -> str:
    return size if isinstance(size, str) else format_bytes(int(size))
