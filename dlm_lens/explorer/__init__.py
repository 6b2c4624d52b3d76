"""The explorer: one interactive view of a trace, in notebooks and as a file of its own.

``data.py`` packs a trace into a manifest and a buffer, ``static/`` draws them, ``widget.py`` and ``page.py`` are
the two hosts. The widget is loaded when it is asked for, so that pages can be written where no widgets are installed.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm_lens.explorer.widget import Explorer, explore

__all__ = ["Explorer", "explore"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dlm_lens.explorer' has no attribute {name!r}")
    from dlm_lens.explorer import widget

    return getattr(widget, name)
