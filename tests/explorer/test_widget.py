"""The Python side of the explorer: traits, saving, what is shown where nothing runs."""

import re
import shutil
import subprocess
import zlib

import pytest
from traitlets import TraitError

import dlm_lens as dl
from dlm_lens.explorer import Explorer, explore
from dlm_lens.explorer.bundle import default_labels
from dlm_lens.explorer.page import json_in_html, page
from dlm_lens.explorer.source import page_script, widget_script
from dlm_lens.plots.style import SEQUENTIAL


def test_the_widget_brings_its_script_and_styles(trace):
    widget = explore(trace)
    assert isinstance(widget, Explorer)
    assert widget._esm.rstrip().endswith("export default { render };")
    assert ".dl-explorer" in widget._css
    assert {"_esm", "_css", "_manifest", "_payload", "step", "layer", "head"} <= set(widget.keys)


def test_the_selection_is_synced_both_ways(trace):
    widget = explore(trace)
    assert (widget.step, widget.layer, widget.head, widget.metric) == (0, -1, -1, "sink_mass")
    seen = []
    widget.observe(lambda change: seen.append((change.name, change.new)), ["step", "head"])
    widget.set_state({"step": 3, "layer": 1, "head": 2})  # what arrives from the browser
    assert (widget.step, widget.layer, widget.head) == (3, 1, 2)
    assert sorted(seen) == [("head", 2), ("step", 3)]
    widget.step = 4
    assert widget.get_state("step") == {"step": 4}


@pytest.mark.parametrize(
    ("name", "value"),
    [("step", 6), ("layer", 2), ("head", -2), ("metric", "nonsense"), ("sample", 1), ("position", 48)],
)
def test_a_selection_that_the_trace_lacks_is_refused(trace, name, value):
    widget = explore(trace)
    before = getattr(widget, name)
    with pytest.raises(TraitError, match=f"{name} is {value!r}"):
        setattr(widget, name, value)
    assert getattr(widget, name) == before


def test_selections_use_the_numbers_of_the_trace(trace):
    part = dl.Trace(trace.dataset.isel(step=[1, 3, 5], layer=[1]))
    widget = explore(part)
    assert widget.step == 1
    widget.layer, widget.step = 1, 5
    with pytest.raises(TraitError, match="layer is 0"):
        widget.layer = 0


def test_explore_takes_a_path(trace, tmp_path):
    trace.save(tmp_path / "run.zarr")
    assert explore(tmp_path / "run.zarr").step == 0
    with pytest.raises(dl.TraceError, match="nowhere"):
        explore(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="got int"):
        explore(3)


def test_two_traces_are_shown_and_saved_together(trace, tmp_path):
    causal = dl.synthetic_trace(steps=6, layers=2, heads=4, length=48, prompt_length=16, bins=16, causal=True)
    widget = explore(trace, against=causal, labels=["diffusion", "autoregressive"])
    text = widget.save_html(tmp_path / "two.html").read_text(encoding="utf-8")
    assert "<title>diffusion against autoregressive · dlm-lens</title>" in text
    assert widget.against is causal
    with pytest.raises(ValueError, match="must name each trace once"):
        explore(trace, against=causal, labels=["one"])
    with pytest.raises(TypeError, match="against takes a Trace"):
        explore(trace, against=3)


@pytest.mark.parametrize(
    ("attrs", "labels"),
    [
        (({"model": "a"}, {"model": "b"}), ["a", "b"]),
        (({"model": "a", "policy": "P()"}, {"model": "a", "policy": "Q()"}), ["P()", "Q()"]),
        (({"model": "a", "policy": "P()"}, {"model": "a", "policy": "P()"}), ["a A", "a B"]),
    ],
)
def test_labels_name_what_tells_traces_apart(trace, attrs, labels):
    assert default_labels([dl.Trace(trace.dataset.assign_attrs(own)) for own in attrs]) == labels


def test_a_head_that_was_left_out_is_sent_when_asked_for(trace, monkeypatch):
    widget = explore(trace, max_bytes=len(explore(trace)._payload) // 2)
    sent = []
    monkeypatch.setattr(widget, "send", lambda message, buffers=(): sent.append((message, buffers)))
    request = {"type": "slice", "trace": 0, "sample": 0, "layer": 1, "head": 3}
    widget._handle_custom_msg(request, [])
    ((message, buffers),) = sent
    assert message["arrays"]["mass"]["shape"] == [1, 1, 6, 48]
    assert zlib.decompress(buffers[0])
    with pytest.raises(IndexError):
        widget._answer(widget, request | {"layer": 9}, [])
    assert "IndexError" in sent[-1][0]["error"]


def test_saving_writes_one_file_within_the_limit(trace, tmp_path):
    widget = explore(trace, title="A <b>title</b> & {more}")
    path = widget.save_html(tmp_path / "explorer.html")
    text = path.read_text(encoding="utf-8")
    assert "<title>A &lt;b&gt;title&lt;/b&gt; &amp; {more} · dlm-lens</title>" in text
    limit = path.stat().st_size - 3_000
    assert widget.save_html(path, max_bytes=limit).stat().st_size <= limit
    with pytest.raises(ValueError, match="max_bytes=1,000 is too small"):
        widget.save_html(path, max_bytes=1000)
    assert path.stat().st_size > 1000, "a failed save must not touch the file"


def test_json_in_a_page_cannot_end_its_element(trace):
    assert json_in_html('"</script>\u2028&"') == '"\\u003c/script\\u003e\\u2028\\u0026"'
    text = page(trace)
    assert text.count("</script>") == 4
    assert "<img" not in text


def test_the_page_names_no_address(trace):
    text = page(trace).replace("http://www.w3.org/", "")  # names of XML namespaces
    assert not re.search(r"https?://|@import|url\((?!#)", text)


def test_the_same_views_run_in_both_hosts():
    widget, alone = widget_script(), page_script()
    shared = widget[: widget.index("// Host:")]
    assert alone.startswith(shared)
    for script in (widget, alone):
        assert "innerHTML" not in script
        assert not re.search(r"^import |\beval\(|new Function", script, re.MULTILINE)


def test_pictures_and_the_browser_share_their_colours():
    for colours in SEQUENTIAL.values():
        assert ", ".join(f'"{colour}"' for colour in colours) in widget_script()


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("script", [widget_script, page_script])
def test_the_scripts_are_valid_modules(script, tmp_path):
    path = tmp_path / "script.mjs"
    path.write_text(script(), encoding="utf-8")
    done = subprocess.run(["node", "--check", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
