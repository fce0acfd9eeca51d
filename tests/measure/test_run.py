"""What a run leaves is measured: by formula, by the clock, on disk; and the ledger has it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import posology
from posology import console
from posology.corpus.document import Document
from posology.engine import artifact as artifacts
from posology.engine.backbone import resolve
from posology.engine.methods import METHODS
from posology.engine.model import Answers, Model
from posology.engine.predictor import Predictor
from posology.engine.recipe import make_recipe
from posology.engine.run import build
from posology.measure.energy import Energy
from posology.measure.flops import cost_of
from posology.measure.latency import MOST, latencies, percentiles, tokens_per_second
from posology.measure.memory import Watermark
from posology.measure.run import _mark_trained, measures
from posology.study import work
from posology.study.cell import Cell
from posology.study.driver import carry_out
from posology.study.executor import Event, Job
from posology.study.ledger import Ledger
from posology.study.local import LocalExecutor
from posology.tasks.prepared import PreparedTask

SPEED = {"latency_p50_ms", "latency_p95_ms", "prediction_tokens_per_second"}
FLOPS = {"training_flops", "flops_per_token"}
TRAINING: dict[str, Any] = {"epochs": 2, "precision": "fp32"}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "QUIET", True)


class Slow(Model):
    """Takes ten milliseconds a document, the longest hundred."""

    labels, text_pair, units = ("a", "b"), False, ("word",)

    def __init__(self) -> None:
        self.asked: list[str] = []

    @property
    def kind(self) -> str:
        return "sequence-classification"

    def answer(self, documents: Sequence[Document], description: str = "", *, unit: str = "word") -> Answers:
        self.asked += [document.id for document in documents]
        time.sleep(sum(0.1 if document.text == "long" else 0.01 for document in documents))
        return Answers(documents, [np.zeros(2)] * len(documents), 1.0)


def _documents(count: int, longest: int = 0) -> list[Document]:
    return [
        Document(id=str(number), group=str(number), text="long" if number < longest else "short")
        for number in range(count)
    ]


def test_latency_is_that_of_single_documents_in_a_drawn_order() -> None:
    model = Slow()
    found = percentiles(latencies(model, _documents(20, longest=2)))
    assert sorted(model.asked[1:], key=int) == [str(number) for number in range(20)] != model.asked[1:]
    assert 10 <= found["p50"] < 40 and 90 < found["p99"] < 150 and found["p50"] <= found["p95"] <= found["p99"]
    assert percentiles(np.array([0.001, 0.002, 0.003]))["p50"] == pytest.approx(2)


def test_latency_takes_no_longer_than_it_may() -> None:
    begin = time.perf_counter()
    found = latencies(Slow(), _documents(MOST * 2), seconds=0.1)
    assert 1 < len(found) <= 11 and time.perf_counter() - begin < 0.5
    assert len(latencies(Slow(), _documents(3, longest=3), seconds=0)) == 1


def test_memory_that_is_set_aside_does_not_count() -> None:
    memory = Watermark()
    if memory.peak() is None:
        pytest.skip("this system does not tell the peak of resident memory")
    np.ones(20 * 2**17).sum()  # 20 MiB
    before = memory.peak() or 0
    with memory.set_aside():
        np.ones(200 * 2**17).sum()
    assert 20 * 2**20 <= before <= (memory.peak() or 0) < 100 * 2**20


@pytest.mark.parametrize("method", METHODS)
def test_operations_are_those_of_the_model_that_was_trained(
    method: str, backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    result = posology.train(
        classification.folder, str(backbone), method, tmp_path / "run", overrides=TRAINING | {"epochs": 1}, shots=8
    )
    loaded = artifacts.load(tmp_path / "run")
    assert isinstance(loaded, Predictor)
    _mark_trained(loaded.adapted)
    recipe = make_recipe(method, overrides=TRAINING, width=32)
    trained = build(classification, resolve(str(backbone)), method, recipe, 42)
    if method != "p-tuning":  # which is saved as what its network makes
        assert loaded.adapted.count_trainable() | {"total": 0} == result["parameters"] | {"total": 0}
    documents = classification.documents("test")
    lengths = np.array([len(window.ids) for (window,) in loaded.encoder.encode(documents).windows])
    own, expected = cost_of(loaded.adapted), cost_of(trained.adapted)
    assert own.training(lengths) == pytest.approx(expected.training(lengths))
    found = measures(tmp_path / "run", classification.folder, seconds=0.02)
    assert found["flops_per_token"] == pytest.approx(expected.predicting(lengths) / lengths.sum())
    assert set(found) == SPEED | FLOPS | {"bytes"} and min(found.values()) > 0


def test_training_is_counted_over_all_that_was_trained_on(
    backbone: Path, tagging: PreparedTask, tmp_path: Path
) -> None:
    found = []
    for epochs in (1, 3):
        out = tmp_path / str(epochs)
        posology.train(tagging.folder, str(backbone), "lora", out, overrides={"epochs": epochs, "precision": "fp32"})
        found.append(measures(out, tagging.folder, energy=2.5, seconds=0.02))
    model = artifacts.load(tmp_path / "1")
    assert isinstance(model, Predictor)
    _mark_trained(model.adapted)
    windows = model.encoder.encode(tagging.documents("train")).windows
    once = cost_of(model.adapted).training(np.array([len(window.ids) for own in windows for window in own]))
    assert [each["training_flops"] for each in found] == [pytest.approx(once), pytest.approx(3 * once)]
    assert found[0]["energy_joules"] == 2.5


def test_tokens_per_second_are_of_documents_there_is_time_for(
    backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    posology.train(classification.folder, str(backbone), "head", tmp_path / "run", overrides=TRAINING)
    model = artifacts.load(tmp_path / "run")
    assert isinstance(model, Predictor)
    documents = classification.documents("train") * 50
    begin = time.perf_counter()
    pace = tokens_per_second(model, documents, each=0.005, seconds=0.2)
    assert time.perf_counter() - begin < 3
    begin = time.perf_counter()
    answered = model.answer(documents[:640])
    tokens = sum(len(window.ids) for own in model.encoder.encode(documents[:640]).windows for window in own)
    assert len(answered.logits) == 640
    assert pace == pytest.approx(tokens / (time.perf_counter() - begin), rel=0.9)


def test_bytes_are_of_all_that_prediction_needs(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    sizes = {}
    for method in ("full", "lora", "tf-idf"):
        out = tmp_path / method
        name = None if method == "tf-idf" else str(backbone)
        posology.train(classification.folder, name, method, out, overrides=TRAINING if name else None)
        sizes[method] = measures(out, classification.folder, seconds=0.02)["bytes"], _size(out)
    assert sizes["full"][0] == sizes["full"][1] and sizes["tf-idf"][0] == sizes["tf-idf"][1]
    assert sizes["lora"][0] == sizes["lora"][1] + _size(backbone)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _cells(task: PreparedTask, backbone: Path, *methods: str) -> list[Cell]:
    return [
        Cell(
            task=task.name,
            data=task.folder,
            backbone=None if method == "tf-idf" else str(backbone),
            method=method,
            overrides={} if method == "tf-idf" else TRAINING,
        )
        for method in methods
    ]


def test_the_ledger_has_the_measures_of_each_run(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    """Of runs alone, in company, and of a baseline."""
    cells = _cells(classification, backbone, "full", "lora", "ia3", "tf-idf")
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        keys = [run["key"] for run in carry_out(ledger, "s", cells, LocalExecutor())]
        found = [ledger.run(key)["result"]["measures"] for key in keys]
    for own in found[:3]:
        assert set(own) - {"energy_joules"} == SPEED | FLOPS | {"bytes"}
    assert set(found[3]) - {"energy_joules"} == {"latency_p50_ms", "latency_p95_ms", "bytes"}
    assert "energy_joules" not in found[1] and "energy_joules" not in found[2]
    assert found[0]["training_flops"] > 1.2 * found[1]["training_flops"]
    kept = artifacts.read_record(tmp_path / "ledger.runs" / keys[1])["measures"]
    assert kept == found[1]


class _Meter:
    def joules(self) -> float:
        return 7.0


def test_energy_is_of_runs_alone(
    backbone: Path, classification: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "Energy", lambda: Energy([_Meter]))
    jobs = [Job(cell.key(), cell, tmp_path / cell.key()) for cell in _cells(classification, backbone, "lora", "ia3")]
    events: list[Event] = []
    work.carry_out_company(jobs, events.append)
    done = [event for event in events if event.state == "done"]
    assert len(done) == 2 and all(event.peak_memory != 0 for event in done)
    for cell, alone in zip(_cells(classification, backbone, "full", "head"), (True, False), strict=True):
        done.append(
            work.carry_out_job(Job(cell.key(), cell, tmp_path / cell.key()), events.append, alone=alone),
        )
    results = [event.result for event in done]
    assert [result["measures"].get("energy_joules") for result in results if result] == [None, None, 7.0, None]


def test_a_measurement_that_fails_fails_no_run(
    backbone: Path, classification: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> dict[str, float]:
        raise RuntimeError("the fever of the patient")

    (cell,) = _cells(classification, backbone, "head")
    job = Job(cell.key(), cell, tmp_path / "run")
    monkeypatch.setattr(work, "measures", broken)
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    event = work.carry_out_job(job, lambda event: None)
    assert event.state == "done" and event.result is not None and event.result["measures"] == {}
    assert any("not measured" in line for line in said) and not any("fever" in line for line in said)
    monkeypatch.undo()
    again = work.carry_out_job(job, lambda event: None).result  # recorded by nobody: measured now
    assert again is not None and set(again["measures"]) >= SPEED | FLOPS
    assert work.finished(job) == again
