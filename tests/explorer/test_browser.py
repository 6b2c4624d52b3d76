"""The saved explorer in a real browser, from a file and with the network off."""

import base64

import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output

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


@pytest.mark.parametrize("canvas", CANVASES.values(), ids=CANVASES)
def test_a_step_redraws_every_view(show, trace, canvas):
    view = show(trace)
    before = view.picture(canvas)
    view.page.keyboard.press("ArrowRight")
    assert view.picture(canvas) != before


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
@pytest.mark.parametrize("width", [900, 1280, 1920])
def test_it_fits_the_window_in_both_themes(show, trace, theme, width):
    view = show(trace, theme=theme, width=width)
    assert view.page.locator(".dl-explorer").get_attribute("data-theme") == theme
    page_width, window_width = view.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert page_width == window_width


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


def test_the_widget_module_runs_in_a_host_with_a_model(look, trace, tmp_path):
    """The script of the notebook, given a model like the one that anywidget hands it."""
    widget = explore(trace)
    script = base64.b64encode(widget._esm.encode()).decode()
    manifest = base64.b64encode(widget._manifest.encode()).decode()
    payload = base64.b64encode(widget._payload).decode()
    path = tmp_path / "host.html"
    path.write_text(
        f"""<!doctype html><meta charset="utf-8"><style>{widget._css}</style><body><div id="out"></div>
        <script type="module">
        const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
        const state = {{ step: 2, layer: 1, head: -1, metric: "row_entropy", sample: 0, position: 7,
          _manifest: new TextDecoder().decode(bytes("{manifest}")),
          _payload: new DataView(bytes("{payload}").buffer) }};
        const handlers = {{}};
        window.model = {{ state, saved: 0, get: (n) => state[n], set: (all) => Object.assign(state, all),
          save_changes() {{ this.saved++; }}, on: (n, f) => (handlers[n] = f), off: (n) => delete handlers[n],
          push(n, v) {{ state[n] = v; handlers[`change:${{n}}`](); }}, handlers }};
        const url = "data:text/javascript;base64,{script}";
        const widget = (await import(url)).default;
        window.stop = await widget.render({{ model: window.model, el: document.getElementById("out") }});
        document.body.dataset.ready = "true";
        </script>""",
        encoding="utf-8",
    )
    view = look(path)
    view.page.wait_for_selector("body[data-ready]")
    assert view.step() == 2
    assert view.chosen() == "layer 1, mean of its heads"
    view.page.get_by_role("slider", name="Denoising step").press("ArrowRight")
    view.page.wait_for_function("model.state.step === 3 && model.saved > 0")
    view.page.evaluate("model.push('head', 2)")
    assert view.chosen().startswith("layer 1, head 2")
    view.page.evaluate("stop()")
    assert view.page.locator(".dl-explorer").count() == 0
    assert view.page.evaluate("Object.keys(model.handlers)") == []
    assert view.messages == []
