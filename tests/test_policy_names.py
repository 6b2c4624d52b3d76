"""Every policy has a name, and its sparsity reaches the parameter that means it."""

import pytest

import dlm_lens as dl
from dlm_lens.policy_names import POLICIES, at_sparsity, budget_of, policy_of


def test_every_policy_has_a_name():
    exported = {name for name, home in dl._NAMES.items() if home == "dlm_lens.policies"}
    assert set(POLICIES.values()) == exported


@pytest.mark.parametrize("name", [name for name in POLICIES if budget_of(name)])
def test_sparsity_is_the_share_left_out(name):
    policy = policy_of(name, 0.7)
    assert policy.density == pytest.approx(0.3, abs=1e-12)
    assert "70%" in policy.label


@pytest.mark.parametrize("name", POLICIES)
def test_without_a_sparsity_parameters_are_the_published_ones(name):
    assert policy_of(name) == getattr(dl, POLICIES[name])()


def test_another_sparsity_leaves_other_parameters_alone():
    policy = at_sparsity(dl.SparseD(select=0.3, block_size=16), 0.8)
    assert policy == dl.SparseD(select=0.2, block_size=16)
    assert at_sparsity(dl.WindowDiffusion(), 0.5) == dl.WindowDiffusion()


def test_what_cannot_be_made_is_an_error():
    with pytest.raises(ValueError, match="unknown policy 'pulse': choose from dense, pulsecol"):
        policy_of("pulse")
    with pytest.raises(ValueError, match=r"sparsity 0\.5 needs a sparse policy: pulsecol, sparsed"):
        policy_of("fast-dllm", 0.5)
    with pytest.raises(ValueError, match=r"sparsity=1\.5"):
        policy_of("random", 1.5)
