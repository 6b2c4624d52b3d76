"""Where a trace comes from, as the JSON attributes it carries."""

import json
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import dlm_lens

if TYPE_CHECKING:
    from dlm_lens.models import DLM


def provenance(dlm: "DLM") -> dict[str, Any]:
    """Model, specification, device, versions and date."""
    device = torch.cuda.get_device_name(dlm.device) if dlm.device.type == "cuda" else platform.machine()
    versions = {name: version(name) for name in ("torch", "transformers", "zarr")}
    return {
        "model": dlm.spec.name,
        "spec": json.dumps(asdict(dlm.spec)),
        "device": f"{', '.join(map(str, dlm.devices))} ({device})",
        "dtype": str(dlm.dtype).removeprefix("torch."),
        "versions": json.dumps(
            {"dlm_lens": dlm_lens.__version__, "python": platform.python_version(), **versions}
        ),
        "git_revision": git_revision(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_revision() -> str:
    """Commit of the checkout that this package lies in; empty where it was installed without one."""
    root = Path(dlm_lens.__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
