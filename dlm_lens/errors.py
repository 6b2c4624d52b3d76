"""Errors of dlm-lens. Wrong values raise ``ValueError`` and wrong types ``TypeError``, as everywhere in Python."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlm_lens.denoising import Denoised
    from dlm_lens.trace import Trace


class DlmLensError(Exception):
    """Something went wrong that is not simply a wrong argument; every error of ours derives from it."""


class CheckpointError(DlmLensError):
    """A checkpoint folder does not hold the model it names: missing or surplus keys, wrong shapes, no config."""


class TraceError(DlmLensError):
    """A file is not a trace, or a trace lacks what was asked of it."""


class MemoryBudgetError(DlmLensError):
    """A model, a run or a trace needs more memory than its budget or its GPU has."""


class OutOfMemoryError(MemoryBudgetError):
    """A run ran out of memory midway. The model is as it was, and what the run held has been given back.

    Attributes
    ----------
    step : the step that did not fit, from 0; those before it are finished.
    result : the :class:`dlm_lens.denoising.Denoised` of the finished steps.
    trace : the :class:`dlm_lens.Trace` of the finished steps, if this was a capture; None otherwise, and where no
        step was finished. A trace on disk can be opened too.
    """

    def __init__(self, message: str, *, step: int, result: "Denoised") -> None:
        super().__init__(message)
        self.step = step
        self.result = result
        self.trace: Trace | None = None
