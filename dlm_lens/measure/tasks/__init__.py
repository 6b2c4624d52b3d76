"""Tasks with known answers, and how probable held-out text is: what a model can do, and what a policy costs it.

:func:`retrieval` makes questions about rows in a long prompt and :func:`infilling` holes in held-out code;
:func:`accuracy` counts the exact answers to both, and :func:`infill` says how every hole was filled. :func:`perplexity`
bounds the likelihood of a text, and :func:`likelihood` that of a text after another, with the error of the estimate.
"""

from dlm_lens.measure.tasks.accuracy import accuracy
from dlm_lens.measure.tasks.held_out import held_out_text
from dlm_lens.measure.tasks.infilling import SPANS, InfillingItem, infill, infilling
from dlm_lens.measure.tasks.likelihood import Likelihood, likelihood
from dlm_lens.measure.tasks.perplexity import Perplexity, perplexity
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
    "SPANS",
    "VARIANTS",
    "InfillingItem",
    "Likelihood",
    "Perplexity",
    "Question",
    "TaskItem",
    "accuracy",
    "ask",
    "compose",
    "correct",
    "held_out_text",
    "infill",
    "infilling",
    "likelihood",
    "perplexity",
    "retrieval",
]
