"""How far a run is: a bar on the screen, a function that is told, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from tqdm.auto import tqdm

Progress = Callable[[float, float, str], None]
"""``progress(done, total, what)``: told after every step how much of ``total`` is ``done``, and what is being done.

It is called by the thread that computes, between two steps, and may raise ``KeyboardInterrupt`` to end the run there,
as Ctrl-C would.
"""


class Bar:
    """The progress of ``total`` equal parts, for ``with``.

    ``progress`` is True for a tqdm bar with the heading ``desc``, counting in ``unit``; False for none; or a function
    to tell (:data:`Progress`), which gets ``desc`` as what is being done until :meth:`note` says it more exactly.
    """

    def __init__(
        self, progress: bool | Progress, *, total: int, desc: str, unit: str, leave: bool = True
    ) -> None:
        self._tell = progress if callable(progress) else None
        self._total, self._done, self._what = total, 0, desc
        hidden = self._tell is not None or not progress
        self._bar = tqdm(total=total, desc=desc, unit=unit, disable=hidden, leave=leave)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def note(self, what: str) -> None:
        """Say what is being done now."""
        self._what = what
        self._bar.set_postfix_str(what)

    def update(self, parts: int = 1) -> None:
        """So many parts more are done."""
        self._done += parts
        self._bar.update(parts)
        if self._tell is not None:
            self._tell(self._done, self._total, self._what)

    def within(self, *, counts: bool = True) -> bool | Progress:
        """The ``progress`` of something that is one part of this: a function is told what share of the part is done.

        With ``counts=False`` it is not a part but something beside them, and only a chance to end the run. A tqdm bar
        stays alone: what is within shows none.
        """
        tell, done, total, what = self._tell, self._done, self._total, self._what
        if tell is None:
            return False

        def told(inner: float, of: float, _: str) -> None:
            tell(done + (inner / of if counts else 0), total, what)

        return told
