import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import dlm_lens as dl
from dlm_lens import measure
from dlm_lens.measure import tasks

PROMPT = torch.arange(1, 21)
QUICK = {"gen_length": 8, "steps": 4, "progress": False}


@pytest.fixture(scope="module")
def table(random_dlm) -> pd.DataFrame:
    policies = [dl.PulseCol(sparsity=0.5, group_size=8), dl.PulseCol(sparsity=0.0)]
    return dl.compare(random_dlm, PROMPT, policies, repeats=2, **QUICK)


def rows(table: pd.DataFrame, policy: str) -> pd.DataFrame:
    return table[table["policy"] == policy]


def test_one_row_per_policy_and_repetition(table):
    assert list(dict.fromkeys(table["policy"])) == [
        "Dense",
        "PulseCol 50%",
        "PulseCol 0%",
        "Random columns 50%",
    ]
    assert (table.groupby("policy")["repetition"].agg(list).map(list) == [[0, 1]] * 4).all()
    assert not table["projected"].any()
    assert set(table["context"]) == {28}
    assert set(table["steps"]) == {4}


def test_dense_is_the_measure_of_itself(table):
    dense = rows(table, "Dense")
    for column in ("speedup", "amdahl_bound", "token_agreement", "argmax_agreement", "retained_mass"):
        assert (dense[column] == 1).all(), column
    assert (dense["kl"] == 0).all()
    assert (dense["ms_dense"] == dense["ms_per_step"]).all()
    assert dense["ms_sparse"].isna().all()


def test_a_policy_that_leaves_out_nothing_loses_nothing(table):
    full = rows(table, "PulseCol 0%")
    assert (full["token_agreement"] == 1).all()
    assert (full["argmax_agreement"] == 1).all()
    assert full["kl"].max() < 1e-6
    assert full["retained_mass"].min() == pytest.approx(1, abs=1e-4)
    assert (full["amdahl_bound"] == 1).all()


def test_a_sparse_policy_pays_and_its_control_shares_its_budget(table):
    sparse, control = rows(table, "PulseCol 50%"), rows(table, "Random columns 50%")
    assert sparse["kl"].min() > 0
    assert 0 < sparse["retained_worst_layer"].min() <= sparse["retained_mass"].min() < 1
    assert control["retained_mass"].max() < sparse["retained_mass"].min()
    assert (sparse["density"].values == control["density"].values).all()
    assert sparse["ms_refresh"].notna().all()
    assert sparse["ms_dense"].isna().all()
    assert (sparse["amdahl_bound"] > 1).all()


def test_speedup_is_total_over_total_of_the_same_repetition(table):
    dense = rows(table, "Dense").set_index("repetition")["total_ms"]
    for _, row in table.iterrows():
        assert row["speedup"] == pytest.approx(dense[row["repetition"]] / row["total_ms"])


def test_provenance_says_where_it_was_measured(table):
    record = table.attrs["provenance"]
    assert {"date", "device", "cpu", "threads", "seed", "torch", "dlm_lens", "dense_backend"} <= set(record)
    assert set(table["backend"]) == {record["dense_backend"]}
    json.dumps(record)


def test_control_can_be_left_out_and_is_not_added_twice(random_dlm):
    without = dl.compare(random_dlm, PROMPT, [dl.PulseCol(sparsity=0.5)], control=False, **QUICK)
    assert list(without["policy"]) == ["Dense", "PulseCol 50%"]
    given = [dl.RandomColumns(sparsity=0.5), dl.PulseCol(sparsity=0.5), dl.Dense()]
    assert list(dl.compare(random_dlm, PROMPT, given, **QUICK)["policy"]) == [
        "Dense",
        "Random columns 50%",
        "PulseCol 50%",
    ]


def test_policies_with_one_label_are_told_apart(random_dlm):
    twins = [dl.PulseCol(sparsity=0.5, group_size=4), dl.PulseCol(sparsity=0.5, group_size=8)]
    table = dl.compare(random_dlm, PROMPT, twins, control=False, **QUICK)
    assert table["policy"].nunique() == 3
    assert any("group_size=4" in label for label in table["policy"])


def test_other_dense_backends_are_baselines_too(random_dlm):
    table = dl.compare(random_dlm, PROMPT, [dl.Dense("math"), dl.Dense("math")], repeats=3, **QUICK)
    assert list(dict.fromkeys(table["policy"])) == ["Dense", "Dense (math)"]
    fastest = table.groupby("policy")["total_ms"].median().idxmin()
    assert (rows(table, fastest)["speedup"] == 1).all()
    assert set(table["backend"]) == {
        "math" if "math" in fastest else table.attrs["provenance"]["dense_backend"]
    }
    assert (table["token_agreement"] == 1).all()


def test_flash_attention_is_no_baseline_where_it_does_not_run(random_dlm, table):
    if random_dlm.device.type == "cpu":
        assert not table["policy"].str.contains("Flash").any()
        assert table["speedup_vs_flash2"].isna().all()
    with pytest.raises(ValueError, match="'flash' needs a CUDA device"):
        dl.compare(dl.random_model(device="cpu"), PROMPT, [dl.Dense("flash")], **QUICK)


@pytest.mark.gpu
def test_flash_attention_takes_turns_with_the_best_backend():
    dlm = dl.random_model(hidden=256, heads=2, device="cuda", dtype=torch.bfloat16)
    table = dl.compare(dlm, PROMPT, [dl.PulseCol(sparsity=0.5)], control=False, **QUICK)
    assert table["speedup_vs_flash2"].notna().all()
    if table.attrs["provenance"]["dense_backend"] == "cuDNN":
        assert list(table["policy"]) == ["Dense", "Dense (FlashAttention-2)", "PulseCol 50%"]
        assert rows(table, "Dense (FlashAttention-2)")["speedup_vs_flash2"].item() == 1
    single = dl.compare(dl.random_model(hidden=256, heads=2, device="cuda"), PROMPT, [], **QUICK)
    assert single["speedup_vs_flash2"].isna().all()


def test_prompt_sets_are_measured_one_by_one(random_dlm):
    table = dl.compare(random_dlm, {"short": PROMPT[:4], "batch": torch.stack([PROMPT, PROMPT])}, [], **QUICK)
    assert list(table["prompts"]) == ["short", "batch"]
    assert list(table["context"]) == [12, 28]
    assert list(table["batch"]) == [1, 2]


def test_accuracy_is_asked_of_every_policy(random_dlm, monkeypatch):
    asked = []

    def accuracy(dlm, items, *, policy, **_):
        asked.append(policy)
        return 0.75

    monkeypatch.setattr(tasks, "accuracy", accuracy)
    items = [tasks.TaskItem(PROMPT, "", "", "single", 8)]
    table = dl.compare(random_dlm, PROMPT, [dl.PulseCol(sparsity=0.5)], tasks=items, **QUICK)
    assert set(table["accuracy"]) == {0.75}
    assert len(asked) == 3


class CachedSteps(dl.Dense):
    """Dense steps that call themselves cached."""

    label = "Cached"

    def start(self, info):
        run = super().start(info)
        plan = run.plan
        run.plan = lambda step, tokens: replace(plan(step, tokens), kind="cached")
        return run


def test_what_cached_steps_keep_is_unknown(random_dlm):
    cached = rows(dl.compare(random_dlm, PROMPT, [CachedSteps()], **QUICK), "Cached")
    assert cached["retained_mass"].isna().all()
    assert cached["retained_worst_layer"].isna().all()
    assert cached["ms_cached"].notna().all()


def test_an_autoregressive_model_is_measured_without_control():
    dlm = dl.random_model("ar", layers=1, hidden=32, heads=2, vocab=32)
    table = dl.compare(dlm, PROMPT, [], gen_length=4, progress=False)
    assert list(table["policy"]) == ["Dense"]
    assert table["kl"].item() == 0


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"repeats": 0}, ValueError, "repeats=0"),
        ({"steps": 3, "gen_length": 64}, ValueError, "steps=3"),
        ({"policies": ["pulsecol"]}, TypeError, "'pulsecol'"),
        ({"prompts": {}}, ValueError, "no prompt set"),
        (
            {"prompts": {"a": PROMPT, "long": torch.ones(4096).long()}},
            ValueError,
            "prompt set 'long' has 4096",
        ),
        ({"policies": [dl.Dense("cudnn")]}, ValueError, "'cudnn' needs a CUDA device"),
        ({"path": __file__}, ValueError, "it is a file"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(monkeypatch, changed, error, message):
    monkeypatch.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran the model"))
    arguments = {"prompts": PROMPT, "policies": [], **QUICK, **changed}
    with pytest.raises(error, match=message):
        dl.compare(dl.random_model(device="cpu"), **arguments)


def test_ctrl_c_ends_the_comparison(random_dlm, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dl.LowConfidence, "commit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dl.compare(random_dlm, PROMPT, [], **QUICK)


def test_summary_takes_medians_and_drops_what_nobody_has(table):
    read = measure.summary(table)
    assert list(read.index) == ["Dense", "PulseCol 50%", "PulseCol 0%", "Random columns 50%"]
    assert "cached ms" not in read
    assert "correct %" not in read
    expected = np.median(rows(table, "PulseCol 50%")["speedup"])
    assert read.loc["PulseCol 50%", "speed-up ×"] == pytest.approx(expected)
    assert "–" in measure.format_summary(table)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_tables_are_written(table, tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    measure.save_table(table, path)
    if suffix == ".csv":
        back = pd.read_csv(path)
    else:
        record = json.loads(path.read_text())
        assert record["provenance"] == table.attrs["provenance"]
        back = pd.DataFrame(record["rows"])
    assert list(back["policy"]) == list(table["policy"])
    assert back["total_ms"].values == pytest.approx(table["total_ms"].values)


def test_unwritable_tables_are_refused(table, tmp_path):
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        measure.save_table(table, tmp_path / "table.pkl")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        measure.save_table(table, tmp_path / "nowhere" / "table.csv")
