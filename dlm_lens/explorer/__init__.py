"""The explorer: one interactive view of a trace, in notebooks and as a file of its own.

``data.py`` packs a trace into a manifest and a buffer, ``static/`` draws them, ``widget.py`` and ``page.py`` are
the two hosts.
"""

from dlm_lens.explorer.widget import Explorer, explore

__all__ = ["Explorer", "explore"]
