"""The policy panel in a real browser: on a saved page, and in a host with a model that answers."""

import base64

import numpy as np
import pytest

from dlm_lens.explorer import explore
from dlm_lens.explorer.page import page
from dlm_lens.explorer.policy_choices import controls
from tests.explorer.conftest import HOSTILE

pytestmark = pytest.mark.browser

MEASURED = {
    "policy": HOSTILE[0],
    "settings": "16 + 32 tokens, 6 steps, 1 repetition",
    "baseline": "SDPA (cpu) on cpu",
    "columns": ["ms / step", "refresh ms", "speed-up ×", "bound ×", "KL nats"],
    "rows": [
        {"policy": "Dense", "values": [4, None, 1, 1, 0]},
        {"policy": HOSTILE[0], "values": [2, 3.5, 2, 2.5, 0.031]},
        {"policy": "Random columns 80%", "values": [2, None, 2, 2.6, 1.25]},
    ],
}


def best_share(trace, sparsity, step, layer=None, head=None):
    """What the best columns of the selection hold, by sorting."""
    mass = trace["column_mass"].isel(step=step).values.astype(float)
    mass = mass.mean((0, 1)) if layer is None else mass[layer].mean(0) if head is None else mass[layer, head]
    kept = max(1, round((1 - sparsity) * len(mass)))
    return np.sort(mass)[::-1][:kept].sum(), kept


def share(view):
    view.settle()
    text = view.page.locator(".dl-policy-share").inner_text()
    return float(text.removesuffix(" %")) / 100


def slide(view, value):
    slider = view.page.get_by_label("Sparsity")
    slider.evaluate("(node, value) => (node.value = value, node.dispatchEvent(new Event('input')))", value)


def test_the_share_is_that_of_the_best_columns(show, trace):
    view = show(trace)
    for sparsity in (0.8, 0.5, 0.9):
        slide(view, round(100 * sparsity))
        expected, kept = best_share(trace, sparsity, 0)
        assert share(view) == pytest.approx(expected, abs=0.01)
        assert f"best {kept} of 48 keys" in view.page.locator(".dl-policy").inner_text()
    view.page.keyboard.press("End")
    assert share(view) == pytest.approx(best_share(trace, 0.9, 5)[0], abs=0.01)
    grid = view.page.locator(".dl-grid")
    box = grid.bounding_box()
    grid.click(position={"x": box["width"] / 2 + 30, "y": box["height"] / 2 + 20})
    assert view.chosen().startswith("layer 1, head 2")
    assert share(view) == pytest.approx(best_share(trace, 0.9, 5, 1, 2)[0], abs=0.01)
    assert view.messages == []


def test_controls_work_by_keys_and_leave_the_step_alone(show, trace):
    view = show(trace)
    slider = view.page.get_by_label("Sparsity")
    before = share(view), view.picture(".dl-map"), view.picture(".dl-policy-chart")
    slider.press("ArrowLeft")
    assert slider.input_value() == "79"
    for _ in range(20):
        slider.press("ArrowLeft")
    assert share(view) > before[0]
    assert view.picture(".dl-map") != before[1], "the keys kept are marked under the map"
    assert view.picture(".dl-policy-chart") != before[2]
    assert view.step() == 0
    select = view.page.get_by_role("combobox", name="Policy")
    select.focus()
    select.press("ArrowDown")
    assert select.input_value() == "sparsed"
    view.settle()
    assert "whole blocks" in view.page.locator(".dl-policy").inner_text()
    assert slider.input_value() == "59", "policies with a budget share it"


def test_the_budget_is_that_of_the_pattern_s_age(show, trace):
    view = show(trace)
    slide(view, 60)
    view.settle()
    budget = view.page.get_by_label("Budget: share of the keys that is kept")
    assert budget.input_value() == "0.4"
    budget.press("ArrowRight")
    view.settle()
    assert view.page.get_by_label("Sparsity").input_value() == "59"


def test_policies_without_a_budget_have_a_number_of_their_own(show, trace):
    view = show(trace)
    marked = view.picture(".dl-map")
    view.page.get_by_role("combobox", name="Policy").select_option("window-diffusion")
    assert (
        view.page.get_by_role("slider", name="Window").get_attribute("aria-valuetext")
        == "128 masked positions"
    )
    view.settle()
    assert not view.page.locator(".dl-policy-share").is_visible()
    assert "no budget of keys" in view.page.locator(".dl-policy").inner_text()
    assert view.picture(".dl-map") != marked
    view.page.get_by_role("combobox", name="Policy").select_option("random")
    assert view.picture(".dl-map") == marked
    assert view.page.locator(".dl-policy-chart").bounding_box()["height"] > 50


def test_a_page_cannot_measure_and_says_why(show, trace):
    view = show(trace)
    button = view.page.get_by_role("button", name="Measure")
    assert button.is_disabled()
    reason = view.page.locator(f"#{button.get_attribute('aria-describedby')}").inner_text()
    assert "needs a kernel and the model" in reason
    assert view.page.get_by_label("Tokens to generate").input_value() == "32"
    assert view.page.get_by_role("spinbutton", name="Steps").input_value() == "6"


def test_a_trace_without_column_mass_says_so(show, trace):
    view = show(type(trace)(trace.dataset.drop_vars("column_mass")))
    view.page.keyboard.press("ArrowRight")
    assert "No preview: this trace has no column_mass" in view.page.locator(".dl-policy").inner_text()
    assert view.messages == []


def test_beside_another_run_there_is_one_panel_and_it_is_about_the_first(look, trace, tmp_path):
    path = tmp_path / "two.html"
    path.write_text(page(trace, against=trace), encoding="utf-8")
    view = look(path)
    view.page.wait_for_selector("body[data-ready]")
    assert view.page.locator(".dl-sides + .dl-policy").count() == 1
    assert view.page.locator(".dl-policy").count() == 1
    slide(view, 50)
    assert share(view) == pytest.approx(best_share(trace, 0.5, 0)[0], abs=0.01)
    assert view.messages == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_saved_page_shows_what_was_measured(look, trace, tmp_path, theme):
    path = tmp_path / "measured.html"
    path.write_text(page(trace, measured=[MEASURED, MEASURED]), encoding="utf-8")
    view = look(path, theme=theme)
    view.page.wait_for_selector("body[data-ready]")
    assert view.page.locator(".dl-result").count() == 2
    result = view.page.locator(".dl-result").first
    assert result.locator("caption").inner_text().startswith(f"2. {HOSTILE[0]}: 16 + 32 tokens")
    rows = [row.all_inner_texts() for row in result.locator("tbody tr").locator("th, td").locator("..").all()]
    assert len(rows) == 3
    assert result.locator("tbody tr").nth(1).locator("td").all_inner_texts() == [
        "2",
        "3.5",
        "2",
        "2.5",
        "0.031",
    ]
    assert result.locator("tbody tr").nth(0).locator("td").nth(1).inner_text() == "–"
    plot = result.locator("canvas")
    assert "Random columns 80% 2 times as fast at 1.25 nats" in plot.get_attribute("aria-label")
    assert len(plot.evaluate("node => node.toDataURL()")) > 2000
    assert view.page.locator(".dl-result img").count() == 0
    assert view.page.title() == "synthetic · dlm-lens"
    assert view.messages == []


@pytest.fixture
def panel(live, trace):
    """The widget of the trace, a head chosen, in a host with the model or without."""

    def render(with_model=True):
        return live(explore(trace), layer=0, head=1, _controls=controls(trace, with_model=with_model))

    return render


def asked(view, kind, count=1):
    view.page.wait_for_function("([kind, count]) => model.asked(kind).length >= count", arg=[kind, count])
    return view.page.evaluate("kind => model.asked(kind)", kind)[-1]


def answer(view, message, data=None):
    encoded = None if data is None else base64.b64encode(bytes(data)).decode()
    view.page.evaluate("([message, data]) => model.answer(message, data)", [message, encoded])
    view.settle()


def test_the_model_is_asked_and_its_answer_is_drawn(panel):
    view = panel()
    request = asked(view, "preview")
    assert {name: request[name] for name in ("policy", "value", "step", "sample", "layer", "head", "bins")} == {
        "policy": "pulsecol", "value": 80, "step": 0, "sample": 0, "layer": 0, "head": 1, "bins": 16,
    }  # fmt: skip
    before = view.picture(".dl-map")
    said = {
        "type": "preview", "label": "PulseCol 80%", "kind": "sparse", "density": 0.2, "computed": 48, "attended": 48,
        "retained": [[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.6, 0.5]],
    }  # fmt: skip
    answer(view, said | {"key": "of something else"}, [0] * 256)
    assert view.picture(".dl-map") == before
    answer(view, said | {"key": request["key"]}, [0] * 256)
    text = view.page.locator(".dl-policy").inner_text()
    assert "62.5 % of the dense attention is retained by PulseCol 80%" in text
    assert "worst layer (1) 50 %, this head 80 %" in text
    assert view.picture(".dl-map") != before
    drawn = view.picture(".dl-map")
    view.page.get_by_label("One step on").click()
    view.page.get_by_label("One step back").click()
    assert view.picture(".dl-map") != drawn, "what was said of a step is gone with it"
    asked(view, "preview", 2)
    slide(view, 70)
    view.settle()
    assert "The model runs one step" in view.page.locator(".dl-policy").inner_text()
    assert asked(view, "preview", 3)["value"] == 70
    answer(view, {"type": "error", "of": "preview", "key": "old", "text": "no"})
    assert not view.page.get_by_role("alert").is_visible()
    key = asked(view, "preview", 3)["key"]
    answer(view, {"type": "error", "of": "preview", "key": key, "text": "<b>no</b>"})
    assert view.page.get_by_role("alert").inner_text() == "<b>no</b>"
    assert view.messages == []


def test_the_model_need_not_be_asked(panel):
    view = panel()
    asked(view, "preview")
    view.page.get_by_label("run the model").uncheck()
    view.page.keyboard.press("ArrowRight")
    view.page.wait_for_timeout(500)  # longer than it waits before it asks
    assert len(view.page.evaluate("model.asked('preview')")) == 1


def test_measuring_shows_its_progress_and_its_result(panel):
    view = panel()
    view.page.get_by_label("Repetitions").fill("3")
    measure, cancel = (view.page.get_by_role("button", name=name) for name in ("Measure", "Cancel"))
    assert cancel.is_disabled()
    measure.press("Enter")
    request = asked(view, "measure")
    assert request == {
        "type": "measure", "policy": "pulsecol", "value": 80, "gen_length": 32, "steps": 6, "repeats": 3,
    }  # fmt: skip
    assert measure.is_disabled()
    answer(view, {"type": "progress", "done": 2.5, "total": 10, "what": "warming up PulseCol 80%"})
    assert view.page.locator("progress").evaluate("bar => bar.position") == 0.25
    assert "run 3 of 10: warming up PulseCol 80%" in view.page.locator(".dl-measure").inner_text()
    cancel.press("Enter")
    asked(view, "cancel")
    answer(view, {"type": "result", "text": "Cancelled; nothing was kept."})
    assert "Cancelled; nothing was kept." in view.page.locator(".dl-measure").inner_text()
    assert measure.is_enabled()
    assert not view.page.locator("progress").is_visible()
    answer(view, {"type": "error", "of": "measure", "text": "steps=0 must be more"})
    assert view.page.locator(".dl-measure .dl-error").inner_text() == "steps=0 must be more"
    view.page.evaluate("measured => model.push('_measured', measured)", [MEASURED])
    view.settle()
    assert view.page.locator(".dl-result tbody tr").count() == 3
    view.page.evaluate("stop()")
    assert view.messages == []


def test_a_kernel_that_does_not_answer_is_told(panel):
    view = panel()
    view.page.clock.install()
    view.page.get_by_role("button", name="Measure").click()
    view.page.clock.fast_forward(20_000)
    said = view.page.locator(".dl-measure-status")
    assert "no answer from the kernel yet" in said.inner_text()
    view.page.get_by_role("button", name="Cancel").click()
    assert view.page.get_by_role("button", name="Measure").is_enabled(), "nobody is there to end anything"
    answer(view, {"type": "progress", "done": 1, "total": 10, "what": "PulseCol 80%"})
    assert "run 2 of 10" in said.inner_text(), "it was only late"


def test_without_the_model_the_button_says_what_to_pass(panel):
    view = panel(with_model=False)
    button = view.page.get_by_role("button", name="Measure")
    assert button.is_disabled()
    reason = view.page.locator(f"#{button.get_attribute('aria-describedby')}").inner_text()
    assert reason == "Measuring needs the model; pass it: dl.explore(trace, dlm)."
    assert view.page.get_by_label("run the model").count() == 0
