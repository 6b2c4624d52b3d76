"""What of a trace fits into a size budget.

With a kernel at hand heads, then layers, are left to be asked for one by one; after that, and in a page at once, maps
become coarser and heads, steps and layers fewer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dlm_lens.trace import Trace

_FEWEST_BINS = 16
_FEWEST_STEPS = 8


@dataclass(frozen=True)
class Plan:
    """Which parts of a trace to pack: indices of steps, layers and heads, and bins of the pooled maps.

    ``resident`` is the finest selection whose arrays are packed: ``"all"`` (the mean of everything), ``"layer"``
    (also that of each layer's heads) or ``"head"``. Finer ones are asked for when they are looked at.
    """

    steps: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    bins: int  # 0: no maps
    resident: str = "head"

    @property
    def selections(self) -> int:
        """How many selections are packed."""
        layers, heads = len(self.layers), len(self.heads)
        return {"all": 1, "layer": 1 + layers, "head": 1 + layers * (1 + heads)}[self.resident]


def full_plan(trace: Trace) -> Plan:
    """Everything that the trace has."""
    sizes = trace.dataset.sizes
    bins = sizes["query_bin"] if "pooled_map" in trace.dataset else 0
    steps, layers, heads = (tuple(range(sizes.get(dim, 0))) for dim in ("step", "layer", "head"))
    return Plan(steps, layers, heads, bins)


def raw_bytes(plan: Plan, trace: Trace) -> int:
    """Size of the large arrays of a plan before compression."""
    per_step = plan.selections * plan.bins**2
    if "column_mass" in trace.dataset:
        per_step += plan.selections * trace.length * 9 // 8
    return trace.samples * len(plan.steps) * (per_step + 6 * trace.length)


def plans(trace: Trace, on_demand: bool = False) -> Iterator[Plan]:
    """The full plan, then ever smaller ones; with ``on_demand`` heads and layers may be left to be asked for."""
    plan = full_plan(trace)
    yield plan
    if on_demand and plan.layers:
        for resident in ("layer", "all"):
            plan = replace(plan, resident=resident)
            yield plan
    while True:
        before = plan
        for smaller in (_halve_bins, _halve_heads, _halve_steps, _halve_layers):
            after = smaller(plan)
            if after != plan:
                plan = after
                yield plan
        if plan == before:
            break
    if plan.bins:
        yield replace(plan, bins=0)


def _halve_bins(plan: Plan) -> Plan:
    fits = plan.bins % 2 == 0 and plan.bins // 2 >= _FEWEST_BINS
    return replace(plan, bins=plan.bins // 2) if fits else plan


def _halve_heads(plan: Plan) -> Plan:
    return replace(plan, heads=plan.heads[::2]) if plan.resident == "head" else plan


def _halve_steps(plan: Plan) -> Plan:
    if len(plan.steps) < 2 * _FEWEST_STEPS:
        return plan
    kept = plan.steps[::2]
    return replace(plan, steps=kept if kept[-1] == plan.steps[-1] else (*kept, plan.steps[-1]))


def _halve_layers(plan: Plan) -> Plan:
    return replace(plan, layers=plan.layers[::2]) if plan.resident == "head" else plan


def describe(plan: Plan, full: Plan) -> list[str]:
    """What a plan leaves out, in sentences for the page; empty if nothing."""
    notes = []
    if plan.bins == 0 and full.bins:
        notes.append("Attention maps are left out.")
    elif plan.bins < full.bins:
        notes.append(
            f"Attention maps have {plan.bins} × {plan.bins} bins instead of {full.bins} × {full.bins}."
        )
    if len(plan.heads) < len(full.heads):
        notes.append(
            f"{len(plan.heads)} of {len(full.heads)} heads of a layer are shown; means are over all of them."
        )
    if len(plan.layers) < len(full.layers):
        notes.append(
            f"{len(plan.layers)} of {len(full.layers)} layers are shown; the mean is over all of them."
        )
    if len(plan.steps) < len(full.steps):
        notes.append(f"{len(plan.steps)} of {len(full.steps)} recorded steps are shown.")
    return notes
