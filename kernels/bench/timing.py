"""Timing rivals side by side, and saying where it was done."""

from __future__ import annotations

import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dlm_lens.measure.environment import cpu_name, device_name
from dlm_lens.recording.provenance import git_revision


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, fastest and slowest of ``repeats``."""

    ms: float
    low: float
    high: float
    repeats: int


def race(
    rivals: Mapping[str, Callable[[], Any]], device: torch.device, *, repeats: int = 7
) -> dict[str, Timing]:
    """Time calls in turns, so that a drifting clock drifts for all of them, after two untimed rounds.

    A rival that cannot run here (out of memory, a shape it does not take) is left out, and said so on stderr.
    """
    running = {}
    for name, call in rivals.items():
        try:
            for _ in range(2):
                call()
            _finish(device)
            running[name] = call
        except (RuntimeError, NotImplementedError, ValueError) as error:
            print(f"  {name} cannot run: {str(error).splitlines()[0][:200]}", file=sys.stderr)
    samples: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(repeats):
        for name, call in running.items():
            samples[name].append(_once(call, device))
    if device.type == "cuda":
        gc.collect()  # rivals that hold each other in cycles hold its memory; without one this only takes time
    return {n: Timing(statistics.median(s), min(s), max(s), repeats) for n, s in samples.items()}


def _once(call: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - started)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, device, revision and command, for the file of results."""
    versions = {}
    for name in ("torch", "triton", "flash-attn", "flash-attn-3"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "device": device_name(device),
        "cpu": cpu_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        **versions,
    }


def default_output(device: torch.device) -> Path:
    """Where results of this device are kept: ``figures/data/kernels-<device>.json``."""
    name = device_name(device).lower().replace(" ", "-")
    return Path(__file__).parents[2] / "figures" / "data" / f"kernels-{name}.json"
