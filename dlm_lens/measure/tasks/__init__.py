"""Tasks with known answers, and how probable held-out text is: what a model can do, and what a policy costs it.

:func:`retrieval` makes questions about rows in a long prompt, :func:`accuracy` counts the exact answers.
"""

from dlm_lens.measure.tasks.accuracy import accuracy
from dlm_lens.measure.tasks.held_out import held_out_text
from dlm_lens.measure.tasks.retrieval import (
    GEN_LENGTH,
    VARIANTS,
    Question,
    TaskItem,
    ask,
    compose,
    correct,
    retrieval,
)

__all__ = [
    "GEN_LENGTH",
    "VARIANTS",
    "Question",
    "TaskItem",
    "accuracy",
    "ask",
    "compose",
    "correct",
    "held_out_text",
    "retrieval",
]
