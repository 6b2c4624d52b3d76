"""The explorer's policy panel, on the side of Python: previews and measurements with the model, in their own thread.

Messages come from the panel in the browser (``static/policy.js``) and answers go there. One thread does one thing at a
time: a measurement goes before a preview, of previews only the newest is made, and newer ones end it within a layer.
"""

from __future__ import annotations

import json
import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from dlm_lens.errors import DlmLensError
from dlm_lens.explorer.policy_choices import controls, policy_chosen
from dlm_lens.explorer.selection import with_samples
from dlm_lens.trace import Trace

if TYPE_CHECKING:
    from dlm_lens.models import DLM

Message = Mapping[str, Any]
Answer = tuple[dict[str, Any], list[bytes]]
Send = Callable[[dict[str, Any], list[bytes]], None]

_TELL_SECONDS = 0.1  # at most so often progress is told
_LEFT_OUT = ("total s", "peak MB", "correct %")
_PROMPT = "prompt"


class _Superseded(Exception):
    """A preview that nobody waits for any more."""


class PolicyPanel:
    """Answers the panel's messages about a trace; without a model it only says what is missing.

    ``send(content, buffers)`` takes messages to the browser, from any thread; ``measured_more`` is called with all
    results after each measurement. ``table`` holds the rows of :func:`dlm_lens.compare` of all measurements, numbered
    in the column ``measurement``, or None.

    Raises ValueError if the model is not of the kind that the trace was captured from.
    """

    def __init__(
        self, trace: Trace, dlm: DLM | None, send: Send, measured_more: Callable[[list[Any]], None]
    ) -> None:
        if dlm is not None:
            _check_same(trace, dlm)
        self._trace, self._dlm, self._send, self._measured_more = trace, dlm, send, measured_more
        self.table: pd.DataFrame | None = None
        self.measured: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._jobs: dict[str, Message] = {}
        self._running: str | None = None
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()

    def controls(self) -> dict[str, Any]:
        """What the browser needs to build the panel, ready for JSON."""
        return controls(self._trace, with_model=self._dlm is not None)

    def receive(self, message: Message) -> None:
        """Take a message of the panel; others are ignored. Returns at once."""
        kind = message.get("type")
        if kind == "cancel":
            self._cancel()
        elif kind in ("preview", "measure"):
            if self._dlm is None:
                self._send(*_error(message, "there is no model; pass it: dl.explore(trace, dlm)"))
            else:
                self._enqueue(kind, message)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is being done; False if that takes longer than ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout)

    def _cancel(self) -> None:
        with self._changed:
            waiting = self._jobs.pop("measure", None)
            if self._running == "measure":
                self._cancelled.set()
        if waiting is not None:
            self._send({"type": "result", "text": "Cancelled before it began."}, [])

    def _enqueue(self, kind: str, message: Message) -> None:
        with self._changed:
            busy = kind == "measure" and (self._running == "measure" or "measure" in self._jobs)
            if not busy:
                self._jobs[kind] = message
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="policy panel", daemon=True)
                    self._thread.start()
        if busy:
            self._send(*_error(message, "a measurement is under way; wait for it or cancel it"))

    def _work(self) -> None:
        try:
            while (job := self._next_job()) is not None:
                answer = self._done(*job)
                with self._changed:
                    self._running = (
                        None  # before the answer, after which another measurement may be asked for
                    )
                if answer is not None:
                    self._send(*answer)
        except BaseException:
            with self._changed:
                self._thread = self._running = None
                self._changed.notify_all()
            raise

    def _next_job(self) -> tuple[str, Message] | None:
        with self._changed:
            kind = next((kind for kind in ("measure", "preview") if kind in self._jobs), None)
            if kind is None:
                self._thread = None  # from here on a new message starts a new one
                self._changed.notify_all()
                return None
            self._running = kind
            self._cancelled.clear()
            return kind, self._jobs.pop(kind)

    def _done(self, kind: str, message: Message) -> Answer | None:
        """Do a job; its answer, which may be an error."""
        try:
            return (self._measure if kind == "measure" else self._preview)(message)
        except _Superseded:
            with self._changed:
                self._jobs.setdefault("preview", message)  # if a measurement came between: after it
            return None
        except KeyboardInterrupt:  # raised in _progress
            return {"type": "result", "text": "Cancelled; nothing was kept."}, []
        except (DlmLensError, ValueError, TypeError) as error:
            return _error(message, str(error))
        except Exception as error:
            traceback.print_exc()
            return _error(message, f"{type(error).__name__}: {error}")

    def _preview(self, message: Message) -> Answer:
        """Answer with what the chosen policy keeps at a step: retained mass by layer and head, and pairs by bins."""
        from dlm_lens.measure.preview import preview

        assert self._dlm is not None
        trace, sample = self._trace, int(message["sample"])
        tokens = with_samples(trace["tokens"]).isel(sample=sample).sel(step=int(message["step"])).values
        policy = policy_chosen(message["policy"], message["value"])
        layer, head = int(message["layer"]), int(message["head"])
        seen = preview(
            self._dlm,
            torch.from_numpy(tokens.astype(np.int64)),
            policy,
            prompt_length=trace.prompt_length,
            steps=_steps(trace),
            start=int(np.atleast_1d(trace["start"].values)[sample]),
            bins=int(message["bins"]),
            layer=None if layer < 0 else layer,
            head=None if head < 0 else head,
            seed=int(trace.attrs.get("seed", 0)),
            watch=self._stop_if_superseded,
        )
        retained = (
            None if seen.retained_mass is None else np.round(seen.retained_mass.astype(float), 5).tolist()
        )
        content = {
            "type": "preview",
            "key": message["key"],
            "label": policy.label,
            "kind": seen.kind,
            "density": seen.density,
            "computed": seen.computed,
            "attended": seen.attended,
            "retained": retained,
        }
        kept = [] if seen.kept is None else [np.rint(255 * seen.kept).astype(np.uint8).tobytes()]
        return content, kept

    def _stop_if_superseded(self) -> None:
        with self._changed:
            if self._jobs:
                raise _Superseded

    def _measure(self, message: Message) -> Answer:
        """Compare the chosen policy with dense attention on the trace's own prompt, and keep the table."""
        from dlm_lens.measure import compare

        assert self._dlm is not None
        trace = self._trace
        policy = policy_chosen(message["policy"], message["value"])
        gen_length, steps, repeats = (_positive(message, name) for name in ("gen_length", "steps", "repeats"))
        table = compare(
            self._dlm,
            {_PROMPT: prompts_of(trace)},
            [policy],
            gen_length=gen_length,
            steps=steps,
            repeats=repeats,
            seed=int(trace.attrs.get("seed", 0)),
            progress=self._progress(),
        )
        table.insert(0, "measurement", len(self.measured) + 1)
        earlier = [] if self.table is None else [self.table]
        provenance = [*(past for t in earlier for past in t.attrs["provenance"]), table.attrs["provenance"]]
        for part in (*earlier, table):
            part.attrs = {}  # joining tables compares them
        self.table = pd.concat([*earlier, table], ignore_index=True)
        self.table.attrs["provenance"] = provenance
        self.measured = [*self.measured, for_browser(table, policy.label, repeats)]
        self._measured_more(self.measured)
        return {"type": "result", "text": "Measured."}, []

    def _progress(self) -> Callable[[float, float, str], None]:
        """What a comparison tells; it is where Cancel takes effect."""
        told = -math.inf

        def tell(done: float, total: float, what: str) -> None:
            nonlocal told
            if self._cancelled.is_set():
                raise KeyboardInterrupt
            if time.monotonic() - told >= _TELL_SECONDS:
                told = time.monotonic()
                what = what.removeprefix(f"{_PROMPT}: ")
                self._send({"type": "progress", "done": done, "total": total, "what": what}, [])

        return tell


def prompts_of(trace: Trace) -> list[torch.Tensor]:
    """The trace's own prompts as token ids, one tensor per sample, without padding."""
    tokens = with_samples(trace["tokens"]).isel(step=0).values[:, : trace.prompt_length]
    starts = np.atleast_1d(trace["start"].values)
    return [
        torch.from_numpy(row[int(start) :].astype(np.int64))
        for row, start in zip(tokens, starts, strict=True)
    ]


def for_browser(table: pd.DataFrame, label: str, repeats: int) -> dict[str, Any]:
    """A measurement as the panel shows it: medians of its rows, with units in the heads, and what was measured."""
    from dlm_lens.measure import summary

    short = summary(table).drop(columns=list(_LEFT_OUT), errors="ignore")
    first = table.iloc[0]
    prompt, repetitions = (
        first["context"] - first["gen_length"],
        "repetition" if repeats == 1 else "repetitions",
    )
    return {
        "policy": label,
        "settings": f"{prompt} + {first['gen_length']} tokens, {first['steps']} steps, {repeats} {repetitions}",
        "baseline": f"{first['backend']} on {first['device']}",
        "columns": list(short.columns),
        "rows": [
            {"policy": policy, "values": [float(f"{v:.4g}") if math.isfinite(v) else None for v in values]}
            for policy, values in zip(short.index, short.to_numpy(float), strict=True)
        ],
    }


def _error(message: Message, text: str) -> Answer:
    return {"type": "error", "of": message["type"], "key": message.get("key"), "text": text}, []


def _steps(trace: Trace) -> int:
    return int(trace.attrs.get("steps", trace.steps[-1] + 1))


def _positive(message: Message, name: str) -> int:
    value = message[name]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    return value


def _check_same(trace: Trace, dlm: DLM) -> None:
    """Names may differ, for a hub id and a folder can be the same model."""
    own = json.loads(json.dumps(asdict(dlm.spec)))  # as in a trace: tuples are lists there
    for name, value in trace.spec.items():
        if name != "name" and own.get(name) != value:
            raise ValueError(
                f"the trace was captured from {trace.spec.get('name')!r} with {name}={value!r}, but {dlm.spec.name!r}"
                f" has {name}={own.get(name)!r}; pass the model that the trace comes from"
            )
