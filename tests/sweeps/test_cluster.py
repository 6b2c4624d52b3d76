"""A sweep on a cluster of two processes, one of which is killed in the middle of a cell."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster

import dlm_lens as dl
from dlm_lens.sweeps import workers
from tests.sweeps.conftest import DETERMINISTIC


@dataclass(frozen=True)
class Deadly(dl.PulseCol):
    """PulseCol whose first start anywhere kills the process, as the system does when memory is short."""

    title = "Deadly"
    marker: str = ""

    def start(self, info):
        try:
            Path(self.marker).touch(exist_ok=False)
        except FileExistsError:
            return super().start(info)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def grid(options, tmp_path_factory) -> dl.Grid:
    marker = str(tmp_path_factory.mktemp("deadly") / "was here")
    deadly = Deadly(sparsity=0.5, group_size=4, marker=marker)
    return dl.Grid(**{**options, "policies": [*options["policies"], deadly], "capture": [dl.ColumnMass()]})


@pytest.fixture(scope="module")
def path(grid, client, tmp_path_factory) -> Path:
    """The folder of a sweep during which a worker was killed."""
    folder = tmp_path_factory.mktemp("killed")
    dl.sweep(grid, client, path=folder, device="cpu", progress=False)
    return folder


def test_nothing_is_lost_and_nothing_counted_twice(grid, path, tmp_path):
    assert Path(grid.policies[1].marker).exists()  # a worker did die
    killed = dl.open_sweep(path).table
    assert len(killed) == len(list((path / "cells").iterdir())) == 8
    assert sorted(os.listdir(path / "traces")) == sorted(Path(trace).name for trace in killed["trace"])
    here = dl.sweep(grid, path=tmp_path, device="cpu", progress=False).table
    pd.testing.assert_frame_equal(killed[DETERMINISTIC], here[DETERMINISTIC])
    assert set(killed["worker"]) <= {"0", "1"}
    assert set(here["worker"]) == {""}
    for one, other in zip(killed["trace"], here["trace"], strict=True):
        ours, theirs = (dl.open_trace(trace)["column_mass"] for trace in (one, other))
        torch.testing.assert_close(torch.tensor(ours.values), torch.tensor(theirs.values))


def test_what_a_cluster_finished_is_taken_up_anywhere(grid, client, path, monkeypatch):
    monkeypatch.setattr(workers, "measure_cell", lambda *arguments: pytest.fail("a cell was measured again"))
    monkeypatch.setattr(client, "submit", lambda *arguments, **options: pytest.fail("a cell was sent"))
    assert dl.sweep(grid, path=path, progress=False).missing == 0
    assert dl.sweep(grid, client, path=path, progress=False).missing == 0


def test_a_second_run_of_a_finished_cell_returns_the_first(grid, client, path):
    cell = grid.cells()[0]
    before = (path / "cells" / f"{cell.key}.json").stat().st_mtime_ns
    record = client.submit(workers.on_worker, cell, str(path), "cpu").result()
    assert record["values"]["total_ms"] == dl.open_sweep(path).table["total_ms"][0]
    assert (path / "cells" / f"{cell.key}.json").stat().st_mtime_ns == before


def test_errors_on_workers_are_rows(options, client, tmp_path):
    half = dl.Grid(
        **{**options, "gen_length": [8, 5000], "tasks": None, "seeds": 0, "policies": [], "steps": 8}
    )
    with pytest.warns(UserWarning, match="1 of 2 cells failed.*ValueError"):
        table = dl.sweep(half, client, path=tmp_path, device="cpu", progress=False).table
    assert list(table["error"].notna()) == [False, True]


def test_ctrl_c_takes_back_what_no_worker_has_begun(options, client, tmp_path):
    def stop(done, total, what):
        raise KeyboardInterrupt

    grid = dl.Grid(**{**options, "tasks": None, "seeds": range(20)})
    with pytest.raises(KeyboardInterrupt):
        dl.sweep(grid, client, path=tmp_path, device="cpu", progress=stop)
    client.run(
        lambda: workers._measuring.acquire() and workers._measuring.release()
    )  # those under way have ended
    left = dl.open_sweep(tmp_path)
    assert len(left.table) > 0
    assert left.missing > 40


def test_models_and_folders_that_workers_do_not_see_are_refused(options, client, random_dlm, tmp_path):
    with pytest.raises(TypeError, match="a loaded model does not travel to a cluster"):
        dl.sweep(dl.Grid(**{**options, "model": random_dlm}), client)
    cell = dl.Grid(**options).cells()[0]
    record = workers.on_worker(cell, str(tmp_path / "elsewhere"), "cpu")
    assert "on a cluster the folder must be one that all workers" in record["error"]


class Lost:
    """A client whose tasks end without a result, as those do that killed too many workers."""

    def __init__(self, client: Client) -> None:
        self._client, self.cancel = client, client.cancel

    def submit(self, function, cell, *more, **options):
        return self._client.submit(int, "no number", pure=False)


def test_a_task_without_a_result_is_a_failed_cell(options, client):
    cells = dl.Grid(**options).cells()[:1]
    [(cell, record)] = workers.on_cluster(Lost(client), cells, None, None)
    assert cell is cells[0]
    assert record["error"].startswith("ValueError: invalid literal")


@pytest.mark.parametrize(
    ("gpus", "visible", "name", "device"),
    [
        (0, None, 0, None),
        (1, None, 0, None),
        (4, None, 2, "cuda:2"),
        (4, None, 5, "cuda:1"),
        (4, "2,3,0,1", 2, None),  # dask-cuda puts the worker's own first
        (4, None, "tcp://10.0.0.1:4000", None),
    ],
)
def test_the_gpu_of_a_worker(gpus, visible, name, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers.own_device(name) == device
