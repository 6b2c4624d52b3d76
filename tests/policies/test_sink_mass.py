"""What the sink-aware policies measure, against whole attention maps and the sinks that metrics report."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.policies.sink_mass import SinkHistory, sampled_mass, sinks
from tests.policies.test_pulsecol import attention, inputs


@pytest.mark.parametrize("start", [None, torch.tensor([0, 9, 30])], ids=["whole", "padded"])
def test_a_sample_of_all_queries_is_exact(start):
    q, k, _ = inputs(batch=3)
    mass = sampled_mass(q, k, sample=37, start=start)
    assert torch.equal(mass, sampled_mass(q, k, sample=1000, start=start))
    for b, first in enumerate([0, 0, 0] if start is None else start.tolist()):
        exact = attention(q[b : b + 1, :, first:], k[b : b + 1, :, first:]).mean(2)[0]
        torch.testing.assert_close(mass[b, :, first:].double(), exact, rtol=1e-4, atol=1e-6)
        assert not mass[b, :, :first].any()


@given(length=st.integers(1, 60), sample=st.integers(1, 70))
def test_a_sample_is_evenly_spaced_and_each_query_of_it_exact(length, sample):
    q, k, _ = inputs(length=length)
    taken = min(sample, length)
    chosen = [int((i + 0.5) * length / taken) for i in range(taken)]
    assert len(set(chosen)) == taken
    exact = attention(q, k)[:, :, chosen].mean(2)
    torch.testing.assert_close(sampled_mass(q, k, sample=sample).double(), exact, rtol=1e-4, atol=1e-6)


def test_sinks_are_those_that_metrics_report(random_dlm):
    trace = dl.capture(random_dlm, torch.arange(3, 40), gen_length=4, progress=False)
    mass = torch.tensor(trace["column_mass"].values)
    expected = torch.tensor(dl.metrics.sinks(trace, per_head=True).values)
    assert expected.any()
    assert torch.equal(sinks(mass.flatten(0, 1), 2.0, None).view(mass.shape), expected)


def test_padding_neither_is_a_sink_nor_moves_the_threshold():
    mass = torch.rand(1, 4, 50) ** 6
    padded = torch.cat([torch.zeros(1, 4, 30), mass], dim=2)
    found = sinks(padded, 2.0, torch.tensor([30]))
    assert torch.equal(found[..., 30:], sinks(mass, 2.0, None))
    assert found.any()
    assert not found[..., :30].any()


@given(
    steps=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=12),
    memory=st.integers(1, 5),
)
def test_changes_are_counted_over_the_last_comparisons(steps, memory):
    history = SinkHistory(torch.tensor(steps[0]).view(1, 1, 3), memory)
    for members in steps[1:]:
        history.push(torch.tensor(members).view(1, 1, 3))
    expected = [
        sum(a != b for a, b in list(pairwise(key))[-memory:]) / memory for key in zip(*steps, strict=True)
    ]
    assert history.changes().flatten().tolist() == pytest.approx(expected)
    assert history.current.flatten().tolist() == steps[-1]


def test_heads_that_were_not_measured_keep_their_history():
    on, off = torch.ones(1, 2, 3, dtype=torch.bool), torch.zeros(1, 2, 3, dtype=torch.bool)
    history = SinkHistory(on, memory=2)
    history.push(off, measured=torch.tensor([[True, False]]))
    assert history.current.tolist() == [[[False] * 3, [True] * 3]]
    assert history.changes().tolist() == [[[0.5] * 3, [0.0] * 3]]
