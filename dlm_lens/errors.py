"""Errors of dlm-lens. Wrong values raise ``ValueError`` and wrong types ``TypeError``, as everywhere in Python."""


class DlmLensError(Exception):
    """Something went wrong that is not simply a wrong argument; every error of ours derives from it."""


class CheckpointError(DlmLensError):
    """A checkpoint folder does not hold the model it names: missing or surplus keys, wrong shapes, no config."""


class TraceError(DlmLensError):
    """A file is not a trace, or a trace lacks what was asked of it."""


class MemoryBudgetError(DlmLensError):
    """A capture would need more memory than its budget; raised before anything is run or written."""
