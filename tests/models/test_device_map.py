"""Models on several devices: where modules go, and that runs are those of one device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dlm_lens as dl
from dlm_lens.models import placement

SIZES = {
    "tiny": {"layers": 4, "hidden": 64, "heads": 4, "kv_heads": 2, "vocab": 128},
    "mid": {"layers": 6, "hidden": 1024, "heads": 8, "kv_heads": 2, "vocab": 4096, "dtype": torch.bfloat16},
}
# The second prompt is padded on the left.
PROMPTS = [list(range(3, 60)), list(range(20, 45))]
POLICIES = [
    dl.Dense(),
    dl.PulseCol(sparsity=0.5, refresh_count=2),
    dl.PulseCol(sparsity=0.5, refresh_count=4, refresh="adaptive", drift=0.0),
    dl.OracleColumns(sparsity=0.5),
    dl.RandomColumns(sparsity=0.5),
    dl.SlidingWindow(),
    dl.SparseD(select=0.5, block_size=32),
    dl.WindowDiffusion(active=8, window=16, refresh_cycle=3),
    dl.FastDLLM(block=16),
    dl.SinkAwareKV(budget=0.5),
    dl.SinkAwareHeads(prune=0.5),
]


@pytest.fixture
def two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")


def halves(layers: int, first: int | str = 0, second: int | str = 1) -> dict[str, int | str]:
    """The first half of the layers here, the others and the head there."""
    there = {f"model.layers.{layer}": second for layer in range(layers // 2, layers)}
    return {"": first, "model.norm": second, "lm_head": second} | there


def saved(folder: Path, family: str, size: str) -> Path:
    dl.random_model(family, **SIZES[size], device="cpu").save(folder, max_shard_size="4MB")
    return folder


def same_run(one: dl.DLM, two: dl.DLM, policy: dl.Policy) -> None:
    runs = [
        dl.denoise(dlm, PROMPTS, gen_length=32, steps=8, policy=policy, seed=3, progress=False)
        for dlm in (one, two)
    ]
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    assert torch.equal(runs[0].committed_at, runs[1].committed_at)


def same_trace(one: dl.DLM, two: dl.DLM, policy: dl.Policy) -> None:
    traces = [
        dl.capture(dlm, PROMPTS, gen_length=32, steps=4, policy=policy, progress=False) for dlm in (one, two)
    ]
    for name, expected in traces[0].dataset.data_vars.items():
        if name != "step_ms":
            found = traces[1].dataset[name].to_numpy()
            if found.dtype.kind == "f":
                np.testing.assert_allclose(found, expected.to_numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(found, expected.to_numpy(), err_msg=name)


def same_logits(one: dl.DLM, two: dl.DLM) -> None:
    tokens = torch.randint(0, one.spec.vocab, (2, 61))
    start = torch.tensor([0, 9])
    for keep in (None, range(7, 30), torch.tensor([[9, 11, 60], [12, 13, 40]])):
        logits = [
            dlm.logits(
                tokens.to(dlm.device),
                start=start.to(dlm.device),
                keep=keep.to(dlm.device) if isinstance(keep, torch.Tensor) else keep,
            )
            for dlm in (one, two)
        ]
        assert logits[1].device == two.device
        valid = slice(9, None) if keep is None else slice(None)
        assert torch.equal(logits[0][:, valid].cpu(), logits[1][:, valid].cpu())


@pytest.mark.gpu
@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_two_gpus_do_what_one_does(family, size, tmp_path):
    folder = saved(tmp_path, family, size)
    one = dl.load(folder, device="cuda:0", dtype=SIZES[size].get("dtype"))
    auto = dl.load(folder, device_map="auto", dtype=SIZES[size].get("dtype"))
    two = dl.load(folder, device_map=halves(one.spec.layers), dtype=SIZES[size].get("dtype"))
    back = dl.load(folder, device_map=halves(one.spec.layers, 1, 0), dtype=SIZES[size].get("dtype"))
    assert [str(device) for device in two.devices] == ["cuda:0", "cuda:1"]
    assert [str(device) for device in back.devices] == ["cuda:1", "cuda:0"]
    assert len(auto.devices) == 2
    for other in (auto, two, back):
        same_logits(one, other)
    for policy in POLICIES:
        same_run(one, two, policy)
        if not isinstance(
            policy, (dl.WindowDiffusion, dl.FastDLLM)
        ):  # of their cached steps there are no traces
            same_trace(one, two, policy)
    same_run(one, back, dl.PulseCol(sparsity=0.5, refresh_count=2))
    same_run(one, auto, dl.WindowDiffusion(active=8, window=16))
    same_run(one, dl.load(folder, device="cuda:1", dtype=SIZES[size].get("dtype")), POLICIES[7])
    tied = [dl.load("tiny", device="cuda:0"), dl.load("tiny", device_map=halves(8) | {"lm_head": 0})]
    same_run(*tied, POLICIES[1])
    with pytest.raises(ValueError, match="lies on cuda:0, cuda:1; load it again with device='cpu'"):
        two.to("cpu")


@pytest.mark.gpu
@pytest.mark.usefixtures("two_gpus")
def test_policies_are_compared_on_two_gpus(tmp_path):
    folder = saved(tmp_path, "llada", "tiny")
    tables = [
        dl.compare(
            dlm,
            [PROMPTS[0]],
            [dl.PulseCol(sparsity=0.5, refresh_count=2), dl.SinkAwareKV(budget=0.5)],
            gen_length=32,
            steps=4,
            repeats=1,
            progress=False,
        )
        for dlm in (dl.load(folder, device="cuda:0"), dl.load(folder, device_map=halves(4)))
    ]
    for column in ("policy", "kl", "retained_mass", "token_agreement"):
        assert tables[0][column].equals(tables[1][column])


@pytest.mark.gpu
@pytest.mark.usefixtures("two_gpus")
def test_too_small_a_bound_on_gpu_memory_is_named(tmp_path):
    folder = saved(tmp_path, "dream", "mid")
    with pytest.raises(dl.MemoryBudgetError, match=r"more than the GPUs have room for .*raise max_memory"):
        dl.load(folder, device_map="auto", max_memory={0: "10MB", 1: "10MB"})


@pytest.fixture(scope="module")
def tiny_dream(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("tiny-dream"), "dream", "tiny")


@pytest.mark.parametrize("policy", [POLICIES[4], POLICIES[7]], ids=lambda policy: policy.label)
def test_runs_are_the_same_through_the_hooks_of_accelerate(policy, tiny_dream):
    from accelerate import dispatch_model

    one, two = dl.load(tiny_dream, device="cpu"), dl.load(tiny_dream, device_map={"": "cpu"})
    everything = placement.blocks(two.model, placement.Placement({"": two.device}))
    dispatch_model(two.model, device_map=everything, force_hooks=True)
    same_logits(one, two)
    same_run(one, two, policy)


def test_the_hooks_are_told_of_blocks_that_do_not_nest(tiny_dream):
    model = dl.load(tiny_dream, device="cpu").model
    first, second = torch.device("cpu"), torch.device("meta")
    chosen = placement.Placement({"": first, "model.layers.3": second, "lm_head": second})
    assert placement.blocks(model, chosen) == {
        "model.embed_tokens": first,
        **{f"model.layers.{layer}": first for layer in range(3)},
        "model.layers.3": second,
        "model.norm": first,
        "model.rotary_emb": first,
        "lm_head": second,
    }


def test_without_a_gpu_auto_is_the_cpu(tiny_dream, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dl.load(tiny_dream, device_map="auto").devices == (torch.device("cpu"),)


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"": "cpu", "lm_head": "disk"}, "'disk' is no device"),
        ({"": "meta"}, "puts modules on meta"),
        ({"": 0, "lm_head": "cpu"}, r"cpu, cuda:0: weights that wait in main memory .* copied at every step"),
        ({"": 0, "lm_head": 2}, "cuda:2 does not exist: 2 CUDA devices"),
        ({"": 0, "lm_haed": 1}, "'lm_haed', but the model has no such module"),
        ({"model": 0}, r"no device for lm_head\.weight"),
        ({"": 0, "model.layers.1.mlp": 1}, r"splits model\.layers\.1 over several devices"),
        ("balanced", "device_map='balanced' must be"),
    ],
)
def test_a_map_that_does_not_fit_is_named(device_map, message, tiny_dream, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        dl.load(tiny_dream, device_map=device_map)


def test_a_shared_weight_lies_on_one_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"lm_head and model\.embed_tokens on different devices"):
        dl.load("tiny", device_map=halves(8))


def test_arguments_that_exclude_each_other(tiny_dream):
    with pytest.raises(ValueError, match="device='cpu' and device_map='auto' exclude each other"):
        dl.load(tiny_dream, device="cpu", device_map="auto")
    with pytest.raises(ValueError, match="max_memory bounds what"):
        dl.load(tiny_dream, max_memory={0: "1GB"})


def test_auto_spreads_whole_layers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(placement, "free_bytes", lambda _: 1 << 40)
    model = dl.random_model("dream", **SIZES["tiny"], device="cpu").model
    chosen = placement.place(model, None, "auto", {0: 1 << 30, 1: 1 << 30})
    of_layers = [str(chosen.of(f"model.layers.{layer}.mlp.up_proj")) for layer in range(4)]
    assert of_layers == sorted(of_layers)
    assert set(of_layers) == {"cuda:0", "cuda:1"}
    assert chosen.of("model.rotary_emb") == chosen.of("model.embed_tokens")
    sizes = placement.weight_bytes(model, chosen)
    assert sum(sizes.values()) == sum(4 * parameter.numel() for parameter in model.parameters())
    with pytest.raises(dl.MemoryBudgetError, match=r"weights take \d+\.\d [KM]B, more than .* \(0: .*, 1: "):
        placement.place(model, None, "auto", {0: "10KB", 1: "10KB"})
