"""Where a number was measured: versions, device, seed and date, kept beside every table."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import dlm_lens
from dlm_lens.policies.dense import BACKENDS, can_compute
from dlm_lens.recording.provenance import git_revision

if TYPE_CHECKING:
    from dlm_lens.models import DLM

_PACKAGES = ("torch", "triton", "transformers", "numpy")


def provenance(dlm: DLM, *, seed: int) -> dict[str, Any]:
    """All that is needed to tell whether two measurements are comparable, ready for JSON."""
    return {
        "model": dlm.spec.name,
        "dtype": str(dlm.dtype).removeprefix("torch."),
        "dense_backend": dense_backend(dlm),
        "seed": seed,
        **versions_and_device(dlm.device),
        "device": " + ".join(map(device_name, dlm.devices)),
    }


def versions_and_device(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Date, command, versions and machine of this process, ready for JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": device_name(torch.device(device)),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dlm_lens": dlm_lens.__version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _installed(name) for name in _PACKAGES},
    }


def device_name(device: torch.device) -> str:
    """The device as people call it: a GPU's product name, or ``"cpu"``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def dense_backend(dlm: DLM) -> str:
    """The backend that dense attention of this model runs on here: what every speed-up is relative to."""
    if dlm.device.type != "cuda":
        return f"SDPA ({dlm.device.type})"
    return next(title for name, (_, title) in BACKENDS.items() if can_attend(dlm, name))


def can_attend(dlm: DLM, backend: str) -> bool:
    """Whether dense attention of this model runs on one of ``BACKENDS`` on its GPU; False on a CPU."""
    if dlm.device.type != "cuda":
        return False
    spec = dlm.spec
    q = torch.empty(1, spec.heads, 128, spec.head_dim, device=dlm.device, dtype=dlm.dtype)
    k = torch.empty(1, spec.kv_heads, 128, spec.head_dim, device=dlm.device, dtype=dlm.dtype)
    return can_compute(backend, q, k, causal=spec.causal)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
