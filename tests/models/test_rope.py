"""Rotary embeddings of configurations, and longer contexts than were published."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch

import dlm_lens as dl
from dlm_lens.models.rope import ntk_theta, read_rope, write_rope
from tests.models.published import VOCAB, checkpoint


def test_bases_are_those_of_longllada():
    scales = {
        length: ntk_theta(5e5, head_dim=128, trained=4096, length=length) / 5e5
        for length in (8192, 16384, 24576, 32768)
    }
    assert scales == {8192: 4, 16384: 14, 24576: 31, 32768: 55}


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ({}, {"rope_type": "default", "rope_theta": 1e4}),
        ({"rope_theta": 7, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 7.0}),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 99,
            },
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}},
            {"rope_type": "default", "rope_theta": 3.0},
        ),
    ],
)
def test_parameters_of_a_configuration(published, expected):
    parameters = read_rope(published, theta=1e4, positions=99)
    assert parameters == expected
    assert read_rope(write_rope(parameters), theta=0, positions=0) == expected


def test_a_scaling_that_is_not_computed_is_refused():
    with pytest.raises(ValueError, match=r"'longrope'.*'yarn'"):
        read_rope({"rope_scaling": {"rope_type": "longrope"}}, theta=1e4, positions=99)


def test_a_scaling_without_its_numbers_is_refused():
    with pytest.raises(
        ValueError, match=r"'llama3' needs a number as low_freq_factor, high_freq_factor; it is"
    ):
        read_rope({"rope_scaling": {"type": "llama3", "factor": 8.0}}, theta=1e4, positions=99)


def test_a_linear_scaling_changes_the_angles_as_it_says(tmp_path):
    for name, changes in {"plain": {}, "scaled": {"rope_scaling": {"type": "linear", "factor": 2.0}}}.items():
        checkpoint(tmp_path / name, "dream", **changes)
    plain, scaled = (
        dl.load(tmp_path / name, device="cpu").model.model.rotary_emb for name in ("plain", "scaled")
    )
    torch.testing.assert_close(scaled.inv_freq * 2, plain.inv_freq)
    dl.load(tmp_path / "scaled", device="cpu").save(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_a_longer_context_works_and_warns_once(tmp_path):
    checkpoint(tmp_path, "llada", max_sequence_length=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short = dl.load(tmp_path, device="cpu")
    assert (short.spec.max_length, short.spec.published_length) == (16, None)
    prompt = torch.randint(0, 100, (1, 20))
    with pytest.raises(ValueError, match="16 positions"):
        dl.denoise(short, prompt, gen_length=4, progress=False)
    with pytest.warns(UserWarning, match=r"published for 16 positions; up to 64 .*not promised") as seen:
        dlm = dl.load(tmp_path, device="cpu", max_length=64)
    assert len(seen) == 1
    assert (dlm.spec.max_length, dlm.spec.published_length, dlm.spec.rope_theta) == (64, 16, 5e5)
    dl.denoise(dlm, prompt, gen_length=4, progress=False)
    tokens = torch.randint(0, VOCAB, (1, 12))
    assert torch.equal(dlm.logits(tokens), short.logits(tokens))


def test_the_base_can_be_given_or_follow_from_the_length(tmp_path):
    checkpoint(tmp_path, "llada", max_sequence_length=256)
    given = dl.load(tmp_path, device="cpu", rope_theta=1e7)
    assert given.spec.rope_theta == 1e7
    torch.testing.assert_close(given.model.model.rotary_emb.inv_freq, 1e7 ** -(torch.arange(4) / 4))
    with pytest.warns(UserWarning, match="up to 1024") as seen:
        stretched = dl.load(tmp_path, device="cpu", max_length=1024, rope_theta="ntk")
    covered = 2 * math.ceil(4 * math.log(256 / (2 * math.pi)) / math.log(5e5))
    scale = math.ceil((1024 / (2 * math.pi)) ** (8 / covered) / 5e5)
    assert stretched.spec.rope_theta == 5e5 * scale
    assert "instead" not in str(seen[0].message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": "64k"}, "max_length='64k'"),
        ({"rope_theta": "yarn"}, "rope_theta='yarn'"),
        ({"rope_theta": 0.5}, r"rope_theta=0\.5"),
        ({"rope_theta": "ntk"}, "give a max_length"),
        ({"rope_theta": "ntk", "max_length": 100}, "beyond its 4096 positions"),
    ],
)
def test_lengths_and_bases_that_cannot_be(arguments, message, tmp_path):
    checkpoint(tmp_path, "llada")
    with pytest.raises(ValueError, match=message):
        dl.load(tmp_path, device="cpu", **arguments)
