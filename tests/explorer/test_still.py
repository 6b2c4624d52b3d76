"""What stands in for the explorer: the still alone, and in notebooks as they are saved and converted."""

import base64
import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook

import dlm_lens as dl
from dlm_lens.explorer import explore
from dlm_lens.explorer.still import picture, still

WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
TITLE = "<i>Réglage</i> </script><img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def executed(root, trace, tmp_path_factory):
    """A notebook as it is after a run that keeps the state of widgets: the explorer, and it embedded."""
    path = tmp_path_factory.mktemp("executed") / "run.zarr"
    trace.save(path)
    cells = [
        f"import dlm_lens as dl\nview = dl.explore({str(path)!r}, title={TITLE!r})\nview",
        "view.embed(height=900)",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client = NotebookClient(
        notebook, kernel_name="python3", store_widget_state=True, resources={"metadata": {"path": root}}
    )
    return client.execute()


@pytest.fixture
def converted(executed, look, tmp_path):
    """``converted(with_state)`` is what nbconvert makes of the notebook, opened with the network off."""

    def convert(with_state):
        notebook = nbformat.from_dict(executed)
        if not with_state:
            notebook = nbformat.from_dict({**notebook, "metadata": {}})
        path = tmp_path / "notebook.html"
        path.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
        return look(path)

    return convert


def test_the_still_holds_a_picture_and_says_what_it_shows(trace):
    data = still([trace], "some-id", "Tom & Jerry")
    assert data["text/html"].startswith('<figure id="some-id"')
    assert "<b>Tom &amp; Jerry</b>" in data["text/html"]
    assert "48 positions at 6 steps" in re.search('alt="([^"]*)"', data["text/html"])[1]
    png = base64.b64decode(data["image/png"])
    assert png.startswith(b"\x89PNG")
    assert len(png) < 150_000
    assert f'src="data:image/png;base64,{data["image/png"]}"' in data["text/html"]


def test_hostile_names_are_text_in_the_still(trace, monkeypatch):
    shown = []
    monkeypatch.setattr("dlm_lens.explorer.widget.display", lambda data, raw: shown.append(data))
    renamed = dl.Trace(trace.dataset.assign_attrs(model='"><script>alert(1)</script>', policy=TITLE))
    for view in (explore(renamed), explore(trace, title=TITLE)):
        view._ipython_display_()
        figure = shown[-1]["text/html"]
        assert "<script" not in figure
        assert figure.count("<img") == 1


def test_without_column_mass_only_the_line_stands_in(trace):
    bare = dl.Trace(trace.dataset.drop_vars("column_mass"))
    assert picture([bare]) == b""
    data = still([bare], "some-id", "tiny")
    assert list(data) == ["text/html"]
    assert "run the cell again" in data["text/html"]
    assert "<img" not in data["text/html"]


def test_two_traces_stand_beside_each_other(trace):
    wide, narrow = (
        int.from_bytes(picture(traces)[16:20], "big") for traces in ([trace, trace], [trace])
    )  # the width in a PNG's header
    assert wide == 2 * narrow


def test_a_notebook_keeps_the_widget_and_its_still_apart(executed):
    shown, stands_in = executed.cells[0].outputs
    assert shown.data["text/html"] == ""
    assert {"text/html", "image/png", "text/plain"} == set(stands_in.data)
    state = executed.metadata.widgets[STATE]["state"][shown.data[WIDGET]["model_id"]]["state"]
    assert f'<figure id="{state["_still"]}"' in stands_in.data["text/html"]


def test_a_notebook_grows_by_little_more_than_the_data(executed):
    """With the widget's state: the script, the styles and the still take less than 2 MB beyond the arrays."""
    notebook = nbformat.from_dict({**executed, "cells": executed.cells[:1]})
    model = executed.cells[0].outputs[0].data[WIDGET]["model_id"]
    buffers = executed.metadata.widgets[STATE]["state"][model]["buffers"]
    data = sum(len(buffer["data"]) for buffer in buffers if buffer["path"] == ["_payload"])
    assert data > 0
    assert len(nbformat.writes(notebook).encode()) - data < 2_000_000


def test_a_closed_explorer_leaves_its_still(trace, monkeypatch):
    shown = []
    monkeypatch.setattr("dlm_lens.explorer.widget.display", lambda data, raw: shown.append(data))
    view = explore(trace)
    view.close()
    view._ipython_display_()
    assert [set(data) for data in shown] == [{"text/html", "image/png", "text/plain"}]
    assert view._still in shown[0]["text/html"]


@pytest.mark.browser
@pytest.mark.parametrize("with_state", [True, False])
def test_a_converted_notebook_shows_the_still_offline(converted, with_state):
    """nbconvert would fetch what draws widgets from elsewhere: without a network there is the picture, no blank."""
    view = converted(with_state)
    figure = view.page.locator("figure.dl-still")
    assert figure.locator("img").evaluate("image => image.complete && image.naturalWidth") > 600
    assert figure.is_visible()
    assert TITLE in figure.inner_text()
    assert view.page.title() != "owned"


@pytest.mark.browser
def test_a_converted_notebook_scrubs_where_the_explorer_is_embedded(converted):
    frame = converted(False).page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    raster = frame.locator(".dl-map")
    before = raster.evaluate("canvas => canvas.toDataURL()")
    bars = frame.locator(".dl-scrub")
    bars.scroll_into_view_if_needed()
    bars.click(position={"x": bars.bounding_box()["width"] - 30, "y": 20})
    frame.get_by_text("step 5 of 6").wait_for()
    assert raster.evaluate("canvas => canvas.toDataURL()") != before
