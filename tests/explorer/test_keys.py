"""Working the explorer without a mouse, and without telling colours apart."""

import numpy as np
import pytest

import dlm_lens as dl

pytestmark = pytest.mark.browser

IS_NAMED = """() => [...document.querySelectorAll("button, select, input, summary, [tabindex='0']")]
  .filter((node) => node.getClientRects().length)
  .filter((node) => !(node.getAttribute("aria-label") || node.textContent.trim() || node.labels?.length))
  .map((node) => node.outerHTML)"""
CONTROLS = """() => [...document.querySelectorAll("button, select, input, summary, [tabindex='0']")]
  .filter((node) => node.getClientRects().length && !node.disabled && !node.closest("details > div")).length"""
OUTLINE = (
    "() => { const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]; }"
)


def test_tab_goes_round_all_controls_and_shows_where_it_is(show, trace):
    view = show(trace)
    assert view.page.evaluate(IS_NAMED) == []
    reached = set()
    for _ in range(view.page.evaluate(CONTROLS)):
        view.page.keyboard.press("Tab")
        assert view.page.evaluate(OUTLINE) == ["solid", "2px"], view.page.evaluate(
            "document.activeElement.outerHTML.slice(0, 200)"
        )
        reached.add(
            view.page.evaluate(
                "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
            )
        )
    for label in ("Keys (?)", "Copy link", "Save “Pattern age” as a picture", "Budget: share of the keys"):
        assert any(name.startswith(label) for name in reached), label
    assert len(reached) == view.page.evaluate(CONTROLS)


def test_the_list_of_keys_opens_and_closes_by_key(show, trace):
    view = show(trace)
    view.page.locator(".dl-tokens span").nth(20).click()
    view.page.keyboard.press("?")
    dialog = view.page.get_by_role("dialog", name="Keys")
    dialog.wait_for()
    for text in ("follow the previous or next token", "first or last step", "Shift-click"):
        assert text in dialog.inner_text()
    view.page.keyboard.press("ArrowRight")
    assert view.step() == 0, "keys pressed in the dialog are not for the views"
    view.page.keyboard.press("Escape")
    view.settle()
    assert not dialog.is_visible()
    assert view.page.locator(".dl-followed").count() == 1
    view.page.get_by_label("Keys (?)").click()
    dialog.get_by_text("Close").click()
    view.settle()
    assert not dialog.is_visible()
    assert view.messages == []


def test_kinds_of_steps_differ_without_colour(show, trace):
    """With all kinds in one colour the bars of the scrubber still differ."""
    shapes = set()
    for kind in ("dense", "refresh", "sparse", "cached"):
        view = show(dl.Trace(trace.dataset.assign(kind=("step", np.full(6, kind)))))
        view.page.add_style_tag(
            content=".dl-explorer[data-theme] { --dl-kind-dense: #777; --dl-kind-refresh: #777;"
            " --dl-kind-sparse: #777; --dl-kind-cached: #777; }"
        )
        view.page.evaluate("document.body.classList.add('again')")  # colours are read when the theme changes
        shapes.add(view.picture(".dl-scrub"))
    assert len(shapes) == 4
