"""Models: LLaDA, Dream, the bundled ones and their autoregressive twins, adapted ones, all as one :class:`DLM`."""

from dlm_lens.models.adapt import adapt
from dlm_lens.models.dlm import DLM
from dlm_lens.models.load import load
from dlm_lens.models.prompt import Prompt
from dlm_lens.models.spec import Spec
from dlm_lens.models.untrained import random_model

__all__ = ["DLM", "Prompt", "Spec", "adapt", "load", "random_model"]
