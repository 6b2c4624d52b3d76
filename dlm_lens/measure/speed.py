"""Timing policies and models side by side: warmed up, and in turns, so that a drifting machine drifts for all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlm_lens.denoising import Denoised, denoise, sampler_of
from dlm_lens.measure.lineup import Entry
from dlm_lens.progress import Bar
from dlm_lens.samplers import Sampler


@dataclass(frozen=True)
class Run:
    """One timed run of an entry, by its place; ``peak_bytes`` is NaN where the system does not tell."""

    entry: int
    repetition: int
    result: Denoised
    peak_bytes: float


def timed_runs(
    entries: Sequence[Entry],
    prompt: Any,
    *,
    gen_length: int,
    steps: int,
    sampler: Sampler | None,
    seed: int,
    repetitions: Sequence[int],
    bar: Bar,
    heading: str,
) -> Iterator[Run]:
    """Run every entry in each of the numbered ``repetitions``, turn by turn, every other one in opposite order.

    A short run of each comes first and is thrown away: it pays for compilation and for the first touch
    of memory. ``bar`` counts the others, and is told under the ``heading`` what is run. Ctrl-C ends the measurement
    with ``KeyboardInterrupt``, for half of one compares with nothing.
    """
    common: dict[str, Any] = {"gen_length": gen_length, "sampler": sampler, "seed": seed}
    if not repetitions:
        return
    for entry in entries:
        own = sampler_of(entry.policy, entry.dlm.spec, gen_length) if sampler is None else sampler
        few = warm_up_steps(own, gen_length, steps)
        bar.note(f"{heading}: warming up {entry.label}")
        told = bar.within(counts=False)
        uninterrupted(denoise(entry.dlm, prompt, policy=entry.policy, steps=few, progress=told, **common))
    for repetition in repetitions:
        turns = list(enumerate(entries))
        for index, entry in turns if repetition % 2 == 0 else reversed(turns):
            bar.note(f"{heading}: {entry.label}")
            with peak_memory(*entry.dlm.devices) as peak:
                told = bar.within()
                result = uninterrupted(
                    denoise(entry.dlm, prompt, policy=entry.policy, steps=steps, progress=told, **common)
                )
            bar.update()
            yield Run(index, repetition, result, peak[0])


def uninterrupted(result: Denoised) -> Denoised:
    """``result``, unless Ctrl-C cut it short: then ``KeyboardInterrupt`` goes on to the caller."""
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def warm_up_steps(sampler: Sampler, gen_length: int, steps: int) -> int:
    """The smallest number of steps, at least 4, that the sampler can fill ``gen_length`` in.

    Four steps are enough for both a refresh and a sparse step to occur.
    """
    for few in range(4, steps):
        try:
            sampler.check(gen_length, few)
        except ValueError:
            continue
        return few
    return steps


@contextmanager
def peak_memory(*devices: torch.device) -> Iterator[list[float]]:
    """Put into the list it yields, at the end, the most bytes held meanwhile.

    On GPUs what PyTorch had allocated there, the sum of the peaks of all ``devices``; on Linux the resident memory of
    the process; NaN elsewhere.
    """
    peak: list[float] = []
    if devices[0].type == "cuda":
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(float(sum(map(torch.cuda.max_memory_allocated, devices))))
    else:
        resettable = _reset_peak_rss()
        yield peak
        peak.append(_peak_rss() if resettable else float("nan"))


def _reset_peak_rss() -> bool:
    """Let the kernel start its record of peak resident memory anew (Linux, proc(5): clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_rss() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return float(found[1]) * 1024 if found else float("nan")
