"""What a capture will take, worked out before it starts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlm_kernels.common import chunk_budget

from dlm_lens.byte_sizes import format_bytes
from dlm_lens.errors import MemoryBudgetError
from dlm_lens.recording.base import BinnedStatistic, Statistic

# Tiles of scores and the sums over queries that the statistics are made from; they do not grow with the length.
_TILES = 3 * (4 << 20)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a capture will take.

    variables : bytes of each variable over all recorded steps, in memory or on disk
    workspace : bytes held besides, while a step is recorded
    on_device : of the workspace, what lies where the model does; the rest is the computer's own memory
    """

    variables: Mapping[str, int]
    workspace: int
    on_device: int = 0

    @property
    def trace(self) -> int:
        """Bytes of the finished trace."""
        return sum(self.variables.values())

    @property
    def total(self) -> int:
        """Bytes of trace and workspace together, which the memory budget bounds."""
        return self.trace + self.workspace

    def __repr__(self) -> str:
        largest = sorted(self.variables.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in largest)
        return f"trace {format_bytes(self.trace)} ({parts}), workspace {format_bytes(self.workspace)}"


def estimate_memory(
    statistics: Sequence[Statistic],
    *,
    batch: int,
    length: int,
    layers: int,
    heads: int,
    steps: int,
    retained_mass: bool = False,
    on_gpu: bool = False,
) -> MemoryEstimate:
    """Estimate a capture of ``steps`` steps over ``layers`` × ``heads`` of ``batch`` sequences of ``length``.

    Everything recorded is float32. Counted are the statistics and, as ``tokens``, what is kept per position. The
    workspace lies ``on_gpu`` where the model does; there it holds sums over bins of queries for every key.
    """
    per_head = {statistic.variable: math.prod(statistic.shape(length)) for statistic in statistics}
    if retained_mass:
        per_head["retained_mass"] = 1
    step = {name: 4 * batch * layers * heads * values for name, values in per_head.items()}
    # Per position: token, mask, confidence at every step; commitment and final token once.
    variables = {name: size * steps for name, size in step.items()} | {
        "tokens": batch * length * (9 * steps + 8)
    }
    bins = max([s.bins for s in statistics if isinstance(s, BinnedStatistic)], default=1)
    tiles = min(chunk_budget(None, triton=True), 8 * batch * heads * bins * length) if on_gpu else _TILES
    tiles += max((statistic.workspace(on_gpu) for statistic in statistics), default=0)
    # The step's values once as recorded and once as written.
    return MemoryEstimate(variables, 2 * sum(step.values()) + tiles, tiles)


def check_budget(estimate: MemoryEstimate, budget: int, statistics: Sequence[Statistic], steps: int) -> None:
    """Raise ``MemoryBudgetError`` if the estimate for ``steps`` steps exceeds ``budget`` bytes, saying what to drop."""
    if estimate.total <= budget:
        return
    advice = []
    for statistic in statistics:
        if statistic.variable == "full_map":
            advice.append(f"leave out FullMaps() ({format_bytes(estimate.variables['full_map'])})")
    fitting = steps * (budget - estimate.workspace) // estimate.trace
    if fitting > 0:
        advice.append(f"record {fitting} of the {steps} steps (record_steps)")
    if "pooled_map" in estimate.variables:
        pooled = format_bytes(estimate.variables["pooled_map"])
        advice.append(f"use fewer bins (pooled_map takes {pooled}; half the bins take a quarter)")
    advice.append("record fewer layers or heads")
    raise MemoryBudgetError(
        f"this capture needs {format_bytes(estimate.total)} but memory_budget is {format_bytes(budget)}: {estimate}."
        f" To fit: {'; '.join(advice)}; or raise memory_budget"
    )
