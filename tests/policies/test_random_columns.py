"""The control: PulseCol's budget, but no choice."""

import pytest
import torch

import dlm_lens as dl
from tests.policies.test_pulsecol import attend, info, inputs


def pattern(policy=None, run_info=None, batch=1, start=None, length=37):
    policy = dl.RandomColumns(0.7, group_size=8) if policy is None else policy
    run = policy.start(info(batch=batch, start=start, length=length) if run_info is None else run_info)
    attend(run, 0, *inputs(batch=batch, length=length), start=start)
    return run.pattern(0)


def test_has_the_budget_of_pulsecol_from_the_first_step_on():
    run = dl.RandomColumns(0.7, group_size=8).start(info())
    assert [run.plan(step, torch.zeros(1, 37)).kind for step in range(4)] == ["sparse"] * 4
    pulsecol = dl.PulseCol(0.7, group_size=8, refresh_count=1).start(info())
    for step in (0, 1):
        attend(pulsecol, step, *inputs())
    (ours,), (theirs,) = pattern().lists, pulsecol.pattern(0).lists
    assert ours.columns.shape == theirs.columns.shape == (1, 4, 5, 11)
    assert torch.equal(ours.counts, theirs.counts)


def test_lists_hold_different_ascending_keys():
    (lists,) = pattern().lists
    assert (lists.columns.diff(dim=-1) > 0).all()
    assert len({tuple(columns) for columns in lists.columns.flatten(0, 2).tolist()}) == 20


def test_padding_is_never_drawn_and_the_budget_follows_the_valid_length():
    lists = pattern(batch=2, start=torch.tensor([0, 17])).lists
    assert [entry.columns.shape[-1] for entry in lists] == [11, 6]
    assert int(lists[1].columns.max()) < 20
    assert lists[1].columns.unique().numel() == 20


def test_every_key_is_as_likely_as_any_other():
    columns = pattern(dl.RandomColumns(0.5, group_size=1), length=64).lists[0].columns
    share = columns.flatten().bincount(minlength=64) / columns[..., 0].numel()
    torch.testing.assert_close(share, torch.full((64,), 0.5), atol=0.15, rtol=0)


def test_draws_follow_both_seeds_and_differ_between_layers():
    base = pattern().lists[0].columns
    assert torch.equal(base, pattern().lists[0].columns)
    assert not torch.equal(base, pattern(dl.RandomColumns(0.7, 8, seed=1)).lists[0].columns)
    run = dl.RandomColumns(0.7, group_size=8).start(info())
    for layer in (0, 1):
        attend(run, 0, *inputs(), layer=layer)
    assert not torch.equal(run.pattern(0).lists[0].columns, run.pattern(1).lists[0].columns)


def test_the_draw_stays_for_the_whole_run():
    run = dl.RandomColumns(0.7, group_size=8).start(info())
    attend(run, 0, *inputs(seed=0))
    first = run.pattern(0)
    attend(run, 1, *inputs(seed=1))
    assert run.pattern(0) is first


@pytest.mark.parametrize("options", [{"sparsity": 1.0}, {"group_size": 0}])
def test_refuses_impossible_parameters(options):
    with pytest.raises(ValueError, match="must be"):
        dl.RandomColumns(**options)


def test_label_and_density():
    policy = dl.RandomColumns(0.75)
    assert (policy.label, policy.density) == ("Random columns 75%", 0.25)
