"""A grid is cut into the cells it names, and a cell is known by what decides its measurement."""

import shutil
from dataclasses import replace

import pytest
import torch

import dlm_lens as dl
from dlm_lens.measure.tasks import TaskItem
from dlm_lens.sweeps.grid import Cell, checkpoint_fingerprint

PROMPT = list(range(1, 9))


def question(first: int) -> TaskItem:
    return TaskItem(torch.arange(first, first + 8), "", "", "single", 8)


def cells(dlm: dl.DLM, **changes) -> list[Cell]:
    options = {"policies": [dl.PulseCol(group_size=8)], "prompts": PROMPT, "gen_length": 8, **changes}
    return dl.Grid(dlm, **options).cells()


def test_cells_are_the_product_of_all_axes(random_dlm):
    found = cells(
        random_dlm,
        policies=[dl.PulseCol(), dl.SparseD(), dl.WindowDiffusion()],
        sparsity=[0.5, 0.8],
        prompts={"a": PROMPT, "b": [PROMPT, PROMPT[2:]]},
        seeds=range(3),
        gen_length=[8, 16],
        steps=[4, 8],
    )
    labels = [
        "Dense", "PulseCol 50%", "PulseCol 80%", "SparseD 50%", "SparseD 80%",
        dl.WindowDiffusion().label, "Random columns 50%", "Random columns 80%",
    ]  # fmt: skip
    assert [cell.label for cell in found[:8]] == labels
    assert len({cell.key for cell in found}) == len(found) == 8 * 2 * 3 * 2 * 2
    assert {(cell.gen_length, cell.steps) for cell in found} == {(8, 4), (8, 8), (16, 4), (16, 8)}
    assert [cell.coordinates["sparsity"] for cell in found[:3]] == [0, 0.5, 0.8]


def test_as_many_steps_as_tokens_and_no_control_if_so_wished(random_dlm):
    found = cells(random_dlm, gen_length=[8, 16], control=False)
    assert [(cell.label, cell.steps) for cell in found] == [
        ("Dense", 8), ("PulseCol 80%", 8), ("Dense", 16), ("PulseCol 80%", 16),
    ]  # fmt: skip


def test_prompts_and_tasks_may_depend_on_the_seed_and_tasks_on_the_prompt_set(random_dlm):
    found = cells(
        random_dlm,
        policies=[],
        prompts={"a": lambda seed: torch.arange(seed, seed + 4), "b": PROMPT},
        seeds=[3, 5],
        tasks={"a": lambda seed: [question(seed)]},
    )
    assert [cell.prompt for cell in found] == [[3, 4, 5, 6], [5, 6, 7, 8], PROMPT, PROMPT]
    assert [[item.prompt[0] for item in cell.tasks] for cell in found] == [[3], [5], [], []]


def test_the_key_is_of_what_is_measured_and_not_of_names(random_dlm):
    (_, cell, _) = cells(random_dlm)
    same = [
        cells(random_dlm, prompts={"other name": torch.tensor(PROMPT)})[1],
        cells(random_dlm, steps=8, seeds=[0])[1],
        replace(cell, model="elsewhere", label="another label"),
    ]
    assert {other.key for other in same} == {cell.key}
    others = [
        cells(random_dlm, **changes)[1].key
        for changes in (
            {"policies": [dl.PulseCol(group_size=4)]},
            {"prompts": PROMPT[1:]},
            {"seeds": 1},
            {"gen_length": 16},
            {"steps": 4},
            {"sampler": dl.LowConfidence(block_length=4)},
            {"tasks": [question(1)]},
            {"tasks": [question(2)]},
            {"capture": True},
            {"capture": [dl.ColumnMass()]},
        )
    ]
    weights = cells(dl.random_model(layers=2, hidden=32, heads=4, vocab=64, seed=1))[1].key
    assert len({cell.key, weights, *others}) == 2 + len(others)


def test_a_checkpoint_is_known_by_its_content(random_dlm, tmp_path):
    random_dlm.save(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    first = checkpoint_fingerprint(str(tmp_path / "one"))
    assert checkpoint_fingerprint(str(tmp_path / "copy")) == first
    (tmp_path / "copy" / "tokenizer_config.json").write_text("{}")
    assert checkpoint_fingerprint(str(tmp_path / "copy")) != first
    dl.random_model(layers=2, hidden=32, heads=4, vocab=64, seed=1).save(tmp_path / "trained")
    assert checkpoint_fingerprint(str(tmp_path / "trained")) != first


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": 3}, TypeError, "model=3: give a name"),
        ({"dtype": torch.float16}, ValueError, "dtype=torch.float16 asked for, but the model is loaded in"),
        (
            {"load": {"max_length": 64}},
            ValueError,
            "load={'max_length': 64} asked for, but the model is loaded",
        ),
        ({"dtype": "int8"}, ValueError, "dtype='int8' is none that models compute in"),
        ({"load": {"device": "cpu"}}, ValueError, r"holds 'device'; say that by sweep\(device=…\)"),
        ({"policies": ["pulsecol"], "sparsity": 0.5}, TypeError, "policies holds 'pulsecol', a str"),
        ({"sparsity": [1.5]}, ValueError, r"sparsity=1\.5"),
        ({"prompts": {}}, ValueError, "holds no prompt set"),
        ({"prompts": 1.5}, TypeError, r"prompts holds 1\.5, a float"),
        ({"seeds": []}, ValueError, "seeds holds nothing"),
        ({"gen_length": [8.0]}, TypeError, r"gen_length holds 8\.0, a float"),
        ({"tasks": {"other": [question(1)]}}, ValueError, r"tasks for unknown prompt sets \['other'\]"),
    ],
)
def test_what_is_no_grid_is_refused(random_dlm, changes, error, message):
    with pytest.raises(error, match=message):
        cells(**{"dlm": random_dlm, **changes}) if "model" not in changes else cells(changes["model"])
