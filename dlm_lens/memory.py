"""The memory of a run before it is begun, what to do where it is not enough, and the error that says so.

What is counted is what PyTorch allocates on the device at its peak: the weights, what the policy keeps from step to
step, and the largest of the phases of a step. The sizes of the phases follow the modules that transformers runs (Llama
and Qwen2): what they hold at the same time, copies included.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from dlm_lens.byte_sizes import format_bytes
from dlm_lens.errors import MemoryBudgetError
from dlm_lens.models import DLM, Spec
from dlm_lens.models.placement import free_bytes
from dlm_lens.models.semi_structured import stored_bytes
from dlm_lens.policies import Policy
from dlm_lens.policies.held import RunSize
from dlm_lens.samplers import Sampler

CHUNK = 8192
"""Positions that the MLP is computed for at a time where memory asks for it."""

# What the estimate may be too high by: only what exceeds the free memory even then surely cannot fit.
_MARGIN = 1.25
# cuBLAS's workspace on Hopper; no other library's was found to matter.
_LIBRARIES = 36 << 20


@dataclass(frozen=True)
class Demand:
    """What a run asks for: its size, the logits it makes, and how the model is set up.

    ``wanted`` positions of each row get logits. ``recorder`` is the bytes that reducing a layer takes. ``chunk`` is the
    positions that the MLP computes at a time, None for all. ``compiled`` tells whether layers are.
    """

    size: RunSize
    policy: Policy
    sampler: Sampler
    wanted: int
    recorder: int
    chunk: int | None
    compiled: bool

    @classmethod
    def of(
        cls,
        model: DLM | Spec,
        *,
        rows: int,
        length: int,
        gen_length: int,
        policy: Policy,
        sampler: Sampler,
        recorder: int = 0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> Demand:
        """What ``rows`` sequences of ``length`` ask of a model where it is, or of a shape in ``dtype`` on a GPU."""
        loaded = model if isinstance(model, DLM) else None
        size = RunSize(
            spec=model.spec if isinstance(model, DLM) else model,
            batch=rows,
            length=length,
            element=(loaded.dtype if loaded else dtype).itemsize,
            on_gpu=loaded is None or loaded.device.type == "cuda",
        )
        return cls(
            size,
            policy,
            sampler,
            wanted=len(sampler.positions(0, gen_length)),
            recorder=recorder,
            chunk=loaded.mlp_chunk if loaded else None,
            compiled=loaded is not None and loaded.compiled,
        )

    def phases(self) -> dict[str, int]:
        """Bytes held at the peak of each phase of a step, beside the weights and what the policy keeps."""
        size, spec = self.size, self.size.spec
        rows = size.batch * size.length
        number = size.element
        hidden = rows * spec.hidden * number
        q = rows * spec.heads * spec.head_dim * number
        kv = rows * spec.kv_heads * spec.head_dim * number
        mlp = rows * spec.mlp * number
        # The embeddings, which transformers holds to the end, the layer's input, and the table of the rotary embedding.
        base = 2 * hidden + 2 * size.length * spec.head_dim * number
        # gate and up, the activation of the one and their product; what is compiled overwrites.
        inner = (2 if self.compiled else 3) * mlp
        if self.chunk is not None and self.chunk < size.length:
            inner = inner * self.chunk // size.length + hidden
        rotary = 2 * kv + 2 * q + (0 if self.compiled else max(2 * q, 3 * kv))
        norms = 0 if self.compiled else 8 * rows * spec.hidden  # x and x² in float32
        logits = size.batch * self.wanted * spec.vocab * number
        reduced = self.policy.held(size).workspace + self.recorder
        return {
            "MLP": base + 2 * hidden + inner,
            "norms": base + 2 * hidden + norms,
            "rotary embedding": base + hidden + rotary,
            "attention": base + hidden + 2 * q + 2 * kv + 8 * rows * spec.heads + reduced,
            "logits": 2 * hidden + logits,
            "sampler": logits + self.sampler.workspace(size.batch * self.wanted, spec.vocab),
        }


@dataclass(frozen=True, repr=False)
class RunEstimate:
    """Bytes that a run will take on its device.

    Attributes
    ----------
    weights : of the model, which are there before the run
    kept : what the policy keeps from step to step, in all layers
    phases : at the peak of each phase of a step, besides; they do not add up
    free : what is free on the device now, PyTorch's own cached blocks included; None where nothing tells. Of several
        devices it is the fullest one's
    demand : what was estimated
    share : of the layers, and so of what is kept, that are on that device
    """

    weights: int
    kept: int
    phases: Mapping[str, int]
    free: int | None
    demand: Demand
    share: float = 1.0

    @property
    def needed(self) -> int:
        """Bytes at the peak beside the weights on the device in question; what is compared with ``free``."""
        return (
            int(self.share * self.kept)
            + max(self.phases.values())
            + (_LIBRARIES if self.demand.size.on_gpu else 0)
        )

    @property
    def total(self) -> int:
        """Bytes at the peak, weights included, over all devices."""
        return self.weights + self.needed + int((1 - self.share) * self.kept)

    @property
    def peak(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=self.phases.__getitem__)

    @property
    def fits(self) -> bool | None:
        """Whether the run fits into the free memory; None where that is not known."""
        return None if self.free is None else self.needed <= self.free

    def __repr__(self) -> str:
        size, policy = self.demand.size, self.demand.policy.label
        rows = f"{size.batch} × " if size.batch > 1 else ""
        others = ", ".join(
            f"{name} {format_bytes(held)}" for name, held in self.phases.items() if name != self.peak
        )
        lines = [
            f"{format_bytes(self.total)} for {policy} on {size.spec.name} at {rows}{size.length:,} positions",
            f"  weights {format_bytes(self.weights)}",
            f"  kept by the policy {format_bytes(self.kept)}",
            f"  {self.peak} {format_bytes(self.phases[self.peak])} (less at other times: {others})",
        ]
        if self.free is not None:
            lines.append(f"  free beside the weights {format_bytes(self.free)}")
        return "\n".join(lines)


def run_estimate(model: DLM | Spec, demand: Demand) -> RunEstimate:
    """The estimate for a demand: of a model where it is, or of a shape with nothing known of a device."""
    kept, phases = demand.policy.held(demand.size).kept, demand.phases()
    if isinstance(model, Spec):
        return RunEstimate(_weights(model) * demand.size.element, kept, phases, None, demand)
    weights = sum(map(stored_bytes, model.model.parameters()))
    layers = [next(layer.parameters()).device for layer in model.layers]
    shares = {device: count / len(layers) for device, count in Counter(layers).items()}
    free = {device: known for device in shares if (known := free_bytes(device)) is not None}
    if not free:
        return RunEstimate(weights, kept, phases, None, demand)
    fullest = min(free, key=lambda device: free[device] - shares[device] * kept)
    return RunEstimate(weights, kept, phases, free[fullest], demand, shares[fullest])


@contextmanager
def room_for(dlm: DLM, demand: Demand) -> Iterator[Demand]:
    """A run that demands so much: the MLP is chunked for it where it would not fit otherwise; yields what it then asks.

    Raises ``MemoryBudgetError`` where it surely does not fit even so.
    """
    if free_bytes(dlm.device) is None:
        yield demand
        return
    needed = run_estimate(dlm, demand)
    before = dlm.mlp_chunk
    if needed.fits is False and before is None and dlm.has_mlp:
        chunked = run_estimate(dlm, replace(demand, chunk=CHUNK))
        if chunked.needed < needed.needed:
            dlm.chunk_mlp(CHUNK)
            needed = chunked
    try:
        if needed.free is not None and needed.needed > _MARGIN * needed.free:
            raise MemoryBudgetError(
                f"this run needs about {format_bytes(needed.needed)} beside the weights, but only"
                f" {format_bytes(needed.free)} of the GPU are free. {needed}\n{advice(needed)}"
            )
        yield needed.demand
    finally:
        if dlm.mlp_chunk != before:
            dlm.chunk_mlp(before)


def advice(needed: RunEstimate) -> str:
    """What to change so that a run fits, beginning with what helps most often."""
    demand = needed.demand
    size = demand.size
    said = []
    if length := _fitting_length(needed):
        said.append(f"at most about {length:,} positions in all")
    if size.batch > 1:
        said.append(f"fewer than {size.batch} rows at a time")
    if demand.chunk is None and (saved := needed.needed - _needed(replace(demand, chunk=CHUNK), needed)) > 0:
        said.append(f"dlm.chunk_mlp() (saves {format_bytes(saved)})")
    if size.element > 2:
        said.append("dtype=torch.bfloat16 when loading (half of everything)")
    if demand.recorder and needed.peak == "attention":
        said.append("a capture of fewer statistics, bins or heads")
    if needed.kept > needed.needed // 4:
        said.append(
            f"a policy that keeps less than {format_bytes(needed.kept)}: larger groups or more sparsity"
        )
    said.append('dl.load(..., device_map="auto") over several GPUs')
    return "To fit: " + "; ".join(said)


def release(device: torch.device) -> None:
    """Give back what a run has left on a GPU, so that the next begins with all the memory that nobody holds."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _needed(demand: Demand, like: RunEstimate) -> int:
    kept = demand.policy.held(demand.size).kept
    return replace(like, demand=demand, kept=kept, phases=demand.phases()).needed


def _fitting_length(needed: RunEstimate) -> int:
    """The most positions, in steps of 1,024, with which the run would fit; 0 if none would."""
    size, free = needed.demand.size, needed.free or 0
    fitting, beyond = 0, size.length // 1024
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        there = replace(needed.demand, size=replace(size, length=1024 * middle))
        fitting, beyond = (middle, beyond) if _needed(there, needed) <= free else (fitting, middle)
    return 1024 * fitting


def _weights(spec: Spec) -> int:
    """Parameters of a shape, with an output head of its own."""
    attention = spec.hidden * spec.head_dim * 2 * (spec.heads + spec.kv_heads)
    return 2 * spec.vocab * spec.hidden + spec.layers * (attention + 3 * spec.hidden * spec.mlp)
