"""Attention against a float64 softmax, and against transformers' own implementation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from dlm_lens.attention import NAME, StepContext, dense_attention, dense_attention_and_lse
from dlm_lens.policies import CachedPlan, PolicyRun, StepPlan


def exact(q, k, v, allowed):
    """Softmax attention in float64 where ``allowed`` is True; rows without any are 0."""
    repeat = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(repeat, dim=1).double() for t in (k, v))
    scores = (q.double() @ k.mT * q.shape[-1] ** -0.5).masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1).nan_to_num(0) @ v


def inputs(batch=2, heads=4, kv_heads=2, queries=13, keys=13, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, queries, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, dim)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@settings(deadline=None, max_examples=30)
@given(
    starts=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    queries=st.integers(1, 10),
    more_keys=st.integers(0, 3),
    repeat=st.integers(1, 3),
    causal=st.booleans(),
)
def test_dense_attention_is_softmax_over_the_valid_keys(starts, queries, more_keys, repeat, causal):
    keys = max(10, queries + more_keys)
    q, k, v = inputs(len(starts), 2 * repeat, 2, queries, keys)
    start = torch.tensor(starts)
    position, own = torch.arange(keys), torch.arange(keys - queries, keys)
    allowed = position >= start[:, None, None, None]
    if causal:
        allowed = allowed & (position <= own[:, None])
    out = dense_attention(q, k, v, start=start, causal=causal)
    known = causal or queries == keys
    valid = own >= start[:, None] if known else torch.ones(len(starts), queries, dtype=torch.bool)
    torch.testing.assert_close(
        out.transpose(1, 2)[valid].double(),
        exact(q, k, v, allowed).transpose(1, 2)[valid],
        rtol=1e-4,
        atol=1e-5,
    )
    assert out.isfinite().all()
    assert not out.transpose(1, 2)[~valid].any()


def test_log_sum_exp_is_not_computed_where_it_is_not_free():
    q, k, v = inputs()
    out, lse = dense_attention_and_lse(q, k, v)
    assert lse is None
    assert torch.equal(out, dense_attention(q, k, v))


@pytest.mark.gpu
@pytest.mark.parametrize("starts", [None, [0, 37]], ids=str)
def test_log_sum_exp_of_cudnn(starts):
    q, k, v = (t.cuda().bfloat16() for t in inputs(queries=300, keys=300, dim=64))
    start = None if starts is None else torch.tensor(starts, device="cuda")
    out, lse = dense_attention_and_lse(q, k, v, start=start)
    torch.testing.assert_close(out, dense_attention(q, k, v, start=start))
    scores = q.double() @ k.double().repeat_interleave(2, dim=1).mT * 64**-0.5
    for b, first in enumerate(starts or [0, 0]):
        assert torch.all(lse[b, :, :first] == -torch.inf)
        exact_lse = scores[b, :, first:, first:].logsumexp(-1)
        torch.testing.assert_close(lse[b, :, first:].double(), exact_lse, rtol=1e-5, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("starts", [[0, 0], [0, 37]], ids=str)
def test_dense_attention_on_a_gpu(dtype, causal, starts):
    q, k, v = (t.to("cuda", dtype) for t in inputs(queries=300, keys=300, dim=64))
    start, position = torch.tensor(starts, device="cuda"), torch.arange(300, device="cuda")
    allowed = position >= start[:, None, None, None]
    if causal:
        allowed = allowed & (position <= position[:, None])
    out = dense_attention(q, k, v, start=start, causal=causal).transpose(1, 2)
    valid = position >= start[:, None]
    expected = exact(q, k, v, allowed).transpose(1, 2)
    bound = 4e-2 if dtype == torch.bfloat16 else 5e-3
    torch.testing.assert_close(out[valid].double(), expected[valid], rtol=bound, atol=bound)
    assert not out[~valid].any()


def test_scale_is_taken():
    q, k, v = inputs()
    torch.testing.assert_close(
        dense_attention(q, k, v, scale=0.7), dense_attention(q * 0.7 * q.shape[-1] ** 0.5, k, v)
    )


def test_a_padded_sample_gets_what_it_gets_alone():
    q, k, v = inputs()
    together = dense_attention(q, k, v, start=torch.tensor([0, 5]))
    alone = dense_attention(q[1:, :, 5:], k[1:, :, 5:], v[1:, :, 5:])
    assert torch.equal(together[1:, :, 5:], alone)


def small(config_type, model_type, causal, implementation):
    config = config_type(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=implementation,
    )
    config.is_causal = causal
    torch.manual_seed(0)
    return model_type(config).eval()


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(
    ("config_type", "model_type"),
    [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)],
    ids=["llama", "qwen2"],
)
class TestInsideTransformers:
    @pytest.mark.parametrize("side", [None, "left", "right"])
    @torch.no_grad()
    def test_without_context_it_equals_sdpa(self, config_type, model_type, causal, side):
        ours, theirs = (small(config_type, model_type, causal, name) for name in (NAME, "sdpa"))
        tokens = torch.arange(22).reshape(2, 11)
        mask = torch.ones_like(tokens)
        if side is not None:
            mask[1, :4] = 0
        if side == "right":
            mask = mask.flip(1)
        keyword = {} if side is None else {"attention_mask": mask}
        valid = mask.bool()
        torch.testing.assert_close(
            ours(tokens, **keyword).logits[valid],
            theirs(tokens, **keyword).logits[valid],
            rtol=1e-5,
            atol=1e-5,
        )

    @torch.no_grad()
    def test_the_context_reaches_every_layer(self, config_type, model_type, causal):
        model = small(config_type, model_type, causal, NAME)
        tokens = torch.arange(22).reshape(2, 11)
        start = torch.tensor([0, 4])
        seen = []

        class Run(PolicyRun):
            def plan(self, step, tokens):
                raise AssertionError("attention must not plan")

            def attend(self, layer, q, k, v, context):
                seen.append(("attend", layer, q.shape, k.shape))
                return dense_attention(q, k, v, start=context.start, causal=context.causal)

        class Recorder:
            def observe(self, layer, q, k, context):
                seen.append(("observe", layer, q.shape, k.shape))

        context = StepContext(0, StepPlan(0, "dense"), Run(), Recorder(), start, causal)
        mask = torch.arange(11) >= start[:, None]
        logits = model(tokens, lens=context).logits
        torch.testing.assert_close(logits[mask], model(tokens, attention_mask=mask.long()).logits[mask])
        shapes = (2, 4, 11, 8), (2, 2, 11, 8)
        assert seen == [(what, layer, *shapes) for layer in range(2) for what in ("attend", "observe")]


@torch.no_grad()
def test_a_causal_model_still_generates_with_its_cache():
    ours, theirs = (small(LlamaConfig, LlamaForCausalLM, True, name) for name in (NAME, "sdpa"))
    tokens = torch.arange(10).reshape(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(tokens, **options), theirs.generate(tokens, **options))


def test_gradients_flow():
    model = small(LlamaConfig, LlamaForCausalLM, False, NAME)
    model(torch.arange(8)[None]).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_context_follows_its_layer_to_another_device():
    plan = CachedPlan(0, "cached", queries=torch.arange(3)[None], slots=torch.arange(3)[None], keys=3)
    context = StepContext(0, plan, PolicyRun, start=torch.tensor([1]))
    assert context.on(torch.device("cpu")) is context
    there = context.on(torch.device("meta"))
    assert there is context.on(torch.device("meta"))
    moved = (there.start, there.plan.queries, there.plan.slots)
    assert [tensor.device.type for tensor in moved] == ["meta"] * 3
    assert isinstance(there.plan, CachedPlan)
    assert (there.plan.keys, there.plan.lengths, there.run) == (3, None, PolicyRun)
