import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import dlm_lens as dl
from dlm_lens.cli import main
from dlm_lens.policy_names import POLICIES, budget_of, policy_of

PROMPT = "def add(first, second):\n    return"
RUN = ["--prompt", PROMPT, "--gen-length", "8", "--steps", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def trace_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "t.zarr"
    assert main(["capture", *RUN, "--policy", "pulsecol", "--layers", "0,2-3", "--out", str(path)]) == 0
    return path


def refused(capsys, *arguments: object) -> str:
    """The message of a command that must fail with exit status 2 and one line on standard error."""
    capsys.readouterr()
    try:
        status: object = main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        status = stopped.code
    output = capsys.readouterr()
    assert status == 2
    lines = [line for line in output.err.splitlines() if line]
    assert lines[-1].startswith("dlm-lens: error: ")
    assert "Traceback" not in output.err
    return lines[-1]


def test_capture_writes_a_trace_of_what_was_asked(trace_path):
    trace = dl.open_trace(trace_path)
    assert trace.steps == (0, 1, 2, 3)
    assert trace.layers == (0, 2, 3)
    assert "retained_mass" in trace.statistics


def test_how_a_model_is_loaded_is_told_by_options(tmp_path, capsys):
    for options, message in (
        (["--dtype", "int8"], "dtype='int8'"),
        (["--device-map", "auto"], "device='cpu' and device_map='auto' exclude each other"),
        (["--max-length", "4"], "exceed the 4 positions"),
    ):
        assert message in refused(capsys, "capture", *RUN, *options, "--out", tmp_path / "t.zarr")


def test_info_says_what_a_trace_holds(trace_path, capsys):
    assert main(["info", str(trace_path)]) == 0
    text = capsys.readouterr().out
    assert "PulseCol" in text
    assert "4 recorded" in text


def test_explore_writes_one_file(trace_path, tmp_path, capsys):
    page = tmp_path / "e.html"
    assert main(["explore", str(trace_path), "--html", str(page)]) == 0
    assert "<html" in page.read_text()
    assert str(page) in capsys.readouterr().out
    assert main(["explore", str(trace_path), "--html", str(page), "--size", "600 kB"]) == 0
    assert page.stat().st_size <= 600_000
    assert main(["explore", str(trace_path), "--against", str(trace_path), "--html", str(page)]) == 0
    assert "tiny A against tiny B · dlm-lens" in page.read_text()


def test_compare_prints_and_writes_the_table(tmp_path, capsys):
    out = tmp_path / "compare.csv"
    command = [
        "compare",
        *RUN,
        "--policies",
        "dense,pulsecol,sparsed,random",
        "--sparsity",
        "0.5",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "speed-up" in text
    assert list(pd.read_csv(out)["policy"]) == ["Dense", "PulseCol 50%", "SparseD 50%", "Random columns 50%"]


def test_compare_takes_every_policy(capsys):
    policies = [name for name in POLICIES if name != "dense"]
    assert main(["compare", *RUN, "--policies", ",".join(policies), "--sparsity", "0.75"]) == 0
    text = capsys.readouterr().out
    for name in policies:
        assert policy_of(name, 0.75 if budget_of(name) else None).label in text


def test_compare_measures_pruned_models_beside_the_dense_one(tmp_path, capsys):
    dl.load("tiny", device="cpu").save(tmp_path / "copy")
    out = tmp_path / "compare.json"
    command = ["compare", *RUN, "--policies", "dense", "--out", str(out), "--pruned"]
    assert main([*command, str(tmp_path / "copy")]) == 0
    assert "matrices ×" in capsys.readouterr().out
    stored = json.loads(out.read_text())
    assert [row["policy"] for row in stored["rows"]] == ["Dense", "Dense, copy"]
    assert [row["token_agreement"] for row in stored["rows"]] == [1, 1]
    assert stored["provenance"]["pruned"] == {"copy": str(tmp_path / "copy")}
    assert "nowhere" in refused(capsys, *command, tmp_path / "nowhere")


def test_compare_goes_on_from_its_folder(tmp_path, capsys, monkeypatch):
    command = ["compare", *RUN, "--path", str(tmp_path / "kept"), "--audit"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert dl.open_trace(tmp_path / "kept" / "audit" / "prompt-pulsecol-80.zarr").statistics == (
        "retained_mass",
    )
    assert "seed was 0 and is 1" in refused(capsys, *command, "--seed", "1")
    with monkeypatch.context() as patched:
        patched.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran the model"))
        assert main(command) == 0
    assert capsys.readouterr().out == table
    assert main([*command, "--overwrite", "--seed", "1"]) == 0


def test_compare_says_where_it_kept_what_was_finished(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dl.LowConfidence, "commit", interrupt)
    assert main(["compare", *RUN, "--path", str(tmp_path)]) == 130
    assert f"{tmp_path} keeps what was finished" in capsys.readouterr().err
    assert main(["compare", *RUN]) == 130
    assert capsys.readouterr().err.endswith("dlm-lens: interrupted\n")


def test_an_audit_needs_a_folder(capsys):
    assert "--audit needs --path" in refused(capsys, "compare", *RUN, "--audit")


def test_schedule_says_what_a_policy_can_save(capsys):
    command = ["schedule", "--policy", "pulsecol", "--shape", "llada-8b", "--tokens", "65536"]
    assert main([*command, "--gen-length", "1024", "--steps", "1024"]) == 0
    printed = capsys.readouterr().out
    plan = dl.schedule(dl.PulseCol(), 1024, "llada-8b", prompt_length=64512, gen_length=1024)
    assert printed.strip() == repr(plan)
    assert "'llada-9b'" in refused(capsys, "schedule", "--shape", "llada-9b")
    assert "must exceed --gen-length 1024" in refused(capsys, "schedule", "--tokens", "1024")
    assert "needs a sparse policy: pulsecol" in refused(
        capsys, "schedule", "--policy", "dense", "--sparsity", "0.5"
    )


def test_prompt_is_read_from_standard_input(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert main(["capture", *RUN, "--prompt", "-", "--out", str(tmp_path / "t.zarr")]) == 0
    expected = dl.load("tiny").encode(PROMPT).tokens.shape[1]
    assert dl.open_trace(tmp_path / "t.zarr").prompt_length == expected


@pytest.mark.parametrize("command", ["demo", "capture", "explore", "compare", "prune", "schedule", "info"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: dlm-lens {command}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.split() == ["dlm-lens", dl.__version__]


def test_unknown_names_list_the_known_ones(capsys, tmp_path):
    out = tmp_path / "t.zarr"
    message = refused(capsys, "capture", *RUN, "--policy", "nonsense", "--out", out)
    assert all(name in message for name in ("nonsense", "dense", "pulsecol", "random"))
    message = refused(capsys, "compare", *RUN, "--policies", "dense,nonsense")
    assert all(name in message for name in ("nonsense", "dense", "pulsecol", "random"))
    message = refused(capsys, "capture", *RUN, "--model", "nonsense", "--out", out)
    assert all(name in message for name in ("nonsense", "tiny"))
    assert not out.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--gen-length", "0"], "gen_length=0"),
        (["--steps", "3", "--gen-length", "64"], "steps=3"),
        (["--layers", "99"], "99"),
        (["--layers", "a-b"], "'a-b' is not a list of numbers"),
        (["--memory-budget", "1 kB"], "budget"),
        (["--policy", "pulsecol", "--sparsity", "1.5"], "1.5"),
        (["--sparsity", "0.5"], "needs a sparse policy"),
        (["--sampler", "left-to-right"], "autoregressive"),
        (["--prompt", ""], "prompt"),
    ],
)
def test_wrong_options_are_refused_and_write_nothing(capsys, tmp_path, changed, message):
    out = tmp_path / "t.zarr"
    assert message in refused(capsys, "capture", *RUN, *changed, "--out", out)
    assert not out.exists()


def test_a_trace_is_replaced_only_when_asked(trace_path, capsys):
    assert str(trace_path) in refused(capsys, "capture", *RUN, "--out", trace_path)
    assert dl.open_trace(trace_path).layers == (0, 2, 3)


def test_what_is_not_a_trace_is_refused(capsys, tmp_path):
    assert "nowhere.zarr" in refused(capsys, "info", tmp_path / "nowhere.zarr")
    (tmp_path / "foreign").mkdir()
    page = tmp_path / "e.html"
    assert "foreign" in refused(capsys, "explore", tmp_path / "foreign", "--html", page)
    assert not page.exists()


def test_tables_that_cannot_be_written_are_refused_before_measuring(capsys, tmp_path):
    assert ".csv or .json" in refused(capsys, "compare", *RUN, "--out", tmp_path / "t.txt")
    assert "no folder" in refused(capsys, "compare", *RUN, "--out", tmp_path / "nowhere" / "t.csv")


def test_retrieval_task_says_how_to_ask_it(tmp_path, capsys):
    command = [
        "retrieval-task",
        "--out",
        str(tmp_path),
        "--name",
        "hops",
        "--variant",
        "two_hop",
        "--length",
        "96",
    ]
    assert main([*command, "--questions", "3"]) == 0
    text = capsys.readouterr().out
    assert f"--include_path {tmp_path} --tasks hops" in text
    assert len((tmp_path / "hops.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "hops.yaml").is_file()
    assert "unknown task variant 'none'" in refused(capsys, *command, "--variant", "none")


@pytest.mark.slow
def test_eval_is_lm_evals_own_command(tmp_path):
    """All the way from a shell, with nothing from a network."""
    asked = ["retrieval-task", "--out", str(tmp_path), "--questions", "2", "--length", "96"]
    assert main(asked) == 0
    model = ["--model", "dlm_lens", "--model_args", "pretrained=tiny,policy=pulsecol,sparsity=0.6,steps=2"]
    task = ["--include_path", tmp_path, "--tasks", "retrieval", "--output_path", tmp_path / "out"]
    command = [
        sys.executable,
        "-m",
        "dlm_lens.cli",
        "eval",
        *model,
        *task,
        "--batch_size",
        "2",
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\|retrieval\|.*\|exact_match", done.stdout)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    config = json.loads(results.read_text())["config"]
    assert config["model_args"]["sparsity"] == 0.6
    assert config["dlm_lens"]["policy"] == "PulseCol 60%"
    assert config["dlm_lens"]["denoising_steps"].keys() == {"refresh", "sparse"}


def test_eval_hands_everything_on(monkeypatch, capsys):
    from lm_eval import __main__

    seen = []
    monkeypatch.setattr(__main__, "cli_evaluate", lambda: seen.append(sys.argv))
    before = sys.argv
    arguments = ["--model", "dlm_lens", "-t", "a,b", "--help", "--version", "-x"]
    assert main(["eval", *arguments]) == 0
    assert seen == [["lm_eval", *arguments]]
    assert sys.argv is before
    assert "unrecognized arguments: --tasks x" in refused(capsys, "demo", "--tasks", "x")
    monkeypatch.setattr("dlm_lens.cli.find_spec", lambda _: None)
    for command in (["eval", "--help"], ["retrieval-task", "--out", "x"]):
        assert "pip install 'dlm-lens[eval]'" in refused(capsys, *command)


def begin_long_capture(path: Path) -> subprocess.Popen:
    """A capture in a process of its own that has finished some of its 128 steps, and far from all."""
    command = [sys.executable, "-m", "dlm_lens.cli", "capture", "--prompt", PROMPT * 20]
    command += ["--gen-length", "128", "--out", str(path), "--device", "cpu"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        # Shells start background jobs deaf to Ctrl-C, and so would be all that these start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None:
        try:
            if len(dl.open_trace(path).steps) >= 2:
                return process
        except dl.TraceError:
            time.sleep(0.02)
    pytest.fail(f"the capture ended on its own: {process.stderr.read()}")


def test_a_killed_capture_leaves_its_finished_steps(tmp_path):
    process = begin_long_capture(tmp_path / "t.zarr")
    process.kill()
    process.communicate()
    trace = dl.open_trace(tmp_path / "t.zarr")
    assert 2 <= len(trace.steps) < 128
    assert trace["column_mass"].sum("position").values == pytest.approx(1, abs=1e-3)
    assert "interrupted" in repr(trace)


def test_ctrl_c_keeps_the_finished_steps_and_says_so(tmp_path):
    process = begin_long_capture(tmp_path / "t.zarr")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    finished = len(dl.open_trace(tmp_path / "t.zarr").steps)
    assert re.search(rf"keeps the {finished} finished steps", errors)
    assert "Traceback" not in errors


def test_demo_writes_all_it_promises_and_can_be_run_again(tmp_path, capsys):
    from dlm_lens.demo import FILES, demo

    small = {"length": 96, "gen_length": 16, "steps": 4, "context": 128, "compare_steps": 4, "questions": 2}
    for _ in range(2):
        demo(tmp_path / "demo", **small)
    assert {path.name for path in (tmp_path / "demo").iterdir()} == set(FILES)
    text = capsys.readouterr().out
    for words in ("Dense", "PulseCol 80%", "Random columns 80%", "correct %", "explorer.html"):
        assert words in text
