"""A JupyterLab of the tests' own, reachable from this machine only, and its pages in the browser."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, Locator, Page

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
_START_SECONDS = 120
# The page is there before its notebook is, and the notebook before its kernel.
_READY = """async () => {
  await jupyterapp.restored;
  const { context } = jupyterapp.shell.currentWidget;
  await context.ready;
  await context.sessionContext.ready;
  await context.sessionContext.session.kernel.info;
}"""


@dataclass
class Lab:
    """A running JupyterLab: its address, its ``folder`` of notebooks."""

    url: str
    folder: Path

    def write(self, name: str, *cells: str) -> Path:
        """A notebook of code cells."""
        notebook = new_notebook(
            cells=[new_code_cell(cell) for cell in cells], metadata={"kernelspec": KERNELSPEC}
        )
        nbformat.write(notebook, self.folder / name)
        return self.folder / name


@dataclass
class LabPage:
    """A notebook open in the lab, and the addresses outside the lab that its page asked for, in vain."""

    page: Page
    foreign: list[str] = field(default_factory=list)

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        """Run one of JupyterLab's commands to its end."""
        self.page.evaluate(
            "async ([name, args]) => { await jupyterapp.commands.execute(name, args ?? undefined); }",
            [command, arguments],
        )

    def run_all(self) -> None:
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def wait_until_idle(self) -> None:
        """Until every cell that was sent to the kernel has run."""
        self.page.evaluate(
            """async () => {
              const { kernel } = jupyterapp.shell.currentWidget.context.sessionContext.session;
              await kernel.requestExecute({ code: "", silent: true }).done;
            }"""
        )

    def cell(self, index: int) -> Locator:
        """A cell, scrolled into view: JupyterLab lays out no others."""
        self.page.evaluate(
            "async (index) => { await jupyterapp.shell.currentWidget.content.scrollToItem(index, 'start'); }",
            index,
        )
        return self.page.locator(f".jp-Cell[data-windowed-list-index='{index}']")

    def leave(self) -> None:
        """Close the page and end its kernel."""
        self.page.evaluate("async () => { await jupyterapp.serviceManager.sessions.shutdownAll(); }")
        self.page.context.close()


def open_notebook(browser: Browser, lab: Lab, name: str, width: int = 1280) -> LabPage:
    """The notebook in JupyterLab as a new visitor finds it; requests to anywhere else fail."""
    context = browser.new_context(viewport={"width": width, "height": 1000})
    opened = LabPage(context.new_page())

    def route(route: Any) -> None:
        if route.request.url.startswith((lab.url, "data:", "blob:")):
            route.continue_()
        else:
            opened.foreign.append(route.request.url)
            route.abort()

    context.route("**/*", route)
    opened.page.goto(f"{lab.url}/lab/tree/{name}?reset")
    opened.page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    opened.page.evaluate(_READY)
    return opened


@contextlib.contextmanager
def running_lab(folder: Path, root: Path) -> Iterator[Lab]:
    """A JupyterLab with nobody's configuration, whose kernel is this interpreter, for as long as the block runs."""
    places = {
        name: folder / name for name in ("config", "data", "runtime", "settings", "workspaces", "ipython")
    }
    notebooks = folder / "notebooks"
    for place in (*places.values(), notebooks):
        place.mkdir()
    kernel = places["data"] / "kernels" / "python3" / "kernel.json"
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    _write(kernel, {"argv": command, "display_name": "Python 3", "language": "python"})
    news = "@jupyterlab/apputils-extension:announcements"
    _write(places["config"] / "labconfig" / "page_config.json", {"disabledExtensions": {news: True}})
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(places["config"]),
        "JUPYTER_DATA_DIR": str(places["data"]),
        "JUPYTER_PATH": str(places["data"]),
        "JUPYTER_RUNTIME_DIR": str(places["runtime"]),
        "JUPYTERLAB_SETTINGS_DIR": str(places["settings"]),
        "JUPYTERLAB_WORKSPACES_DIR": str(places["workspaces"]),
        "IPYTHONDIR": str(places["ipython"]),
        "OMP_NUM_THREADS": "1",  # the browser works at the same time
        "PYTHONPATH": os.pathsep.join(str(path) for path in (root, root / "kernels")),
    }
    port = _free_port()
    lab = Lab(f"http://127.0.0.1:{port}", notebooks)
    with open(folder / "lab.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
                *("--IdentityProvider.token=", f"--ServerApp.root_dir={notebooks}"),
                *("--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True"),
            ],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_up(server, lab.url, folder / "lab.log")
            yield lab
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    shutil.rmtree(folder)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(server: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/api/status", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')[-4000:]}")
