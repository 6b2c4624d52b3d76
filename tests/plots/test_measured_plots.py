"""Figures of tables of speed and quality: what is drawn, not how it looks."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import dlm_lens as dl
from dlm_lens import plots
from dlm_lens.plots.pareto import pareto_front
from dlm_lens.plots.policy_styles import family, pruned_of, styles
from dlm_lens.plots.style import LIGHT


@pytest.fixture
def table() -> pd.DataFrame:
    """Policies at two budgets and one context, measured twice, as compare returns them."""
    rows = [
        ("Dense", 1.0, 1.0, 0.0, 1.0),
        ("PulseCol 50%", 1.4, 1.5, 0.01, 1.0),
        ("PulseCol 80%", 1.8, 2.2, 0.05, 0.75),
        ("SparseD 80%", 1.6, 2.0, 0.08, 0.5),
        ("Oracle columns 80%", 2.0, 2.4, 0.01, 1.0),
        ("Random columns 80%", 1.9, 2.4, 0.9, 0.0),
    ]
    columns = ["policy", "speedup", "amdahl_bound", "kl", "accuracy"]
    once = pd.DataFrame(rows, columns=columns).assign(context=512, projected=False)
    again = once.assign(speedup=once["speedup"] + 0.2)
    return pd.concat([once, again], ignore_index=True)


def lines(ax) -> dict[str, np.ndarray]:
    return {line.get_label(): np.array(line.get_xydata()) for line in ax.lines}


def test_pareto_draws_a_line_of_medians_per_family(table):
    ax = plots.pareto(table, "accuracy")
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["PulseCol"], [(1.5, 100), (1.9, 75)])
    np.testing.assert_allclose(drawn["Random columns"], [(2.0, 0)])
    assert "measured" in ax.get_xlabel()
    assert "%" in ax.get_ylabel()


def test_the_front_is_marked_without_the_oracle(table):
    # The oracle beats all but is no method; random columns are the fastest of the rest.
    front = lines(plots.pareto(table, "accuracy"))["Pareto front"]
    np.testing.assert_allclose(front, [(1.1, 100), (1.5, 100), (1.9, 75), (2.0, 0)])


@pytest.fixture
def pruned(table) -> pd.DataFrame:
    """The table with two pruned models beside the dense one, as fast and not as good."""
    parts = [table.assign(model="tiny")]
    for number, model in enumerate(("Wanda 50%", "Wanda 75%"), 1):
        worse = {"policy": table["policy"] + f", {model}", "kl": table["kl"] + number}
        parts.append(table.assign(model=model, **worse))
    return pd.concat(parts, ignore_index=True)


def test_pareto_draws_pruned_models_as_lines_of_their_own(pruned):
    ax = plots.pareto(pruned)
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["PulseCol, Wanda 50%"], [(1.5, 1.01), (1.9, 1.05)])
    np.testing.assert_allclose(drawn["PulseCol, Wanda 75%"], [(1.5, 2.01), (1.9, 2.05)])
    looks = {line.get_label(): line for line in ax.lines}
    for name in ("PulseCol", "Dense", "Random columns"):
        own = [looks[f"{name}{model}"] for model in ("", ", Wanda 50%", ", Wanda 75%")]
        assert len({line.get_color() for line in own}) == len({line.get_marker() for line in own}) == 1
        assert len({line.get_fillstyle() for line in own}) == 3
        assert len({line.get_linewidth() for line in own}) == 1
    assert looks["Random columns, Wanda 50%"].get_linewidth() > looks["PulseCol, Wanda 50%"].get_linewidth()
    with pytest.raises(ValueError, match="lacks the control"):
        plots.pareto(pruned[~pruned["policy"].str.startswith("Random")])


def test_speedups_by_context_draw_pruned_models_against_their_bound(pruned):
    table = pruned.assign(context=4096, speedup_vs_flash2=pruned["speedup"])
    ax = plots.speedup_by_context(table[table["policy"].str.match("Dense|PulseCol 80%")])
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["PulseCol 80%, Wanda 50%"], [(4096, 1.9)])
    assert [label for label in drawn if "FlashAttention" in label] == ["PulseCol 80%, over FlashAttention-2"]
    bounds = [strokes.get_offsets()[0][1] for strokes in ax.collections]
    assert bounds == [2.2, 1.0, 2.2, 1.0, 2.2]  # of Dense on pruned models too


def test_only_rows_that_name_their_model_are_of_a_pruned_one(table, pruned):
    assert pruned_of(table) == {}
    found = pruned_of(pd.concat([table, pruned]))  # a table without models first
    assert found["PulseCol 80%, Wanda 75%"] == ("PulseCol 80%", "Wanda 75%")
    assert len(found) == 2 * table["policy"].nunique()


def test_better_is_up_for_kl_too_and_dense_is_on_the_axis(table):
    ax = plots.pareto(table, speed="amdahl_bound")
    assert lines(ax)["Dense"][0].tolist() == [1, 0]
    low, high = ax.get_ylim()
    assert low > 0.9 > 0 > high
    assert "not measured" in ax.get_xlabel()


def test_the_front_reads_as_its_definition():
    random = np.random.default_rng(0)
    speed, value = random.integers(0, 6, (2, 40)).astype(float)
    for more in (True, False):
        expected = [
            not any(
                speed[j] >= speed[i]
                and (value[j] >= value[i] if more else value[j] <= value[i])
                and (speed[j] > speed[i] or value[j] != value[i])
                for j in range(40)
            )
            for i in range(40)
        ]
        assert pareto_front(speed, value, more_is_better=more).tolist() == expected
        assert 0 < sum(expected) < 40


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda t: t[~t["policy"].str.startswith("Random")], {}, "lacks the control 'Random columns'"),
        (lambda t: t.assign(context=[512] * 6 + [1024] * 6), {}, r"mixes the contexts \[512, 1024\]"),
        (lambda t: t.assign(projected=[True, False] * 6), {}, "mixes measured and projected"),
        (lambda t: t.drop(columns="speedup"), {}, "needs speedup"),
        (lambda t: t.assign(kl=np.nan), {}, "needs kl"),
        (lambda t: t, {"quality": "beauty"}, "choose one of kl"),
        (lambda t: t, {"speed": "ms"}, "choose one of speedup"),
    ],
)
def test_a_pareto_that_would_mislead_is_refused(table, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.pareto(change(table), **arguments)


def test_speedups_by_context_are_medians_over_both_baselines(table):
    longer = table.assign(context=16384, speedup=2 * table["speedup"])
    both = pd.concat([table.assign(context=4096), longer])
    both["speedup_vs_flash2"] = 1.5 * both["speedup"]
    ax = plots.speedup_by_context(both[both["policy"].isin(["Dense", "PulseCol 80%"])])
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["PulseCol 80%"], [(4096, 1.9), (16384, 3.8)])
    np.testing.assert_allclose(drawn["PulseCol 80%, over FlashAttention-2"], [(4096, 2.85), (16384, 5.7)])
    assert "Dense, over FlashAttention-2" not in drawn
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [(4096, 2.2), (16384, 2.2)])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4k", "16k"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="context"), "policy, context and speedup"),
        (lambda t: t.iloc[:0], "got 0 rows"),
        (lambda t: t.assign(projected=[True, False] * 6), "mixes measured and projected"),
    ],
)
def test_what_speedups_by_context_need_is_named(table, change, message):
    with pytest.raises(ValueError, match=message):
        plots.speedup_by_context(change(table))


@pytest.fixture
def kernels() -> pd.DataFrame:
    rows = [("columns", 0.8, 0.6), ("columns", 0.5, 0.7), ("blocks", 0.8, 0.9)]
    ours = pd.DataFrame(rows, columns=["kernel", "sparsity", "efficiency"]).assign(
        length=4096, published=False
    )
    theirs = pd.DataFrame({"kernel": ["Other"], "sparsity": [0.9], "efficiency": [0.3], "published": [True]})
    return pd.concat([ours, theirs], ignore_index=True)


def test_efficiency_is_drawn_by_kernel_and_published_figures_apart(kernels):
    ax = plots.efficiency_by_sparsity(kernels)
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["columns"], [(50, 0.7), (80, 0.6)])
    assert "Other" not in drawn
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [(90, 0.3)])
    assert ax.collections[0].get_label() == "Other (published)"


def test_lengths_never_share_a_line(kernels):
    with pytest.raises(ValueError, match="choose one, such as 16384"):
        plots.efficiency_by_sparsity(kernels.assign(length=[4096, 16384, 4096, None]))
    with pytest.raises(ValueError, match="kernel, sparsity and efficiency"):
        plots.efficiency_by_sparsity(kernels.drop(columns="kernel"))


def test_amdahl_draws_shares_bounds_and_what_was_reached():
    steps = pd.DataFrame({"run": ["16k", "64k"], "attention": [1.0, 3.0], "rest": [3.0, 1.0]})
    reached = pd.DataFrame({"run": ["64k"], "policy": ["SparseD"], "sparsity": [0.7], "speedup": [2.0]})
    left, right = plots.amdahl(steps, reached)
    np.testing.assert_allclose([bar.get_width() for bar in left.patches], [25, 75, 75, 25])
    curves = [np.array(line.get_xydata()) for line in right.lines]
    for curve, share in zip(curves[:2], (0.25, 0.75), strict=True):
        np.testing.assert_allclose(curve[:, 1], [1 / (1 - share * x / 100) for x in curve[:, 0]])
    np.testing.assert_allclose(lines(right)["SparseD"], [(70, 2.0)])
    assert {text.get_text() for text in right.texts} == {"16k", "64k"}


def test_amdahl_marks_what_pruned_models_reached():
    steps = pd.DataFrame({"run": ["64k"], "attention": [3.0], "rest": [1.0]})
    reached = pd.DataFrame({"run": "64k", "policy": ["SparseD", "SparseD, cut"], "model": ["tiny", "cut"]})
    _, right = plots.amdahl(steps, reached.assign(sparsity=0.7, speedup=[2.0, 3.0]))
    own, pruned = right.lines[1:]
    assert (own.get_color(), own.get_marker()) == (pruned.get_color(), pruned.get_marker())
    assert own.get_fillstyle() != pruned.get_fillstyle()
    assert {own.get_linestyle(), pruned.get_linestyle()} == {"None"}


def test_amdahl_of_schedules_puts_their_bounds_under_the_curve():
    shape = {"prompt_length": 15360, "gen_length": 1024}
    found = dl.schedule(dl.PulseCol(0.8), 64, "llada-8b", **shape)
    figure, axes = plt.subplots(1, 2)
    left, right = plots.amdahl([found], axes=axes)
    assert left.figure is figure
    np.testing.assert_allclose(left.patches[0].get_width(), 100 * found.attention_share)
    point = lines(right)["PulseCol 80%"][0]
    np.testing.assert_allclose(point, (80, found.bound), rtol=1e-3)
    curve = right.lines[0].get_xydata()
    assert point[1] < np.interp(80, *curve.T)  # refreshes are dense


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "at least one schedule"),
        (pd.DataFrame({"run": ["a"], "attention": [1.0]}), "attention, rest, run"),
        ("window", "has no sparse steps"),
    ],
)
def test_what_amdahl_cannot_draw_is_refused(steps, message):
    if isinstance(steps, str):
        steps = [dl.schedule(dl.WindowDiffusion.llada(), 64, "tiny", prompt_length=64, gen_length=64)]
    with pytest.raises(ValueError, match=message):
        plots.amdahl(steps)


def test_policies_keep_their_looks_and_no_two_are_alike():
    labels = [
        "Dense",
        "PulseCol 80%, groups of 32",
        "PulseCol 80%, groups of 128",
        "Mine",
        "Random columns 80%",
    ]
    found = styles(labels, LIGHT)
    alone = styles(["PulseCol 50%"], LIGHT)["PulseCol 50%"]
    assert found["PulseCol 80%, groups of 32"] == alone
    looks = [tuple(look.values()) for look in found.values()]
    assert len(set(looks)) == len(labels)
    control = found["Random columns 80%"]["color"]
    assert [label for label in labels if found[label]["color"] == control] == ["Random columns 80%"]
    many = styles([f"kernel {n}" for n in range(24)], LIGHT)
    assert len({tuple(look.values()) for look in many.values()}) == 24


def test_policies_on_pruned_models_look_like_themselves_and_no_two_are_alike():
    models = [f"Wanda {share}%" for share in range(12)]
    policies = ["Dense", "PulseCol 80%", "Oracle columns 80%", "Random columns 80%", "Mine"]
    pruned = {f"{policy}, {model}": (policy, model) for model in models for policy in policies}
    found = styles([*policies, *pruned], LIGHT, pruned)
    assert {name: found[name] for name in policies} == styles(policies, LIGHT)
    assert all(found[label]["color"] == found[policy]["color"] for label, (policy, _) in pruned.items())
    assert len({tuple(sorted(look.items())) for look in found.values()}) == 5 * 13


def test_a_family_is_a_label_without_its_budget():
    assert family("Sink-aware KV 50%, no transient sinks") == "Sink-aware KV, no transient sinks"
    assert family("PulseCol 12.5%") == "PulseCol"
    assert family("Window-Diffusion 16/64") == "Window-Diffusion 16/64"
