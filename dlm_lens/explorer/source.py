"""The explorer's JavaScript and styles, joined from the fragments in ``static/``."""

from functools import cache
from importlib.resources import files

# The fragments are pieces of one module, in the order in which they use each other.
_FRAGMENTS = (
    "data.js",
    "colour.js",
    "dom.js",
    "store.js",
    "legend.js",
    "scrubber.js",
    "textpicture.js",
    "text.js",
    "grid.js",
    "map.js",
    "raster.js",
    "followed.js",
    "drift.js",
    "age.js",
    "policy.js",
    "measure.js",
    "recorder.js",
    "export.js",
    "sides.js",
    "settings.js",
    "help.js",
    "explorer.js",
)
_STYLES = (
    "theme.css",
    "explorer.css",
    "text.css",
    "age.css",
    "policy.css",
    "export.css",
    "settings.css",
    "help.css",
)


def _join(names: tuple[str, ...]) -> str:
    static = files("dlm_lens.explorer") / "static"
    return "\n".join((static / name).read_text(encoding="utf-8") for name in names)


@cache
def widget_script() -> str:
    """The ES module of the notebook widget."""
    return _join((*_FRAGMENTS, "host_widget.js"))


@cache
def page_script() -> str:
    """The same views as the script of a page of its own."""
    return _join((*_FRAGMENTS, "host_page.js"))


@cache
def styles() -> str:
    """The style sheet of the explorer."""
    return _join(_STYLES)


@cache
def page_styles() -> str:
    """The style sheet of a page of its own."""
    return _join((*_STYLES, "page.css"))
