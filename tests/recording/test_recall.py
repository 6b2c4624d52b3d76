"""Recall against plain loops over whole attention maps."""

import numpy as np
import pytest
import torch

import dlm_lens as dl
from dlm_lens.recording import FullMaps, LayerAttention, Recall, estimate_memory
from tests.tensors import LargestTensor


def seen(length=37, heads=4, kv_heads=2, batch=1, start=None, causal=False, dim=8):
    q, k = torch.randn(batch, heads, length, dim), torch.randn(batch, kv_heads, length, dim)
    return LayerAttention(3 * q, k, start, causal, bins=None, entropy=False)


def columns_keep(rows, count):
    """Probability on the keys with the highest means, over the queries of one group, summed."""
    best = sorted(range(rows.shape[1]), key=lambda key: -rows[:, key].mean())[:count]
    return sum(rows[:, key].sum() for key in best)


def blocks_keep(rows, count, size):
    tiles = [rows[:, at : at + size] for at in range(0, rows.shape[1], size)]
    total = 0.0
    for tile in sorted(tiles, key=lambda tile: -tile.mean()):
        part = min(1.0, count / tile.shape[1])
        total += part * tile.sum()
        count -= part * tile.shape[1]
    return total


def expected(attention, statistic):
    maps = FullMaps()(attention).double().numpy()
    batch, heads = maps.shape[:2]
    first = [0] * batch if attention.start is None else attention.start.tolist()
    found = np.zeros((batch, heads, 2 * len(statistic.groups) + 1, len(statistic.budgets)))
    for b, h in np.ndindex(batch, heads):
        valid = maps[b, h, first[b] :, first[b] :]
        for j, budget in enumerate(statistic.budgets):
            count = max(1, round(budget * len(valid)))
            rows = []
            for shape in ("columns", "blocks"):
                for size in statistic.groups:
                    groups = [valid[at : at + size] for at in range(0, len(valid), size)]
                    keep = columns_keep if shape == "columns" else blocks_keep
                    more = () if shape == "columns" else (size,)
                    rows.append(sum(keep(group, count, *more) for group in groups))
            rows.append(columns_keep(valid, count))
            found[b, h, :, j] = np.array(rows) / len(valid)
    return found


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("length", [37, 48, 5])
def test_agrees_with_loops_over_the_maps(length, padded, causal):
    start = torch.tensor([0, 3]) if padded else None
    attention = seen(length, heads=2, kv_heads=1, batch=2, start=start, causal=causal)
    statistic = Recall(groups=(8, 16, 3), budgets=(0.01, 0.3, 1.0))
    found = statistic(attention)
    assert found.shape == (2, 2, *statistic.shape(length))
    np.testing.assert_allclose(found, expected(attention, statistic), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_pieces_do_not_change_the_result(causal, monkeypatch):
    attention, statistic = seen(64, causal=causal), Recall(groups=(4,))
    whole = statistic(attention)
    monkeypatch.setattr("dlm_lens.recording.recall._PIECE", {False: 4096})
    torch.testing.assert_close(statistic(attention), whole)


@pytest.mark.parametrize("causal", [False, True])
def test_no_map_of_all_heads_is_ever_made(causal):
    length, heads = 512, 8
    attention = seen(length, heads=heads, kv_heads=heads, causal=causal)
    _ = attention.reduced  # the base statistics have a test of their own
    with LargestTensor() as largest:
        Recall(groups=(32,))(attention)
    assert largest.elements < heads * length**2 / 2
    assert largest.elements * 4 <= Recall().workspace(on_gpu=False)


def test_a_trace_keeps_the_labels_when_saved(random_dlm, tmp_path):
    statistic = Recall(groups=(4, 8), budgets=(0.1, 0.3))
    prompts = torch.randint(0, 60, (2, 10))
    trace = dl.capture(
        random_dlm, prompts, gen_length=6, steps=2, statistics=[statistic, FullMaps()], progress=False
    )
    recall = trace["recall"]
    assert recall.dims == ("sample", "step", "layer", "head", "granularity", "budget")
    assert recall["granularity"].values.tolist() == [
        "columns 4",
        "columns 8",
        "blocks 4",
        "blocks 8",
        "columns all",
    ]
    assert recall["budget"].values.tolist() == [0.1, 0.3]
    maps = trace["full_map"].sel(sample=1, step=1, layer=0, head=2).values
    best = recall.sel(sample=1, step=1, layer=0, head=2, granularity="columns all", budget=0.3)
    assert float(best) == pytest.approx(columns_keep(maps, 5) / 16, rel=1e-4)
    again = trace.save(tmp_path / "run.zarr")
    assert again["recall"].equals(recall)
    assert again["recall"].sel(granularity="blocks 8", budget=0.3).shape == (2, 2, 2, 4)
    assert again.save(tmp_path / "again.zarr")["recall"].equals(recall)
    assert set(again.attrs) == set(trace.attrs)
    estimate = estimate_memory([statistic], batch=2, length=16, layers=2, heads=4, steps=2)
    assert estimate.variables["recall"] == recall.nbytes


def test_the_estimate_counts_the_workspace():
    without = estimate_memory([FullMaps()], batch=1, length=8, layers=1, heads=1, steps=1)
    both = estimate_memory([FullMaps(), Recall()], batch=1, length=8, layers=1, heads=1, steps=1)
    assert both.workspace - without.workspace >= Recall().workspace(on_gpu=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": ()}, "groups must be different"),
        ({"groups": (0, 8)}, "groups must be different"),
        ({"groups": (8, 8)}, "groups must be different"),
        ({"budgets": ()}, "budgets must be shares"),
        ({"budgets": (0.1, 1.5)}, "budgets must be shares"),
    ],
)
def test_impossible_parameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recall(**arguments)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-3), (torch.bfloat16, 2e-2)])
def test_a_gpu_finds_the_same(dtype, error):
    attention = seen(length=300, batch=2, start=torch.tensor([0, 21]), dim=32)
    statistic = Recall(groups=(16, 32), budgets=(0.1, 0.5))
    q, k = attention.q.to("cuda", dtype), attention.k.to("cuda", dtype)
    there = LayerAttention(q, k, attention.start.cuda(), False, bins=None, entropy=False)
    torch.testing.assert_close(statistic(there).cpu(), statistic(attention), atol=error, rtol=0)
