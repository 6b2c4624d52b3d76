"""Calibration: windows of the texts, noised at each time, the same for the same seed."""

import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure.tasks.held_out import held_out_text
from dlm_lens.pruning.calibration import Calibration, calibration_text, noised


def test_windows_lie_in_one_text_each_and_all_can_be_drawn(random_dlm):
    texts = [torch.arange(0, 12), torch.arange(20, 23), torch.arange(30, 36)]
    rows = Calibration(texts, samples=200, length=5, times=(0,), steps=10**9).sequences(random_dlm)
    assert rows.shape == (200, 5)
    expected = {tuple(range(at, at + 5)) for at in (*range(8), 30, 31)}
    seen = [row for row in rows if not (row == 63).any()]  # a token is masked with probability ε at the least
    assert {tuple(row.tolist()) for row in seen} == expected


def test_every_time_masks_its_share_of_its_own(random_dlm):
    windows = torch.zeros(40, 500, dtype=torch.long)
    result = noised(windows, (5, 25, 50), 50, 63, torch.Generator().manual_seed(0))
    assert result.shape == (40, 3, 500)
    for index, time in enumerate((5, 25, 50)):
        share = (1 - 1e-3) * time / 50 + 1e-3
        assert (result[:, index] == 63).float().mean().item() == pytest.approx(share, abs=0.01)
    assert ((result == 0) | (result == 63)).all()
    both = ((result[:, 0] == 63) & (result[:, 1] == 63)).float().mean().item()
    assert both == pytest.approx(0.1 * 0.5, abs=0.01)  # independent, not nested


def test_the_paper_takes_128_samples_at_ten_times():
    calibration = Calibration()
    assert (calibration.samples, calibration.times) == (128, (5, 10, 15, 20, 25, 30, 35, 40, 45, 50))


def test_an_autoregressive_model_reads_the_text_as_it_is():
    dlm = dl.random_model("ar", layers=1, hidden=8, heads=1, vocab=64, device="cpu")
    rows = Calibration(torch.arange(20), samples=7, length=4).sequences(dlm)
    assert rows.shape == (7, 4)
    assert ((rows[:, 1:] - rows[:, :-1]) == 1).all()


def test_seeds_decide(random_dlm):
    first, again, other = (
        Calibration(torch.arange(50), samples=3, length=9, seed=seed).sequences(random_dlm)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_bundled_text_is_long_enough_and_not_the_held_out_one(tiny):
    assert Calibration(samples=1, length=2048).sequences(tiny).shape == (10, 2048)
    passage, held_out = 300, held_out_text()
    text = calibration_text()
    assert not any(text[at : at + passage] in held_out for at in range(0, len(text) - passage, passage))


def test_a_calibration_shorter_than_the_length_is_refused(random_dlm):
    texts = [torch.arange(5), torch.arange(9)]
    with pytest.raises(ValueError, match="longest of its 2 texts has 9 tokens, length=10 are needed"):
        Calibration(texts, length=10).sequences(random_dlm)


def test_what_else_is_refused(random_dlm):
    with pytest.raises(ValueError, match="no tokenizer"):
        Calibration().sequences(random_dlm)
    with pytest.raises(ValueError, match="exceeds the 4096 positions"):
        Calibration(torch.arange(9), length=5000).sequences(random_dlm)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 0}, "samples=0 must be a whole number"),
        ({"length": 16.5}, "length=16.5 must be a whole number"),
        ({"batch_size": True}, "batch_size=True must be a whole number"),
        ({"times": (5, 51)}, r"diffusion times in 0…50"),
        ({"times": 5}, r"times=5 must be diffusion times in 0…50"),
    ],
)
def test_sizes_and_times_that_are_none_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        Calibration(**wrong)
