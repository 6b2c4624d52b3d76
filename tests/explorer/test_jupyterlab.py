"""The explorer in a real JupyterLab, in a real browser: live, reopened, and after its kernel has gone."""

import json
import shutil

import nbformat
import pytest

from tests.explorer.lab import open_notebook, running_lab

pytestmark = [pytest.mark.browser, pytest.mark.slow]

EXPLORE = (
    "import dlm_lens as dl\ndl.explore(dl.synthetic_trace(steps=6, layers=2, heads=4, length=48, bins=16))"
)
NO_MODEL = "model not found"
# The setting "Save Widget State Automatically", turned on or off
SAVE_STATE = "@jupyter-widgets/jupyterlab-manager:saveWidgetState"


@pytest.fixture(scope="session")
def lab(root, tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab"), root) as lab:
        yield lab


@pytest.fixture
def visit(browser, lab):
    """``visit(name)`` opens a notebook; afterwards its page is closed and its kernel ended."""
    pages = []

    def open_one(name, **settings):
        pages.append(open_notebook(browser, lab, name, **settings))
        return pages[-1]

    yield open_one
    for page in pages:
        if not page.page.is_closed():
            page.leave()


def pictures(explorer):
    """What the attention map, the raster and its overlay show, once drawn."""
    explorer.page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    names = (".dl-map", ".dl-raster:not(.dl-overlay)", ".dl-raster.dl-overlay")
    return [explorer.locator(name).evaluate("canvas => canvas.toDataURL()") for name in names]


def drag_to_the_end(explorer):
    """Drag the scrubber with the mouse from the first step to the last."""
    scrubber = explorer.locator(".dl-scrub")
    scrubber.scroll_into_view_if_needed()
    box = scrubber.bounding_box()
    mouse = explorer.page.mouse
    mouse.move(box["x"] + 80, box["y"] + 20)
    mouse.down()
    mouse.move(box["x"] + box["width"] / 2, box["y"] + 20, steps=4)
    mouse.move(box["x"] + box["width"] - 20, box["y"] + 20, steps=4)
    mouse.up()


def step(explorer):
    return int(explorer.locator(".dl-scrub").get_attribute("aria-valuenow"))


def test_the_quickstart_explores_in_a_live_notebook(root, lab, visit):
    name = "01_quickstart.ipynb"
    shutil.copy(root / "notebooks" / name, lab.folder / name)
    cells = nbformat.read(lab.folder / name, as_version=4).cells
    index = next(i for i, cell in enumerate(cells) if "dl.explore(" in cell.source)
    view = visit(name)
    view.run_all()
    explorer = view.page.locator(".dl-explorer")
    explorer.wait_for(state="attached", timeout=240_000)
    view.cell(index)
    explorer.locator(".dl-grid").wait_for()
    before = pictures(explorer)
    drag_to_the_end(explorer)
    explorer.get_by_text("step 31 of 32").wait_for()
    dragged = pictures(explorer)
    assert dragged[0] != before[0], "the map shows another step"
    assert dragged[1] == before[1], "the raster shows all steps"
    assert dragged[2] != before[2], "its playhead moves"

    grid = explorer.locator(".dl-grid")
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    grid.click(position={"x": box["width"] / 2 + 20, "y": box["height"] / 2 + 10})
    explorer.locator(".dl-chosen", has_text="head").wait_for()
    chosen = pictures(explorer)
    assert all(now != then for now, then in zip(chosen[:2], dragged[:2], strict=True))
    assert step(explorer) == 31
    assert not view.page.locator("[id^=dl-still]").is_visible()

    explorer.locator(".dl-drift.dl-overlay").scroll_into_view_if_needed()
    top, bar = view.page.locator(".jp-WindowedPanel-outer"), explorer.locator(".dl-time")
    assert bar.bounding_box()["y"] >= top.bounding_box()["y"] - 1, "the step stays in sight"

    view.execute("apputils:change-theme", {"theme": "JupyterLab Dark"})
    view.page.locator(".dl-explorer[data-theme=dark]").wait_for()
    assert pictures(explorer)[0] != chosen[0]
    measure_a_little(view, explorer)
    assert view.foreign == []


def measure_a_little(view, explorer):
    """Press Measure, for a few tokens, and see the table."""
    view.execute("kernelmenu:interrupt")  # the notebook's own comparison, which takes a minute or two
    view.wait_until_idle()
    explorer.get_by_label("Tokens to generate").fill("16")
    explorer.get_by_label("Steps", exact=True).fill("4")
    button = explorer.get_by_role("button", name="Measure", exact=True)
    button.click()
    table = explorer.locator(".dl-results").get_by_role("table")
    table.wait_for(timeout=120_000)
    rows = table.get_by_role("rowheader").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["Dense", "PulseCol", "Random"]
    assert "102 + 16 tokens, 4 steps" in table.inner_text()
    assert button.is_enabled()


@pytest.fixture(scope="module")
def saved(browser, lab):
    """``plain.ipynb`` and ``state.ipynb``: one run of a notebook, saved without its widgets' state and with it."""
    path = lab.write("run.ipynb", EXPLORE)
    view = open_notebook(browser, lab, path.name)
    view.run_all()
    view.page.locator(".dl-explorer .dl-grid").wait_for(timeout=60_000)
    view.page.locator(".dl-still").wait_for(state="hidden")
    view.wait_until_idle()
    view.execute("docmanager:save")
    shutil.copy(path, lab.folder / "plain.ipynb")
    view.execute(SAVE_STATE)
    view.execute("docmanager:save")
    shutil.copy(path, lab.folder / "state.ipynb")
    view.execute(SAVE_STATE)
    view.leave()


def test_reopened_without_its_kernel_the_still_stands_in(lab, saved, visit):
    again = visit("plain.ipynb")
    again.page.locator(".dl-still img").wait_for()
    assert again.page.locator(".dl-still img").evaluate("image => image.naturalWidth") > 600
    again.page.locator(".jupyter-widgets", has_text=NO_MODEL).wait_for(state="hidden")
    assert NO_MODEL not in again.cell(0).inner_text()
    again.leave()

    # From somebody else, JupyterLab does not trust it: widgets are not shown, HTML is sanitised.
    notebook = json.loads((lab.folder / "plain.ipynb").read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"]
    notebook["cells"][0]["source"] = ["# changed"]
    (lab.folder / "foreign.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    foreign = visit("foreign.ipynb")
    foreign.page.locator(".dl-still img").wait_for()
    assert "run the cell again" in foreign.cell(0).inner_text()


def test_saved_with_its_state_it_works_without_a_kernel(saved, visit):
    again = visit("state.ipynb")
    explorer = again.page.locator(".dl-explorer")
    explorer.locator(".dl-grid").wait_for()
    again.execute("kernelmenu:shutdown")
    assert again.page.locator(".dl-still").is_hidden()
    before = pictures(explorer)
    drag_to_the_end(explorer)
    explorer.get_by_text("step 5 of 6").wait_for()
    assert pictures(explorer)[0] != before[0]
    again.execute("apputils:change-theme", {"theme": "JupyterLab Dark"})
    again.page.locator(".dl-explorer[data-theme=dark]").wait_for()
    assert again.foreign == []
