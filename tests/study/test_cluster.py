"""Studies on a Ray cluster of real processes: the results of runs by themselves, whatever dies."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if importlib.util.find_spec("ray") is None:  # not imported here: `nodes` sets what it reads then
    pytest.skip("Ray is not installed (the extra `ray`)", allow_module_level=True)

import posology
from posology.engine.checkpoint import left_behind
from posology.errors import UserError
from posology.study import cluster as module
from posology.study import resources
from posology.study.cell import Cell
from posology.study.cluster import RayExecutor
from posology.study.driver import carry_out
from posology.study.executor import Event, Job
from posology.study.ledger import Ledger
from posology.tasks.prepared import PreparedTask
from tests.study.driving import make_cells
from tests.study.nodes import HEAD_BYTES, add_node, cluster_of, node_of
from tests.study.test_driver import weights

LONG = 600
"""Epochs of a run that lives to see a checkpoint, which evaluations write after ten seconds."""


def long(cell: Cell, epochs: int = LONG) -> Cell:
    """The same without early stopping."""
    return cell.model_copy(update={"overrides": cell.overrides | {"epochs": epochs, "patience": epochs}})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with cluster_of(2) as started:
        yield started


@pytest.fixture(scope="module")
def three(cluster: Any) -> Any:
    """The same with a third node: quick tests do not wait for it."""
    add_node(cluster)
    return cluster


@pytest.fixture
def alone(tmp_path: Path) -> Callable[[Cell], dict[str, Any]]:
    """What a run gives by itself, with the number of threads that a run on the cluster has."""

    def train(cell: Cell) -> dict[str, Any]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return posology.train(**cell.arguments(), out=tmp_path / "alone" / cell.key())
        finally:
            torch.set_num_threads(threads)

    return train


def check_same(run: dict[str, Any], cell: Cell, alone: Callable[[Cell], dict[str, Any]]) -> None:
    own = alone(cell)
    assert run["state"] == "done"
    assert weights(Path(run["result"]["artifact"])) == weights(Path(own["artifact"]))
    assert run["result"]["metrics"] == own["metrics"]


def test_results_are_those_of_runs_by_themselves(
    cluster: Any, alone: Any, backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    cells = make_cells(classification.folder, backbone, 2, 2)
    faulty = cells[0].model_copy(update={"seed": 9, "max_memory": 1})
    seen: list[Event] = []
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        runs = carry_out(
            ledger, "s", [*cells, faulty], RayExecutor(cluster.address), watch=lambda e: bool(seen.append(e))
        )
        assert not list(ledger.artifacts.glob(".cluster*"))
    for run, cell in zip(runs[:2], cells, strict=True):
        check_same(run, cell, alone)
        assert run["attempts"] == 1
        states = [event.state for event in seen if event.key == cell.key()]
        assert states[0] == "running" and states[-1] == "done" and set(states[1:-1]) == {"evaluated"}
    assert runs[2]["state"] == "failed" and "memory" in runs[2]["problem"]
    assert len({event.worker for event in seen if event.state == "running"}) > 1, "all on one node"


@pytest.mark.slow
def test_a_node_dies_in_mid_run_and_another_comes(
    three: Any, alone: Any, backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    cells = [
        *map(long, make_cells(classification.folder, backbone, 1, 2)),
        *make_cells(classification.folder, backbone, 5, 2)[1:],
    ]
    killed: list[str] = []
    workers: dict[str, list[str]] = {}

    with Ledger(tmp_path / "ledger.db", write=True) as ledger:

        def watch(event: Event) -> bool:
            if event.state == "running":
                workers.setdefault(event.key, []).append(event.worker or "")
            if event.state == "evaluated" and not killed and left_behind(ledger.artifacts / event.key):
                node = node_of(three, int((event.worker or "").split()[-1]))
                assert node is not None, "the head has too little memory"
                killed.append(event.key)
                three.remove_node(node, allow_graceful=False)
                add_node(three)
            return False

        runs = carry_out(ledger, "s", cells, RayExecutor(three.address, memory=2 * HEAD_BYTES), watch=watch)
    for run, cell in zip(runs, cells, strict=True):
        check_same(run, cell, alone)
    (lost,) = (run for run in runs if run["key"] in killed)
    # More often on a machine so busy that Ray gives up a node that lives.
    assert lost["attempts"] >= 2 and len(set(workers[lost["key"]])) == lost["attempts"]
    assert lost["result"]["training"]["resumed"] >= 1


@pytest.mark.slow
def test_driver_killed_and_started_again(
    three: Any, alone: Any, backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    path, runs, epochs = tmp_path / "ledger.db", 5, 30
    command = [sys.executable, "-m", "tests.study.nodes", three.address, path, classification.folder, backbone]
    for begun in (1, 3):
        driver = subprocess.Popen([*map(str, command), str(runs), str(epochs)], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 90
        try:
            while time.monotonic() < end and driver.poll() is None:
                if path.is_file() and _counted(path, "done") >= begun:
                    break
                time.sleep(0.1)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
    cells = make_cells(classification.folder, backbone, runs, epochs)
    with Ledger(path, write=True) as ledger:
        found = carry_out(ledger, "s", cells, RayExecutor(three.address))
        assert ledger.status()["done"] == runs
    for run, cell in zip(found, cells, strict=True):
        check_same(run, cell, alone)
        assert not left_behind(Path(run["result"]["artifact"]))


def _counted(path: Path, state: str) -> int:
    try:
        with Ledger(path) as ledger:
            return int(ledger.status()[state])
    except UserError:  # it is just being made
        return 0


@pytest.mark.slow
def test_artifacts_and_checkpoints_through_a_url(
    three: Any, alone: Any, backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    cells = make_cells(classification.folder, backbone, 2, 2)
    storage = tmp_path / "bucket"
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        runs = carry_out(ledger, "s", cells, RayExecutor(three.address, storage=f"file://{storage}"))
    for run, cell in zip(runs, cells, strict=True):
        assert Path(run["result"]["artifact"]).parent == tmp_path / "ledger.runs"
        check_same(run, cell, alone)
    assert sorted(path.name for path in storage.iterdir()) == sorted(cell.key() for cell in cells)
    # Another driver, which knows nothing of these runs, finds them there and trains nothing.
    seen: list[Event] = []
    with Ledger(tmp_path / "second.db", write=True) as ledger:
        executor = RayExecutor(three.address, storage=str(storage))
        carry_out(ledger, "s", cells, executor, watch=lambda event: bool(seen.append(event)))
    assert [event.state for event in seen] == ["done", "done"]


@pytest.mark.slow
def test_a_run_is_stopped_when_asked_and_all_when_the_driver_ends(
    three: Any, backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    cells = [long(cell, 10_000) for cell in make_cells(classification.folder, backbone, 2, 2)]
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        (run,) = carry_out(ledger, "s", cells[:1], RayExecutor(three.address), watch=lambda event: True)
    assert run["state"] == "done" and run["result"]["training"]["stopped"] == "pruned"
    key, out = cells[1].key(), tmp_path / "runs" / "1"
    events = RayExecutor(three.address).run([Job(key, cells[1], out)])
    assert next(event for event in events if event.state == "evaluated")
    events.close()  # type: ignore[attr-defined]
    assert left_behind(out), "the worker was given no time for a checkpoint"


@pytest.mark.slow
def test_runs_that_keep_company_in_one_task(
    three: Any, backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    cells = [cell for cell in make_cells(classification.folder, backbone, 8, 2) if cell.method == "lora"]
    workers = set()

    def watch(event: Event) -> bool:
        workers.add(event.worker)
        return False

    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        runs = carry_out(ledger, "s", cells, RayExecutor(three.address, company=True), watch=watch)
    assert [run["state"] for run in runs] == ["done", "done"] and len(workers) == 1


@pytest.mark.slow
def test_no_node_is_large_enough(
    three: Any,
    backbone: Path,
    classification: PreparedTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (cell,) = make_cells(classification.folder, backbone, 1, 1)
    monkeypatch.setattr(resources, "PATIENCE_SECONDS", 3.0)
    monkeypatch.setattr(module, "LOOK_SECONDS", 1.0)
    with pytest.raises(UserError, match="needs 1 CPU, 2 GPU, and no node of the cluster has that"):
        list(RayExecutor(three.address, gpus=2).run([Job(cell.key(), cell, tmp_path / "out")]))
    assert capsys.readouterr().err.count("waiting for one") == 1
    monkeypatch.setattr(resources, "PATIENCE_SECONDS", 60.0)
    added: list[Any] = []
    monkeypatch.setattr(resources.console, "say", lambda message: added.append(add_node(three, num_cpus=2)))
    events = list(RayExecutor(three.address, cpus=2).run([Job(cell.key(), cell, tmp_path / "out")]))
    assert events[-1].state == "done" and len(added) == 1
    three.remove_node(added[0])


def test_clusters_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        begin = time.monotonic()
        for address, problem in (
            (f"127.0.0.1:{port}", "nothing answers"),
            ("nowhere", "HOST:PORT"),
            ("ray://127.0.0.1:10001", "Ray Client"),
        ):
            with pytest.raises(UserError, match=problem):
                list(RayExecutor(address).run([]))
        assert time.monotonic() - begin < 15
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"posology\[ray\]"):
        list(RayExecutor("127.0.0.1:1").run([]))
    with pytest.raises(UserError, match="less than nothing"):
        RayExecutor(cpus=0)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
