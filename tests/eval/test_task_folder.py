"""The task that is written; that lm-eval reads it is tested with the model."""

import json

import pytest
import yaml

import dlm_lens as dl
from dlm_lens.eval import write_task


def test_a_task_holds_the_questions_and_their_answers(tiny, tmp_path):
    items = dl.tasks.retrieval(tiny, 3, length=64)
    path = write_task(items, tmp_path / "new" / "folder", "three")
    task = yaml.safe_load(path.read_text())
    assert task["task"] == "three"
    assert task["generation_kwargs"]["max_gen_toks"] == items[0].gen_length
    rows = [json.loads(line) for line in (path.parent / "three.jsonl").read_text().splitlines()]
    assert task["dataset_kwargs"]["data_files"]["test"] == str(path.parent / "three.jsonl")
    assert rows == [{"question": item.text, "answer": item.answer} for item in items]


def test_a_task_has_one_length_of_answers(tiny, tmp_path):
    items = dl.tasks.retrieval(tiny, 1, length=64) + dl.tasks.retrieval(tiny, 1, length=96, variant="two_hop")
    with pytest.raises(ValueError, match=r"one gen_length; these have \[8, 16\]"):
        write_task(items, tmp_path)
    with pytest.raises(ValueError, match="none, being empty"):
        write_task([], tmp_path)
