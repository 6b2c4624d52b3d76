"""The MLP in chunks of positions computes what it computes at once."""

import pytest
import torch

import dlm_lens as dl

TOKENS = torch.randint(3, 60, (2, 37), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["llada", "dream"])
def dlm(request):
    return dl.random_model(request.param, hidden=32, heads=4, kv_heads=2, vocab=64)


def test_logits_are_the_same_and_no_chunk_is_larger(dlm):
    plain = dlm.logits(TOKENS)
    seen = []
    for layer in dlm.layers:
        layer.mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    assert dlm.chunk_mlp(10) is dlm
    assert dlm.mlp_chunk == 10
    torch.testing.assert_close(dlm.logits(TOKENS), plain, rtol=1e-5, atol=1e-5)
    assert seen == [10, 10, 10, 7] * 2


def test_weights_keep_their_names_and_it_can_be_undone(dlm, tmp_path):
    names, mlp = list(dlm.model.state_dict()), dlm.layers[0].mlp
    dlm.chunk_mlp(16).chunk_mlp(8)
    assert list(dlm.model.state_dict()) == names
    assert sum(p.numel() for p in dlm.model.parameters()) == sum(
        v.numel() for v in dlm.model.state_dict().values()
    )
    dlm.save(tmp_path)
    torch.testing.assert_close(dl.load(tmp_path, device="cpu").logits(TOKENS), dlm.logits(TOKENS))
    dlm.chunk_mlp(None)
    assert dlm.layers[0].mlp is mlp
    assert dlm.mlp_chunk is None


def test_it_works_in_compiled_layers():
    dlm = dl.random_model("llada", hidden=32, heads=4, vocab=64)
    plain = dlm.logits(TOKENS)
    dlm.compile(backend="eager").chunk_mlp(16)
    assert dlm.compiled
    torch.testing.assert_close(dlm.logits(TOKENS), plain, rtol=1e-5, atol=1e-5)


def test_no_positions_are_refused(dlm):
    with pytest.raises(ValueError, match="positions=0 must be at least 1"):
        dlm.chunk_mlp(0)
