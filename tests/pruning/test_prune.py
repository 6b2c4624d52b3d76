"""dl.prune: a pruned copy that reloads, a report, runs that go on, and errors that change nothing."""

import copy
import json
import math

import pandas as pd
import pytest
import torch
from torch import nn

import dlm_lens as dl
from dlm_lens.pruning.amount import Share
from dlm_lens.pruning.criteria import magnitude, wanda
from dlm_lens.pruning.finished import FinishedLayers
from dlm_lens.pruning.streaming import linears_of
from tests.models import adaptable
from tests.pruning.test_streaming import seen_by_hooks

TEXTS = [torch.arange(at, at + 40) % 60 for at in range(3)]
CALIBRATION = dl.Calibration(TEXTS, samples=3, length=16, times=(10, 30, 50), batch_size=4)
AMOUNTS = [{"sparsity": 0.5}, {"pattern": "2:4"}, {"structured": 0.5}]
QUIET = {"calibration": CALIBRATION, "progress": False}


def model(family: str = "llada", **more) -> dl.DLM:
    shape = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 64, **more}
    return dl.random_model(family, **shape, device="cpu")


def weights(dlm: dl.DLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in dlm.model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def matrices(dlm: dl.DLM) -> list[tuple[int, str, nn.Linear]]:
    return [(index, *found) for index, layer in enumerate(dlm.layers) for found in linears_of(layer).items()]


@pytest.mark.parametrize("family", ["llada", "dream", "ar"])
@pytest.mark.parametrize("amount", AMOUNTS, ids=lambda amount: next(iter(amount)))
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_pruned_copy_reloads_with_the_same_logits(family, amount, method, tmp_path):
    dlm = model(family)
    before = weights(dlm)
    pruned, report = dl.prune(dlm, method, sink_aware=method != "magnitude", **amount, **QUIET)
    assert same(weights(dlm), before)
    assert dlm.model.config.num_attention_heads == dlm.spec.heads == 4
    pruned.save(tmp_path)
    again = dl.load(tmp_path, device="cpu")
    tokens = torch.randint(0, 60, (2, 11))
    assert torch.equal(again.logits(tokens), pruned.logits(tokens))
    assert not torch.allclose(pruned.logits(tokens), dlm.logits(tokens), atol=1e-3)
    changed = {name for name in vars(dlm.spec) if getattr(again.spec, name) != getattr(dlm.spec, name)}
    if "structured" in amount:
        assert changed == {"name", "heads", "kv_heads", "mlp"}
        assert (again.spec.heads, again.spec.kv_heads, again.spec.head_dim, again.spec.mlp) == (2, 1, 8, 24)
    else:
        assert changed == {"name"}
        for _, _, linear in matrices(pruned):
            zeros = linear.weight == 0
            if "pattern" in amount:
                assert (zeros.unflatten(1, (-1, 4)).sum(-1) == 2).all()
            assert zeros.float().mean() == 0.5
    assert report.table["sparsity"].tolist() == pytest.approx([0.5, 0.5])
    done = dl.denoise(again, tokens[0], gen_length=4, progress=False)
    assert done.tokens.shape == (1, 15)


def test_layers_are_calibrated_on_the_pruned_ones_before_them():
    dlm = model()
    pruned, _ = dl.prune(dlm, "wanda", sparsity=0.5, **QUIET)
    sequences = CALIBRATION.sequences(dlm)
    whole = copy.deepcopy(dlm)
    for index in range(2):
        inputs = seen_by_hooks(whole, sequences, index)
        for name, linear in linears_of(whole.layers[index]).items():
            linear.weight.data = wanda(linear.weight, inputs[name].norm(dim=0), Share(0.5))
    differing = [
        (mine.weight != its.weight).float().mean().item()
        for (_, _, mine), (_, _, its) in zip(matrices(pruned), matrices(whole), strict=True)
    ]
    assert max(differing) < 0.01  # near ties may fall the other way: norms are summed in another order


def test_only_matrices_of_layers_change_and_magnitude_is_the_criterion():
    dlm = model("dream")
    pruned, _ = dl.prune(dlm, sparsity=0.75, **QUIET)
    for name, tensor in weights(pruned).items():
        original = dlm.model.state_dict()[name]
        is_matrix = ".layers." in name and tensor.ndim == 2
        assert torch.equal(tensor, magnitude(original, Share(0.75)) if is_matrix else original)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_discounting_nothing_is_the_plain_method(method):
    dlm = model()
    plain, plain_report = dl.prune(dlm, method, sparsity=0.5, **QUIET)
    nothing, report = dl.prune(dlm, method, sink_aware=True, kappa=math.inf, sparsity=0.5, **QUIET)
    assert same(weights(plain), weights(nothing))
    assert report.table["discounted"].tolist() == [0.0, 0.0]
    assert plain_report.table["discounted"].isna().all()
    sinks, _ = dl.prune(dlm, method, sink_aware=True, sparsity=0.5, **QUIET)
    control, _ = dl.prune(dlm, method, sink_aware="random", sparsity=0.5, **QUIET)
    results = [weights(each) for each in (plain, sinks, control)]
    assert not any(same(results[i], results[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_reconstruction_helps_and_the_report_says_so():
    dlm = model()
    reports = {name: dl.prune(dlm, name, sparsity=0.5, **QUIET)[1] for name in ("magnitude", "sparsegpt")}
    assert reports["sparsegpt"].error < 0.7 * reports["magnitude"].error
    report = reports["sparsegpt"]
    columns = ["layer", "weights", "nonzero", "sparsity", "error", "discounted"]
    assert list(report.table.columns) == columns
    per_layer = sum(linear.weight.numel() for linear in linears_of(dlm.layers[0]).values())
    assert report.table["weights"].tolist() == [per_layer, per_layer]
    assert report.sparsity == pytest.approx(0.5)
    text = repr(report)
    assert text.startswith("SparseGPT 50%: 50.00% of 15,360 weights gone in 2 layers")
    assert "φ" not in text
    assert "torch" in report.table.attrs["provenance"]
    json.dumps(report.settings)


@pytest.mark.parametrize("kind", adaptable.KINDS)
def test_an_adapted_model_is_pruned_by_whatever_its_matrices_are_called(kind):
    dlm = dl.adapt(adaptable.make(kind))
    pruned, report = dl.prune(dlm, "wanda", sink_aware=True, pattern="4:8", **QUIET)
    assert len(matrices(pruned)) >= 4 * adaptable.LAYERS
    assert all((linear.weight == 0).float().mean() == 0.5 for _, _, linear in matrices(pruned))
    assert (report.table[["error", "discounted"]] > 0).all(axis=None)
    if kind.endswith("bert"):
        with pytest.raises(ValueError, match="structured pruning knows layers of q, k, v"):
            dl.prune(dlm, structured=0.5, **QUIET)


class Interrupted(KeyboardInterrupt):
    pass


def interrupting(passes: int):
    """A progress function that ends the run after so many of its chunks."""

    def tell(done, total, what):
        if done >= passes:
            raise Interrupted

    return tell


@pytest.mark.parametrize("amount", [{"pattern": "2:4"}, {"structured": 0.5}], ids=["pattern", "structured"])
@pytest.mark.parametrize("chunks", [4, 8, 17])
def test_an_interrupted_run_goes_on_to_the_same_bits(amount, chunks, tmp_path, monkeypatch):
    how = {"method": "sparsegpt", "sink_aware": "random", "calibration": CALIBRATION, **amount}
    dlm = model(layers=3)
    whole, report = dl.prune(dlm, progress=False, **how)
    before = weights(dlm)
    with pytest.raises(Interrupted):
        dl.prune(dlm, progress=interrupting(chunks), path=tmp_path, **how)
    assert same(weights(dlm), before)
    kept = len(list(tmp_path.glob("*.safetensors")))
    assert kept == chunks // 6  # two passes of three chunks make a layer
    added = []
    add = FinishedLayers.add
    monkeypatch.setattr(FinishedLayers, "add", lambda self, *what: (added.append(what[0]), add(self, *what)))
    again, resumed = dl.prune(dlm, progress=False, path=tmp_path, **how)
    assert added == list(range(kept, 3))
    assert same(weights(again), weights(whole))
    pd.testing.assert_frame_equal(resumed.table, report.table)
    monkeypatch.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran the model"))
    third, _ = dl.prune(dlm, progress=False, path=tmp_path, **how)
    assert added == list(range(kept, 3))
    assert same(weights(third), weights(whole))
    assert third.spec == whole.spec


def test_a_folder_of_another_pruning_is_refused(tmp_path):
    dlm = model()
    dl.prune(dlm, "wanda", sparsity=0.5, path=tmp_path, **QUIET)
    for changed, message in (
        ({"sparsity": 0.25}, r"how\[amount\] was Share\(sparsity=0.5\) and is Share\(sparsity=0.25\)"),
        ({"sparsity": 0.5, "sink_aware": True}, r"how\[sinks\] was absent and is"),
        ({"sparsity": 0.5, "calibration": dl.Calibration(TEXTS, samples=3, length=8)}, "calibration was"),
    ):
        with pytest.raises(ValueError, match=message):
            dl.prune(dlm, "wanda", path=tmp_path, **{**QUIET, **changed})
    with pytest.raises(ValueError, match="weights was"):
        dl.prune(model(seed=1), "wanda", sparsity=0.5, path=tmp_path, **QUIET)
    _, report = dl.prune(dlm, "wanda", sparsity=0.25, path=tmp_path, overwrite=True, **QUIET)
    assert report.sparsity == pytest.approx(0.25)


def test_a_damaged_layer_is_named(tmp_path):
    dlm = model()
    dl.prune(dlm, sparsity=0.5, path=tmp_path, **QUIET)
    file = tmp_path / "layer_001.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        dl.DlmLensError, match=r"layer 1 is finished, but .*layer_001\.safetensors cannot be read"
    ):
        dl.prune(dlm, sparsity=0.5, path=tmp_path, **QUIET)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "obs", "sparsity": 0.5}, "method='obs' is unknown"),
        ({"sparsity": 0.5, "pattern": "2:4"}, r"one of .* got sparsity=0.5 and pattern='2:4'"),
        ({}, "got none of them"),
        ({"sparsity": 1.0}, r"sparsity=1.0 must be in \[0, 1\)"),
        ({"sparsity": -0.1}, r"sparsity=-0.1 must be in \[0, 1\)"),
        ({"structured": 1.5}, r"structured=1.5 must be in \[0, 1\)"),
        ({"pattern": "4:2"}, "pattern='4:2'"),
        ({"pattern": "2:5"}, r"layer 0, self_attn.q_proj has 32"),
        ({"method": "wanda", "sparsity": 0.5, "sink_aware": "some"}, "sink_aware='some'"),
        ({"sparsity": 0.5, "sink_aware": True}, "looks at no activations"),
        ({"method": "wanda", "sparsity": 0.5, "sink_aware": True, "alpha": 0}, "alpha=0 must be positive"),
        ({"sparsity": 0.5, "calibration": TEXTS}, "shorter than the sequence length"),
        ({"sparsity": 0.5, "calibration": None}, "no tokenizer"),
        ({"sparsity": 0.5, "device": "nowhere"}, "'nowhere' is no device"),
    ],
)
def test_what_cannot_work_is_refused_and_changes_nothing(arguments, message, tmp_path, monkeypatch):
    dlm = model()
    before = weights(dlm)
    monkeypatch.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran the model"))
    with pytest.raises(ValueError, match=message):
        dl.prune(dlm, **{**QUIET, "path": tmp_path / "new", **arguments})
    assert same(weights(dlm), before)
    assert not (tmp_path / "new").exists()


def test_a_pruned_layer_is_not_pruned_again():
    pruned, _ = dl.prune(model(), sparsity=0.25, **QUIET)
    with pytest.raises(
        ValueError, match=r"layer 0, self_attn.q_proj of .* is pruned already: 25% of its weights"
    ):
        dl.prune(pruned, "wanda", sparsity=0.5, **QUIET)
    smaller, _ = dl.prune(model(), structured=0.5, **QUIET)
    both, report = dl.prune(smaller, pattern="2:4", **QUIET)
    assert report.sparsity == 0.5
    assert both.spec.mlp == 24


def test_weights_outside_linear_layers_are_not_passed_over():
    dlm = model()
    dlm.layers[1].experts = nn.Parameter(torch.randn(2, 4, 4))
    with pytest.raises(ValueError, match=r"layer 1 .* in no nn.Linear"):
        dl.prune(dlm, sparsity=0.5, **QUIET)


def test_a_model_on_several_devices_is_computed_where_it_lies(monkeypatch):
    monkeypatch.setattr(dl.DLM, "devices", (torch.device("cpu"), torch.device("meta")))
    with pytest.raises(ValueError, match=r"device='cpu' is for a model on one device, .* lies on cpu, meta"):
        dl.prune(model(), sparsity=0.5, device="cpu", **QUIET)


def agree(one: dl.DLM, other: dl.DLM) -> bool:
    """Whether nearly the same weights went; devices round differently, and near ties may fall the other way."""
    shapes = [[linear.weight.shape for _, _, linear in matrices(dlm)] for dlm in (one, other)]
    gone = [
        torch.cat([linear.weight.flatten().cpu() == 0 for _, _, linear in matrices(dlm)])
        for dlm in (one, other)
    ]
    return shapes[0] == shapes[1] and (gone[0] != gone[1]).float().mean().item() < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("amount", AMOUNTS, ids=lambda amount: next(iter(amount)))
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_gpu_prunes_as_a_cpu_does_where_the_model_lies_or_by_the_layer(on_both_devices, method, amount):
    models = on_both_devices("llada", layers=2, hidden=64, heads=4, kv_heads=2, vocab=64)
    how = {"method": method, "sink_aware": method != "magnitude", **amount, **QUIET}
    expected, report = dl.prune(models[0], **how)
    for dlm, device in ((models[1], None), (models[0], "cuda")):
        pruned, other = dl.prune(dlm, device=device, **how)
        assert pruned.device == dlm.device
        assert agree(pruned, expected)
        pd.testing.assert_frame_equal(other.table, report.table, rtol=0.02)


@pytest.mark.gpu
def test_a_gpu_holds_a_few_layers_at_a_time_and_the_hidden_states():
    dlm = model(layers=16, hidden=512, heads=8, kv_heads=8, mlp=2048)
    whole = 4 * sum(weight.numel() for weight in dlm.model.parameters())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pruned, _ = dl.prune(dlm, "wanda", pattern="2:4", device="cuda", **QUIET)
    assert torch.cuda.max_memory_allocated() - before < 0.6 * whole
    assert pruned.devices == (torch.device("cpu"),)


@pytest.mark.gpu
def test_an_interrupted_run_on_a_gpu_goes_on_to_the_same_bits(tmp_path):
    dlm = dl.random_model(
        "llada", layers=3, hidden=64, heads=4, vocab=64, device="cuda", dtype=torch.bfloat16
    )
    how = {"method": "sparsegpt", "sink_aware": True, "pattern": "2:4", "calibration": CALIBRATION}
    whole, _ = dl.prune(dlm, progress=False, **how)
    with pytest.raises(Interrupted):
        dl.prune(dlm, progress=interrupting(13), path=tmp_path, **how)
    again, _ = dl.prune(dlm, progress=False, path=tmp_path, **how)
    assert same(weights(again), weights(whole))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_model_on_two_gpus_is_pruned_as_on_one(method, tmp_path):
    dl.random_model("llada", layers=4, hidden=64, heads=4, vocab=64, device="cpu").save(tmp_path)
    parts = {f"model.layers.{index}": index // 2 for index in range(4)} | {"": 0}
    two = dl.load(tmp_path, device_map=parts)
    one = dl.load(tmp_path, device="cuda:0")
    results = [dl.prune(dlm, method, sink_aware=True, sparsity=0.5, **QUIET)[0] for dlm in (one, two)]
    assert len(results[1].devices) == 2
    assert agree(*results)
