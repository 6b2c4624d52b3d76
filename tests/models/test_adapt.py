"""Models of transformers as DLMs: what they say is what they say themselves, and everything works on them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import transformers

import dlm_lens as dl
from tests.models.adaptable import HEADS, KINDS, LAYERS, MASK, SEP, VOCAB, WINDOWED, make

POLICIES = [
    dl.Dense(),
    dl.PulseCol(sparsity=0.5, group_size=4),
    dl.SparseD(block_size=16),
    dl.RandomColumns(sparsity=0.5, group_size=4),
]
RUN = {"gen_length": 6, "steps": 3, "progress": False}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def adapted(kind):
    return dl.adapt(make(kind))


@pytest.fixture(scope="module")
def bert():
    return dl.adapt(make("bert"))


@pytest.fixture(scope="module")
def modernbert():
    return dl.adapt(make("modernbert"))


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, SEP, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def own(model, ids):
    return model(input_ids=ids).logits


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_logits_are_the_models_own(kind, adapted, implementation):
    ids, start = tokens(3, 21), torch.tensor([0, 5, 17])
    model = make(kind, implementation)
    alone = [own(model, ids[b : b + 1, first:])[0] for b, first in enumerate(start.tolist())]
    torch.testing.assert_close(adapted.logits(ids[:1])[0], alone[0], atol=1e-5, rtol=1e-5)
    for b, logits in enumerate(adapted.logits(ids, start=start)):
        torch.testing.assert_close(logits[start[b] :], alone[b], atol=1e-5, rtol=1e-5)


def test_a_run_computes_what_the_model_does(kind, adapted):
    """Inside denoise padding is kept out by other means than a mask."""
    seen = []

    class Sampler(dl.LowConfidence):
        def commit(self, at):
            seen.append(at.logits)
            return super().commit(at)

    prompts = [tokens(1, 9)[0].tolist(), tokens(1, 4, seed=1)[0].tolist()]
    dl.denoise(adapted, prompts, gen_length=12, steps=1, sampler=Sampler(12), progress=False)
    model = make(kind, "eager")
    for logits, prompt in zip(seen[0], prompts, strict=True):
        expected = own(model, torch.tensor([prompt + [MASK] * 12]))[0, -12:]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_without_a_run_the_model_is_what_it_was(kind, adapted):
    ids = tokens(2, 21)
    padding = torch.ones_like(ids)
    padding[1, :6] = 0
    expected = make(kind, "sdpa")(input_ids=ids, attention_mask=padding).logits
    found = adapted.model(input_ids=ids, attention_mask=padding).logits
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1, 6:], expected[1, 6:], atol=1e-5, rtol=1e-5)


def test_the_head_is_given_wanted_positions_only(adapted):
    shapes = []
    output = adapted.model.get_output_embeddings()
    hook = output.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    try:
        some = adapted.logits(tokens(2, 15), keep=range(4, 9))
        each = adapted.logits(tokens(2, 15), keep=torch.tensor([[4, 5], [7, 8]]))
    finally:
        hook.remove()
    assert shapes == [(2, 5, VOCAB), (2, 2, VOCAB)]
    torch.testing.assert_close(each[0], some[0, :2])
    torch.testing.assert_close(each[1], some[1, 3:])


def test_the_spec_tells_the_shape_and_the_windows(kind, adapted):
    spec = adapted.spec
    assert (spec.layers, spec.heads, spec.kv_heads) == (LAYERS, HEADS, HEADS if "bert" in kind else 2)
    assert (spec.mask_id, spec.eos_id, spec.head_dim) == (MASK, SEP, 8)
    assert spec.windowed == WINDOWED.get(kind, ())
    assert spec.max_length == (94 if kind == "roberta" else 96)
    assert spec.mlp == (
        26 if kind in ("bert", "roberta") else 40
    )  # of which BERT's has two matrices, not three
    assert len(adapted.layers) == LAYERS


def recorded(dlm: dl.DLM, policy: dl.PulseCol) -> None:
    prompts = [tokens(1, 20)[0].tolist(), tokens(1, 15, seed=1)[0].tolist()]
    trace = dl.capture(dlm, prompts, policy=policy, statistics=[dl.ColumnMass()], **RUN)
    assert trace.complete
    assert (trace["final_tokens"].values[:, -6:] != MASK).any()
    assert np.allclose(trace["column_mass"].sum("position"), 1, atol=1e-5)
    if policy.density < 1:
        retained = trace["retained_mass"].mean(("sample", "step", "head")).values
        narrow = [layer in dlm.spec.windowed for layer in range(LAYERS)]
        assert np.array_equal(retained == 1, narrow)


def test_every_kind_denoises_sparsely_and_is_recorded(adapted):
    recorded(adapted, POLICIES[1])


@pytest.mark.parametrize("policy", [POLICIES[0], *POLICIES[2:]], ids=lambda policy: policy.label)
def test_every_policy_leaves_windows_as_they_are(modernbert, policy):
    recorded(modernbert, policy)


@torch.no_grad()
def attentions(kind: str, state: list[int]) -> np.ndarray:
    """The model's own probabilities [layer, head, query, key]."""
    out = make(kind, "eager")(input_ids=torch.tensor([state]), output_attentions=True)
    return torch.stack(out.attentions)[:, 0].numpy()


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_statistics_are_those_of_the_models_own_attention(kind, bert, modernbert):
    prompts = [tokens(1, 13)[0].tolist(), tokens(1, 6, seed=1)[0].tolist()]
    statistics = [dl.ColumnMass(), dl.PooledMap(bins=5), dl.RowEntropy(bins=5)]
    dlm = bert if kind == "bert" else modernbert
    trace = dl.capture(dlm, prompts, statistics=statistics, **RUN)
    length = trace.length
    for sample, step in ((0, 0), (1, 0), (1, 2)):
        first = int(trace["start"][sample])
        state = trace["tokens"].values[sample, step, first:].tolist()
        at = {"sample": sample, "step": step}
        own_maps = attentions(kind, state)
        for layer, head, query_bin in product(range(LAYERS), (0, 3), range(5)):
            maps = own_maps[layer, head]
            mass = trace["column_mass"].isel(**at, layer=layer, head=head).values
            assert mass[:first].sum() == 0
            assert np.allclose(mass[first:], maps.mean(0), atol=1e-5)
            rows = [i for i in range(length - first) if (i + first) * 5 // length == query_bin]
            pooled = np.zeros(5)
            for i in rows:
                for j in range(length - first):
                    pooled[(j + first) * 5 // length] += maps[i, j] / len(rows)
            here = {**at, "layer": layer, "head": head, "query_bin": query_bin}
            assert np.allclose(trace["pooled_map"].isel(here).values, pooled, atol=1e-5)
            entropy = [-sum(p * np.log(p) for p in maps[i] if p > 0) for i in rows]
            expected = np.mean(entropy) if rows else 0
            assert np.isclose(trace["row_entropy"].isel(here), expected, atol=1e-4)


def test_a_window_is_really_one(modernbert):
    trace = dl.capture(modernbert, tokens(1, 40), statistics=[dl.PooledMap(bins=46)], **RUN)
    maps = trace["pooled_map"].isel(step=0, head=0).values
    far = np.abs(np.subtract.outer(np.arange(46), np.arange(46))) > 4
    assert maps[0][far].min() > 0
    assert maps[1][far].max() == 0


def test_statistics_without_a_meaning_in_windows_are_refused(modernbert):
    for statistic in (dl.Recall(), dl.FullMaps()):
        with pytest.raises(ValueError, match=r"layers \[1, 2\] attend within a window; record layers=\[0\]"):
            dl.capture(modernbert, tokens(1, 8), statistics=[statistic], **RUN)
    trace = dl.capture(modernbert, tokens(1, 8), statistics=[dl.FullMaps()], layers=[0], **RUN)
    expected = attentions("modernbert", trace["tokens"].values[0].tolist())[0]
    assert np.allclose(trace["full_map"].values[0, 0], expected, atol=1e-5)


def test_a_policy_that_computes_few_positions_is_refused_where_layers_have_windows(bert, modernbert):
    policy = dl.WindowDiffusion(active=4, window=8, refresh_cycle=4)
    assert len(dl.denoise(bert, tokens(1, 8), policy=policy, **RUN).timings) == 3
    with pytest.raises(ValueError, match="layers of this model attend within a window"):
        dl.denoise(modernbert, tokens(1, 8), policy=policy, **RUN)


def test_policies_are_measured_on_it(modernbert):
    from dlm_lens.measure.fidelity import fidelity

    prompt = tokens(1, 24)
    everything = fidelity(modernbert, prompt, dl.PulseCol(sparsity=0.0, group_size=4), **RUN)
    assert everything.steps["kl"].max() < 1e-6
    some = fidelity(modernbert, prompt, POLICIES[1], **RUN)
    assert some.steps["kl"].max() > 1e-4
    assert (some.retained_by_layer.values < 1).tolist() == [True, False, False]


def test_a_preview_shows_windows_as_they_are(modernbert):
    from dlm_lens.measure.preview import preview

    state = tokens(1, 40)[0]
    shown = preview(modernbert, state, POLICIES[1], prompt_length=32, steps=4, bins=40, layer=1)
    distance = np.abs(np.subtract.outer(np.arange(40), np.arange(40)))
    assert np.array_equal(shown.kept, distance <= 4)
    assert (shown.retained_mass[1:] == 1).all()
    assert (shown.retained_mass[0] < 1).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_is_the_same(kind, dtype):
    on_gpu, ids = dl.adapt(make(kind).to("cuda", dtype)), tokens(2, 21)
    start = torch.tensor([0, 6])
    expected = dl.adapt(make(kind)).logits(ids, start=start)
    found = on_gpu.logits(ids.cuda(), start=start.cuda()).float().cpu()
    worst = max(float((found[b, first:] - expected[b, first:]).abs().max()) for b, first in ((0, 0), (1, 6)))
    assert worst < (1e-3 if dtype == torch.float32 else 0.1) * float(expected.abs().max())


def test_drift_is_measured_where_all_layers_show_it(bert, modernbert):
    table = dl.drift_since_decoding(bert, tokens(1, 8), gen_length=2, steps=2, progress=False)
    assert set(table["layer"]) == set(range(LAYERS))
    with pytest.raises(ValueError, match=r"layers \[1, 2\] of 'modernbert' attend within a window"):
        dl.drift_since_decoding(modernbert, tokens(1, 8), gen_length=2, steps=2, progress=False)


def test_windows_save_nothing_by_a_policy(bert, modernbert):
    lengths = {"prompt_length": 512, "gen_length": 8}
    wide, narrow = (dl.schedule(POLICIES[1], 4, dlm, **lengths) for dlm in (bert, modernbert))
    assert wide.bound > narrow.bound > 1
    ratio = wide.attention_share * wide.dense_flops / (narrow.attention_share * narrow.dense_flops)
    assert ratio == pytest.approx(3)


def test_compare_and_explore_work_on_it(bert):
    table = dl.compare(bert, [tokens(1, 12)[0].tolist()], POLICIES[1:2], control=False, **RUN)
    assert {"Dense", "PulseCol 50%"} <= set(table["policy"])
    trace = dl.capture(bert, tokens(1, 12), **RUN)
    assert dl.explore(trace) is not None
    assert np.isfinite(dl.metrics.sink_variance(trace)["spatial"]).all()


def test_prompts_of_text_go_on_where_they_end():
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": SEP, "[MASK]": MASK, "[UNK]": 2, "the": 5, "sky": 6}
    vocabulary |= {f"w{number}": number for number in range(7, SEP)} | {"a": 3, "b": 4}
    tokenizer = transformers.BertTokenizerFast(vocab=vocabulary)
    dlm = dl.adapt(make("bert", mask_token_id=None, eos_token_id=None), tokenizer=tokenizer)
    assert (dlm.spec.mask_id, dlm.spec.eos_id, dlm.spec.pad_id) == (MASK, SEP, 0)
    assert dlm.encode(["the sky", "sky"]).tokens.tolist() == [[1, 5, 6], [0, 1, 6]]


class TestRefuses:
    """Every refusal comes before anything is run, and leaves the attention implementation as it was."""

    def refuses(self, model, match, error=ValueError, **arguments):
        before = model.config._attn_implementation
        with pytest.raises(error, match=match):
            dl.adapt(model, **arguments)
        assert model.config._attn_implementation == before

    def test_autoregressive_models(self):
        for kind in ("llama", "qwen3"):
            model = make(kind)
            model.config.is_causal = True
            self.refuses(model, "is autoregressive: what follows a position does not reach it")
            model.config.is_causal = False
            assert dl.adapt(model).spec.family == kind

    def test_training_mode(self):
        self.refuses(make("bert").train(), r"training mode, with dropout; call model.eval\(\)")

    def test_a_model_without_a_head(self):
        self.refuses(make("bert").base_model, "has no language-model head")

    def test_an_encoder_with_a_decoder(self):
        config = transformers.T5Config(
            vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2
        )
        self.refuses(transformers.T5ForConditionalGeneration(config).eval(), "one stack of layers")

    def test_layers_that_are_used_several_times(self):
        config = transformers.AlbertConfig(
            vocab_size=VOCAB, embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=16, mask_token_id=MASK, eos_token_id=1,
        )  # fmt: skip
        self.refuses(transformers.AlbertForMaskedLM(config).eval(), "AlbertModel has no list of 2 layers")

    def test_what_is_no_model(self):
        with pytest.raises(TypeError, match="not str"):
            dl.adapt("bert-base-uncased")

    def test_attention_that_is_not_dispatched(self):
        config = transformers.DebertaV2Config(
            vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        model = transformers.DebertaV2ForMaskedLM(config).eval()
        self.refuses(model, "does not dispatch attention", spec=dl.Spec.of(model, mask_id=3, eos_id=4))

    def test_an_unknown_head_and_layers_without_numbers(self):
        config = transformers.DistilBertConfig(vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=16)
        model = transformers.DistilBertForMaskedLM(config).eval()
        spec = dl.Spec.of(model, mask_id=3, eos_id=4)
        self.refuses(model, "neither lm_head nor cls nor head and decoder", spec=spec)
        self.refuses(model, "does not say which layer it is", spec=spec, head=lambda model, hidden: hidden)

    def test_a_wrong_head(self):
        self.refuses(make("bert"), "give head=", head=lambda model, hidden: model.cls(hidden) * 2)

    def test_capped_scores(self):
        config = transformers.Gemma2Config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=96, layer_types=["full_attention"] * 2,
        )  # fmt: skip
        config.is_causal, config.mask_token_id = False, MASK
        model = transformers.Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
        self.refuses(model, "asks for attention with softcap")

    def test_special_tokens_told_nowhere(self):
        self.refuses(make("bert", mask_token_id=None), r"tells its mask_id; give Spec.of\(…, mask_id=…\)")

    def test_a_spec_of_another_shape(self):
        model = make("bert")
        for wrong, match in (
            ({"layers": 4}, r"in the layers \[0, 1, 2\], expected 0 … 3"),
            ({"heads": 8}, "its spec"),
        ):
            self.refuses(model, match, spec=replace(dl.Spec.of(model), **wrong))

    def test_saving_as_a_published_checkpoint(self, bert, tmp_path):
        with pytest.raises(dl.DlmLensError, match="save_pretrained"):
            bert.save(tmp_path / "here")
