"""The main job in one go, on the bundled model: capture a denoising run, look at it, compare sparse policies."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import dlm_lens as dl
from dlm_lens import measure

if TYPE_CHECKING:
    from dlm_lens.models import DLM
    from dlm_lens.trace import Trace

# The published 16 refreshes are for about a thousand steps; so few steps would hardly do anything else.
PULSECOL = dl.PulseCol(sparsity=0.8, refresh_count=2)
WIDTH = 100

# Rows to be remembered, then code to be continued: what the bundled model was trained on.
PROMPT = '''\
qfx=4821
mtr=0937
zab=5560
hop=2284
"""Measurements of a run, kept in the order in which they were made."""

import json
import os
import time

class Measurement:
    """One named value and the moment it was taken at."""

    def __init__(self, name, value, time):
        self.name = name
        self.value = value
        self.time = time

    def __repr__(self):
        return "Measurement(%r, %r)" % (self.name, self.value)


class Recorder:
    """Keep measurements, find them by name, and write them to a file."""

    def __init__(self, path=None):
        self.path = path
        self._items = []
        self._closed = False

    def add(self, name, value):
        """Add a measurement taken now and return it."""
        if self._closed:
            raise ValueError("the recorder is closed")
        item = Measurement(name, value, time.time())
        self._items.append(item)
        return item

    def find(self, name):
        """Return all measurements of this name, the oldest first."""
        result = []
        for item in self._items:
            if item.name == name:
                result.append(item)
        return result

    def close(self):
        """Accept no more measurements."""
        self._closed = True

    def save(self):
        """Write all measurements to the file."""
        if self._closed:
            raise'''

LEGEND = (
    "A refresh attends to everything and chooses anew which keys the sparse steps keep. The bound is what"
    " leaving out attention alone can gain: at {length} positions attention is {share:.0%} of the work,"
    " and its share grows with the context."
)
FILES = {
    "explorer.html": "open in a browser: scrub through the steps, see sinks and columns move",
    "sinks.png": "where the attention sinks are at every step",
    "compare.png": "speed-up beside the quality that is left",
    "compare.csv": "every number of the table, one row per run",
    "trace.zarr": 'the recorded statistics: dlm_lens.open_trace("…/trace.zarr")',
}


def demo(
    out: Path,
    *,
    length: int = 512,
    gen_length: int = 128,
    steps: int = 64,
    context: int = 2048,
    compare_steps: int = 16,
    questions: int = 8,
    repeats: int = 1,
) -> None:
    """Write ``trace.zarr``, ``explorer.html``, ``sinks.png``, ``compare.csv`` and ``compare.png`` to ``out``.

    The captured sequence has ``length`` positions, of which the last ``gen_length`` are generated in ``steps``
    steps. Policies are compared on a longer one of ``context`` positions, where there is something to save, in
    ``compare_steps`` steps, and on ``questions`` retrieval questions of ``length`` tokens.
    Files of an earlier demo are replaced, and nothing else is touched. Takes under three minutes on two cores.
    """
    out.mkdir(parents=True, exist_ok=True)
    dlm = dl.load("tiny")
    print(dlm)
    prompt = _ending_in(PROMPT, dlm, length - gen_length)

    print(
        f"\n1  Denoising {gen_length} tokens after a prompt of {prompt.shape[1]}, watching every attention head"
    )
    trace = dl.capture(
        dlm, prompt, path=out / "trace.zarr", overwrite=True, gen_length=gen_length, steps=steps
    )
    _print_text(dlm, trace)

    print("\n2  Drawing what was seen")
    dl.explore(trace).save_html(out / "explorer.html")
    dl.plots.sink_drift(trace).figure.savefig(out / "sinks.png", dpi=150, bbox_inches="tight")

    print(
        f"\n3  Comparing dense attention, PulseCol and random columns at {context:,} positions,"
        f"\n   and on {questions} retrieval questions of {length} tokens"
    )
    policies = [dl.Dense(), PULSECOL, dl.RandomColumns(sparsity=PULSECOL.sparsity)]
    tasks = measure.tasks.retrieval(dlm, questions, length=length)
    prompt = _ending_in(PROMPT, dlm, context - gen_length)
    run = {"gen_length": gen_length, "steps": compare_steps}
    table = dl.compare(dlm, prompt, policies, tasks=tasks, repeats=repeats, **run)
    measure.save_table(table, out / "compare.csv")
    dl.plots.speedup(table).figure.savefig(out / "compare.png", dpi=150, bbox_inches="tight")
    print("\n" + measure.format_summary(table))
    baseline = f"Baseline: {table['backend'][0]}, {table.attrs['provenance']['cpu']}."
    plan = dl.schedule(dl.Dense(), compare_steps, dlm, prompt_length=prompt.shape[1], gen_length=gen_length)
    share = plan.attention_share
    print("\n" + textwrap.fill(f"{baseline} {LEGEND.format(length=context, share=share)}", WIDTH))
    print(f"\nLook at (in {out}/):")
    for name, what in FILES.items():
        print(f"  {name:<15}{what}")


def _ending_in(text: str, dlm: DLM, length: int) -> torch.Tensor:
    """Token ids [1, length] that end in ``text``, after as much held-out code as that takes."""
    ids = dlm.encode(text).tokens
    before = dlm.encode(measure.tasks.held_out_text()[: 20 * length]).tokens
    return torch.cat([before, ids], dim=1)[:, -length:]


def _print_text(dlm: DLM, trace: Trace) -> None:
    """The generated text, indented."""
    text = dlm.decode(torch.from_numpy(trace["final_tokens"].values[trace.prompt_length :]))[0]
    print(textwrap.indent(text, "   │ ", lambda line: True))
