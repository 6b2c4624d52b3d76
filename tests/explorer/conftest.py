"""Traces to look at and a browser to look with: offline, and noting every request and error."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import dlm_lens as dl
from dlm_lens.explorer import Explorer
from dlm_lens.explorer.page import page

HOSTILE = (
    "</script><img src=x onerror=document.title='owned'>",
    "<b>bold</b>",
    "שלום",
    "👩‍🔬",
    "\n    ",
    "\n",
    "  ",
    "\u202eevil",
    "\u2028",
    "",
    "{title}",
    "\u200d",
)


def synthetic(**sizes: int) -> dl.Trace:
    """A small trace; its tokens are those that break careless pages."""
    small = {"steps": 6, "layers": 2, "heads": 4, "length": 48, "prompt_length": 16, "bins": 16}
    trace = dl.synthetic_trace(**(small | sizes))
    words = dict(enumerate(HOSTILE)) | {len(HOSTILE): "[MASK]"}
    return dl.Trace(trace.dataset.assign_attrs(vocabulary=json.dumps(words)))


@pytest.fixture(scope="session")
def trace() -> dl.Trace:
    return synthetic()


@pytest.fixture(scope="session")
def batch() -> dl.Trace:
    """Three samples, the later ones with left padding."""
    return synthetic(samples=3)


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield instance
        instance.close()


@dataclass
class View:
    """A page in the browser, with what it printed and asked for."""

    page: Page
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def picture(self, selector: str) -> str:
        """What a canvas shows, after the frame being drawn."""
        self.settle()
        return self.page.locator(selector).evaluate("canvas => canvas.toDataURL()")

    def settle(self) -> None:
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def step(self) -> int:
        self.settle()
        return int(
            self.page.get_by_role("slider", name="Denoising step").get_attribute("aria-valuenow") or -1
        )

    def chosen(self) -> str:
        self.settle()
        return self.page.locator(".dl-chosen").inner_text()


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[..., View]]:
    """``look(path, theme="light", width=1280)`` opens a file with the network off."""
    contexts = []

    def open_file(path: Path, theme: str = "light", width: int = 1280) -> View:
        context = browser.new_context(
            viewport={"width": width, "height": 1000}, color_scheme=theme, offline=True
        )
        contexts.append(context)
        view = View(context.new_page())
        view.page.on("console", lambda message: view.messages.append(message.text))
        view.page.on("pageerror", lambda error: view.messages.append(str(error)))
        view.page.on("request", lambda request: view.requests.append(request.url))
        view.page.route(lambda url: not url.startswith(("file:", "data:")), lambda route: route.abort())
        view.page.goto(path.resolve().as_uri())
        return view

    yield open_file
    for context in contexts:
        context.close()


@pytest.fixture
def show(look, tmp_path) -> Callable[..., View]:
    """``show(trace, against=None, …)`` saves the explorer as HTML and opens that."""

    def save_and_look(trace: dl.Trace, against: dl.Trace | None = None, labels=None, **settings) -> View:
        path = tmp_path / "explorer.html"
        path.write_text(page(trace, against=against, labels=labels), encoding="utf-8")
        view = look(path, **settings)
        view.page.wait_for_selector("body[data-ready]")
        return view

    return save_and_look


# A host like the one that anywidget gives a widget: traits, and messages both ways, which wait to be answered.
_HOST = """<!doctype html><meta charset="utf-8"><style>{styles}</style><body><div id="out"></div>
<script type="module">
const packed = {packed};
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const text = (name) => new TextDecoder().decode(bytes(packed[name]));
const state = {{ ...JSON.parse(text("state")),
  _manifest: text("manifest"), _payload: new DataView(bytes(packed.payload).buffer) }};
const handlers = {{}};
const each = (n, ...values) => [...(handlers[n] ?? [])].forEach((f) => f(...values));
window.model = {{ state, saved: 0, sent: [],
  get: (n) => state[n], set: (all) => Object.assign(state, all), save_changes() {{ this.saved++; }},
  on: (n, f) => (handlers[n] ??= new Set()).add(f), off: (n, f) => handlers[n].delete(f),
  push(n, v) {{ state[n] = v; each(`change:${{n}}`); }},
  send: (message) => model.sent.push(message),
  asked: (type) => model.sent.filter((message) => message.type === type),
  answer: (message, data) => each("msg:custom", message, data ? [new DataView(bytes(data).buffer)] : []) }};
const widget = (await import("data:text/javascript;base64," + packed.script)).default;
window.stop = await widget.render({{ model, el: document.getElementById("out") }});
document.body.dataset.ready = "true";
</script>"""


@pytest.fixture
def live(look, tmp_path) -> Callable[..., View]:
    """``live(widget, step=2, …)`` renders a widget's script in a page of its own, with the traits given.

    There, ``model.push(name, value)`` sets a trait, ``model.asked(type)`` are messages that were sent to the kernel,
    and ``model.answer(message, base64)`` answers.
    """

    def render(widget: Explorer, **traits: Any) -> View:
        large = {"_esm", "_css", "_manifest", "_payload"}
        values = {name: getattr(widget, name) for name in widget.keys if name not in large}
        state = {name: value for name, value in values.items() if isinstance(value, int | str | list | dict)}
        packed = {
            "script": widget._esm.encode(),
            "manifest": widget._manifest.encode(),
            "payload": widget._payload,
            "state": json.dumps(state | traits).encode(),
        }
        encoded = json.dumps({name: base64.b64encode(value).decode() for name, value in packed.items()})
        path = tmp_path / "live.html"
        path.write_text(_HOST.format(styles=widget._css, packed=encoded), encoding="utf-8")
        view = look(path)
        view.page.wait_for_selector("body[data-ready]")
        return view

    return render
