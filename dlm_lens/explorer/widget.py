"""The explorer in a notebook: the views of ``static/``, their data, and the selection as traits."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anywidget
import traitlets
from IPython.display import HTML, display

from dlm_lens.explorer.bundle import bundle
from dlm_lens.explorer.page import page
from dlm_lens.explorer.policy_panel import PolicyPanel
from dlm_lens.explorer.source import styles, widget_script
from dlm_lens.explorer.still import still
from dlm_lens.trace import Trace, open_trace

if TYPE_CHECKING:
    import pandas as pd

    from dlm_lens.models import DLM

_FRAME = (
    '<div><iframe srcdoc="{page}" title="{title}" style="border: 0; width: 100%; height: {height}px">'
    "</iframe></div>"
)
_VIEW = "application/vnd.jupyter.widget-view+json"
ALL = -1
_SPEEDS = (2, 4, 8, 16, 30)  # of the browser's list
_SETTINGS = ("step", "layer", "head", "metric", "sample", "position", "speed", "budget", "policy")


class Explorer(anywidget.AnyWidget):
    """A trace to look at: text, heads, attention maps and columns, linked over the denoising steps.

    The selection can be read and set from Python while it is on screen:

    ============  ====================================================================
    ``step``      number of the step shown, one of ``trace.steps``
    ``layer``     number of the chosen layer, or −1 for the mean of all layers and heads
    ``head``      number of the chosen head, or −1 for the mean of the layer's heads
    ``metric``    name of the metric that colours the grid of heads
    ``sample``    index of the sample of a batch
    ``position``  position of the token that is followed, or −1
    ``speed``     steps per second while playing
    ``budget``    share of the keys that a choice of columns keeps, in (0, 1]
    ``policy``    name of the policy in its panel, as at the command line
    ============  ====================================================================

    All of them together are :attr:`settings`. Setting one to something the trace does not have raises
    ``traitlets.TraitError``. Where no kernel runs (a notebook reopened, or on GitHub) a picture of the columns and the
    drift of the sinks stands in.

    With the model, ``dlm``, the policy panel shows what a policy itself would keep at the step shown, and measures
    it on the trace's own prompt: ``table`` holds what it has measured. Both run in a thread of their own, one at a
    time; what a cell runs meanwhile shares the device with them.
    """

    _esm = widget_script()
    _css = styles()
    _manifest = traitlets.Unicode().tag(sync=True)
    _payload = traitlets.Bytes().tag(sync=True)
    _controls = traitlets.Dict().tag(sync=True)
    _measured = traitlets.List().tag(sync=True)
    _still = traitlets.Unicode().tag(sync=True)  # the id of the element to hide

    step = traitlets.Int(0).tag(sync=True)
    layer = traitlets.Int(ALL).tag(sync=True)
    head = traitlets.Int(ALL).tag(sync=True)
    metric = traitlets.Unicode("").tag(sync=True)
    sample = traitlets.Int(0).tag(sync=True)
    position = traitlets.Int(-1).tag(sync=True)
    speed = traitlets.Int(8).tag(sync=True)
    budget = traitlets.Float(0.2).tag(sync=True)
    policy = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        trace: Trace,
        dlm: DLM | None = None,
        *,
        against: Trace | None = None,
        title: str | None = None,
        labels: Sequence[str] | None = None,
        max_bytes: int = 25_000_000,
        progress: bool = True,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.trace, self.against = trace, against
        self._policy = PolicyPanel(trace, dlm, send=self.send, measured_more=self._show_measured)
        self._title, self._labels, self._progress = title, labels, progress
        traces = [trace] if against is None else [trace, against]
        self._bundle = bundle(
            traces, title=title, labels=labels, max_bytes=max_bytes, on_demand=True, progress=progress
        )
        self.notes = self._bundle.notes
        manifest = self._bundle.packs[0].manifest
        controls = self._policy.controls()
        policies = [choice["name"] for choice in controls["choices"]]
        metrics = [metric["key"] for metric in manifest["metrics"]]
        self._choices = {
            "step": manifest["steps"],
            "layer": [ALL, *manifest["layers"]],
            "head": [ALL, *manifest["heads"]],
            "metric": metrics or [""],
            "sample": range(trace.samples),
            "position": range(-1, trace.length),
            "speed": _SPEEDS,
            "policy": policies,
        }
        super().__init__(
            _manifest=self._bundle.manifest_json,
            _payload=self._bundle.payload,
            _controls=controls,
            _still=f"dl-still-{uuid4().hex}",
            step=manifest["steps"][0],
            metric=metrics[0] if metrics else "",
            policy=policies[0],
        )
        self.settings = settings or {}
        self.on_msg(self._answer)
        self.on_msg(lambda _, message, __: self._policy.receive(message))

    def _show_measured(self, measured: list[Any]) -> None:
        self._measured = measured

    @property
    def table(self) -> pd.DataFrame | None:
        """All that the panel has measured, as :func:`dlm_lens.compare` returns it, with the column ``measurement``
        (1, 2, …) in front; None before the first."""
        return self._policy.table

    def _answer(self, widget: Any, message: dict[str, Any], buffers: list[bytes]) -> None:
        """Send a selection that was left to be asked for: ``{"type": "slice", "trace", "sample", "layer", "head"}``,
        indices of the manifest, ``head`` −1 for the mean of the layer's heads."""
        if message.get("type") != "slice":
            return
        trace, sample, layer, head = (int(message[name]) for name in ("trace", "sample", "layer", "head"))
        try:
            packed = self._bundle.packs[trace]
            arrays, payload = packed.selection(sample, layer, None if head < 0 else head)
        except Exception as error:  # whatever it is, the page is waiting for an answer
            self.send(message | {"error": f"{type(error).__name__}: {error}"})
            raise
        self.send(message | {"arrays": arrays}, [payload])

    @traitlets.validate(*_SETTINGS)
    def _check(self, proposal: Any) -> Any:
        return self._possible(proposal["trait"].name, proposal["value"])

    def _possible(self, name: str, value: Any) -> Any:
        if name == "budget":
            if not 0 < value <= 1:
                raise traitlets.TraitError(f"budget is {value!r}, expected a share of the keys in (0, 1]")
        elif value not in self._choices[name]:
            choices = self._choices[name]
            shown = choices if len(choices) <= 16 else f"{choices[0]} … {choices[-1]} as recorded"
            raise traitlets.TraitError(f"{name} is {value!r}, expected one of {shown}")
        return value

    @property
    def settings(self) -> dict[str, Any]:
        """What is shown, by the trace's own numbers; goes through JSON and opens another explorer exactly there.

        Assigning a dictionary changes what it names and leaves the rest, or, when it raises, all as it was:
        ``ValueError`` for an unknown name, ``traitlets.TraitError`` for something that the trace does not have.
        """
        return {name: getattr(self, name) for name in _SETTINGS}

    @settings.setter
    def settings(self, wanted: Mapping[str, Any]) -> None:
        checked = self._checked(wanted)
        with self.hold_trait_notifications():
            for name, value in checked.items():
                setattr(self, name, value)

    def _checked(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        unknown = [name for name in wanted if name not in _SETTINGS]
        if unknown:
            raise ValueError(f"unknown setting {unknown[0]!r}, expected some of {', '.join(_SETTINGS)}")
        traits = self.traits()
        return {
            name: self._possible(name, traits[name].validate(self, value)) for name, value in wanted.items()
        }

    def save_html(
        self,
        path: str | PathLike,
        title: str | None = None,
        max_bytes: int = 25_000_000,
        settings: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the explorer as one HTML file that needs no kernel and no network; returns its path.

        Parameters
        ----------
        title : heading of the page; by default the explorer's own
        max_bytes : largest size of the file. What does not fit is left out: coarser maps first, then fewer
            heads, steps and layers. The page says what. ``ValueError`` if nothing fits.
        settings : what the page shows when it is opened, e.g. the explorer's own :attr:`settings`; by default its
            beginning
        """
        text = self._page(title or self._title, max_bytes, settings or {})
        target = Path(path)
        target.write_text(text, encoding="utf-8")
        return target

    def embed(
        self,
        height: int = 1300,
        max_bytes: int = 25_000_000,
        settings: Mapping[str, Any] | None = None,
    ) -> HTML:
        """The explorer as output that keeps working without a kernel, e.g. in what nbconvert makes of a notebook.

        ``height`` in CSS pixels; ``max_bytes``, by which the notebook grows at most, and ``settings`` as for
        :meth:`save_html`.
        """
        text = self._page(self._title, max_bytes, settings or {})
        title = html.escape(self._title or "dlm-lens explorer", quote=True)
        return HTML(_FRAME.format(page=html.escape(text, quote=True), title=title, height=int(height)))

    def _page(self, title: str | None, max_bytes: int, settings: Mapping[str, Any]) -> str:
        return page(
            self.trace,
            title,
            max_bytes,
            against=self.against,
            labels=self._labels,
            measured=self._policy.measured,
            progress=self._progress,
            settings=self._checked(settings),
        )

    def _ipython_display_(self) -> None:
        """Two outputs: the widget, and what stands in for it, which the widget hides while it lives."""
        if self.comm is not None:  # else the widget is closed
            view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
            # What converts notebooks would warn of an output that it cannot show: here is one without content.
            display({_VIEW: view, "text/html": ""}, raw=True)
        traces = [self.trace, *([] if self.against is None else [self.against])]
        display(still(traces, self._still, self._bundle.title) | {"text/plain": repr(self)}, raw=True)

    def __repr__(self) -> str:
        where = f"step {self.step}, layer {self.layer}, head {self.head}"
        left_out = f"; left out: {' '.join(self.notes)}" if self.notes else ""
        return f"Explorer({where}{left_out})"


def explore(
    trace: Trace | str | PathLike,
    dlm: DLM | None = None,
    *,
    against: Trace | str | PathLike | None = None,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    max_bytes: int = 25_000_000,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> Explorer:
    """Look at a trace, or at the trace saved at a path: a linked, interactive view for notebooks.

    ``dl.explore(trace).save_html("explorer.html")`` writes the same as a file of its own.

    Parameters
    ----------
    dlm : the model that the trace comes from, for the policy panel to ask and to measure; without it the panel tells
        what column mass tells
    against : a second trace, shown beside the first and moved by the same controls: a model and its autoregressive
        twin, dense attention and a policy, two prompts. Steps correspond by their number where both runs have as
        many, else by how far the runs are
    title : heading; by default the model's name
    labels : names of the two traces; by default what tells them apart
    max_bytes : what may go to the browser, compressed. Of a larger trace heads are fetched from the kernel when they
        are looked at; if that is not enough it is reduced and the view says how
    progress : show a bar while a large trace is read
    settings : what to show first, as :attr:`Explorer.settings` gives it: ``{"step": 12, "layer": 3, "head": 1}``

    Raises ``TraceError`` for a path without a trace or a trace without anything to show, ``TypeError`` for
    anything else than a trace or a path, ``ValueError`` unless there is a label for each trace, and for a model
    of another kind than the trace's.
    """
    traces = [_opened("explore", trace)] + ([] if against is None else [_opened("against", against)])
    if labels is not None and len(labels) != len(traces):
        raise ValueError(f"labels={list(labels)} must name each trace once: {len(traces)} expected")
    return Explorer(
        traces[0],
        dlm,
        against=traces[1] if against is not None else None,
        title=title,
        labels=labels,
        max_bytes=max_bytes,
        progress=progress,
        settings=settings,
    )


def _opened(name: str, trace: Any) -> Trace:
    if isinstance(trace, str | PathLike):
        return open_trace(trace)
    if not isinstance(trace, Trace):
        raise TypeError(f"{name} takes a Trace or the path of one, got {type(trace).__name__}")
    return trace
