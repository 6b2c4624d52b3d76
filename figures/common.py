"""What the figure scripts share: each measures one tidy table, draws it, and says in a caption what it shows.

A script defines ``measure() -> DataFrame``, ``draw(table) -> Figure`` and ``caption(table) -> str`` and ends with
``run(__file__, measure, draw, caption)``. ``python figures/NAME.py`` then writes ``NAME.csv``, ``NAME.pdf``,
``NAME.png``, ``NAME-dark.png`` and ``NAME.txt`` (the caption) to ``out/figures``:

    --out FOLDER   write somewhere else
    --keep         also write the table to figures/data/NAME.csv, which tests compare new measurements with
    --kept         draw from that table instead of measuring

What needs a GPU is measured apart and stored as JSON in figures/data. Scripts of such figures have a
``measure(*files)``, which reads those by default, and take other files as arguments.

The caption is made from the table, so that it cannot say what the numbers do not; where they contradict a paper's
claim it says so.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

import dlm_lens as dl
from dlm_lens.measure.environment import versions_and_device
from dlm_lens.measure.policy_table import code_prompts
from dlm_lens.plots.style import dark, light

FOLDER = Path(__file__).parent
DATA = FOLDER / "data"


def run(
    script: str,
    measure: Callable[..., pd.DataFrame],
    draw: Callable[[pd.DataFrame], Figure],
    caption: Callable[[pd.DataFrame], str],
) -> None:
    """Measure (or read) the table and write it, the pictures and the caption."""
    name = Path(script).stem
    parser = argparse.ArgumentParser(description=f"Make the figure {name}.")
    parser.add_argument("--out", type=Path, default=Path("out/figures"), help="folder to write to")
    parser.add_argument("--keep", action="store_true", help="also write the table to figures/data")
    parser.add_argument("--kept", action="store_true", help="draw the table in figures/data")
    if inspect.signature(measure).parameters:
        parser.add_argument(
            "files", type=Path, nargs="*", help="JSON to read instead of that in figures/data"
        )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = read_kept(name) if arguments.kept else measure(*getattr(arguments, "files", ()))
    for folder in (arguments.out, *([DATA] if arguments.keep else [])):
        write_csv(table, folder / f"{name}.csv")
    said = caption(table)
    (arguments.out / f"{name}.txt").write_text(textwrap.fill(said, 100) + "\n", encoding="utf-8")
    for theme, file in ((light, f"{name}.png"), (dark, f"{name}-dark.png"), (light, f"{name}.pdf")):
        with theme():
            figure = draw(table)
            figure.savefig(arguments.out / file, dpi=150)
            plt.close(figure)
    print(f"{arguments.out / name}.png, .pdf, .csv: {said}")


def capture_code(dlm: dl.DLM, length: int, generated: int, steps: int, **recorded: Any) -> dl.Trace:
    """The run that several figures look at: two pieces of held-out code, continued to ``length`` tokens, of which
    ``generated`` are generated in ``steps`` steps; ``recorded`` says what :func:`dlm_lens.capture` records of it."""
    prompts = code_prompts(dlm, 2, length - generated)
    return dl.capture(dlm, prompts, gen_length=generated, steps=steps, progress=False, **recorded)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """The table, after a comment line with the versions and device it was measured with."""
    about: dict[str, Any] = table.attrs.get("provenance") or versions_and_device()
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    path.write_text(f"# {json.dumps(about, ensure_ascii=False)}\n{text}", encoding="utf-8")


def read_kept(name: str) -> pd.DataFrame:
    """The table in ``figures/data``, its provenance in ``attrs``."""
    return read_csv(DATA / f"{name}.csv")


def read_csv(path: Path) -> pd.DataFrame:
    """A table that :func:`write_csv` wrote, its provenance in ``attrs``."""
    table = pd.read_csv(path, skiprows=1)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    table.attrs["provenance"] = json.loads(first.removeprefix("# "))
    return table


def stored(*patterns: str) -> list[Path]:
    """The JSON files in ``figures/data`` that fit the first of these patterns that any fits, in order of numbers."""
    for pattern in patterns:
        if found := sorted(DATA.glob(pattern), key=_numbers):
            return found
    raise FileNotFoundError(f"no file in {DATA} fits {' or '.join(patterns)}")


def _numbers(path: Path) -> list[Any]:
    """Sorts 4k before 16k."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def scripts() -> list[str]:
    """Names of the figure scripts: the files beside this one that measure a table."""
    return sorted(
        path.stem for path in FOLDER.glob("*.py") if "\ndef measure(" in path.read_text(encoding="utf-8")
    )


def load(name: str) -> ModuleType:
    """A figure script as a module; ``figures`` must be on ``sys.path``, as it is for scripts in there."""
    return importlib.import_module(name)
