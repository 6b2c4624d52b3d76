"""What is shown as plain values: in Python, through JSON, in a page's address."""

import json

import pytest
from traitlets import TraitError

from dlm_lens.explorer import explore
from dlm_lens.explorer.page import page

WANTED = {
    "step": 3,
    "layer": 1,
    "head": 2,
    "metric": "effective_columns",
    "sample": 0,
    "position": 20,
    "speed": 16,
    "budget": 0.35,
    "policy": "oracle",
}
HASH = "#step=3&layer=1&head=2&metric=effective_columns&position=20&speed=16&budget=0.35&policy=oracle"


def test_settings_go_through_json_and_open_another_explorer(trace):
    widget = explore(trace, settings=WANTED)
    assert widget.settings == WANTED
    assert explore(trace, settings=json.loads(json.dumps(widget.settings))).settings == WANTED
    widget.settings = {"step": 1}
    assert widget.settings == WANTED | {"step": 1}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"stride": 3}, ValueError, "unknown setting 'stride', expected some of step, layer"),
        ({"step": 99}, TraitError, "step is 99"),
        ({"step": "three"}, TraitError, "'step' trait"),
        ({"budget": 0}, TraitError, "budget is 0"),
        ({"speed": 7}, TraitError, r"speed is 7, expected one of \(2, 4"),
    ],
)
def test_a_wrong_setting_is_named_and_changes_nothing(trace, tmp_path, wrong, error, message):
    widget = explore(trace)
    before = widget.settings
    with pytest.raises(error, match=message):
        widget.settings = {"layer": 1} | wrong
    assert widget.settings == before
    with pytest.raises(error, match=message):
        explore(trace, settings=wrong)
    with pytest.raises(error, match=message):
        widget.save_html(tmp_path / "explorer.html", settings=wrong)
    assert not (tmp_path / "explorer.html").exists()


@pytest.fixture
def visit(look, tmp_path, trace):
    """``visit(hash, settings=None)`` opens the page at an address with that hash."""

    def open_at(address="", settings=None):
        path = tmp_path / "explorer.html"
        path.write_text(page(trace, settings=settings), encoding="utf-8")
        view = look(path)
        view.page.wait_for_selector("body[data-ready]")
        if address:
            view.page.goto("about:blank")
            view.page.goto(path.resolve().as_uri() + address)
            view.page.wait_for_selector("body[data-ready]")
            view.settle()
        return view

    return open_at


def is_as_wanted(view):
    assert view.step() == 3
    assert view.chosen().startswith("layer 1, head 2")
    assert view.page.get_by_label("Metric of the grid").input_value() == "effective_columns"
    assert "position 20" in view.page.locator(".dl-follow-note").inner_text()
    assert view.page.get_by_label("Playing speed").input_value() == "16"
    assert view.page.get_by_label("Budget: share").input_value() == "0.35"
    assert view.page.get_by_label("Policy", exact=True).locator("select").first.input_value() == "oracle"


@pytest.mark.browser
def test_a_page_opens_at_its_address(visit):
    view = visit(HASH)
    is_as_wanted(view)
    assert not view.page.locator(".dl-notice").is_visible()
    assert view.messages == []


@pytest.mark.browser
def test_a_page_opens_at_its_own_settings_and_keeps_only_news_in_the_address(visit):
    view = visit(settings=WANTED)
    is_as_wanted(view)
    assert "#" not in view.page.url
    view.page.keyboard.press("ArrowRight")
    view.page.wait_for_function("location.hash === '#step=4'")
    view.page.keyboard.press("ArrowLeft")
    view.page.wait_for_function("location.hash === ''")
    assert "#" not in view.page.url


@pytest.mark.browser
def test_the_address_follows_and_the_copied_link_leads_back(visit, look):
    view = visit()
    view.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    view.page.evaluate(f"location.hash = '{HASH}'")
    view.settle()
    is_as_wanted(view)
    view.page.get_by_text("Copy link").click()
    view.page.get_by_text("Copied").wait_for()
    link = view.page.evaluate("navigator.clipboard.readText()")
    assert link.endswith(HASH)
    assert visit("#" + link.split("#")[1]).step() == 3
    assert view.messages == []


@pytest.mark.browser
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("#step=99&layer=1", "step=99 is ignored: expected one of 0, 1"),
        ("#step=two", "step=two is ignored"),
        ("#step=%E0%A4%A&layer=1", "is ignored"),
        ("#colour=red", "colour=red is ignored: expected one of step, layer"),
        ("#budget=7", "budget=7 is ignored: expected a share in (0, 1]"),
        ("#position=1e9", "position=1000000000 is ignored: expected -1 … 47"),
        ("#policy=none", "policy=none is ignored: expected one of pulsecol"),
        ("#metric=<img src=x onerror=alert(1)>", "is ignored"),
        ('#head={"a":[1]}&layer=1', 'head={"a":[1]} is ignored'),
        ("#=&&&=x", "is ignored"),
    ],
)
def test_a_malformed_address_is_said_and_does_no_harm(visit, address, said):
    view = visit(address)
    assert said in view.page.locator(".dl-notice").inner_text()
    assert view.page.locator(".dl-notice img").count() == 0
    assert view.step() == 0
    assert view.messages == []
    if "layer=1" in address:
        assert view.chosen().startswith("layer 1")
    view.page.locator(".dl-notice").get_by_text("Close").click()
    assert not view.page.locator(".dl-notice").is_visible()


@pytest.mark.browser
def test_both_of_two_runs_open_at_the_settings(look, trace, tmp_path):
    path = tmp_path / "explorer.html"
    path.write_text(page(trace, against=trace, labels=["A", "B"], settings=WANTED), encoding="utf-8")
    view = look(path)
    view.page.wait_for_selector("body[data-ready]")
    view.settle()
    for chosen in view.page.locator(".dl-chosen").all_inner_texts():
        assert chosen.startswith("layer 1, head 2")
    for note in view.page.locator(".dl-follow-note").all_inner_texts():
        assert "position 20" in note
    view.page.wait_for_timeout(600)
    assert "#" not in view.page.url


@pytest.mark.browser
def test_padding_cannot_be_followed(look, batch, tmp_path):
    path = tmp_path / "explorer.html"
    path.write_text(page(batch, settings={"sample": 2, "position": 0}), encoding="utf-8")
    view = look(path)
    view.page.wait_for_selector("body[data-ready]")
    assert "position=0 is ignored: it is padding" in view.page.locator(".dl-notice").inner_text()
    assert view.messages == []


@pytest.mark.browser
def test_a_frame_without_an_address_works_on(look, trace, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(explore(trace).embed(settings={"step": 2}).data, encoding="utf-8")
    view = look(path)
    frame = view.page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    frame.get_by_text("step 2 of 6").wait_for()
    frame.get_by_label("One step on").click()
    frame.get_by_text("step 3 of 6").wait_for()
    view.page.wait_for_timeout(600)
    frame.get_by_label("One step on").click()
    frame.get_by_text("step 4 of 6").wait_for()
    assert frame.get_by_text("Copy settings").is_visible()
    assert view.messages == []


@pytest.mark.browser
def test_where_copying_is_refused_the_link_is_shown(visit):
    view = visit()
    view.page.keyboard.press("End")
    view.page.evaluate(
        "() => { navigator.clipboard.writeText = () => Promise.reject(new Error('refused')); }"
    )
    view.page.get_by_text("Copy link").click()
    shown = view.page.locator(".dl-copied")
    shown.wait_for()
    assert shown.input_value().endswith("explorer.html#step=5")
