"""What a policy would keep at a state, against attention made in full and summed over the kept keys."""

import numpy as np
import pytest
import torch

import dlm_lens as dl
from dlm_lens.attention import StepContext
from dlm_lens.measure.preview import preview
from dlm_lens.policies import RunInfo

LENGTH, PROMPT, BINS = 40, 16, 8


@pytest.fixture
def state(random_dlm):
    """A prompt and a generation of which half is masked."""
    tokens = torch.randint(1, 60, (LENGTH,))
    tokens[PROMPT::2] = random_dlm.spec.mask_id
    return tokens


class Layers:
    """Attention [head, query, key] and the kept pairs of every layer of a step, made in full."""

    def __init__(self, run, start):
        self.run, self.start, self.retained, self.kept = run, start, {}, {}

    def observe(self, layer, q, k, context):
        q, k = q[0, :, self.start :].double(), k[0, :, self.start :].double()
        k = k.repeat_interleave(len(q) // len(k), 0)
        attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        pattern = self.run.pattern(layer)
        (lists,) = pattern.lists
        kept = torch.zeros_like(attention)
        for head in range(len(q)):
            for query in range(q.shape[1]):
                group = query // pattern.group_size
                for key in lists.columns[0, head, group, : lists.counts[0, head, group]].tolist():
                    kept[head, query, key * pattern.block_size : (key + 1) * pattern.block_size] = 1
        self.kept[layer] = kept
        self.retained[layer] = (attention * kept).sum(-1).mean(-1).numpy()


def by_hand(dlm, tokens, policy, start=0, steps=2):
    """A refresh, if there is one, and a sparse step at the same state."""
    first = torch.tensor([start]) if start else None
    run = policy.start(RunInfo(dlm.spec, PROMPT, LENGTH - PROMPT, steps, 1, first, torch.device("cpu"), 0))
    layers = Layers(run, start)
    for step in range(steps):
        plan = run.plan(step, tokens[None])
        observer = layers if plan.kind == "sparse" else None
        dlm.logits(tokens[None], start=first, context=StepContext(step, plan, run, observer, first))
        if plan.kind == "sparse":
            break
    return layers


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        (dl.PulseCol(0.7, group_size=8), 2),
        (dl.RandomColumns(0.5, group_size=8), 1),
        (dl.OracleColumns(0.7, group_size=8), 1),
        (dl.StreamingLLM(0.7, group_size=8), 1),
        (dl.SinkAwareKV(0.3, group_size=8), 2),
        (dl.SparseD(0.3, block_size=16), 3),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_retained_mass_is_that_of_the_sparse_step(random_dlm, state, policy, steps, start):
    seen = preview(random_dlm, state, policy, prompt_length=PROMPT, steps=24, start=start)
    expected = by_hand(random_dlm, state, policy, start, steps)
    assert seen.kind == "sparse"
    assert seen.kept is None
    for layer in range(2):
        np.testing.assert_allclose(seen.retained_mass[layer], expected.retained[layer], rtol=1e-5)
    kept = torch.stack([expected.kept[layer] for layer in range(2)])
    if policy.__class__ is not dl.SparseD:  # its last block is short: blocks are counted, not keys
        assert seen.density == pytest.approx(float(kept.mean()))


@pytest.mark.parametrize(("layer", "head"), [(1, 2), (1, None), (None, None)])
def test_the_kept_pairs_are_those_of_the_selection(random_dlm, state, layer, head):
    policy = dl.PulseCol(0.7, group_size=8)
    seen = preview(
        random_dlm, state, policy, prompt_length=PROMPT, steps=24, bins=BINS, layer=layer, head=head
    )
    kept = by_hand(random_dlm, state, policy).kept
    chosen = torch.stack([kept[at] for at in ([layer] if layer is not None else [0, 1])])
    chosen = chosen[:, head] if head is not None else chosen.flatten(0, 1)
    size = LENGTH // BINS
    expected = chosen.view(-1, BINS, size, BINS, size).mean((0, 2, 4))
    np.testing.assert_allclose(seen.kept, expected, atol=1e-6)


def test_what_is_never_sparse_keeps_everything(random_dlm, state):
    seen = preview(random_dlm, state, dl.Dense(), prompt_length=PROMPT, steps=24, start=5, bins=BINS)
    assert (seen.kind, seen.density, seen.computed) == ("dense", 1, LENGTH - 5)
    assert np.all(seen.retained_mass == 1)
    assert np.all(seen.kept[1:, 1:] == 1)
    assert not seen.kept[0].any()  # padding alone


def test_skipped_heads_retain_nothing(random_dlm, state):
    seen = preview(random_dlm, state, dl.SinkAwareHeads(0.5), prompt_length=PROMPT, steps=24, bins=BINS)
    assert np.all(np.sort(seen.retained_mass, 1) == [0, 0, 1, 1])
    assert np.allclose(seen.kept, 0.5)


def test_cached_steps_are_planned_and_not_run(random_dlm, state, monkeypatch):
    monkeypatch.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran the model"))
    policy = dl.WindowDiffusion(active=2, window=4)
    seen = preview(random_dlm, state, policy, prompt_length=PROMPT, steps=24, bins=LENGTH)
    decided = (state != random_dlm.spec.mask_id).nonzero()[:, 0].tolist()
    masked = (state == random_dlm.spec.mask_id).nonzero()[:, 0].tolist()
    expected = np.zeros((LENGTH, LENGTH))
    for query in masked[:2]:
        expected[query, [*decided, *masked[:4]]] = 1
    assert seen.retained_mass is None
    assert (seen.kind, seen.computed, seen.attended) == ("cached", 2, len(decided) + 4)
    np.testing.assert_array_equal(seen.kept, expected)
    assert seen.density == pytest.approx(expected.mean())


def test_a_block_is_computed_at_a_time(random_dlm, state):
    seen = preview(random_dlm, state, dl.FastDLLM(block=8), prompt_length=PROMPT, steps=24, start=5)
    assert (seen.computed, seen.attended) == (8, LENGTH - 5)


def test_the_watcher_ends_it(random_dlm, state):
    calls = []

    def watch():
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        preview(random_dlm, state, dl.PulseCol(), prompt_length=PROMPT, steps=24, watch=watch)
    assert len(calls) == 3


def test_what_a_policy_refuses_is_an_error(state):
    twin = dl.random_model("ar", layers=1, hidden=32, heads=4, vocab=64)
    with pytest.raises(ValueError, match="is causal"):
        preview(twin, state, dl.PulseCol(), prompt_length=PROMPT, steps=24)


@pytest.mark.gpu
@pytest.mark.parametrize("policy", [dl.PulseCol(0.5, group_size=16), dl.SparseD(select=0.5, block_size=16)])
def test_a_gpu_keeps_the_same(policy, on_both_devices):
    tokens = torch.randint(1, 60, (300,))
    seen = [
        preview(dlm, tokens.to(dlm.device), policy, prompt_length=200, steps=8, bins=10)
        for dlm in on_both_devices("llada", layers=2, hidden=128, heads=4, vocab=64)
    ]
    assert seen[0].density == pytest.approx(seen[1].density, abs=0.01)
    np.testing.assert_allclose(seen[0].retained_mass, seen[1].retained_mass, atol=0.01)
    np.testing.assert_allclose(seen[0].kept, seen[1].kept, atol=0.1)
