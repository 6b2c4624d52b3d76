"""``dlm-lens prune``: what it writes, what it goes on from, and the folders that it leaves alone."""

import json

import pytest

import dlm_lens as dl
from dlm_lens.cli import main
from dlm_lens.pruning.finished import FinishedLayers
from tests.test_cli import PROMPT, refused

PRUNE = ["prune", "tiny", "--method", "wanda", "--samples", "1", "--length", "16", "--device", "cpu"]


def test_prune_writes_a_model_and_its_report(tmp_path, capsys):
    text, out = tmp_path / "text.py", tmp_path / "pruned"
    text.write_text(PROMPT * 10)
    command = [*PRUNE, "--pattern", "2:4", "--sink-aware", "random", "--seed", "3"]
    command += ["--calibration", str(text), "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "random-discount Wanda 2:4: 50.00% of" in printed
    assert f"--model {out}" in printed
    calibration = dl.Calibration(PROMPT * 10, samples=1, length=16, seed=3)
    dlm = dl.load("tiny", device="cpu")
    how = {"pattern": "2:4", "sink_aware": "random", "calibration": calibration}
    expected, report = dl.prune(dlm, "wanda", progress=False, **how)
    tokens = dlm.encode(PROMPT).tokens
    assert dl.load(out, device="cpu").logits(tokens).equal(expected.logits(tokens))
    kept = json.loads((out / "pruning.json").read_text())
    assert kept["label"] == report.label
    assert [row["error"] for row in kept["rows"]] == pytest.approx(report.table["error"].tolist())


def test_a_pruned_model_is_replaced_only_when_asked_and_nothing_else_ever(tmp_path, capsys, monkeypatch):
    out, foreign = tmp_path / "pruned", tmp_path / "thesis"
    command = ["prune", "tiny", "--device", "cpu", "--samples", "1", "--length", "16", "--out"]
    assert main([*command, str(out), "--sparsity", "0.5"]) == 0
    foreign.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(dl, "load", lambda *_, **__: pytest.fail("loaded the model"))
        assert "or --overwrite it" in refused(capsys, *command, out, "--structured", "0.5")
        assert "is no pruned model" in refused(capsys, *command, foreign, "--sparsity", "0.5", "--overwrite")
    assert main([*command, str(out), "--structured", "0.5", "--overwrite"]) == 0
    assert dl.load(out, device="cpu").spec.heads == 4
    assert {path.name for path in tmp_path.iterdir()} == {"pruned", "thesis"}


def test_pruning_goes_on_from_its_folder(tmp_path, capsys, monkeypatch):
    out, path = tmp_path / "pruned", tmp_path / "layers"
    command = [*PRUNE, "--sparsity", "0.5", "--out", str(out)]

    def interrupt(layer: int):
        def add(self, index, *what):
            if index == layer:
                raise KeyboardInterrupt
            real(self, index, *what)

        return add

    real = FinishedLayers.add
    with monkeypatch.context() as patched:
        patched.setattr(FinishedLayers, "add", interrupt(3))
        assert main([*command, "--path", str(path)]) == 130
        assert f"{path} keeps the finished layers, and the same command" in capsys.readouterr().err
        assert main(command) == 130
        assert "nothing is kept without --path" in capsys.readouterr().err
    assert not out.exists()
    assert len(list(path.glob("*.safetensors"))) == 3
    other = refused(capsys, *command, "--path", path, "--seed", "1")
    assert "pass --restart to start anew" in other
    added = []
    monkeypatch.setattr(FinishedLayers, "add", lambda self, *what: (added.append(what[0]), real(self, *what)))
    assert main([*command, "--path", str(path)]) == 0
    assert added == [3, 4, 5, 6, 7]
    again = [*command, "--path", str(path), "--seed", "1", "--restart", "--overwrite"]
    assert main(again) == 0
    assert added[5:] == list(range(8))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([], "one of the arguments --sparsity --pattern --structured is required"),
        (["--sparsity", "0.5", "--pattern", "2:4"], "not allowed with argument"),
        (["--sparsity", "1"], "sparsity=1.0 must be in [0, 1)"),
        (["--pattern", "4:2"], "pattern='4:2'"),
        (["--sparsity", "0.5", "--method", "obs"], "method='obs' is unknown"),
        (["--sparsity", "0.5", "--sink-aware", "some"], "invalid choice: 'some'"),
        (["--sparsity", "0.5", "--samples", "0"], "samples=0"),
        (["--sparsity", "0.5", "--length", "9999"], "length=9999 exceeds the 4096 positions"),
        (["--sparsity", "0.5", "--calibration", "nowhere.txt"], "nowhere.txt"),
        (["--sparsity", "0.5", "--compute-on", "nowhere"], "'nowhere' is no device"),
    ],
)
def test_what_cannot_be_pruned_is_refused_and_writes_nothing(capsys, tmp_path, changed, message):
    assert message in refused(capsys, *PRUNE, *changed, "--out", tmp_path / "pruned")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_pruned_model_is_never_replaced_however_it_is_named(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(dl, "load", lambda *_, **__: pytest.fail("loaded the model"))
    (tmp_path / "thesis").mkdir()
    assert "is no pruned model" in refused(capsys, *PRUNE, "--sparsity", "0.5", "--out=~/thesis")


def test_a_folder_that_comes_while_a_model_is_pruned_stays(capsys, tmp_path, monkeypatch):
    prune, thesis = dl.prune, tmp_path / "pruned" / "thesis.tex"

    def pruning(*what, **how):
        thesis.parent.mkdir()
        thesis.write_text("text")
        return prune(*what, **how)

    monkeypatch.setattr(dl, "prune", pruning)
    command = [*PRUNE, "--sparsity", "0.5", "--out", tmp_path / "pruned"]
    assert "is no pruned model" in refused(capsys, *command)
    assert thesis.read_text() == "text"


@pytest.mark.parametrize("path", ["pruned", "pruned/layers"])
def test_finished_layers_are_not_kept_where_the_model_goes(capsys, tmp_path, path):
    command = [*PRUNE, "--sparsity", "0.5", "--path", tmp_path / path, "--out", tmp_path / "pruned"]
    assert "is replaced as a whole; keep the layers elsewhere" in refused(capsys, *command)
    assert not list(tmp_path.iterdir())


def test_calibration_that_is_no_text_is_named(capsys, tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"abc\xff")
    message = refused(capsys, *PRUNE, "--sparsity", "0.5", "--calibration", file, "--out", tmp_path / "out")
    assert f"{file} is no text in UTF-8" in message
