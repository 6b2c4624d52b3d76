"""Capturing long sequences stays far below the memory that their maps would take."""

import pytest

from dlm_lens.measure.capture_memory import main, measure


@pytest.mark.slow
def test_capture_of_2048_tokens_stays_small():
    found = measure("capture", "tiny", tokens=2048, steps=4)
    assert found["peak"] < 1.5e9
    # The maps of all layers and heads of a single step fill 1.07 GB.
    assert found["peak"] - found["loaded"] < 300e6


def test_both_ways_are_printed(capsys):
    assert main(["--tokens", "128", "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "capture of 2 steps" in printed
    assert "all maps of one step" in printed


def test_too_few_tokens_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["--tokens", "64"])
    assert "--tokens must exceed the 64 that are generated, got 64" in capsys.readouterr().err
