"""Views over the run: how a choice of columns ages, and the followed token; their numbers against numpy's."""

import re

import numpy as np
import pytest

import dlm_lens as dl

pytestmark = pytest.mark.browser

AGE = ".dl-age.dl-overlay"
TRAIL = ".dl-trail.dl-overlay"


def hover_step(view, canvas, step, steps=6):
    """The tooltip over a step of a view over time."""
    place = view.page.locator(canvas)
    left, right = 62, place.bounding_box()["width"] - 14
    place.hover(position={"x": left + (step + 0.5) * (right - left) / steps, "y": 40})
    return view.page.get_by_role("tooltip").inner_text()


def share(tip, label):
    return float(re.search(rf"{label}\s*([\d.]+) %", tip).group(1)) / 100


def kept_by(mass, chosen_at, kept):
    """Share of every step's mass on the ``kept`` best columns of one step, by the definition."""
    columns = np.argsort(-mass[chosen_at], kind="stable")[:kept]
    return mass[:, columns].sum(1) / mass.sum(1)


def set_budget(view, value):
    view.page.get_by_label("Budget: share").evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", str(value)
    )
    view.settle()


@pytest.mark.parametrize("budget", [0.2, 0.5])
def test_kept_shares_are_those_of_the_trace(show, trace, budget):
    mass = trace["column_mass"].values.mean((1, 2), dtype=np.float64)
    kept = round(budget * trace.length)
    view = show(trace)
    set_budget(view, budget)
    view.page.keyboard.press("ArrowRight")
    view.settle()
    aged = kept_by(mass, 1, kept)
    fresh = [kept_by(mass, step, kept)[step] for step in range(6)]
    for step in range(6):
        tip = hover_step(view, AGE, step)
        assert share(tip, "they keep") == pytest.approx(aged[step], rel=0.03)
        assert share(tip, "fresh columns keep") == pytest.approx(fresh[step], rel=0.03)
        assert share(tip, "random columns keep") == pytest.approx(kept / trace.length, rel=0.01)
    assert f"{kept} of {trace.length} keys" in view.page.locator(".dl-range-label").inner_text()


def test_padding_is_no_key(show, batch):
    view = show(batch)
    view.page.get_by_label("Sample of the batch").select_option("2")
    view.settle()
    assert (
        f"{round(0.2 * (batch.length - 2))} of {batch.length - 2} keys"
        in view.page.locator(".dl-range-label").inner_text()
    )
    mass = batch["column_mass"].isel(sample=2).values.mean((1, 2), dtype=np.float64)[:, 2:]
    kept = round(0.2 * (batch.length - 2))
    assert share(hover_step(view, AGE, 4), "they keep") == pytest.approx(kept_by(mass, 0, kept)[4], rel=0.03)


def test_all_columns_keep_everything_for_ever(show, trace):
    view = show(trace)
    set_budget(view, 1)
    assert share(hover_step(view, AGE, 5), "they keep") == 1
    assert "to the end" in view.page.locator(".dl-panel", has=view.page.locator(AGE)).inner_text()


def test_a_stale_pattern_is_named(show, trace):
    """Columns whose mass is all elsewhere from step 3 on are stale after three steps."""
    mass = np.full((6, 2, 4, 48), 1e-4, np.float32)
    mass[:3, ..., :10] = 1
    mass[3:, ..., 20:30] = 1
    mass /= mass.sum(-1, keepdims=True)
    variable = trace["column_mass"].copy(data=mass)
    view = show(dl.Trace(trace.dataset.assign(column_mass=variable)))
    panel = view.page.locator(".dl-panel", has=view.page.locator(AGE))
    assert "fall below 95 % of fresh ones after 3 steps" in panel.inner_text()
    view.page.keyboard.press("End")
    view.settle()
    assert "keep 95 % of what fresh ones keep to the end" in panel.inner_text()


def test_steps_that_rebuilt_the_pattern_are_marked(show, trace):
    plain = show(trace).picture(".dl-age >> nth=0")
    kinds = np.array(["refresh", "sparse", "sparse"] * 2)
    view = show(dl.Trace(trace.dataset.assign(kind=("step", kinds))))
    assert view.picture(".dl-age >> nth=0") != plain
    panel = view.page.locator(".dl-panel", has=view.page.locator(AGE))
    assert "rebuilt the policy's pattern" in panel.inner_text()


def test_the_followed_token_has_a_line_of_its_mass(show, trace):
    view = show(trace)
    panel = view.page.locator(".dl-panel", has=view.page.locator(TRAIL))
    assert not panel.is_visible()
    view.page.locator(".dl-tokens span").nth(20).click()
    view.settle()
    assert "position 20 · mean of all heads" in panel.inner_text()
    tip = hover_step(view, TRAIL, 4)
    mass = trace["column_mass"].isel(step=4, position=20).values.mean()
    assert share(tip, "receives") == pytest.approx(mass, rel=0.03)
    committed = int(trace["committed_at"].values[20])
    for part in ("20 · generation", "confidence", f"at step {committed}"):
        assert part in tip
    view.page.keyboard.press("Escape")
    view.settle()
    assert not panel.is_visible()


def test_hovering_a_map_names_its_tokens(show, trace):
    view = show(trace)
    view.page.keyboard.press("End")
    view.page.locator(".dl-map").hover(position={"x": 200, "y": 60})
    tip = view.page.get_by_role("tooltip").inner_text()
    first = int(re.search(r"keys\s*(\d+)–", tip).group(1))
    shown = view.page.locator(".dl-tokens span").nth(first).text_content()
    assert shown in tip.split("keys")[1]
    assert re.search(r"step\s*5", tip)


def test_hovering_the_raster_tells_what_the_text_tells(show, trace):
    view = show(trace)
    view.page.locator(".dl-raster.dl-overlay").hover(position={"x": 70, "y": 200})
    tip = view.page.get_by_role("tooltip").inner_text()
    for part in ("step", "generation", "even share", "sink", "confidence", "committed"):
        assert part in tip
