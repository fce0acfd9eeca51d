"""Studies on this machine: every run once, whoever is killed, with the results of runs by themselves."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import posology
from posology.engine.checkpoint import Checkpoint
from posology.engine.company import Company
from posology.errors import Interrupted, UserError
from posology.study import local
from posology.study.cell import Cell
from posology.study.driver import carry_out
from posology.study.executor import Event, Job
from posology.study.grouping import in_company
from posology.study.ledger import Ledger
from posology.study.local import LocalExecutor
from posology.study.work import carry_out_company, carry_out_job, finished
from posology.tasks.prepared import PreparedTask, write_prepared
from tests.study.driving import make_cells


def weights(folder: Path) -> dict[str, list[float]]:
    (file,) = [path for path in folder.glob("*.safetensors")]
    return {name: tensor.flatten().tolist() for name, tensor in load_file(file).items()}


class Recorded:
    """An executor that answers from memory, and says what it was given."""

    def __init__(self, *events: Event):
        self.events, self.given, self.stopped = events, list[str](), list[str]()

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        self.given += [job.key for job in jobs]
        yield from self.events

    def stop(self, key: str) -> None:
        self.stopped.append(key)


@pytest.fixture
def cells(backbone: Path, classification: PreparedTask) -> list[Cell]:
    return make_cells(classification.folder, backbone, 4, 2)


def test_keys_are_of_what_a_run_is_and_not_of_what_it_is_called(
    cells: list[Cell], backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    cell = cells[0]
    copy = tmp_path / "copy"
    copy.symlink_to(classification.folder)
    same = [
        cell.model_copy(update=change) for change in ({"task": "another name"}, {"data": copy}, {"max_memory": 10**9})
    ]
    assert {other.key() for other in same} == {cell.key()}
    default = cell.overrides | {"rank": 8}  # what the recipe says anyway
    assert cell.model_copy(update={"overrides": default}).key() == cell.key()
    changes: list[dict[str, Any]] = [
        {"seed": 99}, {"method": "ia3"}, {"shots": 4}, {"max_seconds": 9.0}, {"overrides": {"epochs": 3}},
        {"recipe": "paper"}, {"backbone": f"{backbone}:1"}, {"evaluate_seconds": 1.0},
    ]  # fmt: skip
    others = [cell.model_copy(update=change).key() for change in changes]
    assert len({cell.key(), *others}) == len(changes) + 1


def test_a_study_does_each_run_once_and_reuses_them(cells: list[Cell], tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        first = carry_out(ledger, "s", cells, LocalExecutor(company=False))
        assert [run["state"] for run in first] == ["done"] * 4
        assert [run["attempts"] for run in first] == [1] * 4
        idle = Recorded()
        again = carry_out(ledger, "other", [cell.model_copy(update={"task": "x"}) for cell in cells], idle)
        assert idle.given == [] and [run["value"] for run in again] == [run["value"] for run in first]
        for cell, run in zip(cells, first, strict=True):
            alone = posology.train(**cell.arguments(), out=tmp_path / run["key"])
            assert weights(tmp_path / run["key"]) == weights(Path(run["artifact"]))
            assert run["result"]["metrics"] == alone["metrics"]
            assert len(run["evaluations"]) == 2


def test_runs_on_one_backbone_keep_company(cells: list[Cell], tmp_path: Path) -> None:
    quiet = {"dropout": 0.0, "attention_dropout": 0.0, "adapter_dropout": 0.0}
    cells = [cell.model_copy(update={"overrides": cell.overrides | quiet}) for cell in cells]
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        runs = carry_out(ledger, "s", cells, LocalExecutor())
    workers = {run["state"] for run in runs}
    assert workers == {"done"}
    for cell, run in zip(cells, runs, strict=True):
        posology.train(**cell.arguments(), out=tmp_path / run["key"])
        alone, together = weights(tmp_path / run["key"]), weights(Path(run["artifact"]))
        for name, values in alone.items():
            assert together[name] == pytest.approx(values, abs=1e-4), (cell.method, name)


def test_watching_ends_a_run_with_its_best_state(cells: list[Cell], tmp_path: Path) -> None:
    cell = cells[0].model_copy(update={"overrides": {**cells[0].overrides, "epochs": 50}})
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        (run,) = carry_out(ledger, "s", [cell], LocalExecutor(), watch=lambda event: event.state == "evaluated")
        assert run["result"]["training"]["stopped"] == "pruned"
        assert len(run["evaluations"]) < 50 and run["value"] is not None
        again = Recorded()
        carry_out(ledger, "t", [cell], again, watch=lambda event: True)
        assert again.given == []  # who prunes takes what was pruned
        carry_out(ledger, "u", [cell], again)
        assert again.given == [run["key"]] and not Path(run["artifact"]).exists()


def test_events_become_rows_and_failures_are_not_tried_again_unasked(cells: list[Cell], tmp_path: Path) -> None:
    keys = [cell.key() for cell in cells[:2]]
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        failing = Recorded(Event(keys[0], "running"), Event(keys[0], "failed", problem="no such thing"))
        runs = carry_out(ledger, "s", cells[:2], failing)
        assert [run["state"] for run in runs] == ["failed", "pending"] and runs[0]["problem"] == "no such thing"
        second, third = Recorded(), Recorded()
        carry_out(ledger, "s", cells[:2], second)
        carry_out(ledger, "s", cells[:2], third, retry=True)
        assert (second.given, third.given) == (keys[1:], keys)


def test_a_run_that_cannot_be_fails_alone(cells: list[Cell], tagging: PreparedTask, tmp_path: Path) -> None:
    faulty = cells[0].model_copy(update={"overrides": {**cells[0].overrides, "learning_rate": 9.0, "epochs": 9}})
    wrong = Cell(task="t", data=tagging.folder, backbone=None, method="dictionary", seed=3)
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        runs = carry_out(ledger, "s", [wrong, faulty, cells[1]], LocalExecutor())
        assert runs[0]["state"] == runs[2]["state"] == "done"
        with pytest.raises(UserError, match="dictionari"):
            carry_out(ledger, "t", [cells[1].model_copy(update={"method": "dictionari"})], LocalExecutor())


def test_workers_that_die_before_they_begin_are_not_replaced_for_ever(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def stillborn(device: str | None, sharing: int) -> local._Worker:
        here, there = multiprocessing.Pipe()
        process: Any = multiprocessing.get_context("fork").Process(target=os._exit, args=(3,))
        process.device, process.sharing = device, sharing
        process.start()
        there.close()
        started.append(process)
        return local._Worker(process, here)

    monkeypatch.setattr(local, "_start", stillborn)
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        with pytest.raises(UserError, match=r"5 workers in a row .* \(exit status 3\)"):
            carry_out(ledger, "s", cells[:2], LocalExecutor())
        assert len(started) == 5
        assert {run["state"] for run in ledger.runs("s")} == {"pending"}


def test_what_was_finished_but_not_recorded_is_not_done_again(cells: list[Cell], tmp_path: Path) -> None:
    job = Job(cells[0].key(), cells[0], tmp_path / "run")
    assert finished(job) is None
    seen: list[Event] = []
    first = carry_out_job(job, seen.append)
    assert first.state == "done" and [event.state for event in seen] == ["running", "evaluated", "evaluated"]
    assert finished(job) == first.result
    seen.clear()
    assert carry_out_job(job, seen.append).result == first.result and seen == []


def _start(ledger: Path, task: PreparedTask, backbone: Path, runs: int, epochs: int) -> subprocess.Popen[bytes]:
    arguments = [str(ledger), str(task.folder), str(backbone), str(runs), str(epochs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.study.driving", *arguments], env=environment, stderr=subprocess.DEVNULL
    )


def _workers(ledger: Path) -> list[int]:
    with Ledger(ledger) as opened:
        return [int(run["worker"]) for run in opened.runs(state="running") if run["worker"]]


def _killed_and_finished(
    ledger: Path, task: PreparedTask, backbone: Path, runs: int, epochs: int, kills: list[str], draw: random.Random
) -> None:
    """Starts a study, kills what `kills` names at random moments after something was done, and lets it end."""
    for number, what in enumerate(kills):
        driver = _start(ledger, task, backbone, runs, epochs)
        before = _done(ledger)
        end = time.monotonic() + 120
        while driver.poll() is None and _done(ledger) <= before and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(draw.random())
        workers = _workers(ledger) if _done(ledger) else []
        if what in ("worker", "both") and workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(workers), signal.SIGKILL)
            time.sleep(draw.random() * 0.5)
        if what == "worker" and number + 1 < len(kills):
            time.sleep(draw.random())
        if what != "worker" or number + 1 < len(kills):
            driver.kill()
        driver.wait(240)
        with Ledger(ledger) as opened:
            assert opened.check() == []
    last = _start(ledger, task, backbone, runs, epochs)
    assert last.wait(600) == 0


def _done(ledger: Path) -> int:
    try:
        with Ledger(ledger) as opened:
            return opened.status()["done"]
    except UserError:
        return 0


def _check(ledger: Path, cells: list[Cell], tmp_path: Path) -> None:
    """Every run is there once, as if nothing had happened."""
    reference = tmp_path / "undisturbed.db"
    arguments = [str(reference), str(cells[0].data), str(cells[0].backbone), str(len(cells))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.study.driving", *arguments, str(cells[0].overrides["epochs"])],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    assert done.returncode == 0
    with Ledger(ledger) as one, Ledger(reference) as other:
        assert one.check() == []
        assert one.status("s") == {"pending": 0, "running": 0, "done": len(cells), "failed": 0}
        for mine, theirs in zip(one.runs("s"), other.runs("s"), strict=True):
            assert (mine["key"], mine["value"], mine["low"]) == (theirs["key"], theirs["value"], theirs["low"])
            assert weights(Path(mine["artifact"])) == weights(Path(theirs["artifact"]))
            curves = [
                [(each["step"], each["score"]) for each in own.run(mine["key"])["evaluations"]] for own in (one, other)
            ]
            assert curves[0] == curves[1]


def test_driver_and_worker_killed(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    cells = make_cells(classification.folder, backbone, 6, 8)
    ledger = tmp_path / "ledger.db"
    _killed_and_finished(ledger, classification, backbone, 6, 8, ["driver", "worker"], random.Random(1))
    _check(ledger, cells, tmp_path)


@pytest.mark.slow
def test_forty_runs_killed_twenty_times(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    cells = make_cells(classification.folder, backbone, 40, 12)
    draw = random.Random(7)
    kills = [draw.choice(["driver", "worker", "both"]) for _ in range(20)]
    _killed_and_finished(tmp_path / "ledger.db", classification, backbone, 40, 12, kills, draw)
    _check(tmp_path / "ledger.db", cells, tmp_path)


def test_sigterm_ends_workers_with_a_checkpoint(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    driver = _start(ledger, classification, backbone, 2, 4000)
    end = time.monotonic() + 120
    while driver.poll() is None and not _evaluations(ledger) and time.monotonic() < end:
        time.sleep(0.05)
    driver.terminate()
    assert driver.wait(60) != 0
    with Ledger(ledger) as opened:
        assert opened.check() == []
        runs = opened.runs("s")
        assert not any(run["state"] == "done" for run in runs)
        assert any((opened.artifacts / f".{run['key']}.checkpoint").is_dir() for run in runs)


def _evaluations(ledger: Path) -> bool:
    try:
        with Ledger(ledger) as opened:
            return any(opened.run(run["key"])["evaluations"] for run in opened.runs())
    except UserError:
        return False


def test_interruption_says_how_far_it_came(cells: list[Cell], tmp_path: Path) -> None:
    class Stopped(Recorded):
        def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
            raise KeyboardInterrupt
            yield

    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        with pytest.raises(Interrupted, match="0 of 4 runs of s are in"):
            carry_out(ledger, "s", cells, Stopped())


def test_who_keeps_company(cells: list[Cell], tmp_path: Path) -> None:
    def shape(cells: list[Cell], workers: int = 1) -> list[list[str]]:
        jobs = [Job(str(number), cell, tmp_path / str(number)) for number, cell in enumerate(cells)]
        return [[job.key for job in group] for group in in_company(jobs, workers)]

    lora, full, ia3, head = cells
    top = lora.model_copy(update={"overrides": {**lora.overrides, "top_layers": 1}})
    limited = lora.model_copy(update={"max_memory": 10**9})
    other = lora.model_copy(update={"backbone": f"{lora.backbone}:1"})
    assert shape([lora, full, ia3, head, top, limited, other]) == [["0", "2"], ["1"], ["3"], ["4"], ["5"], ["6"]]
    assert shape([lora] * 20) == [[str(n) for n in range(16)], [str(n) for n in range(16, 20)]]
    assert shape([lora] * 5, workers=2) == [["0", "1", "2"], ["3", "4"]]
    assert shape([Cell(task="t", data=lora.data, backbone=None, method="tf-idf")]) == [["0"]]


def test_a_checkpoint_of_other_settings_is_begun_anew(cells: list[Cell], tmp_path: Path) -> None:
    """Other versions or threads: the key is the same, so the run is."""
    job = Job(cells[0].key(), cells[0], tmp_path / "run")
    settings = {"made by": "another version"}
    with Checkpoint(job.out, settings, every=0) as checkpoint:
        checkpoint.write({"weight": torch.zeros(1)}, {})
    assert carry_out_job(job, lambda event: None).state == "done"


def test_such_a_checkpoint_is_begun_anew_in_company_too(
    cells: list[Cell], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job(cell.key(), cell, tmp_path / cell.method) for cell in (cells[0], cells[2])]
    with Checkpoint(jobs[0].out, {"made by": "another version"}, every=0) as checkpoint:
        checkpoint.write({"weight": torch.zeros(1)}, {})
    events: list[Event] = []
    carry_out_company(jobs, events.append)
    assert [event.key for event in events if event.state == "done"] == [job.key for job in jobs]
    said = capfd.readouterr().err
    assert "keep company" in said and "one by one" not in said


def test_where_a_company_fails_its_runs_go_on_alone(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    step, count = Company.step, []

    def failing(self: Company) -> None:
        count.append(1)
        if len(count) > 2:
            raise MemoryError
        step(self)

    monkeypatch.setattr(Company, "step", failing)
    monkeypatch.setattr(Checkpoint, "due", lambda self, **_: True)
    events: list[Event] = []
    carry_out_company([Job(cell.key(), cell, tmp_path / cell.method) for cell in (cells[0], cells[2])], events.append)
    results = [event.result for event in events if event.state == "done"]
    assert [result["training"]["resumed"] for result in results if result is not None] == [1, 1]
    assert "those left train one by one" in capfd.readouterr().err


@pytest.fixture
def own_task(classification: PreparedTask, tmp_path: Path) -> Path:
    return Path(shutil.copytree(classification.folder, tmp_path / "task"))


def prepare_anew(task: Path) -> None:
    """As `posology prepare --overwrite`, with a document less."""
    old = PreparedTask.open(task)
    splits = {split: old.documents(split) for split in ("train", "validation", "test")}
    splits["train"].pop()
    write_prepared(
        task, name=old.name, kind=old.kind, labels=old.labels, metric=old.metric, splits=splits, overwrite=True
    )


def test_a_process_notices_that_a_task_or_a_backbone_was_written_anew(
    cells: list[Cell], own_task: Path, backbone: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(backbone, tmp_path / "model")
    cell = cells[0].model_copy(update={"data": own_task, "backbone": str(model)})
    first = cell.key()
    prepare_anew(own_task)
    second = cell.key()
    weights = load_file(model / "model.safetensors")
    next(iter(weights.values())).add_(1)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert len({first, second, cell.key()}) == 3


def test_a_process_notices_that_a_teacher_was_trained_anew(
    cells: list[Cell], classification: PreparedTask, tmp_path: Path
) -> None:
    keys = []
    for c in (1.0, 0.01):
        posology.train(classification.folder, None, "tf-idf", tmp_path / "teacher", overrides={"C": c}, overwrite=True)
        keys.append(cells[0].model_copy(update={"distilled_from": tmp_path / "teacher"}).key())
    assert keys[0] != keys[1]


@pytest.mark.parametrize("company", [False, True])
@pytest.mark.parametrize("when", ["before", "while"])
def test_nothing_is_recorded_under_the_key_of_other_data(
    cells: list[Cell], own_task: Path, tmp_path: Path, when: str, company: bool
) -> None:
    """A task that is prepared anew while its study waits, or trains."""
    cells = [cell.model_copy(update={"data": own_task}) for cell in (cells[0], cells[2])]
    jobs = [Job(cell.key(), cell, tmp_path / cell.method) for cell in cells]
    events: list[Event] = []

    def emit(event: Event) -> None:
        if event.state == "evaluated" and when == "while" and not any(each.state == "evaluated" for each in events):
            prepare_anew(own_task)
        events.append(event)

    if when == "before":
        prepare_anew(own_task)
    if company:
        carry_out_company(jobs, emit)
    else:
        events.append(carry_out_job(jobs[0], emit))
    ended = [event for event in events if event.state in ("done", "failed")]
    assert [event.state for event in ended] == ["failed"] * (1 + company)
    assert all("was changed since the study began" in str(event.problem) for event in ended)
    assert [job.key for job in jobs if finished(job) is not None] == []
