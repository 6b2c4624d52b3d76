"""Measuring policies against dense attention: speed and quality side by side, and where it was measured."""

from dlm_lens.measure import tasks
from dlm_lens.measure.compare import compare
from dlm_lens.measure.environment import provenance
from dlm_lens.measure.fidelity import Fidelity, fidelity
from dlm_lens.measure.kv_drift import drift_since_decoding
from dlm_lens.measure.locality import context_influence
from dlm_lens.measure.run_memory import estimate
from dlm_lens.measure.schedule import Schedule, schedule
from dlm_lens.measure.tables import check_table_path, format_summary, save_table, summary

__all__ = [
    "Fidelity",
    "Schedule",
    "check_table_path",
    "compare",
    "context_influence",
    "drift_since_decoding",
    "estimate",
    "fidelity",
    "format_summary",
    "provenance",
    "save_table",
    "schedule",
    "summary",
    "tasks",
]
