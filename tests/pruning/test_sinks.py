"""The soft mask against its definition, and the mass it is made from against whole attention maps."""

import math

import pytest
import torch

import dlm_lens as dl
from dlm_lens.attention import StepContext
from dlm_lens.policies import Dense
from dlm_lens.policies.base import RunInfo, StepPlan
from dlm_lens.pruning.sinks import MassReader, SinkDiscount


def test_phi_is_its_definition():
    mass = torch.rand(3, 12) ** 4
    mass[1, 5] = 8.0
    phi = SinkDiscount(alpha=3.0, kappa=1.5).phi(mass, torch.Generator())
    for row in range(3):
        values = mass[row].tolist()
        mean = sum(values) / 12
        std = math.sqrt(sum((value - mean) ** 2 for value in values) / 12)
        for i, value in enumerate(values):
            assert phi[row, i].item() == pytest.approx(
                1 / (1 + math.exp(-3.0 * (value - (mean + 1.5 * std)))), rel=1e-4
            )
    assert phi[1, 5] > 0.99


def test_no_sink_reaches_an_infinite_threshold():
    assert (SinkDiscount(kappa=math.inf).phi(torch.rand(2, 9), torch.Generator()) == 0).all()


def test_the_control_discounts_as_much_elsewhere():
    mass = torch.rand(4, 30)
    plain, control = SinkDiscount(), SinkDiscount(shuffled=True, seed=3)
    phi, shuffled = plain.phi(mass, torch.Generator()), control.phi(mass, control.generator(1))
    assert torch.equal(phi.sort(-1).values, shuffled.sort(-1).values)
    assert (phi != shuffled).any(-1).all()
    assert torch.equal(shuffled, control.phi(mass, control.generator(1)))
    assert not torch.equal(shuffled, control.phi(mass, control.generator(2)))


@pytest.mark.parametrize("seen", ["everything", "the left", "a window"])
def test_mass_is_what_the_keys_of_a_layer_receive(seen):
    q, k = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    reader = MassReader()
    spec = dl.random_model(layers=1, hidden=8, heads=1, device="cpu").spec
    run = Dense().start(RunInfo(spec, 0, 7, 1, 2, None, torch.device("cpu"), 0))
    context = StepContext(0, StepPlan(0, "dense"), run, reader, causal=seen == "the left")
    distance = torch.arange(7)[:, None] - torch.arange(7)
    allowed = {"everything": distance < 7, "the left": distance >= 0, "a window": distance.abs() < 3}[seen]
    context.mask = allowed[None, None] if seen == "a window" else None
    reader.observe(0, q, k, context)
    for b in range(2):
        expected = torch.zeros(7)
        for head in range(4):
            scores = (q[b, head] @ k[b, head // 2].T / math.sqrt(8)).masked_fill(~allowed, -math.inf)
            expected += scores.softmax(-1).sum(0) / 4
        assert torch.allclose(reader.mass[b], expected, atol=1e-5)
        assert reader.mass[b].mean() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", ["alpha", "kappa"])
def test_parameters_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}=0.0 must be positive"):
        SinkDiscount(**{name: 0.0})
