"""Streaming layer by layer gives what hooks on the whole model see, pruned layers before it included."""

import copy
import math

import pytest
import torch

import dlm_lens as dl
from dlm_lens.pruning.sinks import SinkDiscount
from dlm_lens.pruning.streaming import InputHessian, InputNorms, Stream, halves, linears_of

FAMILIES = ["llada", "dream", "ar"]


def model(family: str = "llada") -> dl.DLM:
    return dl.random_model(family, layers=3, hidden=16, heads=4, kv_heads=2, vocab=64, device="cpu")


def seen_by_hooks(dlm: dl.DLM, sequences, layer: int) -> dict[str, torch.Tensor]:
    """Inputs [N · L, in] of every matrix of a layer when the whole model runs on all sequences at once."""
    inputs = {}

    def noting(name):
        def note(module, args):
            inputs[name] = args[0].flatten(0, 1)

        return note

    handles = [
        linear.register_forward_pre_hook(noting(name))
        for name, linear in linears_of(dlm.layers[layer]).items()
    ]
    dlm.logits(sequences)
    for handle in handles:
        handle.remove()
    return inputs


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_gets_what_it_gets_in_the_whole_model(family):
    dlm = model(family)
    sequences = torch.randint(0, 60, (5, 9))
    stream = Stream(dlm, sequences, batch_size=2)
    for index, layer in enumerate(dlm.layers):
        hessians, discounted = stream.collect(layer, index, InputHessian)
        norms, _ = stream.collect(layer, index, InputNorms)
        assert discounted != discounted
        expected = seen_by_hooks(dlm, sequences, index)
        assert hessians.keys() == expected.keys()
        for name, x in expected.items():
            assert torch.allclose(hessians[name].hessian, 2 * x.T @ x, atol=1e-3, rtol=1e-4)
            assert torch.allclose(norms[name].norms.float(), x.norm(dim=0), rtol=1e-4)
        assert hessians["self_attn.q_proj"] is hessians["self_attn.v_proj"]
        assert hessians["mlp.gate_proj"] is hessians["mlp.up_proj"]
        # The next layer is given what this one makes of it once it is pruned.
        layer.mlp.up_proj.weight[::2] = 0
        assert stream.advance(layer, index) > 0
    last = torch.cat(stream.chunks)
    assert torch.allclose(dlm.backbone.norm(last), dlm.backbone(sequences).last_hidden_state, atol=1e-5)


def test_the_error_is_over_what_the_layer_adds():
    dlm = model()
    stream = Stream(dlm, torch.randint(0, 60, (3, 9)), batch_size=2)
    entering = torch.cat(stream.chunks)
    pruned = copy.deepcopy(dlm.layers[0])
    pruned.self_attn.o_proj.weight.zero_()
    pruned.mlp.down_proj.weight.zero_()  # all that is left is the residual
    stream.collect(dlm.layers[0], 0)
    assert stream.advance(pruned, 0) == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(torch.cat(stream.chunks), entering)
    stream.collect(dlm.layers[0], 0)
    assert stream.advance(dlm.layers[0], 0) == 0
    assert math.isnan(stream.advance(dlm.layers[1], 1)), "nothing was collected to compare with"


@pytest.mark.parametrize("family", FAMILIES)
def test_sinks_count_less_by_one_minus_phi(family, monkeypatch):
    dlm = model(family)
    sequences = torch.randint(0, 60, (5, 9))
    phi = torch.rand(5, 9)
    given = iter(phi.split(2))
    monkeypatch.setattr(SinkDiscount, "phi", lambda *_: next(given))
    stream = Stream(dlm, sequences, batch_size=2)
    statistics, discounted = stream.collect(dlm.layers[0], 0, InputHessian, SinkDiscount())
    assert discounted == pytest.approx(phi.mean().item())
    for name, x in seen_by_hooks(dlm, sequences, 0).items():
        x = x * (1 - phi.flatten()[:, None])
        assert torch.allclose(statistics[name].hessian, 2 * x.T @ x, atol=1e-3, rtol=1e-4)


def test_an_mlp_in_chunks_gives_the_same():
    dlm = model()
    sequences = torch.randint(0, 60, (3, 9))
    whole, _ = Stream(dlm, sequences, batch_size=2).collect(dlm.layers[0], 0, InputNorms)
    dlm.chunk_mlp(4)
    parts, _ = Stream(dlm, sequences, batch_size=2).collect(dlm.layers[0], 0, InputNorms)
    assert whole.keys() == parts.keys()
    for name in whole:
        assert torch.allclose(whole[name].norms, parts[name].norms, rtol=1e-5)


def test_a_matrix_that_sees_only_part_of_the_tokens_is_named():
    dlm = model()
    layer = dlm.layers[0]
    layer.extra = torch.nn.Linear(16, 16)
    stream = Stream(dlm, torch.randint(0, 60, (2, 9)), batch_size=2)
    with pytest.raises(ValueError, match="does not use extra for every token"):
        stream.collect(layer, 0, InputNorms)


def test_nan_is_found_where_it_arises():
    dlm = model()
    dlm.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    stream = Stream(dlm, torch.randint(0, 60, (2, 9)), batch_size=2)
    stream.advance(dlm.layers[0], 0)
    stream.collect(dlm.layers[1], 1)
    with pytest.raises(dl.DlmLensError, match=r"layer 1 of .* gives NaN"):
        stream.advance(dlm.layers[1], 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_of_16_bits_hold_what_a_discount_makes_of_one(dtype):
    """The Hessian of discounted inputs in parts of 16 bits is that of float32; in one part, small discounts vanish."""
    x, left = torch.randn(500, 12).to(dtype).float(), 1 - 0.001 * torch.rand(500, 1)
    exact = (x * left).double().T @ (x * left).double()
    high, low = (part.double() for part in halves(x * left, dtype))
    error = (high.T @ high + high.T @ low + low.T @ high - exact).abs().max() / exact.abs().max()
    assert error < 1e-6 < 1e-4 < (high.T @ high - exact).abs().max() / exact.abs().max()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("discounted", [False, True])
def test_the_hessian_is_that_of_float64_whatever_goes_into_it(device, dtype, discounted):
    rows = [torch.randn(500, 24, device=device).to(dtype) for _ in range(2)]
    left = [1 - 0.01 * torch.rand(500, 1, device=device) for _ in rows]
    kept, expected = InputHessian(24, torch.device(device)), 0
    for each, share in zip(rows, left, strict=True):
        kept.add(each, share if discounted else None)
        x = each.double() * share if discounted else each.double()
        expected = expected + 2 * x.T @ x
    assert kept.hessian.dtype == torch.float32
    assert torch.allclose(kept.hessian.double(), expected, rtol=0, atol=2e-5 * expected.max().item())
