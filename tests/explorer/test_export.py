"""Saving views as pictures: real downloads, looked into."""

import re
import struct
import xml.etree.ElementTree as ET
from importlib.resources import files
from pathlib import Path

import pytest

import dlm_lens as dl
from tests.explorer.conftest import HOSTILE

pytestmark = pytest.mark.browser

SVG = "{http://www.w3.org/2000/svg}"
PANELS = (
    "Step",
    "Text",
    "Heads",
    "Attention map",
    "Columns over the run",
    "Followed token",
    "Sink drift",
    "Pattern age",
    "Policy",
)


def save(view, panel, ending):
    """Name and bytes of what the menu of a panel gives."""
    menu = view.page.get_by_label(f"Save “{panel}” as a picture")
    menu.click()
    with view.page.expect_download() as waiting:
        view.page.get_by_label(f"Save “{panel}” as {ending.upper()}", exact=True).click()
    download = waiting.value
    return download.suggested_filename, Path(download.path()).read_bytes()


def follow(view):
    view.page.locator(".dl-tokens span").nth(20).click()
    view.settle()


def words(svg):
    return [node.text for node in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_is_saved_as_png_at_twice_its_size(show, trace, panel):
    view = show(trace)
    follow(view)
    name, data = save(view, panel, "png")
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    drawn = view.page.get_by_label(panel, exact=True).locator("canvas, .dl-text").first.bounding_box()
    scroll_bar = 20 if panel == "Text" else 0
    assert 2 * (drawn["width"] + 30 - scroll_bar) <= width <= 2 * max(drawn["width"] + 34, 440)
    assert height > 2 * 90
    assert name.endswith("_all-heads_step-0.png")
    assert view.messages == []


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_is_saved_as_svg_with_what_it_is(show, trace, panel):
    view = show(trace)
    follow(view)
    view.page.keyboard.press("ArrowRight")
    view.settle()
    name, data = save(view, panel, "svg")
    root = ET.fromstring(data)
    text = " ".join(filter(None, words(data)))
    assert panel in text
    assert "synthetic · mean of all heads · step 1 of 6" in text
    assert {node.tag for node in root.iter()} <= {
        SVG + tag for tag in ("svg", "title", "g", "clipPath", "path", "rect", "text", "image")
    }
    assert len([*root.iter(f"{SVG}rect"), *root.iter(f"{SVG}path")]) > 5
    for image in root.iter(f"{SVG}image"):
        assert image.get("{http://www.w3.org/1999/xlink}href").startswith("data:image/png;base64,")
    slug = panel.lower().replace(" ", "-")
    assert name == f"synthetic_{slug}_all-heads_step-1.svg"
    assert view.messages == []
    assert [url for url in view.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_name_and_the_words_say_the_selection(show, batch):
    view = show(batch)
    view.page.get_by_label("Sample of the batch").select_option("2")
    for key in ("ArrowDown", "ArrowRight"):
        view.page.locator(".dl-grid").press(key)
        view.settle()
    chosen = view.chosen().split(" · ")[0]
    layer, head = re.findall(r"\d+", chosen)
    name, data = save(view, "Attention map", "svg")
    assert name == f"synthetic_attention-map_layer-{layer}-head-{head}_sample-2_step-0.svg"
    assert f"layer {layer}, head {head} · sample 3 of 3" in " ".join(filter(None, words(data)))


def test_of_two_runs_the_picture_says_which(show, trace):
    view = show(trace, trace, labels=["first run", "second"])
    for label, slug in (("first run", "first-run"), ("second", "second")):
        name, data = save(view, f"Sink drift of {label}", "svg")
        assert name == f"{slug}_sink-drift_all-heads_step-0.svg"
        assert f"{label} · mean of all heads" in " ".join(filter(None, words(data)))


def test_hostile_tokens_are_words_of_the_picture(show, trace):
    view = show(trace)
    view.page.keyboard.press("End")
    view.settle()
    _, data = save(view, "Text", "svg")
    shown = words(data)
    for token in (HOSTILE[0], "<b>bold</b>", "שלום", "👩‍🔬", "‹U+202E›evil", "{title}"):
        # A token that wraps is several pieces.
        assert token in shown or token in "".join(filter(None, shown))
    root = ET.fromstring(data)
    assert not [node for node in root.iter() if node.tag.removeprefix(SVG) in ("img", "script", "b")]
    heading = [word for word in shown if word and word.startswith("Generation")]
    assert heading == ["Generation 32 tokens"]


def test_characters_that_xml_forbids_are_replaced(show):
    trace = dl.synthetic_trace(steps=3, layers=1, heads=2, length=12, prompt_length=4, bins=4)
    words_of = '{"0": "\\uffff\\ufffe", "1": "a&b", "2": "\\u0001"}'
    trace = dl.Trace(
        trace.dataset.assign(final_tokens=trace["final_tokens"] % 3, tokens=trace["tokens"] % 3).assign_attrs(
            vocabulary=words_of
        )
    )
    _, data = save(show(trace), "Text", "svg")
    shown = words(data)
    assert {"\ufffd\ufffd", "a&b", "␁"} <= set(shown)


def test_text_out_of_sight_is_saved_too(show):
    trace = dl.synthetic_trace(steps=3, layers=1, heads=2, length=900, prompt_length=300, bins=4)
    view = show(trace)
    scroll = view.page.locator(".dl-text")
    before = scroll.evaluate("node => node.scrollTop")
    _, data = save(view, "Text", "svg")
    assert scroll.evaluate("node => node.scrollTop") == before
    whole = ET.fromstring(data)
    assert float(whole.get("height")) > 2 * scroll.bounding_box()["height"]
    last = [word for word in words(data) if word and "░" in word]
    assert sum(map(len, last)) > 500


def test_a_dark_page_gives_a_dark_picture(show, trace):
    for theme, ground in (("light", "#ffffff"), ("dark", "#11141a")):
        _, data = save(show(trace, theme=theme), "Sink drift", "svg")
        assert ET.fromstring(data).find(f"{SVG}rect").get("fill") == ground


def test_the_menu_works_by_keyboard(show, trace):
    view = show(trace)
    follow(view)
    menu = view.page.get_by_label("Save “Pattern age” as a picture")
    menu.focus()
    view.page.keyboard.press("Enter")
    png = view.page.get_by_label("Save “Pattern age” as PNG")
    png.wait_for()
    view.page.keyboard.press("Tab")
    assert png.evaluate("node => node === document.activeElement")
    view.page.keyboard.press("Escape")
    view.settle()
    assert not png.is_visible()
    assert menu.evaluate("node => node === document.activeElement")
    assert view.page.locator(".dl-followed").count() == 1, "Escape closed the menu only"


def test_every_sign_of_a_key_can_be_drawn():
    static = files("dlm_lens.explorer") / "static"
    styled = set()
    for sheet in static.iterdir():
        if sheet.name.endswith(".css"):
            styled |= set(re.findall(r"\.dl-key-([\w-]+)", sheet.read_text()))
    signs = (static / "export.js").read_text().split("const SIGNS = {")[1].split("\n};")[0]
    assert styled == set(re.findall(r'^\s*"?([\w-]+)"?: \[', signs, re.MULTILINE))
