"""Holes in code: what they hide, how they are filled, and how fillings are judged."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dlm_lens as dl
from dlm_lens.measure import tasks
from dlm_lens.measure.predict import predict

CODE = tasks.held_out_text()


def around(dlm, item):
    """The text before and behind the hole."""
    before, behind = item.tokens[: item.hole.start], item.tokens[item.hole.stop :]
    return dlm.tokenizer.decode(before.tolist()), dlm.tokenizer.decode(behind.tolist())


@pytest.mark.parametrize("span", [1, 4, 8, 16, *tasks.SPANS])
@pytest.mark.parametrize("length", [64, 512])
def test_holes_are_cut_out_of_the_middle_of_the_code(tiny, span, length):
    for item in tasks.infilling(tiny, 8, length=length, span=span, seed=1):
        before, behind = around(tiny, item)
        assert before + item.answer + behind in CODE
        assert len(item.tokens) == length
        assert item.tokens.eq(tiny.spec.mask_id).nonzero().flatten().tolist() == list(item.hole)
        assert abs(item.hole.start - (length - item.hole.stop)) <= 1
        assert item.answer.strip()
        assert behind.startswith("\n")
        line_begins = before.rpartition("\n")[2].strip() == ""
        if isinstance(span, int):
            assert len(item.hidden) == span
            assert "\n" not in item.answer
        elif span == "line_end":
            assert not before.endswith("\n")
            assert "\n" not in item.answer
        else:
            assert line_begins
            lines = [line for line in item.answer.splitlines() if line.strip()]
            assert len(lines) == 1 if span == "line" else 2 <= len(lines) <= 4


@settings(max_examples=10)  # each encodes all of the code
@given(length=st.integers(6, 300), span=st.sampled_from([1, 2, 3, *tasks.SPANS]), seed=st.integers(0, 99))
def test_context_is_left_on_both_sides_at_any_length(tiny, length, span, seed):
    (item,) = tasks.infilling(tiny, 1, length=length, span=span, seed=seed)
    assert len(item.tokens) == length
    assert 0 < item.hole.start < item.hole.stop < length


def test_seeds_make_the_holes(tiny):
    first, again, other = (tasks.infilling(tiny, 4, length=64, seed=seed) for seed in (0, 0, 1))
    assert [item.answer for item in first] == [item.answer for item in again]
    assert [item.answer for item in first] != [item.answer for item in other]


def test_holes_of_one_token_are_filled_with_the_best(tiny):
    items = tasks.infilling(tiny, 6, length=96, span=1)
    table = tasks.infill(tiny, items, batch_size=4, progress=False)
    for item, row in zip(items, table.itertuples(), strict=True):
        logits = tiny.logits(item.tokens[None])[0, item.hole.start].double()
        best, loss = logits.argmax().item(), -logits.log_softmax(-1)[item.hidden[0]].item()
        assert row.filled == tiny.tokenizer.decode([best])
        assert row.nats == pytest.approx(loss, rel=1e-4)
        assert row.token_accuracy == row.exact == (best == item.hidden[0])
        assert (row.hidden, row.answer) == (1, item.answer)


def test_the_most_confident_positions_are_filled_first(tiny):
    """Against the same filling, spelt out."""
    (item,) = tasks.infilling(tiny, 1, length=96, span=6, seed=2)
    policy = dl.PulseCol(sparsity=0.5, group_size=8)
    tokens = item.tokens[None].clone()
    for count in (2, 2, 1, 1):  # six tokens in four steps, the remainder first
        log_p = predict(tiny, tokens, policy).logits.double().log_softmax(-1)
        confidence, best = log_p.max(-1)
        confidence[tokens != tiny.spec.mask_id] = -torch.inf
        chosen = confidence[0].topk(count).indices
        tokens[0, chosen] = best[0, chosen]
    expected = tiny.tokenizer.decode(tokens[0, item.hole.start : item.hole.stop].tolist())
    table = tasks.infill(tiny, [item], policy=policy, steps=4, progress=False)
    assert table["filled"].tolist() == [expected]


def test_rows_come_in_the_order_of_the_items_and_do_not_depend_on_batches(tiny):
    items = tasks.infilling(tiny, 5, length=64, span="line")
    together = tasks.infill(tiny, items, steps=2, progress=False)
    alone = [tasks.infill(tiny, [item], steps=2, progress=False).iloc[0] for item in items]
    assert together["answer"].tolist() == [item.answer for item in items]
    assert together["filled"].tolist() == [row["filled"] for row in alone]


@pytest.mark.parametrize("sampler", [dl.Threshold(threshold=0.5), dl.DreamSampler()])
def test_samplers_fill_every_hole(tiny, sampler):
    items = tasks.infilling(tiny, 3, length=64, span=5)
    table = tasks.infill(tiny, items, sampler=sampler, progress=False)
    assert not table["filled"].str.contains("MASK").any()
    assert table["token_accuracy"].between(0, 1).all()


def test_accuracy_counts_exact_fillings_beside_right_answers(tiny):
    holes = tasks.infilling(tiny, 4, length=96, span=3, seed=3)
    table = tasks.infill(tiny, holes, progress=False)
    known = [replace(hole, answer=f" {text}\n") for hole, text in zip(holes, table["filled"], strict=True)]
    assert tasks.accuracy(tiny, holes, progress=False) == table["exact"].mean()
    assert tasks.accuracy(tiny, known, progress=False) == 1
    (question,) = tasks.retrieval(tiny, 1, length=64)
    wrong = replace(question, answer="none")
    assert tasks.accuracy(tiny, [wrong, *known], progress=False) == 4 / 5


def test_the_bundled_model_fills_far_more_than_chance(tiny):
    table = tasks.infill(tiny, tasks.infilling(tiny, 32, length=128, span=1), progress=False)
    assert table["exact"].mean() > 0.25
    assert table["nats"].mean() < 4


def test_bad_holes_are_refused(tiny, random_dlm):
    for wrong, message in [
        ({"n": 0}, "n=0 must be at least 1"),
        ({"span": "word"}, r"unknown span 'word'.*line_end, line, lines, or a number"),
        ({"span": 0}, "span=0"),
        ({"span": 400}, r"span=400 and length=512.*has only 0"),
        ({"length": 2}, r"length=2 were asked for.*has only 0"),
        ({"length": 5000}, "length=5000 exceeds the 4096 positions of 'tiny'"),
        ({"n": 10**6}, r"n=1000000 holes.*ask for fewer"),
    ]:
        with pytest.raises(ValueError, match=message):
            tasks.infilling(tiny, **wrong)
    with pytest.raises(ValueError, match="no tokenizer; infilling tasks are text"):
        tasks.infilling(random_dlm)
    with pytest.raises(ValueError, match="no mask token: infilling needs a diffusion model"):
        tasks.infilling(dl.load("tiny-ar"))
    with pytest.raises(ValueError, match="at least one item"):
        tasks.infill(tiny, [])
    items = tasks.infilling(tiny, 1, length=64, span=5)
    with pytest.raises(ValueError, match="must be divisible"):
        tasks.infill(tiny, items, sampler=dl.LowConfidence(block_length=4))
    with pytest.raises(TypeError, match=r"retrieval\(\) or infilling\(\); these are str"):
        tasks.accuracy(tiny, ["abc"])
