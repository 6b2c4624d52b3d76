"""The policy panel without a browser: previews and measurements as messages, and what the widget keeps of them."""

import json
import threading

import numpy as np
import pytest
import torch

import dlm_lens as dl
from dlm_lens.explorer.policy_choices import CHOICES, controls, policy_chosen
from dlm_lens.explorer.policy_panel import PolicyPanel, prompts_of
from dlm_lens.measure import preview as preview_module
from dlm_lens.measure import summary
from dlm_lens.policy_names import POLICIES, budget_of
from tests.explorer.conftest import synthetic

PATIENCE = 120  # seconds until a thread that does not come to its end fails a test
PROMPT = torch.arange(3, 27)


@pytest.fixture(scope="module")
def traced(random_dlm):
    """A dense run with its maps, 24 + 16 tokens in 4 steps."""
    statistics = [dl.ColumnMass(), dl.PooledMap(bins=8), dl.FullMaps()]
    return dl.capture(random_dlm, PROMPT, gen_length=16, steps=4, statistics=statistics, progress=False)


@pytest.fixture(scope="module")
def padded(random_dlm):
    prompts = [PROMPT, PROMPT[:15]]
    return dl.capture(
        random_dlm, prompts, gen_length=16, steps=4, statistics=[dl.ColumnMass()], progress=False
    )


class Heard:
    """What a panel sends; ``react`` may answer at once, from the panel's thread."""

    def __init__(self, react=lambda message: None):
        self.messages, self.results, self.react = [], [], react

    def __call__(self, message, buffers):
        json.dumps(message, allow_nan=False)
        self.messages.append((message, buffers))
        self.react(message)

    def of(self, kind):
        return [message for message, _ in self.messages if message["type"] == kind]


def panel_of(trace, dlm, react=lambda message: None):
    heard = Heard(react)
    return PolicyPanel(trace, dlm, heard, heard.results.append), heard


def asking(policy="pulsecol", value=70, **where):
    where = {"step": 1, "sample": 0, "layer": -1, "head": -1, "bins": 8} | where
    return {"type": "preview", "key": f"{policy} {value} {where}", "policy": policy, "value": value, **where}


def measuring(policy="pulsecol", value=50, **settings):
    return {
        "type": "measure",
        "policy": policy,
        "value": value,
        "gen_length": 8,
        "steps": 4,
        "repeats": 1,
    } | settings


def test_a_preview_tells_what_the_policy_keeps(traced, random_dlm):
    """In the first layer, whose attention no sparsity has touched, against the recorded maps."""
    panel, heard = panel_of(traced, random_dlm)
    request = asking("oracle", 70, layer=0, head=1)
    panel.receive(request)
    assert panel.wait(PATIENCE)
    ((answer, (kept,)),) = heard.messages
    assert (answer["type"], answer["key"], answer["label"]) == (
        "preview",
        request["key"],
        "Oracle columns 70%",
    )
    maps = traced["full_map"].sel(step=1, layer=0).values.astype(float)
    budget, pairs = round(0.3 * 40), np.zeros((40, 40))
    for head, attention in enumerate(maps):
        total = 0.0
        for first in (0, 32):
            group = attention[first : first + 32]
            best = np.argsort(-group.mean(0), kind="stable")[:budget]
            total += group[:, best].sum()
            if head == 1:
                pairs[first : first + 32, best] = 1
        assert answer["retained"][0][head] == pytest.approx(total / 40, abs=2e-5)
    shares = pairs.reshape(8, 5, 8, 5).mean((1, 3))
    np.testing.assert_allclose(np.frombuffer(kept, np.uint8).reshape(8, 8) / 255, shares, atol=0.003)
    assert answer["density"] == pytest.approx(0.3)


def test_a_padded_sample_is_seen_as_if_it_were_alone(padded, random_dlm):
    panel, heard = panel_of(padded, random_dlm)
    panel.receive(asking(sample=1, bins=0))
    assert panel.wait(PATIENCE)
    alone = preview_module.preview(
        random_dlm,
        torch.from_numpy(padded["tokens"].sel(step=1).values[1, 9:].astype(np.int64)),
        dl.PulseCol(0.7),
        prompt_length=15,
        steps=4,
    )
    np.testing.assert_allclose(heard.messages[0][0]["retained"], alone.retained_mass, atol=2e-5)
    assert heard.messages[0][1] == []


def test_cached_policies_tell_positions(traced, random_dlm):
    panel, heard = panel_of(traced, random_dlm)
    panel.receive(asking("fast-dllm", 90))
    assert panel.wait(PATIENCE)
    (answer,) = heard.of("preview")
    assert answer["retained"] is None
    assert (answer["kind"], answer["computed"], answer["attended"]) == ("cached", 16, 40)


def test_of_previews_only_the_newest_is_finished(traced, random_dlm, monkeypatch):
    begun, go, seen = threading.Event(), threading.Event(), []

    def slow(dlm, tokens, policy, *, watch, **_):
        begun.set()
        assert go.wait(PATIENCE)
        watch()
        seen.append(policy.label)
        return preview_module.Preview("sparse", None, 1.0, None, 1, 1)

    monkeypatch.setattr(preview_module, "preview", slow)
    panel, heard = panel_of(traced, random_dlm)
    panel.receive(asking(value=10))
    assert begun.wait(PATIENCE)
    for value in (20, 30):
        panel.receive(asking(value=value))
    go.set()
    assert panel.wait(PATIENCE)
    assert seen == ["PulseCol 30%"]
    assert [answer["label"] for answer in heard.of("preview")] == ["PulseCol 30%"]


def test_a_measurement_fills_the_table(traced, random_dlm):
    panel, heard = panel_of(traced, random_dlm)
    assert panel.table is None
    panel.receive(measuring(repeats=2))
    assert panel.wait(PATIENCE)
    assert heard.of("error") == []
    assert heard.messages[-1][0] == {"type": "result", "text": "Measured."}
    first = panel.table
    assert list(first["policy"].unique()) == ["Dense", "PulseCol 50%", "Random columns 50%"]
    assert set(first["measurement"]) == {1}
    assert set(first["context"]) == {32}
    assert list(first["repetition"]) == [0, 1] * 3
    (shown,) = heard.results[-1]
    assert shown["settings"] == "24 + 8 tokens, 4 steps, 2 repetitions"
    assert "cpu" in shown["baseline"]
    expected = summary(first)
    for row in shown["rows"]:
        for name, value in zip(shown["columns"], row["values"], strict=True):
            truth = expected.loc[row["policy"], name]
            assert (value is None) == np.isnan(truth)
            assert value is None or value == pytest.approx(truth, rel=1e-3)
    progress = heard.of("progress")
    assert progress
    assert all(0 <= told["done"] <= told["total"] == 7 for told in progress)  # a walk and six runs

    panel.receive(measuring("random", 70))
    assert panel.wait(PATIENCE)
    assert list(panel.table["measurement"]) == [1] * 6 + [2] * 2
    assert [one["policy"] for one in heard.results[-1]] == ["PulseCol 50%", "Random columns 70%"]
    assert len(panel.table.attrs["provenance"]) == 2


def test_cancel_ends_at_the_next_step_and_keeps_nothing(traced, random_dlm, monkeypatch):
    passes = []
    logits = dl.DLM.logits
    monkeypatch.setattr(dl.DLM, "logits", lambda *a, **k: passes.append(1) or logits(*a, **k))
    before = []

    def react(message):
        if message["type"] == "progress" and not before:
            before.append(len(passes))
            panel.receive({"type": "cancel"})

    panel, heard = panel_of(traced, random_dlm, react)
    panel.receive(measuring())
    assert panel.wait(PATIENCE)
    assert heard.messages[-1][0] == {"type": "result", "text": "Cancelled; nothing was kept."}
    assert len(passes) - before[0] <= 2  # a step of the walk may hold the dense pass and a policy's
    assert panel.table is None
    assert heard.results == []
    panel.receive(measuring())
    assert panel.wait(PATIENCE)
    assert len(heard.results) == 1


def test_one_measurement_at_a_time(traced, random_dlm):
    def react(message):
        if message["type"] == "progress" and not heard.of("error"):
            panel.receive(measuring("random", 70))

    panel, heard = panel_of(traced, random_dlm, react)
    panel.receive(measuring())
    assert panel.wait(PATIENCE)
    (error,) = heard.of("error")
    assert (error["of"], error["text"]) == (
        "measure",
        "a measurement is under way; wait for it or cancel it",
    )
    assert len(panel.measured) == 1


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (measuring(gen_length=0), "gen_length=0 must be a whole number"),
        (measuring(steps=None), "steps=None must be a whole number"),
        (measuring(gen_length=40), "40"),
        (measuring("window-diffusion", 16, gen_length=32, steps=1), "only active=16 positions"),
        (measuring("nonsense", 1), "policy 'nonsense' is none of pulsecol"),
        (asking("pulsecol", 100), "sparsity=1.0"),
    ],
)
def test_what_cannot_work_is_told(traced, random_dlm, message, text):
    panel, heard = panel_of(traced, random_dlm)
    panel.receive(message)
    assert panel.wait(PATIENCE)
    ((error, _),) = heard.messages
    assert (error["type"], error["of"], error["key"]) == ("error", message["type"], message.get("key"))
    assert text in error["text"]


def test_an_unexpected_error_is_told_by_name_and_the_panel_lives_on(traced, random_dlm, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    panel, heard = panel_of(traced, random_dlm)
    with monkeypatch.context() as patched:
        patched.setattr(preview_module, "preview", broken)
        panel.receive(asking())
        assert panel.wait(PATIENCE)
    assert heard.of("error")[0]["text"] == "RuntimeError: out of memory"
    assert "in broken" in capsys.readouterr().err
    panel.receive(asking())
    assert panel.wait(PATIENCE)
    assert len(heard.of("preview")) == 1


def test_without_a_model_nothing_is_measured(traced):
    panel, heard = panel_of(traced, None)
    panel.receive(measuring())
    assert heard.of("error")[0]["text"] == "there is no model; pass it: dl.explore(trace, dlm)"
    assert panel.controls()["with_model"] is False


def test_messages_of_others_are_ignored(traced, random_dlm):
    panel, heard = panel_of(traced, random_dlm)
    panel.receive({"type": "slice", "layer": 0})
    panel.receive({"type": "cancel"})
    assert heard.messages == []


def test_a_model_of_another_kind_is_refused(traced):
    other = dl.random_model("llada", layers=3, hidden=32, heads=4, vocab=64)
    with pytest.raises(ValueError, match=r"layers=2, but .* has layers=3"):
        dl.explore(traced, other)


def test_prompts_are_the_trace_s_own(traced, padded):
    assert torch.equal(prompts_of(traced)[0], PROMPT)
    assert [len(prompt) for prompt in prompts_of(padded)] == [24, 15]
    assert torch.equal(prompts_of(padded)[1], PROMPT[:15])


def test_every_policy_but_dense_can_be_chosen():
    assert {choice.name for choice in CHOICES} == set(POLICIES) - {"dense"}
    for choice in CHOICES:
        assert choice.has_budget == (budget_of(choice.name) is not None)
        for value in (choice.number.lo, choice.number.value, choice.number.hi):
            assert isinstance(policy_chosen(choice.name, value), getattr(dl, POLICIES[choice.name]))
        if not choice.has_budget:
            default = getattr(dl, POLICIES[choice.name])()
            assert policy_chosen(choice.name, choice.number.value) == default


def test_settings_begin_with_those_of_the_trace():
    trace = synthetic(steps=5)
    assert controls(trace, with_model=False)["run"] == {"gen_length": 32, "steps": 5, "repeats": 1}


def test_the_widget_measures_shows_and_saves(traced, random_dlm, tmp_path):
    widget = dl.explore(traced, random_dlm)
    assert widget.table is None
    assert widget.get_state("_controls")["_controls"]["with_model"] is True
    widget._handle_custom_msg(measuring(), [])  # what arrives from the browser
    assert widget._policy.wait(PATIENCE)
    assert list(widget.table["policy"]) == ["Dense", "PulseCol 50%", "Random columns 50%"]
    assert widget._measured[0]["policy"] == "PulseCol 50%"
    saved = widget.save_html(tmp_path / "explorer.html").read_text(encoding="utf-8")
    for text in (saved, widget.embed().data):
        assert "24 + 8 tokens, 4 steps, 1 repetition" in text
