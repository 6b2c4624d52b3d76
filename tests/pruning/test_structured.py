"""Heads and channels go whole: matrices shrink, the least of them goes, and what stays makes up for it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.pruning.sparsegpt import damped
from dlm_lens.pruning.structured import (
    Structure,
    cut_layer,
    group_size,
    reconstruct,
    saliency,
)


def fitted(weight, hessian, columns):
    """The best weights on some columns alone, by solving for each row in float64."""
    h = damped(hessian, 0.01)
    return torch.stack(
        [torch.linalg.solve(h[columns][:, columns], (row @ h)[columns]) for row in weight.double()]
    )


@given(st.integers(2, 5), st.integers(1, 3), st.integers(1, 4))
def test_groups_score_what_their_loss_costs(groups, width, rows):
    inputs = groups * width
    weight, x = torch.randn(rows, inputs), torch.randn(50, inputs) @ torch.randn(inputs, inputs)
    hessian, norms = 2 * x.T @ x, x.norm(dim=0)
    by_wanda = saliency(weight, SimpleNamespace(norms=norms), groups)
    by_hessian = saliency(weight, SimpleNamespace(hessian=hessian), groups)
    full = damped(hessian, 0.01)
    for group in range(groups):
        own = range(group * width, (group + 1) * width)
        wanda = sum((weight[i, j].abs() * norms[j]).item() for i in range(rows) for j in own)
        assert by_wanda[group].item() == pytest.approx(wanda, rel=1e-4)
        left = torch.tensor([j for j in range(inputs) if j not in own])
        gap = weight.double().clone()
        gap[:, left] -= fitted(weight, hessian, left)
        cost = torch.einsum("ij,jk,ik->", gap, full, gap)
        assert by_hessian[group].item() == pytest.approx(cost.item(), rel=1e-3)


@given(st.integers(2, 9), st.data())
def test_what_stays_is_refitted_to_the_least_error(inputs, data):
    columns = torch.tensor(
        sorted(data.draw(st.sets(st.integers(0, inputs - 1), min_size=1, max_size=inputs)))
    )
    weight, x = torch.randn(3, inputs), torch.randn(40, inputs) @ torch.randn(inputs, inputs)
    hessian = x.T @ x
    expected = fitted(weight, hessian, columns)
    assert torch.allclose(reconstruct(weight, hessian, columns).double(), expected, atol=1e-4, rtol=1e-3)


def test_group_size_counts_all_weights_that_go():
    out, source = torch.randn(3, 8), torch.randn(4, 5)
    sizes = group_size(out, [source, source], 4)
    for group in range(4):
        expected = (out[:, 2 * group : 2 * group + 2] ** 2).sum() + 2 * (source[group] ** 2).sum()
        assert sizes[group].item() == pytest.approx(expected.item(), rel=1e-5)


@given(st.floats(0, 0.99), st.integers(1, 8), st.integers(1, 300))
def test_shapes_follow_the_ratio(ratio, kv_heads, mlp):
    spec = SimpleNamespace(kv_heads=kv_heads, mlp=mlp)
    structure = Structure(ratio)
    assert structure.kv_heads(spec) == max(1, round((1 - ratio) * kv_heads))
    channels = structure.channels(spec)
    assert 1 <= channels <= mlp
    if mlp % 8 == 0:
        assert channels % 8 == 0
        assert channels == 8 or abs(channels - (1 - ratio) * mlp) <= 4.001
    else:
        assert channels == max(1, round((1 - ratio) * mlp))


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_layer_cut_is_the_layer_with_those_parts_silent(family, method):
    """Removing what scores least equals zeroing its columns of the output matrices."""
    dlm = dl.random_model(family, layers=1, hidden=24, heads=6, kv_heads=3, mlp=40, vocab=64, device="cpu")
    layer, spec = dlm.layers[0], dlm.spec
    norms = {
        "self_attn.o_proj": SimpleNamespace(norms=torch.rand(24)),
        "mlp.down_proj": SimpleNamespace(norms=torch.rand(40)),
    }
    cut = copy.deepcopy(layer)
    cut_layer(cut, Structure(0.4), spec, method, {} if method == "magnitude" else norms)
    attention, mlp = cut.self_attn, cut.mlp
    assert attention.q_proj.weight.shape == (16, 24)
    assert attention.k_proj.weight.shape == attention.v_proj.weight.shape == (8, 24)
    assert attention.o_proj.weight.shape == (24, 16)
    assert mlp.gate_proj.weight.shape == mlp.up_proj.weight.shape == (24, 24)
    assert mlp.down_proj.weight.shape == (24, 24)
    assert (attention.q_proj.out_features, attention.o_proj.in_features) == (16, 16)
    silent = copy.deepcopy(layer)
    for linear, name, groups, kept in (
        (silent.self_attn.o_proj, "self_attn.o_proj", 3, 2),
        (silent.mlp.down_proj, "mlp.down_proj", 40, 24),
    ):
        if method == "wanda":
            scores = (linear.weight.abs() * norms[name].norms).sum(0).view(groups, -1).sum(1)
        else:
            sources = (
                [silent.mlp.gate_proj, silent.mlp.up_proj]
                if groups == 40
                else [getattr(silent.self_attn, f"{part}_proj") for part in "qkv"]
            )
            scores = group_size(linear.weight, [source.weight for source in sources], groups)
        for group in scores.argsort()[: groups - kept]:
            linear.weight.view(24, groups, -1)[:, group] = 0
    tokens = torch.randint(0, 60, (2, 7))
    results = []
    for chosen in (cut, silent):
        dlm.layers[0] = chosen
        results.append(dlm.logits(tokens))
    assert torch.allclose(*results, atol=1e-5)


def test_other_layers_are_refused():
    dlm = dl.random_model(layers=1, hidden=8, heads=1, device="cpu")
    Structure(0.5).check(dlm)
    dlm.layers[0].adapter = torch.nn.Linear(8, 8)
    with pytest.raises(ValueError, match="layer 0 of 'random-llada' differs in adapter"):
        Structure(0.5).check(dlm)
    with pytest.raises(ValueError, match=r"structured=1.0 must be in \[0, 1\)"):
        Structure(1.0)
