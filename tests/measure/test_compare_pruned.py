"""Pruned models beside the dense one: what their columns say, going on, and what is refused."""

import copy
import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch

import dlm_lens as dl
from dlm_lens import measure
from dlm_lens.measure import tasks

PROMPT = torch.arange(1, 21)
QUICK = {"gen_length": 8, "steps": 4, "progress": False}
POLICY = dl.PulseCol(sparsity=0.5, group_size=8)
CALIBRATION = dl.Calibration(
    [torch.arange(at, at + 40) % 60 for at in range(3)], samples=2, length=16, times=(30,)
)
SHAPE = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 4, "mlp": 48, "vocab": 64}
OF_MODELS = {"model", "linear_ms", "linear_speedup", "weight_sparsity"}


@pytest.fixture(scope="module")
def dlm() -> dl.DLM:
    return dl.random_model("llada", **SHAPE, device="cpu")


@pytest.fixture(scope="module")
def half(dlm) -> dl.DLM:
    return dl.prune(dlm, "wanda", pattern="2:4", calibration=CALIBRATION, progress=False)[0]


@pytest.fixture(scope="module")
def cut(dlm) -> dl.DLM:
    return dl.prune(dlm, structured=0.5, calibration=CALIBRATION, progress=False)[0]


@pytest.fixture(scope="module")
def table(dlm, half, cut) -> pd.DataFrame:
    twin = copy.deepcopy(dlm)
    pruned = {"twin": twin, "Wanda 2:4": half, "cut": cut}
    return dl.compare(dlm, PROMPT, [POLICY], pruned=pruned, repeats=2, **QUICK)


def rows(table: pd.DataFrame, policy: str) -> pd.DataFrame:
    return table[table["policy"] == policy].reset_index(drop=True)


def test_every_policy_is_measured_on_every_model(table):
    policies = ["Dense", "PulseCol 50%", "Random columns 50%"]
    models = ["", ", twin", ", Wanda 2:4", ", cut"]
    assert list(dict.fromkeys(table["policy"])) == [policy + model for model in models for policy in policies]
    assert all(times == [0, 1] for times in table.groupby("policy")["repetition"].agg(list))
    assert list(dict.fromkeys(table["model"])) == [
        table.attrs["provenance"]["model"],
        "twin",
        "Wanda 2:4",
        "cut",
    ]
    assert not table.isna()[["linear_ms", "kl", "amdahl_bound", "weight_sparsity"]].any().any()


def test_without_pruned_models_a_table_is_as_it_was(dlm, table):
    plain = dl.compare(dlm, PROMPT, [POLICY], **QUICK)
    assert set(table) - set(plain) == OF_MODELS
    assert not set(plain) - set(table)
    same = ["kl", "token_agreement", "argmax_agreement", "retained_mass", "amdahl_bound", "density"]
    of_dense = table[(table["model"] == dlm.spec.name) & (table["repetition"] == 0)].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_dense[same], plain[same])


@pytest.mark.parametrize("policy", ["Dense", "PulseCol 50%", "Random columns 50%"])
def test_an_unpruned_copy_loses_nothing_and_saves_nothing(table, policy):
    own, twin = rows(table, policy), rows(table, f"{policy}, twin")
    same = [
        "retained_mass",
        "retained_worst_layer",
        "amdahl_bound",
        "kl",
        "argmax_agreement",
        "token_agreement",
    ]
    pd.testing.assert_frame_equal(own[same], twin[same])
    if policy == "Dense":
        assert (twin["kl"] == 0).all()
        assert (
            (twin[["argmax_agreement", "token_agreement", "retained_mass", "amdahl_bound"]] == 1).all().all()
        )
    assert (twin["weight_sparsity"] == 0).all()


def by_loops(shape: dict[str, int], keys: int, steps: int) -> int:
    """Operations of a run of ``steps`` steps, matrix by matrix and head by head."""
    positions, generated, total = 28, 8, 0
    for _ in range(steps):
        for _ in range(shape["layers"]):
            for _ in range(shape["heads"]):
                total += 2 * positions * 32 * 8 * 4  # q, k, v and o of one head of 8
                total += 2 * 2 * positions * keys * 8  # q·kᵀ and p·v
            total += 3 * 2 * positions * 32 * shape["mlp"]
        total += 2 * generated * 32 * 64
    return total


def test_bounds_count_the_work_of_the_matrices_that_are_left(table, cut):
    assert (cut.spec.heads, cut.spec.mlp) == (2, 24)
    dense, small = SHAPE, SHAPE | {"heads": 2, "mlp": 24}
    kinds = rows(table, "PulseCol 50%")["ms_sparse"].notna().all()
    assert kinds
    whole = by_loops(dense, 28, 4)
    assert rows(table, "Dense, cut")["amdahl_bound"][0] == pytest.approx(whole / by_loops(small, 28, 4))
    random = by_loops(small, 14, 4)
    assert rows(table, "Random columns 50%, cut")["amdahl_bound"][0] == pytest.approx(whole / random)
    # Zeros that nothing skips are multiplied like any other number.
    for policy in ("Dense", "PulseCol 50%"):
        expected = rows(table, policy)["amdahl_bound"]
        assert rows(table, f"{policy}, Wanda 2:4")["amdahl_bound"].tolist() == expected.tolist()


def test_quality_is_that_of_the_pruned_model_on_the_dense_states(dlm, half, table):
    dense = dl.denoise(dlm, PROMPT, history=True, **QUICK)
    own = dl.denoise(half, PROMPT, **QUICK)
    kl, same, count = 0.0, 0, 0
    for state in dense.history[: len(dense.timings)]:
        p, q = (model.logits(state)[0].double().log_softmax(-1) for model in (dlm, half))
        for position in range(20, 28):
            if state[0, position] == dlm.spec.mask_id:
                kl += float((p[position].exp() * (p[position] - q[position])).sum())
                same += int(p[position].argmax() == q[position].argmax())
                count += 1
    found = rows(table, "Dense, Wanda 2:4")
    assert found["kl"][0] == pytest.approx(kl / count, rel=1e-4)
    assert found["argmax_agreement"][0] == pytest.approx(same / count)
    agree = (own.tokens == dense.tokens)[:, 20:].double().mean()
    assert found["token_agreement"][0] == pytest.approx(float(agree))
    assert kl > 0
    alone = measure.fidelity(half, PROMPT, dl.RandomColumns(0.5, group_size=8), **QUICK)
    assert 0 < rows(table, "Random columns 50%, Wanda 2:4")["retained_mass"][0] < 1
    assert alone.retained_mass.shape[1:] == (2, 4)


def test_speedups_are_over_the_dense_model_in_the_same_repetition(table):
    dense = rows(table, "Dense")
    for _, row in table.iterrows():
        baseline = dense.loc[row["repetition"]]
        assert row["speedup"] == pytest.approx(baseline["total_ms"] / row["total_ms"])
        assert row["linear_speedup"] == pytest.approx(baseline["linear_ms"] / row["linear_ms"])
    assert table.groupby(["model", "repetition"])["linear_ms"].nunique().eq(1).all()
    assert rows(table, "Dense")["linear_speedup"].eq(1).all()
    gone = table.groupby("model")["weight_sparsity"].first()
    assert gone["Wanda 2:4"] == 0.5
    assert gone["cut"] == pytest.approx(0.5)


def test_a_slow_pruned_model_is_never_the_baseline(dlm, half, monkeypatch):
    """Not even where it is the fastest."""
    rows_module = import_module("dlm_lens.measure.rows")
    cost = rows_module._cost
    fast = lambda policy, run: cost(policy, run) | {"total_ms": 1.0 if run.result.spec == half.spec else 2.0}  # noqa: E731
    monkeypatch.setattr(rows_module, "_cost", fast)
    found = dl.compare(dlm, PROMPT, [], pruned=half, **QUICK)
    assert list(found["speedup"]) == [1.0, 2.0]


def test_models_are_called_what_pruning_called_them(dlm, half, cut, tmp_path):
    found = dl.compare(dlm, PROMPT, [], pruned=[half, cut], control=False, **QUICK)
    assert list(found["policy"]) == ["Dense", "Dense, Wanda 2:4", "Dense, magnitude structured 50%"]
    cut.save(tmp_path / "smaller")
    again = dl.load(tmp_path / "smaller", device="cpu")
    found = dl.compare(dlm, PROMPT, [], pruned=again, **QUICK)
    assert list(found["policy"]) == ["Dense", "Dense, smaller"]


def test_tasks_are_asked_of_the_model_that_is_measured(dlm, half, monkeypatch):
    monkeypatch.setattr(tasks, "accuracy", lambda model, items, **_: 0.25 if model is half else 0.75)
    items = [tasks.TaskItem(PROMPT, "", "", "single", 8)]
    found = dl.compare(dlm, PROMPT, [], pruned=half, tasks=items, **QUICK)
    assert list(found["accuracy"]) == [0.75, 0.25]


def test_audits_are_of_the_model_that_is_measured(dlm, half):
    found = dl.compare(dlm, PROMPT, [POLICY], pruned=half, audit=True, control=False, **QUICK)
    assert list(found["audit"]) == [None, "prompt-pulsecol-50", None, "prompt-pulsecol-50-wanda-2-4"]
    own, other = (found.attrs["audit"][name]["retained_mass"] for name in found["audit"].dropna())
    assert not np.allclose(own.isel(step=-1), other.isel(step=-1), atol=1e-4)
    assert found.attrs["audit"]["prompt-pulsecol-50-wanda-2-4"].spec["name"] == half.spec.name


def test_a_comparison_cut_short_goes_on(dlm, half, tmp_path, monkeypatch):
    run = {"pruned": half, "repeats": 2, "control": False, **QUICK}
    whole = dl.compare(dlm, PROMPT, [POLICY], **run)
    told = []

    def tell(done, total, what):
        told.append((done, total, what))
        if what == "prompt: matrices" and done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dl.compare(dlm, PROMPT, [POLICY], path=tmp_path, **{**run, "progress": tell})
    assert {total for _, total, _ in told} == {9}  # one walk and two rounds of four
    assert told[-1][0] == 9
    assert any(what == "prompt: PulseCol 50%, Wanda 2:4" for *_, what in told)
    keys = [
        json.loads(line).get("key") for line in (tmp_path / "measurements.jsonl").read_text().splitlines()
    ]
    assert keys == [None, "session", ["fidelity", "prompt"], ["round", "prompt", 0]]
    found = dl.compare(dlm, PROMPT, [POLICY], path=tmp_path, **run)
    timed = [
        name for name in whole if "ms" in name.split("_") or "speedup" in name or name.startswith("peak")
    ]
    pd.testing.assert_frame_equal(found.drop(columns=timed), whole.drop(columns=timed))
    monkeypatch.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran a model"))
    pd.testing.assert_frame_equal(dl.compare(dlm, PROMPT, [POLICY], path=tmp_path, **run), found)


def test_measurements_of_another_pruned_model_are_refused(dlm, half, tmp_path):
    run = {"control": False, **QUICK}
    dl.compare(dlm, PROMPT, [], pruned=half, path=tmp_path, **run)
    other = copy.deepcopy(half)
    for parameter in other.layers.parameters():
        parameter.data.mul_(1.5)
    with pytest.raises(ValueError, match=r"pruned\[Wanda 2:4\]\[weights\] was \w+ and is \w+"):
        dl.compare(dlm, PROMPT, [], pruned=other, path=tmp_path, **run)
    with pytest.raises(ValueError, match=r"pruned was .* and is absent"):
        dl.compare(dlm, PROMPT, [], path=tmp_path, **run)


def test_times_of_compiled_layers_are_not_taken_up_by_others(dlm, tmp_path):
    dl.compare(dlm, PROMPT, [], path=tmp_path, **QUICK)
    with pytest.raises(ValueError, match="compiled was absent and is True"):
        dl.compare(copy.deepcopy(dlm).compile(), PROMPT, [], path=tmp_path, repeats=2, **QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": 65}, "'other' has vocab=65, but 'random-llada' has 64: .*pruned from"),
        ({"mask_id": 7}, "'other' has mask_id=7"),
        ({"causal": True}, "'other' has causal=True"),
        ({"family": "dream"}, "'other' has family='dream'"),
        ({"max_length": 27}, "20 tokens, .* exceed the 27 positions"),
    ],
)
def test_models_of_another_kind_are_refused(dlm, half, change, message, monkeypatch):
    monkeypatch.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran a model"))
    other = copy.deepcopy(half)
    other.spec = replace(other.spec, **change)
    with pytest.raises(ValueError, match=message):
        dl.compare(dlm, PROMPT, [], pruned={"other": other}, **QUICK)


def test_what_would_not_compare_pruning_is_refused(dlm, half, monkeypatch):
    monkeypatch.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran a model"))

    def refused(pruned, message, error=ValueError):
        with pytest.raises(error, match=message):
            dl.compare(dlm, PROMPT, [], pruned=pruned, **QUICK)

    refused([half, half], "'Wanda 2:4', which does not tell it apart.* dict of name")
    refused(copy.deepcopy(dlm), f"{dlm.spec.name!r}, which does not tell it apart")
    refused({"": half}, "'', which does not tell")
    refused([dlm.model], r"pruned holds .*expected models", TypeError)
    compiled = copy.deepcopy(half).compile()
    refused(compiled, r"one is compiled and the other is not: .*DLM\.compile\(\) on both")
    refused(
        copy.deepcopy(half).to(dtype=torch.bfloat16),
        r"in bfloat16 on cpu, but .* in float32 on cpu: .*DLM\.to",
    )
    monkeypatch.setattr(half, "encode", lambda prompt: dlm.encode(PROMPT[1:]), raising=False)
    refused(half, "prompt set 'prompt' is not the same tokens for .*Wanda 2:4.* same tokenizer")


def test_a_summary_tells_of_matrices_only_where_there_are_pruned_models(dlm, table):
    read = measure.summary(table)
    assert read.loc["Dense, cut", "weights gone %"] == pytest.approx(50)
    expected = rows(table, "Dense, cut")["linear_speedup"].median()
    assert read.loc["Dense, cut", "matrices ×"] == pytest.approx(expected)
    assert "matrices ms" in read
    assert not any("matrices" in head for head in measure.summary(table.drop(columns=list(OF_MODELS))))


@pytest.mark.gpu
def test_2_4_weights_are_measured_on_sparse_cores(tmp_path):
    shape = {"layers": 2, "hidden": 256, "heads": 4, "kv_heads": 4, "mlp": 512, "vocab": 64}
    dlm = dl.random_model("llada", **shape, device="cuda", dtype=torch.bfloat16)
    half = dl.prune(dlm, "wanda", pattern="2:4", calibration=CALIBRATION, progress=False)[0]
    packed = copy.deepcopy(half).semi_structured()
    run = {"pruned": {"zeros": half, "packed": packed}, "path": tmp_path, **QUICK}
    found = dl.compare(dlm, PROMPT, [POLICY], **run)
    of = {label: rows(found, label).iloc[0] for label in found["policy"]}
    for policy in ("Dense", "PulseCol 50%", "Random columns 50%"):
        dense, zeros, sparse = (of[f"{policy}{model}"] for model in ("", ", zeros", ", packed"))
        assert zeros["amdahl_bound"] == dense["amdahl_bound"] < sparse["amdahl_bound"]
        assert sparse["weight_sparsity"] == zeros["weight_sparsity"] == pytest.approx(0.5, abs=1e-3)
        assert sparse["linear_ms"] > 0
        assert sparse["kl"] == pytest.approx(zeros["kl"], rel=0.5, abs=1e-3)  # another order of the same sums
        assert sparse["kl"] > 0
    assert found["speedup_vs_flash2"].notna().all()
    again = dl.compare(dlm, PROMPT, [POLICY], **run)
    pd.testing.assert_frame_equal(again, found)
    with pytest.raises(ValueError, match=r"pruned\[packed\]\[weights\]"):
        dl.compare(dlm, PROMPT, [POLICY], **{**run, "pruned": {"zeros": half, "packed": half}})
