"""The saved explorer in a real browser, from a file and with the network off."""

import base64

import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output

import dlm_lens as dl
from dlm_lens.explorer import explore
from dlm_lens.explorer.page import page
from tests.explorer.conftest import HOSTILE

pytestmark = pytest.mark.browser

CANVASES = {
    "scrubber": ".dl-scrub",
    "heads": ".dl-grid",
    "map": ".dl-map",
    "raster": ".dl-raster.dl-overlay",
    "drift": ".dl-drift.dl-overlay",
}


def test_nothing_is_requested_and_nothing_complains(show, trace):
    view = show(trace)
    assert view.messages == []
    assert [url for url in view.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in view.requests if url.startswith("file:")]) == 1


def test_a_step_redraws_every_view(show, trace):
    view = show(trace)
    before = {name: view.picture(canvas) for name, canvas in CANVASES.items()}
    view.page.keyboard.press("ArrowRight")
    assert [name for name, canvas in CANVASES.items() if view.picture(canvas) == before[name]] == []


def test_keys_move_through_the_run(show, trace):
    view = show(trace)
    assert view.step() == 0
    for key, step in [("ArrowRight", 1), ("End", 5), ("ArrowRight", 5), ("ArrowLeft", 4), ("Home", 0)]:
        view.page.keyboard.press(key)
        assert view.step() == step
    assert view.page.locator(".dl-step").inner_text() == "step 0 of 6"
    view.page.keyboard.press("Space")
    view.page.wait_for_function("document.querySelector('[role=slider]').ariaValueNow === '5'")


def test_buttons_and_the_raster_go_to_steps(show, trace):
    view = show(trace)
    view.page.get_by_label("One step on").click()
    assert view.step() == 1
    raster = view.page.locator(".dl-raster.dl-overlay")
    raster.click(position={"x": raster.bounding_box()["width"] - 30, "y": 80})
    assert view.step() == 5


def test_the_text_shows_what_is_masked_and_committed(show, trace):
    view = show(trace)
    committed = trace["committed_at"].values
    for step in range(2):
        view.settle()
        count = view.page.locator(".dl-tokens .dl-fresh").count()
        assert count == (committed == step).sum()
        assert view.page.locator(".dl-tokens .dl-masked").count() == (committed > step).sum()
        assert f"{count} tokens committed" in view.page.locator(".dl-step-detail").inner_text()
        view.page.keyboard.press("ArrowRight")
    assert view.page.locator(".dl-tokens .dl-prompt").count() == trace.prompt_length


def test_a_click_on_a_head_changes_the_selection(show, trace):
    view = show(trace)
    assert view.chosen() == "mean of all heads"
    map_before, raster_before = view.picture(".dl-map"), view.picture(".dl-raster >> nth=0")
    grid = view.page.locator(".dl-grid")
    box = grid.bounding_box()
    grid.click(position={"x": box["width"] / 2 + 30, "y": box["height"] / 2 + 20})
    assert view.chosen().startswith("layer 1, head 2 · ")
    assert view.picture(".dl-map") != map_before
    assert view.picture(".dl-raster >> nth=0") != raster_before
    grid.press("ArrowUp")
    grid.press("ArrowRight")
    assert view.chosen().startswith("layer 0, head 3 · ")
    view.page.get_by_role("button", name="all heads").click()
    assert view.chosen() == "mean of all heads"


def test_choosing_a_metric_recolours_the_grid(show, trace):
    view = show(trace)
    before = view.picture(".dl-grid")
    view.page.get_by_label("Metric of the grid").select_option("effective_columns")
    assert view.picture(".dl-grid") != before
    assert "keys" in view.page.locator(".dl-panel", has=view.page.locator(".dl-grid")).inner_text()


def test_following_a_token(show, trace):
    view = show(trace)
    before = view.picture(".dl-raster.dl-overlay"), view.picture(".dl-map")
    view.page.locator(".dl-tokens span").nth(20).click()
    view.settle()
    assert view.page.locator(".dl-followed").count() == 1
    assert "position 20" in view.page.locator(".dl-follow-note").inner_text()
    view.page.mouse.move(0, 0)
    assert view.picture(".dl-raster.dl-overlay") != before[0]
    assert view.picture(".dl-map") != before[1]
    view.page.keyboard.press("]")
    view.settle()
    assert "position 21" in view.page.locator(".dl-follow-note").inner_text()
    view.page.keyboard.press("Escape")
    view.settle()
    assert view.page.locator(".dl-followed").count() == 0


def test_hovering_tells_about_a_token(show, trace):
    view = show(trace)
    view.page.locator(".dl-tokens span").nth(18).hover()
    tip = view.page.get_by_role("tooltip").inner_text()
    for part in ("18 · generation", "even share", "sink", "confidence", "at step 0, now"):
        assert part in tip


def test_hostile_tokens_are_text(show, trace):
    view = show(trace)
    view.page.keyboard.press("End")
    view.settle()
    assert view.page.locator(".dl-tokens img, .dl-tokens b, body > img").count() == 0
    assert view.page.title() == "synthetic · dlm-lens"
    shown = view.page.locator(".dl-tokens span").all_text_contents()
    words = [HOSTILE[index] for index in trace["final_tokens"].values]
    visible = {
        "\n    ": "⏎",
        "\n": "⏎",
        "  ": "··",
        "\u202eevil": "‹U+202E›evil",
        "\u2028": "‹U+2028›",
        "": "∅",
    }
    visible["\u200d"] = "‹U+200D›"
    assert shown == [visible.get(word, word) for word in words]


def test_a_batch_lets_one_choose_the_sample(show, batch):
    view = show(batch)
    assert view.page.locator(".dl-tokens span").count() == batch.length
    before = view.picture(".dl-map")
    view.page.get_by_label("Sample of the batch").select_option("2")
    assert view.picture(".dl-map") != before
    assert view.page.locator(".dl-tokens span").count() == batch.length - 2  # padding is not shown


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["pooled_map"], "No map: this trace has no pooled_map"),
        (["column_mass"], "No raster: this trace has no column_mass"),
        (["column_mass", "row_entropy"], "No metric per head"),
    ],
)
def test_views_say_what_the_trace_lacks(show, trace, lost, message):
    view = show(type(trace)(trace.dataset.drop_vars(lost)))
    assert message in view.page.locator("main").inner_text()
    view.page.keyboard.press("ArrowRight")
    assert view.step() == 1
    assert view.messages == []


def test_what_the_budget_leaves_out_is_said(look, trace, tmp_path):
    path = tmp_path / "small.html"
    path.write_text(page(trace, max_bytes=len(page(trace)) - 4_000), encoding="utf-8")
    view = look(path)
    assert "Left out to stay within the size budget" in view.page.locator(".dl-notes").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_the_window_in_both_themes(show, trace, theme):
    view = show(trace, theme=theme, width=900)
    assert view.page.locator(".dl-explorer").get_attribute("data-theme") == theme
    for width in (900, 1280, 1920):
        view.page.set_viewport_size({"width": width, "height": 1000})
        view.settle()
        page_width, window_width = view.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert page_width == window_width
        assert width - 20 <= window_width <= width


def test_the_host_theme_is_followed_while_it_changes(show, trace):
    view = show(trace)
    before = view.picture(".dl-map")
    view.page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    assert view.picture(".dl-map") != before
    assert view.page.locator(".dl-explorer").get_attribute("data-theme") == "dark"


def test_every_control_is_reached_by_the_tab_key(show, trace):
    view = show(trace)
    reached = set()
    for _ in range(20):
        view.page.keyboard.press("Tab")
        reached.add(
            view.page.evaluate(
                "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
            )
        )
    for label in ("Play (space)", "Denoising step", "Playing speed", "Metric of the grid", "all heads"):
        assert label in reached


def test_the_browser_decodes_the_values_that_were_packed(show, trace):
    """The share in a tooltip is the recorded one, up to half a quantum and rounding."""
    view = show(trace)
    view.page.locator(".dl-tokens span").nth(5).hover()
    tip = view.page.get_by_role("tooltip").inner_text()
    shown = float(tip.split("receives")[1].split("%")[0])
    mass = float(trace["column_mass"].isel(step=0, position=5).mean())
    assert shown == pytest.approx(100 * mass, rel=0.03)


def test_embedded_output_survives_nbconvert(look, trace, tmp_path):
    """What nbconvert makes of a notebook shows the explorer, offline and without a kernel."""
    shown = new_output("display_data", data={"text/html": explore(trace).embed(height=900).data})
    cell = new_code_cell("dl.explore(trace).embed()", outputs=[shown])
    text, _ = HTMLExporter().from_notebook_node(new_notebook(cells=[cell]))
    path = tmp_path / "notebook.html"
    path.write_text(text, encoding="utf-8")
    frame = look(path).page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    assert frame.locator(".dl-tokens span").count() == trace.length
    frame.get_by_label("One step on").click()
    frame.get_by_text("step 1 of 6").wait_for()


def test_the_widget_module_runs_in_a_host_with_a_model(live, trace):
    """The script of the notebook, given a model like the one that anywidget hands it."""
    view = live(explore(trace), step=2, layer=1, metric="row_entropy", position=7)
    assert view.step() == 2
    assert view.chosen() == "layer 1, mean of its heads"
    view.page.get_by_role("slider", name="Denoising step").press("ArrowRight")
    view.page.wait_for_function("model.state.step === 3 && model.saved > 0")
    view.page.evaluate("model.push('head', 2)")
    assert view.chosen().startswith("layer 1, head 2")
    # The kernel's word counts, also while a change made here waits to be told.
    view.page.evaluate("""async () => {
        const slider = document.querySelector("[role=slider][aria-label='Denoising step']");
        slider.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
        for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
        model.push("step", 0);
    }""")
    assert view.step() == 0
    view.page.evaluate("stop()")
    assert view.page.locator(".dl-explorer").count() == 0


def test_heads_of_a_large_trace_come_on_demand(live, trace):
    """A head that was not sent is asked for once, shown when it is there, and then looks as if it had been sent."""
    small = explore(trace, max_bytes=len(explore(trace)._payload) // 2)
    assert small._bundle.packs[0].plan.resident == "layer"
    arrays, payload = small._bundle.packs[0].selection(0, 1, 2)
    view = live(small)
    view.page.evaluate("model.push('head', 2); model.push('layer', 1)")
    view.page.wait_for_function(
        "document.querySelector('.dl-chosen').textContent === 'loading layer 1, head 2 …'"
    )
    (request,) = view.page.evaluate("model.asked('slice')")
    assert request == {"type": "slice", "trace": 0, "sample": 0, "layer": 1, "head": 2}
    sent = [request | {"arrays": arrays}, base64.b64encode(payload).decode()]
    view.page.evaluate("([message, data]) => model.answer(message, data)", sent)
    view.page.wait_for_function(
        "document.querySelector('.dl-chosen').textContent.startsWith('layer 1, head 2')"
    )
    seen = view.picture(".dl-map")
    view.page.get_by_role("button", name="all heads").click()
    assert view.picture(".dl-map") != seen
    view.page.wait_for_function("model.state.layer === -1")  # the kernel is told a bit later
    view.page.evaluate("model.state.head = 2; model.push('layer', 1)")
    view.page.wait_for_function(
        "document.querySelector('.dl-chosen').textContent.startsWith('layer 1, head 2')"
    )
    assert view.picture(".dl-map") == seen
    assert len(view.page.evaluate("model.asked('slice')")) == 1
    view.page.locator(".dl-grid").press("ArrowUp")
    view.page.evaluate("model.answer({ ...model.asked('slice')[1], error: 'OSError: gone' })")
    view.page.wait_for_function("document.querySelector('.dl-chosen').textContent === 'OSError: gone'")
    assert view.picture(".dl-map") == seen, "what was shown stays"
    assert view.messages == []


@pytest.fixture
def two(show, trace):
    """Diffusion beside its causal twin, which has every other step only."""
    causal = dl.synthetic_trace(
        steps=6, layers=2, heads=4, length=48, prompt_length=16, bins=16, causal=True, seed=1
    )
    part = dl.Trace(causal.dataset.isel(step=[0, 2, 4]))
    return show(trace, against=part, labels=("diffusion", "autoregressive"))


def test_two_traces_move_together(two):
    heads = [side.inner_text() for side in two.page.locator(".dl-side-head").all()]
    assert heads[0].startswith("diffusion")
    assert heads[1].startswith("autoregressive")
    steps = two.page.locator(".dl-side-step")
    for key, texts in [
        ("ArrowRight", ["step 1 of 6", "step 0 of 6"]),
        ("ArrowRight", ["step 2 of 6", "step 2 of 6"]),
        ("End", ["step 5 of 6", "step 4 of 6"]),
    ]:
        two.page.keyboard.press(key)
        two.settle()
        assert steps.all_inner_texts() == texts
    raster = two.page.locator(".dl-raster.dl-overlay").nth(1)
    raster.click(position={"x": raster.bounding_box()["width"] / 2 + 20, "y": 80})
    assert two.step() == 2
    grid = two.page.locator(".dl-grid").nth(1)
    box = grid.bounding_box()
    grid.click(position={"x": box["width"] / 2 + 20, "y": box["height"] / 2 + 20})
    two.settle()
    first, second = two.page.locator(".dl-chosen").all_inner_texts()
    assert first.split(" · ")[0] == second.split(" · ")[0] == "layer 1, head 2"
    two.page.locator(".dl-tokens").first.locator("span").nth(3).click()
    two.settle()
    assert two.page.locator(".dl-followed").count() == 2


def test_two_traces_share_their_colours(two):
    legends = two.page.locator(".dl-panel", has=two.page.locator(".dl-raster")).locator(".dl-legend-ticks")
    assert legends.nth(0).inner_text() == legends.nth(1).inner_text()
    two.page.get_by_label("Metric of the grid").nth(0).select_option("effective_columns")
    two.settle()
    assert two.page.get_by_label("Metric of the grid").nth(1).input_value() == "effective_columns"
    scales = two.page.locator(".dl-panel", has=two.page.locator(".dl-grid")).locator(".dl-legend-ticks")
    assert scales.nth(0).inner_text() == scales.nth(1).inner_text()


def test_runs_of_unlike_length_move_by_their_share(show, trace):
    other = dl.synthetic_trace(steps=11, layers=1, heads=2, length=40, prompt_length=16, bins=8)
    view = show(trace, against=other)
    view.page.keyboard.press("End")
    view.settle()
    assert view.page.locator(".dl-side-step").all_inner_texts() == ["step 5 of 6", "step 10 of 11"]
    assert view.messages == []


def test_recall_is_shown_at_the_budget(show, trace):
    view = show(trace)
    view.page.get_by_label("Metric of the grid").select_option("recall")
    grid = view.page.locator(".dl-grid")
    box = grid.bounding_box()
    grid.click(position={"x": box["width"] / 2 + 30, "y": box["height"] / 2 + 20})
    shown = float(view.chosen().split(" · ")[1].removesuffix(" %"))
    expected = 100 * float(dl.metrics.column_recall(trace, (0.2,)).sel(step=0, layer=1, head=2).item())
    assert shown == pytest.approx(expected, abs=0.4)
    assert "recall at 20 % of the keys" in view.page.locator(".dl-panel", has=grid).inner_text()


def test_hostile_titles_and_facts_are_text(look, trace, tmp_path):
    """What names the run (model, policy, sampler) may hold anything that a token may."""
    named = trace.dataset.assign_attrs(policy=HOSTILE[0], sampler="\u202eשלום\n<b>👩‍🔬</b>")
    path = tmp_path / "hostile.html"
    path.write_text(page(type(trace)(named), title=f"{HOSTILE[0]}&lt;"), encoding="utf-8")
    view = look(path)
    view.page.wait_for_selector("body[data-ready]")
    header = view.page.locator(".dl-header")
    assert header.locator("img, script, .dl-title b b, .dl-facts b").count() == 0
    assert header.locator(".dl-title > b").text_content() == f"{HOSTILE[0]}&lt;"
    facts = header.locator(".dl-facts").text_content()
    assert HOSTILE[0] in facts
    assert "<b>👩‍🔬</b>" in facts
    assert view.page.title() == f"{HOSTILE[0]}&lt; · dlm-lens"
    assert view.messages == []


def test_an_embedded_page_cannot_leave_its_frame(look, trace, tmp_path):
    """Neither its title nor its tokens end the attribute that holds the page."""
    named = type(trace)(trace.dataset.assign_attrs(policy='"><img src=x onerror=alert(1)>'))
    title = '"><script>document.title = "owned"</script>'
    path = tmp_path / "embedded.html"
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><title>outside</title>{explore(named, title=title).embed().data}',
        encoding="utf-8",
    )
    view = look(path)
    frame = view.page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    assert view.page.locator("iframe").get_attribute("title") == title
    assert view.page.locator("img, script").count() == 0
    assert view.page.title() == "outside"
    assert frame.locator(".dl-title > b").text_content() == title
