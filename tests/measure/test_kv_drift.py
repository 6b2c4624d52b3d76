"""Drift of keys, values and hidden states, against projections of plain hidden states."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure import drift_since_decoding

PROMPT = torch.arange(1, 8)
GEN, STEPS, AGES = 10, 5, 3
RUN = {"gen_length": GEN, "steps": STEPS, "sampler": dl.LowConfidence(block_length=GEN), "progress": False}
KEYS = ["kind", "age", "distance", "remaining", "layer", "tensor"]


def vectors(dlm: dl.DLM, tokens: torch.Tensor) -> dict[tuple[int, str], np.ndarray]:
    """Keys, values (before RoPE) and hidden states of a state [1, L], from the plain transformers module."""
    states = dlm.model.model(tokens, use_cache=False, output_hidden_states=True).hidden_states
    found = {}
    for index, layer in enumerate(dlm.model.model.layers):
        inside = layer.input_layernorm(states[index])
        found[index, "key"] = layer.self_attn.k_proj(inside)[0]
        found[index, "value"] = layer.self_attn.v_proj(inside)[0]
        if index + 1 < len(dlm.model.model.layers):  # the last of the states is normalised
            found[index, "hidden"] = states[index + 1][0]
    return {name: tensor.double().numpy() for name, tensor in found.items()}


@torch.no_grad()
def loops(dlm: dl.DLM) -> dict[tuple, list[tuple[float, float]]]:
    done = dl.denoise(dlm, PROMPT, history=True, **RUN)
    states = [*done.history, done.tokens]
    committed_at = done.committed_at[0].tolist()
    groups: dict[tuple, list[tuple[float, float]]] = {}
    for step in range(1, len(states)):
        before, now = vectors(dlm, states[step - 1]), vectors(dlm, states[step])
        left = sum(at >= step for at in committed_at) / GEN
        quarter = max(low for low in (0.0, 0.25, 0.5, 0.75) if low <= left)
        new = [i for i, at in enumerate(committed_at) if at == step - 1]
        for i, at in enumerate(committed_at):
            kind, age = "decoded", step - 1 - at
            if at == -1 or at >= step:
                kind, age = "prompt" if at == -1 else "masked", -1
            away = min(abs(i - j) for j in new)
            edge = 0 if away == 0 else 2 ** int(math.log2(away))
            for (layer, name), b in before.items():
                n = now[layer, name][i]
                relative = np.linalg.norm(n - b[i]) / np.linalg.norm(b[i])
                cosine = 1 - n @ b[i] / np.linalg.norm(n) / np.linalg.norm(b[i])
                group = (kind, min(age, AGES), edge, quarter, layer, name)
                groups.setdefault(group, []).append((relative, cosine))
    return groups


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_changes_are_those_of_the_vectors_state_by_state(family):
    dlm = dl.random_model(family, layers=2, hidden=32, heads=4, kv_heads=2, vocab=64, device="cpu")
    found = drift_since_decoding(dlm, PROMPT, ages=AGES, **RUN).set_index(KEYS)
    expected = loops(dlm)
    last = {(*key[:5], "hidden") for key in expected if key[4] == 1}  # of the last layer, not in the loops
    assert set(found.index) == set(expected) | last
    assert not found.index.duplicated().any()
    for key, values in expected.items():
        row = found.loc[key]
        assert row["positions"] == len(values)
        relative, cosine = np.mean(values, axis=0)
        assert row["relative_l2"] == pytest.approx(relative, rel=1e-3, abs=1e-5)
        assert row["cosine_distance"] == pytest.approx(cosine, rel=1e-3, abs=1e-5)
    kinds = found.reset_index().groupby("kind")["age"].agg(["min", "max"])
    assert kinds.loc["decoded"].tolist() == [0, AGES]


def test_in_the_first_layer_only_the_token_itself_tells(random_dlm):
    """Keys and values there come from the embedding alone: they change when the token does, and never again."""
    found = drift_since_decoding(random_dlm, PROMPT, ages=AGES, **RUN)
    first = found[(found["layer"] == 0) & (found["tensor"] != "hidden")]
    decoding = (first["kind"] == "decoded") & (first["age"] == 0)
    assert first.loc[~decoding, "relative_l2"].max() == 0
    assert first.loc[decoding, "relative_l2"].min() > 0.1
    assert (found.loc[found["age"] == 0, "distance"] == 0).all()
    assert (found.loc[found["age"] != 0, "distance"] > 0).all()


def test_the_last_hidden_state_is_that_before_the_final_norm(random_dlm):
    seen = []
    handle = random_dlm.model.model.norm.register_forward_hook(lambda m, args, out: seen.append(args[0][0]))
    try:
        found = drift_since_decoding(random_dlm, PROMPT, ages=AGES, **{**RUN, "steps": 1})
    finally:
        handle.remove()
    before, now = seen[-2:]
    expected = ((now - before).norm(dim=-1) / before.norm(dim=-1)).double()
    hidden = found[(found["layer"] == 1) & (found["tensor"] == "hidden")].set_index("kind")
    assert hidden.loc["decoded", "relative_l2"] == pytest.approx(expected[7:].mean().item(), rel=1e-4)
    prompt = hidden.loc[["prompt"]]
    mean = np.average(prompt["relative_l2"], weights=prompt["positions"])
    assert mean == pytest.approx(expected[:7].mean().item(), rel=1e-4)


def test_several_prompts_are_runs_of_their_own_and_leave_no_hooks(random_dlm):
    both = drift_since_decoding(random_dlm, [PROMPT, PROMPT[:4]], ages=AGES, **RUN)
    alone = drift_since_decoding(random_dlm, PROMPT[:4], ages=AGES, **RUN)
    second = both[both["prompt"] == 1].drop(columns="prompt").reset_index(drop=True)
    assert second.equals(alone.drop(columns="prompt"))
    assert not any(layer._forward_hooks for layer in random_dlm.model.model.layers)


def test_steps_that_commit_nothing_are_passed_over():
    """Dream's time grid leaves early steps of short texts empty."""
    dlm = dl.random_model("dream", layers=1, hidden=16, heads=2, vocab=32, device="cpu")
    few = drift_since_decoding(dlm, PROMPT, gen_length=2, steps=6, ages=9, progress=False)
    assert np.isfinite(few[["relative_l2", "cosine_distance"]]).all(axis=None)
    done = dl.denoise(dlm, PROMPT, gen_length=2, steps=6, progress=False)
    changes = len(set(done.committed_at[0, 7:].tolist()))
    prompt = few[(few["kind"] == "prompt") & (few["layer"] == 0) & (few["tensor"] == "key")]
    assert prompt["positions"].sum() == 7 * changes
    assert (done.timings["committed"] == 0).any()


def test_compiled_layers_are_refused_and_left_as_they_were():
    dlm = dl.random_model("llada", layers=2, hidden=16, heads=2, vocab=32, device="cpu")
    layer = dlm.model.model.layers[1]
    layer._compiled_call_impl = layer.forward  # what Module.compile sets: hooks are not called
    with pytest.raises(dl.DlmLensError, match="load it anew"):
        drift_since_decoding(dlm, PROMPT, **RUN)
    assert not any(layer._forward_hooks for layer in dlm.model.model.layers)


def test_arguments_that_cannot_work_are_named(random_dlm):
    with pytest.raises(ValueError, match="ages=0 must be at least 1"):
        drift_since_decoding(random_dlm, PROMPT, ages=0, **RUN)
    causal = dl.random_model("ar", layers=1, hidden=16, heads=2, vocab=32)
    with pytest.raises(ValueError, match="no mask token"):
        drift_since_decoding(causal, PROMPT, gen_length=4, progress=False)


@pytest.mark.gpu
def test_a_gpu_finds_the_same(on_both_devices):
    models = on_both_devices("llada", layers=2, hidden=128, heads=4, vocab=64)
    tables = [drift_since_decoding(dlm, PROMPT, **RUN) for dlm in models]
    pd.testing.assert_frame_equal(*tables, atol=1e-3, rtol=0.05)
