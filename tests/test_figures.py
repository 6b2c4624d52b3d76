"""Figures: what is drawn is what is measured, in both themes, and captions say on what."""

from __future__ import annotations

import warnings
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dlm_lens.plots import dark, light

FIGURES = Path(__file__).resolve().parent.parent / "figures"
SCRIPTS = sorted(
    path.stem for path in FIGURES.glob("*.py") if "\ndef measure(" in path.read_text(encoding="utf-8")
)
# Relative and absolute: tables read from files are rounded to six digits and no more.
DEFAULT = (1e-3, 1e-9)


@pytest.fixture
def common(monkeypatch) -> ModuleType:
    """What figure scripts share; they find it because their folder is on the path."""
    monkeypatch.syspath_prepend(str(FIGURES))
    import common

    return common


def runs_a_model(name: str) -> bool:
    return "load(" in (FIGURES / f"{name}.py").read_text(encoding="utf-8")


def worst_cell(
    fresh: pd.DataFrame, kept: pd.DataFrame, values: list[str], tolerance: dict[str, tuple[float, float]]
) -> tuple[float, str]:
    """How far the worst cell of two tables with the same rows is off, in units of its tolerance, and which it is."""
    worst = (0.0, "")
    for column in values:
        relative, absolute = tolerance.get(column, DEFAULT)
        new, old = fresh[column].astype(float).to_numpy(), kept[column].astype(float).to_numpy()
        off = np.abs(new - old) / (absolute + relative * np.abs(old))
        off = np.where(np.isnan(new) & np.isnan(old), 0.0, np.where(np.isnan(off), np.inf, off))
        row = int(off.argmax())
        if off[row] > worst[0]:
            where = ", ".join(f"{key}={kept[key].iloc[row]}" for key in kept.columns if key not in values)
            worst = (
                float(off[row]),
                f"{column} at {where}: {new[row]:.6g} now, {old[row]:.6g} kept (± {absolute:g}, {relative:g} relative)",
            )
    return worst


def by_rows(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The table in the order of its keys."""
    order = table[keys].astype(str).sort_values(keys, kind="stable").index if keys else table.index
    return table.loc[order].reset_index(drop=True)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if runs_a_model(name) else []) for name in SCRIPTS]
)
def test_measuring_anew_gives_the_kept_table(name, common, tmp_path):
    script = common.load(name)
    tolerance: dict[str, Any] = getattr(script, "TOLERANCE", {})
    kept = common.read_kept(name)
    assert {"date", "device", "torch"} <= kept.attrs["provenance"].keys()
    # Where every prompt has rows of its own, the first stands for all: so much is measured in a few seconds.
    by_prompt = "prompts" in signature(script.measure).parameters
    measured = script.measure(prompts=1) if by_prompt else script.measure()
    kept = kept[kept["prompt"] == 0] if by_prompt else kept
    common.write_csv(measured, tmp_path / "fresh.csv")
    fresh = common.read_csv(tmp_path / "fresh.csv")
    again = f"if the change is meant, run python figures/{name}.py --keep"
    assert list(fresh.columns) == list(kept.columns), again
    assert set(tolerance) <= set(kept.columns)

    values = [
        column for column in measured if pd.api.types.is_float_dtype(measured[column]) or column in tolerance
    ]
    keys = [column for column in measured if column not in values]
    fresh, kept = by_rows(fresh, keys), by_rows(kept, keys)
    assert len(fresh) == len(kept), again
    pd.testing.assert_frame_equal(fresh[keys], kept[keys], obj=f"rows of {name} ({again})")
    off, cell = worst_cell(fresh, kept, values, tolerance)
    assert off <= 1, f"{cell}; {again}"


@pytest.mark.parametrize("theme", [light, dark], ids=["light", "dark"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_kept_table_is_drawn(name, theme, common):
    script = common.load(name)
    with theme(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # glyphs that a font lacks, axes without room
        figure = script.draw(common.read_kept(name))
        figure.canvas.draw()
    texts = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
    texts.append((figure.get_supxlabel(), figure.get_supylabel()))
    assert any(x for x, _ in texts), "no x axis has a label"
    assert any(y for _, y in texts), "no y axis has a label"
    background = figure.get_facecolor()[:3]
    assert (np.mean(background) > 0.5) == (theme is light)
    plt.close(figure)


@pytest.mark.parametrize("name", SCRIPTS)
def test_captions_name_the_model_or_the_device(name, common):
    table = common.read_kept(name)
    said = common.load(name).caption(table)
    about = table.attrs["provenance"]
    names = [str(about[key]) for key in ("model", "device") if about.get(key, "cpu") != "cpu"]
    assert any(word in said for word in [*names, "tiny", "LLaDA", "Dream"]), said
    assert "nan" not in said.lower().split()


def test_a_cell_that_has_moved_is_found():
    kept = pd.DataFrame({"policy": ["a", "b"], "kl": [1.0, 2.0], "mass": [np.nan, 0.5]})
    same, _ = worst_cell(kept, kept, ["kl", "mass"], {})
    assert same == 0
    moved = kept.assign(kl=[1.0, 2.1])
    off, cell = worst_cell(moved, kept, ["kl", "mass"], {})
    assert off > 1
    assert cell.startswith("kl at policy=b: 2.1 now, 2 kept")
    assert worst_cell(moved, kept, ["kl", "mass"], {"kl": (0.1, 0)})[0] <= 1
    assert worst_cell(kept.assign(mass=0.5), kept, ["mass"], {})[0] == np.inf


def test_rows_are_compared_whatever_their_order():
    table = pd.DataFrame({"policy": ["b", "a", "a"], "step": [1, 10, 2], "kl": [1.0, 2.0, 3.0]})
    shuffled = table.iloc[[2, 0, 1]].reset_index(drop=True)
    pd.testing.assert_frame_equal(by_rows(table, ["policy", "step"]), by_rows(shuffled, ["policy", "step"]))


def test_lengths_of_stored_files_are_in_order(common, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "DATA", tmp_path)
    for length in ("64k", "4k", "16k"):
        (tmp_path / f"schedules-{length}-a100.json").write_text("{}")
    found = common.stored("schedules-*-h200.json", "schedules-*-a100.json")
    assert [path.name.split("-")[1] for path in found] == ["4k", "16k", "64k"]
    with pytest.raises(FileNotFoundError, match=r"fits kernels-\*\.json"):
        common.stored("kernels-*.json")


def test_the_gallery_shows_every_figure_with_its_caption(common):
    import gallery

    again = "run python figures/gallery.py"
    assert gallery.README.read_text(encoding="utf-8") == gallery.page(), again
    pictures = {path.stem: path.stat().st_size for path in gallery.GALLERY.glob("*.png")}
    assert sorted(pictures) == common.scripts(), again
    assert max(pictures.values()) <= 120_000, "pictures in the repository stay small"
    for name in gallery.SHOWN.values():
        assert (FIGURES / f"{name}.png").exists(), again
        assert (FIGURES / f"{name}-dark.png").exists(), again
