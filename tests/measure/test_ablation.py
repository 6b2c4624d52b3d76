"""The ablation compares at an equal budget, and keeps what it measured as it goes."""

import json

import pandas as pd
import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure import ablation
from dlm_lens.measure.ablation import Ablated, frozen_from, main, variants
from dlm_lens.policies.columns import Span

CELLS = ["column + refresh", "column + skip", "block + refresh", "block + skip"]


def test_measures_every_cell_and_keeps_it(tmp_path, capsys):
    out = tmp_path / "ablation.json"
    sizes = ["--items", "1", "--variant", "single", "--length", "64", "--sparsity", "0.5"]
    sizes += ["--prompts", "1", "--gen-length", "8", "--steps", "8"]
    assert main([*sizes, "--seed", "3", "--out", str(out)]) == 0
    stored = json.loads(out.read_text())
    assert stored["provenance"]["seed"] == 3
    assert stored["provenance"]["length"] == 64
    states = pd.DataFrame(stored["states"])
    assert len(states) == 5
    assert set(states["variant"]) == {*CELLS, "Random columns 50%"}
    assert states["kl_late"].ge(0).all()
    assert states["retained_late"].between(0, 1).all()
    dense = states.set_index("variant")["dense_steps"]
    assert dense["column + refresh"] == 2
    assert dense["block + skip"] == dl.SparseD().selecting_step(8) + 1
    answers = pd.DataFrame(stored["answers"])
    assert set(answers["variant"]) == {"Dense", *CELLS, "Random columns 50%"}
    assert answers["items"].eq(1).all()
    assert answers["right"].between(0, 1).all()
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in CELLS)


def test_what_is_finished_is_on_disk_when_a_run_breaks_off(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "accuracy", lambda *_, **__: 1.0)
    monkeypatch.setattr(ablation, "walk", broken)
    out = tmp_path / "ablation.json"
    with pytest.raises(KeyboardInterrupt):
        main(["--items", "1", "--length", "160", "--prompts", "1", "--out", str(out)])
    stored = json.loads(out.read_text())
    assert len(stored["answers"]) == 6
    assert stored["states"] == []


@pytest.mark.parametrize("length", [160, 145])
def test_blocks_are_the_best_by_their_mean_and_cost_as_much_as_columns(length):
    q, k = torch.randn(1, 2, length, 8), torch.randn(1, 1, length, 8)
    policy = Ablated(0.8, unit="block")
    columns, counts = policy.choose(Span(slice(None), 0), q, k)
    maps = torch.softmax(q @ k.mT / 8**0.5, -1)
    for head in range(2):
        for group, rows in enumerate(maps[0, head].split(32)):
            means = [tile.mean() for tile in rows.split(32, dim=1)]
            best = int(torch.stack(means).argmax())
            kept = columns[0, head, group, : counts[0, head, group]].tolist()
            assert kept == list(range(32 * best, min(32 * best + 32, length)))
    if length == 160:
        same = Ablated(0.8).choose(Span(slice(None), 0), q, k)[1]
        assert counts.equal(same.int())


def test_columns_that_refresh_are_pulsecol(random_dlm):
    prompt = torch.arange(40)
    common = {"gen_length": 8, "steps": 8, "progress": False}
    ours = dl.denoise(random_dlm, prompt, policy=Ablated(0.8, refresh_count=2), **common)
    theirs = dl.denoise(random_dlm, prompt, policy=dl.PulseCol(0.8, refresh_count=2), **common)
    assert ours.tokens.equal(theirs.tokens)
    assert ours.timings["kind"].tolist() == theirs.timings["kind"].tolist()


def test_late_steps_come_after_every_choice():
    policies = variants(0.8, refreshes=4)
    first = frozen_from(policies, 64)
    assert all(step < first for policy in policies[:4] for step in policy.refresh_steps(64))
    assert any(first - 1 in policy.refresh_steps(64) for policy in policies[:4])
