"""Influence of left-out context, against predictions of plain models on shortened inputs."""

import numpy as np
import pandas as pd
import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure import context_influence

PROMPT = torch.arange(1, 10)
RUN = {"gen_length": 12, "steps": 6, "sampler": dl.LowConfidence(block_length=12), "progress": False}
MODELS = {
    family: dl.random_model(family, layers=2, hidden=32, heads=4, kv_heads=2, vocab=64, device="cpu")
    for family in ("llada", "dream")
}


def plain(dlm: dl.DLM, tokens: torch.Tensor, kept: list[int], targets: list[int]) -> torch.Tensor:
    """log p at the targets, computed by the transformers module from the kept positions and nothing else."""
    mask = {"is_causal": False}
    hidden = dlm.model.model(
        input_ids=tokens[kept][None], position_ids=torch.tensor([kept]), use_cache=False, **mask
    ).last_hidden_state[0]
    at = [kept.index(target - dlm.spec.logit_shift) for target in targets]
    return dlm.model.lm_head(hidden[at]).double().log_softmax(-1)


@torch.no_grad()
def loops(dlm: dl.DLM, distances: list[int], targets: int | None) -> pd.DataFrame:
    """The far and near rows at all states, position by position."""
    done = dl.denoise(dlm, PROMPT, history=True, **RUN)
    rows = []
    for step, (tokens,) in enumerate(done.history):
        masked = [i for i in range(9, 21) if tokens[i] == dlm.spec.mask_id]
        chosen = masked[:targets] if targets else (done.committed_at[0] == step).nonzero()[:, 0].tolist()
        needed = {*chosen, *(i - 1 for i in chosen if dlm.spec.logit_shift)}
        far_away = {i: min(abs(i - target) for target in chosen) for i in masked if i not in needed}
        if not any(away > max(distances) for away in far_away.values()):
            continue
        p = plain(dlm, tokens, list(range(21)), chosen)
        for distance in distances:
            far = [i for i, away in far_away.items() if away > distance]
            near = sorted(far_away, key=lambda i: (far_away[i], i))[: len(far)]
            for name, out in (("far", far), ("near", near)):
                q = plain(dlm, tokens, [i for i in range(21) if i not in out], chosen)
                kl = (p.exp() * (p - q)).sum(-1).mean().item()
                same = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
                rows.append((step, name, distance, len(out), len(chosen), kl, same))
    columns = ["step", "left_out", "distance", "count", "positions", "kl", "agreement"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize("targets", [3, None])
@pytest.mark.parametrize("family", MODELS)
def test_far_and_near_context_is_left_out_as_defined(family, targets):
    dlm = MODELS[family]
    found = context_influence(dlm, PROMPT, distances=(0, 3), targets=targets, states=99, **RUN)
    expected = loops(dlm, [0, 3], targets)
    assert len(expected) >= 4
    found = found[found["left_out"] != "decided"].reset_index(drop=True)
    assert (found["prompt"] == 0).all()
    exact = ["step", "left_out", "distance", "count", "positions", "agreement"]
    pd.testing.assert_frame_equal(found[exact], expected[exact])
    np.testing.assert_allclose(found["kl"], expected["kl"], rtol=1e-3, atol=1e-6)
    assert found["kl"].max() > 0.01


@pytest.mark.parametrize("family", MODELS)
def test_predictions_do_not_depend_on_what_is_left_out(family, monkeypatch):
    """Other tokens there change nothing; only their absence tells."""
    dlm, seen = MODELS[family], []
    logits = dl.DLM.logits

    def spoilt(self, tokens, *, context=None, **rest):
        if context is not None and context.plan.queries is not None:
            absent = torch.ones_like(tokens, dtype=torch.bool)
            absent[0, context.plan.queries[0]] = False
            seen.append(int(absent.sum()))
            tokens = torch.where(absent, 7, tokens)
        return logits(self, tokens, context=context, **rest)

    arguments = {"distances": (0, 4), "targets": 3, "states": 2, **RUN}
    expected = context_influence(dlm, PROMPT, **arguments)
    monkeypatch.setattr(dl.DLM, "logits", spoilt)
    pd.testing.assert_frame_equal(context_influence(dlm, PROMPT, **arguments), expected)
    assert set(expected["count"]) <= set(seen)


def test_as_many_decided_positions_are_left_out(random_dlm, monkeypatch):
    computed = []
    logits = dl.DLM.logits

    def watched(self, tokens, *, context=None, **rest):
        if context is not None and context.plan.queries is not None:
            computed.append((tokens[0], set(context.plan.queries[0].tolist())))
        return logits(self, tokens, context=context, **rest)

    monkeypatch.setattr(dl.DLM, "logits", watched)
    arguments = {"distances": (2, 0), "targets": 2, "states": 3, **RUN}
    found = context_influence(random_dlm, torch.arange(1, 16), **arguments)
    dense = [tokens for tokens, kept in computed if len(kept) == 27]
    assert len(dense) == 3
    decided = found["left_out"] == "decided"
    pairs = [(kept, tokens) for tokens, kept in computed if len(kept) < 27]
    assert len(pairs) == len(found)
    absences = []
    for (kept, tokens), count in zip(
        [pair for pair, is_decided in zip(pairs, decided, strict=True) if is_decided],
        found["count"][decided],
        strict=True,
    ):
        absent = set(range(27)) - kept
        assert len(absent) == count
        assert all(tokens[i] != random_dlm.spec.mask_id for i in absent)
        absences.append(absent)
    # Fewer left out are some of those left out where more are.
    assert len(absences) == 6
    assert all(few < many for few, many in zip(absences[::2], absences[1::2], strict=True))


def test_no_control_where_too_few_positions_are_decided(random_dlm):
    few = context_influence(random_dlm, PROMPT[:2], distances=(0,), targets=1, states=1, **RUN)
    assert few["left_out"].tolist() == ["far", "near"]


def test_distances_share_their_states_and_all_undecided_are_both_near_and_far(random_dlm):
    found = context_influence(random_dlm, PROMPT, distances=(0, 4, 8), targets=2, states=2, **RUN)
    found = found[found["left_out"] != "decided"]
    assert found.groupby(["left_out", "distance"])["step"].apply(tuple).nunique() == 1
    assert (found["count"] > 0).all()
    kl = found[found["distance"] == 0].pivot(index="step", columns="left_out", values="kl")
    np.testing.assert_array_equal(kl["far"], kl["near"])


def test_several_prompts_are_runs_of_their_own(random_dlm):
    """Padding, which a batch would need, takes no part."""
    short = PROMPT[:6]
    both = context_influence(random_dlm, [PROMPT, short], distances=(0, 4), states=2, targets=2, **RUN)
    alone = context_influence(random_dlm, short, distances=(0, 4), states=2, targets=2, **RUN)
    second = both[both["prompt"] == 1].drop(columns="prompt").reset_index(drop=True)
    pd.testing.assert_frame_equal(second, alone.drop(columns="prompt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distances": ()}, r"distances=\[\] must be at least one"),
        ({"distances": (-1, 4)}, r"distances=\[-1, 4\]"),
        ({"targets": 0}, "targets=0 must be at least 1"),
        ({"states": 0}, "states=0 must be at least 1"),
        ({"distances": (10,), "targets": 4}, "more than 10 away from all that are predicted"),
    ],
)
def test_arguments_that_cannot_work_are_named(random_dlm, change, message):
    with pytest.raises(ValueError, match=message):
        context_influence(random_dlm, PROMPT, **{"distances": (0,), **RUN, **change})


def test_autoregressive_models_have_no_undecided_context():
    dlm = dl.random_model("ar", layers=1, hidden=16, heads=2, vocab=32)
    with pytest.raises(ValueError, match="no mask token"):
        context_influence(dlm, PROMPT, gen_length=4, progress=False)


@pytest.mark.gpu
def test_a_gpu_finds_the_same(on_both_devices):
    models = on_both_devices("dream", layers=2, hidden=128, heads=4, kv_heads=2, vocab=64)
    tables = [context_influence(dlm, PROMPT, distances=(0, 2), targets=2, **RUN) for dlm in models]
    pd.testing.assert_frame_equal(*tables, atol=1e-3, rtol=0.05)
