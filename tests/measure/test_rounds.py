"""Measurements outlive the process that made them, and are taken up only by the same comparison."""

import json
import math

import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure.rounds import FILE, Measurements, fingerprint, weights_fingerprint

ARGUMENTS = {"steps": 4, "prompts": {"a": "1f", "b": "2f"}, "model": {"layers": 2}}
KEY = ("round", "a", 0)


def opened(path, arguments=ARGUMENTS, date="today", **options) -> Measurements:
    return Measurements(path, arguments, {"date": date}, **options)


def test_what_was_added_is_there_again_and_nan_stays_nan(tmp_path):
    first = opened(tmp_path / "new" / "folder", date="yesterday")
    rows = [{"policy": "Dense", "total_ms": 1.5, "ms_sparse": math.nan}]
    first.add(KEY, rows)
    second = opened(tmp_path / "new" / "folder")
    assert KEY in second
    assert ("round", "a", 1) not in second
    assert second[KEY][0]["total_ms"] == 1.5
    assert math.isnan(second[KEY][0]["ms_sparse"])
    assert second.sessions == [{"date": "yesterday"}]  # which measured it; this one has not measured anything
    second.add(("accuracy", "Dense"), 0.5)
    assert [session["date"] for session in opened(tmp_path / "new" / "folder").sessions] == [
        "yesterday",
        "today",
    ]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = opened(None)
    kept.add(KEY, 1)
    assert kept[KEY] == 1
    assert kept.folder is None
    assert not list(tmp_path.iterdir())


def test_a_line_that_was_cut_off_is_forgotten_and_written_anew(tmp_path):
    first = opened(tmp_path)
    first.add(KEY, 1)
    first.add(("round", "a", 1), 2)
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-5])
    second = opened(tmp_path)
    assert KEY in second
    assert ("round", "a", 1) not in second
    second.add(("round", "a", 1), 3)
    assert opened(tmp_path)["round", "a", 1] == 3


def test_changed_arguments_are_named(tmp_path):
    opened(tmp_path).add(KEY, 1)
    changed = {"steps": 8, "prompts": {"a": "1f", "c": "3f"}, "model": {"layers": 2}}
    with pytest.raises(ValueError, match="measurements of something else") as error:
        opened(tmp_path, changed)
    message = str(error.value)
    assert "steps was 4 and is 8" in message
    assert "prompts[b] was 2f and is absent" in message
    assert "prompts[c] was absent and is 3f" in message
    assert "layers" not in message
    assert "overwrite=True" in message
    assert KEY in opened(tmp_path)


def test_overwriting_starts_anew(tmp_path):
    opened(tmp_path).add(KEY, 1)
    again = opened(tmp_path, {"steps": 8}, overwrite=True)
    assert KEY not in again
    assert KEY not in opened(tmp_path, {"steps": 8})


@pytest.mark.parametrize("content", ["", "not JSON\n", '{"some": "thing"}\n', "[]\n", '{"dlm_lens_measurem'])
def test_what_is_not_ours_is_left_alone(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    for overwrite in (False, True):
        with pytest.raises(dl.DlmLensError, match=FILE):
            opened(tmp_path, overwrite=overwrite)
    assert (tmp_path / FILE).read_text() == content


def test_newer_formats_and_files_instead_of_folders_are_refused(tmp_path):
    (tmp_path / FILE).write_text(json.dumps({"dlm_lens_measurements": 2}) + "\n")
    with pytest.raises(dl.DlmLensError, match="format 2"):
        opened(tmp_path)
    with pytest.raises(ValueError, match="it is a file"):
        opened(tmp_path / FILE)


def test_fingerprints_tell_content_apart():
    a, b = torch.arange(4), torch.arange(4)
    assert fingerprint(a, "x", 1) == fingerprint(b, "x", 1)
    others = [
        fingerprint(a),
        fingerprint(a.float()),
        fingerprint(a[:, None]),
        fingerprint("ab"),
        fingerprint("a", "b"),
    ]
    assert len(set(others)) == len(others)


def test_a_pruned_model_is_another_one():
    dlm, twin, other = (dl.random_model(seed=seed, layers=1) for seed in (0, 0, 1))
    assert weights_fingerprint(dlm) == weights_fingerprint(twin) != weights_fingerprint(other)
    weight = twin.model.model.layers[0].mlp.up_proj.weight
    weight.data[weight.abs() < weight.abs().median()] = 0
    assert weights_fingerprint(dlm) != weights_fingerprint(twin)
