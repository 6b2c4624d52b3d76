"""See what attention does inside diffusion language models, and measure what sparse policies cost and save.

A prompt goes to :func:`denoise`, which asks a policy for a plan of each step and runs the model once; in every
layer the attention function hands ``q, k, v`` to the policy and, while capturing, to a recorder that reduces
them to statistics at once. :func:`capture` returns those statistics as a :class:`Trace`; ``metrics`` and
``plots`` read traces, :func:`explore` shows one, and :func:`compare` measures policies against dense attention,
:func:`sweep` whole grids of them; :func:`schedule` tells beforehand what they can save. :func:`prune` leaves weights
out, and ``compare`` takes what it makes.

Names are loaded on first use, so importing the package costs neither PyTorch nor widget code.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# The public names and where each lives; a name mapped to None is a module of its own.
_NAMES: dict[str, str | None] = {
    "DLM": "dlm_lens.models",
    "Spec": "dlm_lens.models",
    "load": "dlm_lens.models",
    "random_model": "dlm_lens.models",
    "adapt": "dlm_lens.models",
    "denoise": "dlm_lens.denoising",
    "LowConfidence": "dlm_lens.samplers",
    "Threshold": "dlm_lens.samplers",
    "DreamSampler": "dlm_lens.samplers",
    "LeftToRight": "dlm_lens.samplers",
    "Dense": "dlm_lens.policies",
    "RandomColumns": "dlm_lens.policies",
    "PulseCol": "dlm_lens.policies",
    "SparseD": "dlm_lens.policies",
    "WindowDiffusion": "dlm_lens.policies",
    "FastDLLM": "dlm_lens.policies",
    "SinkAwareKV": "dlm_lens.policies",
    "SinkAwareHeads": "dlm_lens.policies",
    "OracleColumns": "dlm_lens.policies",
    "SlidingWindow": "dlm_lens.policies",
    "StreamingLLM": "dlm_lens.policies",
    "capture": "dlm_lens.recording",
    "capture_generate": "dlm_lens.recording",
    "ColumnMass": "dlm_lens.recording",
    "PooledMap": "dlm_lens.recording",
    "RowEntropy": "dlm_lens.recording",
    "Recall": "dlm_lens.recording",
    "FullMaps": "dlm_lens.recording",
    "Trace": "dlm_lens.trace",
    "open_trace": "dlm_lens.trace",
    "synthetic_trace": "dlm_lens.trace_synthetic",
    "compare": "dlm_lens.measure",
    "schedule": "dlm_lens.measure",
    "estimate": "dlm_lens.measure",
    "sweep": "dlm_lens.sweeps",
    "Grid": "dlm_lens.sweeps",
    "open_sweep": "dlm_lens.sweeps",
    "context_influence": "dlm_lens.measure",
    "drift_since_decoding": "dlm_lens.measure",
    "prune": "dlm_lens.pruning",
    "Calibration": "dlm_lens.pruning",
    "explore": "dlm_lens.explorer",
    "metrics": None,
    "plots": None,
    "tasks": "dlm_lens.measure",
    "DlmLensError": "dlm_lens.errors",
    "CheckpointError": "dlm_lens.errors",
    "TraceError": "dlm_lens.errors",
    "MemoryBudgetError": "dlm_lens.errors",
    "OutOfMemoryError": "dlm_lens.errors",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'dlm_lens' has no attribute {name!r}")
    home = _NAMES[name]
    value = import_module(f"dlm_lens.{name}") if home is None else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
