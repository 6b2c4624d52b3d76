"""Audits: what sparse policies keep per step, layer and head, beside a table of measurements."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure.audit import Audit, audit_names
from dlm_lens.measure.lineup import Entry

PROMPT = torch.arange(1, 21)
RUN = {"gen_length": 8, "steps": 4, "progress": False}
POLICY = dl.PulseCol(sparsity=0.5, group_size=8, refresh_count=1)


@pytest.fixture(scope="module")
def table(random_dlm) -> pd.DataFrame:
    return dl.compare(random_dlm, {"one": PROMPT, "two": PROMPT.flip(0)[:9]}, [POLICY], audit=True, **RUN)


def test_every_sparse_policy_has_a_trace_per_prompt_set(table):
    audit = table.attrs["audit"]
    names = dict(zip(table["prompts"] + " " + table["policy"], table["audit"], strict=True))
    assert names == {
        "one Dense": None,
        "one PulseCol 50%": "one-pulsecol-50",
        "one Random columns 50%": "one-random-columns-50",
        "two Dense": None,
        "two PulseCol 50%": "two-pulsecol-50",
        "two Random columns 50%": "two-random-columns-50",
    }
    assert set(audit) == {name for name in names.values() if name}
    trace = audit["two-pulsecol-50"]
    assert trace.length == 17
    assert trace["retained_mass"].dims == ("step", "layer", "head")
    assert trace.statistics == ("retained_mass",)
    assert list(trace["kind"].values) == ["refresh", "sparse", "sparse", "sparse"]


class KeptByHand:
    """A recorder that adds up the kept columns of whole maps."""

    def __init__(self) -> None:
        self.kept: list[list[np.ndarray]] = []

    def begin_step(self, step, tokens, plan):
        self.kept.append([])

    def observe(self, layer, q, k, context):
        scores = (q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(2, 3)) * q.shape[
            3
        ] ** -0.5
        pattern = context.run.pattern(layer)
        mask = torch.ones_like(scores, dtype=torch.bool)
        if pattern is not None:
            (lists,) = pattern.lists
            group = torch.arange(q.shape[2]) // pattern.group_size
            mask = torch.zeros_like(mask).scatter_(3, lists.columns[:, :, group].long(), True)
        self.kept[-1].append((scores.softmax(-1) * mask).sum(-1).mean(-1)[0].numpy())

    def end_step(self, *_):
        pass


def test_the_recorded_mass_is_that_of_whole_maps(random_dlm, table):
    by_hand = KeptByHand()
    dl.denoise(random_dlm, PROMPT, policy=POLICY, recorder=by_hand, **RUN)
    recorded = table.attrs["audit"]["one-pulsecol-50"]["retained_mass"]
    np.testing.assert_allclose(recorded.values, np.array(by_hand.kept), atol=1e-5)
    assert recorded.isel(step=0).values == pytest.approx(1)
    assert recorded.isel(step=slice(1, None)).max() < 1


def test_traces_follow_the_table_without_being_copied(table):
    audit = table.attrs["audit"]
    part = table[table["policy"] == "PulseCol 50%"].copy()
    assert part.attrs["audit"] is audit
    assert copy.deepcopy(table.attrs)["audit"]["one-pulsecol-50"] is audit["one-pulsecol-50"]
    assert len(pd.concat([table, part])) == 8
    assert "one-pulsecol-50: 4 steps" in repr(audit)
    with pytest.raises(KeyError, match="no audit 'nonsense'; there are 'one-pulsecol-50'"):
        audit["nonsense"]


def test_audits_are_kept_and_opened_again(random_dlm, tmp_path, monkeypatch):
    run = {**RUN, "path": tmp_path, "control": False}
    plain = dl.compare(random_dlm, PROMPT, [POLICY], **run)
    assert "audit" not in plain
    first = dl.compare(random_dlm, PROMPT, [POLICY], audit=True, **run)  # which only adds the audit
    monkeypatch.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran the model again"))
    again = dl.compare(random_dlm, PROMPT, [POLICY], audit=True, **run)
    name = "prompt-pulsecol-50"
    on_disk = dl.open_trace(tmp_path / "audit" / f"{name}.zarr")["retained_mass"].values
    for table in (first, again):
        np.testing.assert_array_equal(table.attrs["audit"][name]["retained_mass"].values, on_disk)
        pd.testing.assert_frame_equal(table.drop(columns="audit"), plain)


def test_names_are_fit_for_folders_and_differ(random_dlm):
    policies = {"A/B 5%": dl.PulseCol(), "a b 5": dl.PulseCol(), "Dense": dl.Dense(), "§": dl.PulseCol()}
    entries = [Entry(label, policy, random_dlm) for label, policy in policies.items()]
    names = audit_names(["§"], entries)
    assert names == {("§", "A/B 5%"): "a-b-5", ("§", "a b 5"): "a-b-5.2", ("§", "§"): "audit"}


def test_an_empty_audit_says_so():
    with pytest.raises(KeyError, match="there are none"):
        Audit({})["x"]
