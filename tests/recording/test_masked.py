"""Statistics of windows and blocks against loops over every pair of positions."""

import numpy as np
import pytest
import torch

from dlm_lens.recording import masked
from dlm_lens.recording.masked import Positions, masked_statistics

LENGTH, BINS, HEADS, WIDTH = 17, 5, 4, 8
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")),
]


def by_hand(q, k, allowed, place, first):
    """Column mass [L], pooled map and entropy of one head, from q [Lq, D] and k [Lk, D]."""
    mass, pooled = np.zeros(LENGTH), np.zeros((BINS, BINS))
    entropy, members = np.zeros(BINS), np.zeros(BINS)
    for i, query in enumerate(place.queries):
        if query < first:
            continue
        scores = {
            key: float(q[i] @ k[j]) * 0.3
            for j, key in enumerate(place.keys)
            if key >= first and allowed[i, j]
        }
        total = sum(np.exp(score) for score in scores.values())
        row = query * BINS // LENGTH
        members[row] += 1
        for key, score in scores.items():
            probability = np.exp(score) / total
            mass[key] += probability
            pooled[row, key * BINS // LENGTH] += probability
            entropy[row] -= probability * np.log(probability)
    return mass / members.sum(), pooled / members.clip(1)[:, None], entropy / members.clip(1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "place",
    [Positions(range(LENGTH), range(LENGTH), LENGTH), Positions(range(8, 13), range(3, 13), LENGTH)],
    ids=["window", "block"],
)
def test_statistics_are_those_of_every_pair(place, device, monkeypatch):
    monkeypatch.setattr(masked, "chunk_budget", lambda *_: 2000)  # a few rows at a time
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, HEADS, len(place.queries), WIDTH, generator=generator)
    k = torch.randn(2, 2, len(place.keys), WIDTH, generator=generator)
    distance = torch.tensor(place.queries)[:, None] - torch.tensor(place.keys)
    allowed = (distance.abs() <= 3).expand(2, 1, -1, -1)
    start = torch.tensor([0, 5])
    found = masked_statistics(
        q.to(device), k.to(device), allowed.to(device), place,
        scale=0.3, start=start.to(device), bins=BINS, entropy=True,
    )  # fmt: skip
    assert found.pooled_map is not None
    assert found.row_entropy is not None
    for sample, head in np.ndindex(2, HEADS):
        key_head = k[sample, head // 2]
        mass, pooled, entropy = by_hand(
            q[sample, head], key_head, allowed[sample, 0], place, int(start[sample])
        )
        assert np.allclose(found.column_mass[sample, head].cpu(), mass, atol=1e-6)
        assert np.allclose(found.pooled_map[sample, head].cpu(), pooled, atol=1e-6)
        assert np.allclose(found.row_entropy[sample, head].cpu(), entropy, atol=1e-5)


def test_what_is_not_asked_for_is_not_made():
    everywhere = Positions(range(LENGTH), range(LENGTH), LENGTH)
    q = torch.randn(1, 2, LENGTH, WIDTH)
    found = masked_statistics(q, q, None, everywhere, scale=1.0, start=None, bins=None, entropy=True)
    assert found.pooled_map is None
    assert found.row_entropy is None
    assert torch.allclose(found.column_mass.sum(-1), torch.ones(1, 2))
