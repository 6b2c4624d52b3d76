"""Retrieval questions as a task of lm-eval: a folder with one YAML and one JSONL, for use without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlm_lens.measure.tasks import TaskItem


def write_task(items: Sequence[TaskItem], folder: str | Path, name: str = "retrieval") -> Path:
    """Write ``items``, of one variant, as the task ``name`` into ``folder``, and return the path of its YAML.

    ``folder`` is what lm-eval takes as ``--include_path``. An answer counts as in :func:`dlm_lens.tasks.accuracy`: if
    it is the right one exactly, white space at the ends aside.
    """
    lengths = {item.gen_length for item in items}
    if len(lengths) != 1:
        raise ValueError(
            f"a task needs items with one gen_length; these have {sorted(lengths) or 'none, being empty'}"
        )
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    rows = (json.dumps({"question": item.text, "answer": item.answer}) for item in items)
    data.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": [], "max_gen_toks": lengths.pop(), "do_sample": False},
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(task, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
    return path
