"""Attention policies, one file per method: what each step computes and attends to."""

from dlm_lens.policies.base import CachedPlan, Policy, PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.columns import ColumnPattern
from dlm_lens.policies.dense import Dense
from dlm_lens.policies.fast_dllm import FastDLLM
from dlm_lens.policies.oracle_columns import OracleColumns
from dlm_lens.policies.pulsecol import PulseCol
from dlm_lens.policies.random_columns import RandomColumns
from dlm_lens.policies.sink_aware_heads import SinkAwareHeads
from dlm_lens.policies.sink_aware_kv import SinkAwareKV
from dlm_lens.policies.sliding_window import SlidingWindow, StreamingLLM
from dlm_lens.policies.sparsed import SparseD
from dlm_lens.policies.window_diffusion import WindowDiffusion

__all__ = [
    "CachedPlan",
    "ColumnPattern",
    "Dense",
    "FastDLLM",
    "OracleColumns",
    "Policy",
    "PolicyRun",
    "PulseCol",
    "RandomColumns",
    "RunInfo",
    "SinkAwareHeads",
    "SinkAwareKV",
    "SlidingWindow",
    "SparseD",
    "StepPlan",
    "StreamingLLM",
    "WindowDiffusion",
]
