"""Make the gallery: every figure's picture, caption and command in ``figures/README.md``; and the README's pictures.

All are drawn from the kept tables in ``figures/data``, so that pictures, captions and tables say the same. Run it after
``python figures/NAME.py --keep``; a test tells when it is due.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
from common import FOLDER, load, read_kept, scripts
from PIL import Image

from dlm_lens.plots.style import dark, light

GALLERY = FOLDER / "gallery"
README = FOLDER / "README.md"
# Figures that the project's README shows, light and dark, and what their files are called there.
SHOWN = {"kernel_efficiency": "kernels", "speedup_vs_context": "schedules", "pareto": "policies"}
HEAD = """# Figures

Every figure is a script here that measures a table, draws it, and makes the caption below from its numbers; tests
measure the tables anew. `make figures` runs them all into `out/figures`, each also as PDF and for dark pages. A single
one, with its options: `python figures/NAME.py --help`. What needs a GPU is measured apart and kept as JSON in `data`.
"""


def main() -> None:
    GALLERY.mkdir(exist_ok=True)
    for name in scripts():
        print(f"gallery: {name}", flush=True)
        draw(name, light, GALLERY / f"{name}.png", dpi=110)
        if name in SHOWN:
            draw(name, light, FOLDER / f"{SHOWN[name]}.png", dpi=150)
            draw(name, dark, FOLDER / f"{SHOWN[name]}-dark.png", dpi=150)
    README.write_text(page(), encoding="utf-8")


def draw(name: str, theme: Callable[[], AbstractContextManager[None]], path: Path, dpi: int) -> None:
    """A picture of the kept table, in 256 colours, which halves the file and is not seen."""
    buffer = BytesIO()
    with theme():
        figure = load(name).draw(read_kept(name))
        figure.savefig(buffer, dpi=dpi)
        plt.close(figure)
    # Without dithering, which would add a grain to plain areas.
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def page() -> str:
    """The gallery's page."""
    parts = [HEAD]
    for name in scripts():
        table = read_kept(name)
        said = textwrap.fill(load(name).caption(table), 120, break_long_words=False, break_on_hyphens=False)
        about = table.attrs["provenance"]
        where = about["device"] if about["device"] != "cpu" else about["cpu"]
        parts.append(
            f"\n## {name.replace('_', ' ')}\n\n![{name}](gallery/{name}.png)\n\n{said}\n\n"
            f"`python figures/{name}.py`, measured on {where}, {about['date'][:10]};"
            f" [table](data/{name}.csv), [script]({name}.py)\n"
        )
    return "".join(parts)


if __name__ == "__main__":
    main()
