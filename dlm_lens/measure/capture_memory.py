"""Peak memory of capturing, beside that of materialising the attention maps: each in a process of its own.

python -m dlm_lens.measure.capture_memory --tokens 2048 --steps 8
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import dlm_lens as dl
from dlm_lens.byte_sizes import format_bytes
from dlm_lens.recording import FullMaps, LayerAttention

if TYPE_CHECKING:
    from torch import Tensor

    from dlm_lens.attention import StepContext
    from dlm_lens.models import DLM
    from dlm_lens.policies import PolicyRun, StepPlan

GEN_LENGTH = 64


class MapKeeper:
    """A recorder that keeps every attention map of a step, as ``output_attentions=True`` would."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def begin_step(self, step: int, tokens: Tensor, plan: StepPlan) -> None:
        """Nothing to prepare."""

    def observe(self, layer: int, q: Tensor, k: Tensor, context: StepContext) -> None:
        """Make and keep the maps of a layer."""
        seen = LayerAttention(q, k, context.start, context.causal, bins=None, entropy=False)
        self.maps.append(FullMaps()(seen))

    def end_step(
        self, step: int, confidence: Tensor, committed: Tensor, kind: str, ms: float, run: PolicyRun
    ) -> None:
        """All maps stay."""


def capture(dlm: DLM, prompt: Tensor, steps: int) -> None:
    """Capture all layers and heads of ``steps`` steps."""
    dl.capture(dlm, prompt, gen_length=GEN_LENGTH, steps=steps, progress=False)


def materialise(dlm: DLM, prompt: Tensor, steps: int) -> None:
    """Keep the maps of all layers and heads of a single step, whatever ``steps`` says."""
    sampler = dl.LowConfidence(block_length=GEN_LENGTH)
    dl.denoise(
        dlm, prompt, gen_length=GEN_LENGTH, steps=1, sampler=sampler, recorder=MapKeeper(), progress=False
    )


JOBS = {"capture": capture, "materialise": materialise}


def peak_bytes() -> int:
    """Highest resident memory of this process so far.

    Linux lets a process inherit its parent's peak in ``getrusage``, so its own is read from ``/proc``.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(job: str, model: str, tokens: int, steps: int) -> dict[str, int]:
    """Run a job in a fresh process: bytes at its peak, and ``loaded`` before the run, all imports included."""
    command = [sys.executable, "-m", "dlm_lens.measure.capture_memory", "--job", job, "--model", model]
    command += ["--tokens", str(tokens), "--steps", str(steps)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main(arguments: list[str] | None = None) -> int:
    """Measure both jobs and print them, or run one where ``--job`` names it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="bundled model, folder or hub id (tiny)")
    parser.add_argument("--tokens", type=int, default=2048, help="positions, prompt and generation (2048)")
    parser.add_argument("--steps", type=int, default=8, help="steps captured (8)")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.tokens <= GEN_LENGTH:
        parser.error(f"--tokens must exceed the {GEN_LENGTH} that are generated, got {options.tokens}")
    if options.job:
        dlm = dl.load(options.model)
        random = torch.Generator().manual_seed(0)
        prompt = torch.randint(3, dlm.spec.vocab, (options.tokens - GEN_LENGTH,), generator=random)
        loaded = peak_bytes()
        JOBS[options.job](dlm, prompt, options.steps)
        print(json.dumps({"loaded": loaded, "peak": peak_bytes()}))
        return 0
    what = {"capture": f"capture of {options.steps} steps", "materialise": "all maps of one step"}
    print(f"Peak resident memory, {options.model} at {options.tokens} tokens, all layers and heads")
    for job, name in what.items():
        found = measure(job, options.model, options.tokens, options.steps)
        before = format_bytes(found["loaded"])
        print(f"  {name:<22}{format_bytes(found['peak']):>10}   ({before} with PyTorch and the model loaded)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
