"""dlm-lens as a model type of lm-eval: any of its tasks, under any policy.

Importing this registers the model type ``dlm_lens``, for ``lm_eval.simple_evaluate(model="dlm_lens", …)``. lm-eval has
no way for its own command to find the model types of other packages, so :func:`main`, behind ``dlm-lens eval``,
registers this one and then runs that command. Needs the extra ``dlm-lens[eval]``.
"""

import sys
from collections.abc import Sequence

from dlm_lens.eval.model import DlmLens
from dlm_lens.eval.task_folder import write_task

__all__ = ["DlmLens", "main", "write_task"]


def main(arguments: Sequence[str]) -> None:
    """Run lm-eval's own command line, which ends the process where it finds an error in ``arguments``."""
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["lm_eval", *arguments]  # the one place where lm-eval takes them from
    try:
        cli_evaluate()
    finally:
        sys.argv = before
