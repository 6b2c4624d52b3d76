"""2:4 weights: what is refused, and that all which reads weights reads these."""

import copy
import warnings

import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure.rounds import weights_fingerprint
from dlm_lens.models import semi_structured
from dlm_lens.models.semi_structured import check_hardware, check_matrix, linears_of, stored_bytes
from dlm_lens.pruning import Calibration
from tests.sparse_cores import sparse_cores

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def pruned(family: str = "llada", **shape) -> dl.DLM:
    """A random model, half of the weights of every four in its layers set to zero."""
    dlm = dl.random_model(
        family, **{"hidden": 64, "heads": 4, "mlp": 96, "vocab": 64, "max_length": 512} | shape
    )
    for _, linear in linears_of(dlm.layers):
        groups = linear.weight.detach().unflatten(1, (-1, 4))
        groups.scatter_(2, groups.abs().argsort(2)[..., :2], 0)
    return dlm


def ids(dlm: dl.DLM, rows: int = 1, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(1)).to(dlm.device)


@pytest.fixture
def converted(monkeypatch):
    """A 2:4 model on emulated sparse cores, and the dense one that it is."""
    dense = pruned()
    with sparse_cores(monkeypatch):
        dlm = copy.deepcopy(dense).semi_structured()
        yield dlm, dense


def test_a_model_on_a_cpu_is_refused_and_stays_as_it_is():
    dlm = pruned()
    with pytest.raises(ValueError, match=r"is on cpu, but sparse tensor cores are a GPU's.*device='cuda'"):
        dlm.semi_structured()
    assert not dlm.is_semi_structured


@pytest.mark.parametrize(
    ("devices", "dtype", "said"),
    [
        ((GPU, torch.device("cuda", 1)), torch.bfloat16, "is on cuda:0, cuda:1"),
        ((GPU,), torch.float32, "is in float32, but 2:4 weights must be in bfloat16; convert it"),
        ((GPU,), torch.float16, "is in float16, but 2:4 weights must be in bfloat16"),
        ((GPU,), torch.bfloat16, "compute capability 7.5, but sparse tensor cores begin at 8.0"),
    ],
)
def test_what_cannot_run_on_sparse_cores_is_refused(devices, dtype, said, monkeypatch):
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    with pytest.raises(ValueError, match=said):
        check_hardware("model", devices, dtype)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    check_hardware("model", (GPU,), torch.bfloat16)


def test_a_pytorch_without_the_library_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    with pytest.raises(ValueError, match="has no cuSPARSELt"):
        check_hardware("model", (GPU,), torch.bfloat16)


def test_the_first_group_that_is_not_2_4_is_named():
    weight = torch.zeros(16, 32)
    weight[:, ::2] = 1.0
    check_matrix(weight, "it")
    weight[5, 13], weight[9, 1] = 0.25, 0.5
    with pytest.raises(
        ValueError, match=r"it is not 2:4: .* from input 12 of row 5 .* are 1, 0\.25, 1, 0; prune"
    ):
        check_matrix(weight, "it")


def test_sides_that_sparse_cores_do_not_take_are_named():
    with pytest.raises(
        ValueError, match="it is 24 × 32, but sparse tensor cores take sides that are multiples of 16"
    ):
        check_matrix(torch.zeros(24, 32), "it")


def test_one_matrix_that_is_not_2_4_refuses_all(monkeypatch):
    dlm = pruned()
    dlm.layers[1].mlp.up_proj.weight.data[3, 4:7] = 1.0
    with (
        sparse_cores(monkeypatch),
        pytest.raises(ValueError, match=r"layer 1, mlp\.up_proj of .* is not 2:4"),
    ):
        dlm.semi_structured()
    assert not dlm.is_semi_structured
    with sparse_cores(monkeypatch), pytest.raises(ValueError, match="positions=0 must be at least 1"):
        pruned().semi_structured(positions=0)


def test_what_breaks_midway_leaves_the_model_dense(monkeypatch):
    dlm = pruned()
    before = {name: weight.clone() for name, weight in dlm.model.state_dict().items()}
    with sparse_cores(monkeypatch):
        calls = iter([17, 17])  # two shapes are searched, then no more
        monkeypatch.setattr(semi_structured, "_fastest", lambda packed, dense, positions: next(calls))
        with pytest.raises(StopIteration):
            dlm.semi_structured()
    assert not dlm.is_semi_structured
    for name, weight in dlm.model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_only_algorithms_that_give_the_dense_result_are_timed(monkeypatch):
    asked = []

    def timed(runs, device):
        asked.append([(at, tuple(run().shape)) for at, run in runs.items()])
        return {at: (at - 9) ** 2 for at in runs}

    with sparse_cores(monkeypatch):
        monkeypatch.setattr(semi_structured, "_graph_ms", timed)
        dlm = pruned().semi_structured(positions=48)
        assert {linear.weight.alg_id_cusparselt for _, linear in linears_of(dlm.layers)} == {9}
        right = [at for at in range(18) if at != 3]
        assert asked == [
            [(at, (48, out)) for at in right] for out in (64, 96, 64)
        ]  # one search for each shape
        monkeypatch.setattr(semi_structured, "_graph_ms", lambda runs, device: {at: at for at in runs})
        dlm.semi_structured()  # of weights that are 2:4 already
        assert {linear.weight.alg_id_cusparselt for _, linear in linears_of(dlm.layers)} == {0}


def test_a_library_that_multiplies_nothing_is_an_error(monkeypatch):
    dlm = pruned()
    with sparse_cores(monkeypatch):
        monkeypatch.setattr(semi_structured, "_ALGORITHMS", 0)
        with pytest.raises(
            RuntimeError, match=r"no algorithm of cuSPARSELt .* 2:4 matrix of 64 × 64 in float32"
        ):
            dlm.semi_structured()
        monkeypatch.setattr(semi_structured, "_ALGORITHMS", 32)

        def broken(device):
            raise RuntimeError("the context is dead")

        monkeypatch.setattr(torch.cuda, "synchronize", broken)
        with pytest.raises(RuntimeError, match="the context is dead"):
            dlm.semi_structured()
    assert not dlm.is_semi_structured


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_it_predicts_what_the_dense_weights_do(family, monkeypatch):
    dense = pruned(family)
    if family == "dream":
        for _, linear in linears_of(dense.layers):
            if linear.bias is not None:
                linear.bias.data.normal_()
    with sparse_cores(monkeypatch), warnings.catch_warnings():
        warnings.simplefilter("error")
        dlm = copy.deepcopy(dense).semi_structured()
        assert dlm.is_semi_structured
        assert {linear.weight.alg_id_cusparselt for _, linear in linears_of(dlm.layers)} == {17}
        for length in (1, 7, 24):
            tokens = ids(dlm, 2, length)
            torch.testing.assert_close(dlm.logits(tokens), dense.logits(tokens))
        assert not dlm.densify().is_semi_structured
    for mine, other in zip(dlm.model.parameters(), dense.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_it_is_written_as_dense_weights(converted, tmp_path):
    dlm, dense = converted
    dlm.save(tmp_path)
    loaded = dl.load(tmp_path, device="cpu", progress=False)
    for mine, other in zip(loaded.model.parameters(), dense.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_copy_is_its_own(converted):
    dlm, dense = converted
    other = copy.deepcopy(dlm)
    assert other.is_semi_structured
    other.layers[0].mlp.up_proj.weight.packed.zero_()
    torch.testing.assert_close(dlm.logits(ids(dlm)), dense.logits(ids(dense)))
    assert not torch.allclose(other.logits(ids(other)), dense.logits(ids(dense)))


def test_its_measurements_are_not_those_of_dense_weights(converted):
    dlm, dense = converted
    assert weights_fingerprint(dlm) == weights_fingerprint(copy.deepcopy(dlm)) != weights_fingerprint(dense)
    assert weights_fingerprint(dlm.densify()) == weights_fingerprint(dense)


def test_it_is_not_moved_or_converted(converted):
    dlm, _ = converted
    assert dlm.to("cpu", torch.float32) is dlm
    for asked in ({"device": "meta"}, {"dtype": torch.bfloat16}):
        with pytest.raises(ValueError, match=r"call dlm\.densify\(\) first"):
            dlm.to(**asked)


def test_the_device_it_is_on_may_go_by_its_short_name(converted, monkeypatch):
    dlm, _ = converted
    monkeypatch.setattr(dl.DLM, "device", GPU)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert dlm.to("cuda") is dlm
    with pytest.raises(ValueError, match=r"on cuda:0, which are not moved .*device=cuda:1"):
        dlm.to("cuda:1")


def test_it_is_pruned_already(converted):
    dlm, _ = converted
    with pytest.raises(ValueError, match="is pruned already: its weights are 2:4"):
        dl.prune(dlm, pattern="2:4", calibration=Calibration(ids(dlm)[0], length=8), progress=False)


@pytest.mark.parametrize(
    "policy", [dl.Dense(), dl.PulseCol(group_size=16), dl.WindowDiffusion()], ids=lambda policy: policy.label
)
def test_it_denoises_as_the_dense_weights_do(converted, policy):
    run = {"gen_length": 8, "steps": 4, "policy": policy, "progress": False}
    for rows in (1, 2):
        ours, theirs = (dl.denoise(each, ids(each, rows), **run).tokens for each in converted)
        assert torch.equal(ours, theirs)


def test_it_is_estimated_and_chunked(converted):
    dlm, dense = converted
    assert dl.estimate(dlm, prompt_length=16, gen_length=8).weights == sum(
        map(stored_bytes, dlm.model.parameters())
    )
    assert dlm.chunk_mlp(8).is_semi_structured
    for rows in (1, 2):
        torch.testing.assert_close(dlm.logits(ids(dlm, rows)), dense.logits(ids(dense, rows)))


SHAPE = {"hidden": 256, "heads": 8, "mlp": 704, "vocab": 512, "device": "cuda", "dtype": torch.bfloat16}


@pytest.fixture(scope="module")
def on_gpu():
    """A 2:4 model on sparse tensor cores, and the dense one that it is."""
    dense = pruned(**SHAPE)
    return copy.deepcopy(dense).semi_structured(256), dense


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_sparse_cores_predict_what_dense_ones_do(family):
    dense = pruned(family, **SHAPE)
    exact = copy.deepcopy(dense).to(dtype=torch.float64)
    dlm = copy.deepcopy(dense).semi_structured(256)
    for rows, length in ((1, 1), (1, 100), (2, 257)):
        tokens = ids(dlm, rows, length)
        reference = exact.logits(tokens)
        errors = [
            (each.logits(tokens).double() - reference).norm() / reference.norm() for each in (dlm, dense)
        ]
        assert errors[0] < 1.5 * errors[1] + 1e-3
    dlm.densify()
    for mine, other in zip(dlm.model.parameters(), dense.model.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.gpu
def test_on_a_gpu_it_takes_nine_sixteenths_and_is_copied_and_written(on_gpu, tmp_path):
    dlm, dense = on_gpu
    weight, whole = dlm.layers[0].mlp.up_proj.weight, dense.layers[0].mlp.up_proj.weight
    assert stored_bytes(weight) == stored_bytes(whole) * 9 // 16
    other = copy.deepcopy(dlm)
    torch.testing.assert_close(other.logits(ids(other)), dlm.logits(ids(dlm)), rtol=0, atol=0)
    assert weights_fingerprint(other) == weights_fingerprint(dlm) != weights_fingerprint(dense)
    assert weights_fingerprint(other.densify()) == weights_fingerprint(dense)
    dlm.save(tmp_path)
    loaded = dl.load(tmp_path, device="cuda", progress=False)
    for mine, each in zip(loaded.model.parameters(), dense.model.parameters(), strict=True):
        assert torch.equal(mine, each)


@pytest.mark.gpu
def test_on_a_gpu_compiled_layers_predict_the_same(on_gpu):
    dlm = copy.deepcopy(on_gpu[0])
    before = [dlm.logits(ids(dlm, 1, length)).float() for length in (64, 100)]
    dlm.compile()
    for length, wanted in zip((64, 100), before, strict=True):
        torch.testing.assert_close(dlm.logits(ids(dlm, 1, length)).float(), wanted, rtol=0.05, atol=0.1)
