"""The audit of a comparison: how much dense attention each sparse policy keeps, per step, layer and head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlm_lens.measure.lineup import Entry
from dlm_lens.progress import Progress
from dlm_lens.recording import capture
from dlm_lens.trace import Trace, open_trace


class Audit(Mapping[str, Trace]):
    """The traces of a comparison's sparse policies by the names in the table's column ``audit``.

    Pandas copies what hangs on a table with every operation on it. Traces are read only, and copies would fill the
    memory, so copies of a table share them.
    """

    def __init__(self, traces: Mapping[str, Trace]) -> None:
        self._traces = dict(traces)

    def __getitem__(self, name: str) -> Trace:
        if name not in self._traces:
            raise KeyError(f"no audit {name!r}; there are {', '.join(map(repr, self._traces)) or 'none'}")
        return self._traces[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._traces)

    def __len__(self) -> int:
        return len(self._traces)

    def __deepcopy__(self, memo: dict[int, Any]) -> Audit:
        return self

    def __repr__(self) -> str:
        lines = [f"  {name}: {len(trace.steps)} steps" for name, trace in self.items()]
        return "\n".join([f"Audit of {len(self)} runs", *lines])


def audit_names(prompts: Iterable[str], entries: Sequence[Entry]) -> dict[tuple[str, str], str]:
    """A name, fit for a folder, for each prompt set and label of a policy that leaves out keys."""
    names: dict[tuple[str, str], str] = {}
    for prompt in prompts:
        for entry in entries:
            if entry.policy.density == 1:
                continue
            plain = "-".join(re.findall(r"[a-z0-9]+", f"{prompt} {entry.label}".lower())) or "audit"
            taken = sum(name == plain or name.startswith(f"{plain}.") for name in names.values())
            names[prompt, entry.label] = f"{plain}.{taken + 1}" if taken else plain
    return names


def audit(
    entry: Entry,
    prompt: Any,
    *,
    name: str,
    folder: Path | None,
    progress: bool | Progress,
    **run: Any,
) -> Trace:
    """Denoise once more and record ``retained_mass`` (step, layer, head) of the states that the policy leads to.

    ``run`` are arguments of :func:`dlm_lens.denoise`. The trace is kept in ``folder`` if there is one. Ctrl-C raises
    ``KeyboardInterrupt``: half of an audit is none.
    """
    trace = capture(
        entry.dlm,
        prompt,
        policy=entry.policy,
        statistics=[],
        path=None if folder is None else audit_path(folder, name),
        overwrite=True,
        progress=progress,
        **run,
    )
    if not trace.complete:
        raise KeyboardInterrupt
    return trace


def reopened(folder: Path, name: str) -> Trace:
    """The audit of an earlier session."""
    return open_trace(audit_path(folder, name))


def audit_path(folder: Path, name: str) -> Path:
    return folder / "audit" / f"{name}.zarr"
