"""The conditional bound: against its exact value by enumeration, the chain rule, and plain greedy decoding."""

from itertools import combinations

import numpy as np
import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure.tasks.likelihood import greedy

CONTEXT = torch.tensor([3, 1, 4, 1])
TEXT = torch.tensor([5, 9, 2, 6, 5, 3, 8, 7])
QUICK = {"progress": False, "batch_size": 256}


def small(family: str = "llada") -> dl.DLM:
    return dl.random_model(family, layers=2, hidden=32, heads=2, vocab=12, seed=1)


@pytest.fixture(scope="module")
def llada() -> dl.DLM:
    return small()


def guided(dlm: dl.DLM, tokens: torch.Tensor, given: int, scale: float) -> torch.Tensor:
    """log p [L, V], the context being masked for the unconditional half."""
    logits = dlm.logits(tokens[None])[0].double()
    if scale:
        blind = tokens.clone()
        blind[:given] = dlm.spec.mask_id
        unconditional = dlm.logits(blind[None])[0].double()
        logits = unconditional + (scale + 1) * (logits - unconditional)
    return logits.log_softmax(-1)


def exact_bound(dlm: dl.DLM, context: torch.Tensor, text: torch.Tensor, scale: float = 0) -> float:
    """Nats of ``text`` after ``context``: all counts l, all sets of l positions, n / l times their −log p."""
    n, by_count = len(text), []
    for count in range(1, n + 1):
        nats = []
        for at in map(list, combinations(range(n), count)):
            tokens = torch.cat([context, text])
            hidden = [len(context) + i for i in at]
            tokens[hidden] = dlm.spec.mask_id
            log_p = guided(dlm, tokens, len(context), scale)
            nats.append(-log_p[hidden, text[at]].sum().item() * n / count)
        by_count.append(np.mean(nats))
    return float(np.mean(by_count))


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("scale", [0, 0.5])
def test_short_continuations_are_enumerated(family, scale):
    """Contexts and continuations of several lengths, padded in one batch."""
    dlm = small(family)
    pairs = [(CONTEXT, TEXT[:3]), (CONTEXT[:1], TEXT[:1]), (CONTEXT[:0], TEXT[:4]), (CONTEXT, TEXT[2:4])]
    found = dl.tasks.likelihood(dlm, pairs, samples=16, cfg_scale=scale, progress=False, batch_size=5)
    for estimate, (context, text) in zip(found, pairs, strict=True):
        assert estimate.nats == pytest.approx(exact_bound(dlm, context, text, scale), rel=1e-5)
        assert (estimate.exact, estimate.standard_error, estimate.tokens) == (True, 0, len(text))


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_draws_agree_with_the_enumerated_bound(family):
    dlm = small(family)
    exact = exact_bound(dlm, CONTEXT, TEXT)
    (drawn,) = dl.tasks.likelihood(dlm, [(CONTEXT, TEXT)], samples=250, **QUICK)
    (brute,) = dl.tasks.likelihood(dlm, [(CONTEXT, TEXT)], samples=256, **QUICK)
    assert brute.exact
    assert brute.nats == pytest.approx(exact, rel=1e-5)
    assert not drawn.exact
    assert drawn.nats == pytest.approx(exact, abs=4 * drawn.standard_error)
    assert 0 < drawn.standard_error < 0.05 * exact


def test_draws_follow_the_seed_and_neither_the_order_nor_the_batch(llada):
    pairs = [(CONTEXT, TEXT), (CONTEXT[:2], TEXT[1:]), (CONTEXT, TEXT.flip(0))]
    settings = {"samples": 8, "progress": False}
    first = dl.tasks.likelihood(llada, pairs, batch_size=3, **settings)
    again = dl.tasks.likelihood(llada, pairs[::-1], batch_size=7, **settings)[::-1]
    other = dl.tasks.likelihood(llada, pairs, seed=1, **settings)
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_allclose(one.draws, same.draws, rtol=1e-5)
        assert not np.allclose(one.draws, different.draws)


def test_without_a_context_it_is_the_bound_of_perplexity(llada):
    """The same strata and positions: perplexity draws its windows first, so only the enumerated values are equal."""
    (alone,) = dl.tasks.likelihood(llada, [(CONTEXT[:0], TEXT[:3])], **QUICK)
    estimate = dl.tasks.perplexity(llada, TEXT[:3], samples=2000, **QUICK)
    assert alone.nats / 3 == pytest.approx(estimate.nats, abs=4 * estimate.standard_error)


def test_autoregressive_models_are_scored_exactly():
    dlm = small("ar")
    pairs = [(CONTEXT, TEXT), (CONTEXT[:1], TEXT[:2])]
    for estimate, (context, text) in zip(dl.tasks.likelihood(dlm, pairs, **QUICK), pairs, strict=True):
        whole = torch.cat([context, text])
        log_p = dlm.logits(whole[None])[0].double().log_softmax(-1)
        expected = sum(-log_p[i, whole[i]].item() for i in range(len(context), len(whole)))
        assert estimate.nats == pytest.approx(expected, rel=1e-5)
        assert estimate.exact


def test_a_policy_predicts_sparsely_and_at_full_budget_densely(llada):
    pairs = [(CONTEXT, TEXT[:3])]
    dense, full, random = (
        dl.tasks.likelihood(llada, pairs, policy, **QUICK)[0]
        for policy in (None, dl.PulseCol(sparsity=0), dl.RandomColumns(sparsity=0.9))
    )
    assert (dense.kind, full.kind, random.kind) == ("dense", "sparse", "sparse")
    assert full.nats == pytest.approx(dense.nats, rel=1e-5)
    assert random.nats != pytest.approx(dense.nats, rel=1e-3)


def test_strings_are_encoded_apart(tiny):
    ids = tiny.tokenizer.encode
    (text,) = dl.tasks.likelihood(tiny, [("abc=1234\n?abc=", "12")], samples=2, progress=False)
    pair = (torch.tensor(ids("abc=1234\n?abc=")), ids("12"))
    (tokens,) = dl.tasks.likelihood(tiny, [pair], samples=2, progress=False)
    assert text.nats == tokens.nats
    assert f"{text.nats:.4f}" in repr(text)


@pytest.mark.parametrize("family", ["llada", "dream", "ar"])
def test_greedy_says_what_decoding_writes(family):
    """The continuation that denoising writes one token a step, and others that differ in one token."""
    dlm = small(family)
    contexts = [CONTEXT, CONTEXT[:2]]
    sampler = None if family == "ar" else dl.LowConfidence(block_length=4)
    written = [
        dl.denoise(dlm, context, gen_length=4, sampler=sampler, progress=False).tokens[0, -4:]
        for context in contexts
    ]
    pairs = list(zip(contexts, written, strict=True))
    for place in range(4):
        changed = written[0].clone()
        changed[place] = (changed[place] + 1) % 10
        pairs.append((contexts[0], changed))
    found = dict(greedy(dlm, pairs, None, seed=0, cfg_scale=0, batch_size=4))
    assert [found[index] for index in range(len(pairs))] == [True, True, False, False, False, False]


def test_bad_values_are_refused(llada):
    ar, fine = small("ar"), (CONTEXT, TEXT[:2])
    for dlm, pair, wrong, message in [
        (llada, fine, {"samples": 3}, "samples=3 must be even"),
        (llada, fine, {"batch_size": 0}, "batch_size=0"),
        (llada, fine, {"cfg_scale": -1}, "cfg_scale=-1"),
        (ar, fine, {"cfg_scale": 1}, "cfg_scale=1 .* diffusion model"),
        (llada, (CONTEXT, TEXT[:0]), {}, "continuation of pair 0 is empty"),
        (ar, (CONTEXT[:0], TEXT), {}, "context of pair 0 is empty"),
        (llada, (torch.ones(4090, dtype=torch.long), TEXT), {}, "4098 tokens, more than the 4096"),
        (llada, (CONTEXT, torch.tensor([1, 11])), {}, "holds the mask token 11"),
    ]:
        with pytest.raises(ValueError, match=message):
            dl.tasks.likelihood(dlm, [pair], progress=False, **wrong)
    for pairs in ("ab", [CONTEXT[:3]]):
        with pytest.raises(ValueError, match=r"pairs\[0\]=.* is no pair; give \(context, continuation\)"):
            dl.tasks.likelihood(llada, pairs, **QUICK)
    with pytest.raises(ValueError, match="computes only"):
        dl.tasks.likelihood(llada, [fine], dl.WindowDiffusion(active=6, window=6), **QUICK)


@pytest.mark.parametrize("family", ["llada", "ar"])
def test_too_little_memory_is_said_with_what_to_change(family, monkeypatch):
    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    dlm, pairs = small(family), [(CONTEXT, TEXT)] * 3
    monkeypatch.setattr(dl.DLM, "logits", too_much)
    with pytest.raises(
        dl.MemoryBudgetError, match=r"with 2 rows at a time \(CUDA out of memory\.\); lower batch"
    ):
        dl.tasks.likelihood(dlm, pairs, samples=2, batch_size=2, progress=False)
    with pytest.raises(dl.MemoryBudgetError, match="with 3 rows"):
        list(greedy(dlm, pairs, None, seed=0, cfg_scale=0, batch_size=4))
