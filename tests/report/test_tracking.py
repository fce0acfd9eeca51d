"""Trackers show what the ledger holds, once, read back with MLflow's and TensorBoard's own readers."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posology.errors import Interrupted, UserError
from posology.report import tracking
from posology.report.tracking import track
from posology.study.cell import Cell
from posology.study.ledger import Ledger

SCORES = {"macro_f1": {"value": 0.7, "low": 0.6, "high": 0.8}, "auroc": {"value": None, "low": None, "high": None}}


def evaluation(step: int, score: float, seconds: float | None = None) -> dict[str, Any]:
    return {"step": step, "epoch": step / 4, "seconds": seconds or step / 2, "loss": 1 / step, "score": score}


def result(artifact: Path | str, *scores: float) -> dict[str, Any]:
    """As `posology.train` returns it, as far as a tracker reads it."""
    return {
        "metric": "macro_f1", "metrics": SCORES, "validation": {"macro_f1": max(scores)}, "kind": "sequence-classification",
        "backbone": "minilm", "seconds": 2.5, "trainable_parameters": 7, "adapter_bytes": 100, "artifact": str(artifact),
        "coverage": {"test": 0.5},
        "training": {
            "stopped": "epochs", "tokens_per_second": 12.0,
            "evaluations": [evaluation(4 * (n + 1), score) for n, score in enumerate(scores)],
        },
    }  # fmt: skip


def cell(seed: int, **more: Any) -> Cell:
    return Cell(task="mortality", data=Path("/nowhere"), seed=seed, **more)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Tracking sets variables for MLflow."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """One run done, one failed, one under way, one pending, one that two studies share; a backbone in a folder."""
    path = tmp_path / "ledger.db"
    cells = [
        cell(1, overrides={"rank": 4, "alpha": 8}), cell(2), cell(3, backbone="/home/someone/mine"), cell(4),
        cell(5, backbone=None, method="tf-idf", shots=16),
    ]  # fmt: skip
    keys = [f"{number:x}" * 32 for number in range(1, 6)]
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "posology.json").write_text(json.dumps({"recipe": {"rank": 4, "alpha": 8.0, "learning_rate": 2e-3}}))
    with Ledger(path, write=True) as opened:
        opened.add("small/first", cells, keys=keys)
        opened.add("second", [cells[4]], keys=[keys[4]])
        for key in (*keys[:3], keys[4]):
            opened.begin(key)
        opened.finish(keys[0], result(artifact, 0.25, 0.5), peak_memory=1000)
        opened.fail(keys[1], "out of memory")
        opened.evaluated(keys[2], evaluation(4, 0.1))
        opened.finish(keys[4], result("s3://bucket/5", 0.125))
    return path


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has laid out, which takes it seconds."""
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'posology[track]'")
    folder = tmp_path_factory.mktemp("mlflow")
    with Ledger(folder / "empty.db", write=True):
        pass
    track(folder / "empty.db", mlflow=str(folder / "store"))
    return folder / "store" / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder for `--mlflow`; nothing may leave this machine."""
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(empty_store.read_bytes())

    def refuse(*_: Any) -> None:
        raise AssertionError("tracked into a folder, and yet a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return str(tmp_path / "mlflow")


def client(folder: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=folder if ":" in folder else f"sqlite:///{folder}/mlflow.db")


def runs(folder: str, study: str) -> dict[str, Any]:
    """MLflow's runs by seed."""
    reader = client(folder)
    found = reader.search_runs([reader.get_experiment_by_name(study).experiment_id])
    by_seed = {run.data.params["seed"]: run for run in found}
    assert len(by_seed) == len(found)
    return by_seed


def curve(folder: str, run: Any, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client(folder).get_metric_history(run.info.run_id, name)]


def test_mlflow_shows_runs_parameters_metrics_and_curves(ledger: Path, store: str) -> None:
    told = track(ledger, mlflow=store)
    assert told == {
        "ledger": str(ledger), "mlflow": f"sqlite:///{store}/mlflow.db", "runs": 5, "changed": 5, "waiting": 2,
    }  # fmt: skip
    shown = runs(store, "small/first")
    assert {seed: run.info.status for seed, run in shown.items()} == {
        "1": "FINISHED", "2": "FAILED", "3": "RUNNING", "5": "FINISHED",
    }  # fmt: skip
    done = shown["1"]
    assert done.info.run_name == "mortality minilm lora seed 1 rank=4 alpha=8"
    assert done.data.params == {
        "task": "mortality", "backbone": "minilm", "method": "lora", "recipe": "standard", "seed": "1", "rank": "4",
        "alpha": "8", "learning_rate": "0.002",
    }  # fmt: skip
    expected = {"test_macro_f1": 0.7, "test_macro_f1_low": 0.6, "test_macro_f1_high": 0.8, "training_seconds": 2.5,
                "peak_memory_bytes": 1000, "adapter_bytes": 100, "trainable_parameters": 7, "test_coverage": 0.5,
                "best_validation_score": 0.5, "tokens_per_second": 12, "validation_score": 0.5, "train_loss": 1 / 8,
                "train_epoch": 2, "train_seconds": 4}  # fmt: skip
    assert done.data.metrics == expected
    assert curve(store, done, "validation_score") == [(4, 0.25), (8, 0.5)]
    assert curve(store, done, "train_loss") == [(4, 0.25), (8, 0.125)]
    assert done.data.tags["posology.key"] == "1" * 32 and done.data.tags["posology.state"] == "done"
    assert shown["2"].data.tags["posology.problem"] == "out of memory"
    assert shown["3"].data.params["backbone"] == "mine" and shown["3"].info.end_time is None
    assert "backbone" not in shown["5"].data.params and shown["5"].data.params["shots"] == "16"
    assert set(runs(store, "second")) == {"5"}
    with Ledger(ledger) as opened:
        row = opened.run("1" * 32)
    assert (done.info.start_time, done.info.end_time) == (int(row["begun"] * 1000), int(row["ended"] * 1000))


def test_following_again_changes_nothing_and_news_are_added(ledger: Path, store: str) -> None:
    track(ledger, mlflow=store)
    before = {seed: run.info.run_id for seed, run in runs(store, "small/first").items()}
    assert track(ledger, mlflow=store)["changed"] == 0
    with Ledger(ledger, write=True) as opened:
        opened.evaluated("3" * 32, evaluation(8, 0.2))
        opened.begin("4" * 32)
    assert track(ledger, mlflow=store)["changed"] == 2
    with Ledger(ledger, write=True) as opened:
        opened.finish("3" * 32, result("gone", 0.1, 0.2, 0.3))
    assert track(ledger, mlflow=store) | {"ledger": ""} == {
        "ledger": "", "mlflow": f"sqlite:///{store}/mlflow.db", "runs": 6, "changed": 1, "waiting": 1,
    }  # fmt: skip
    after = runs(store, "small/first")
    assert {seed: after[seed].info.run_id for seed in before} == before and set(after) == {"1", "2", "3", "4", "5"}
    assert curve(store, after["3"], "validation_score") == [(4, 0.1), (8, 0.2), (12, 0.3)]
    assert curve(store, after["1"], "test_macro_f1") == [(0, 0.7)]


def test_a_run_that_was_done_anew_takes_the_place_of_the_old(ledger: Path, store: str) -> None:
    track(ledger, mlflow=store)
    with Ledger(ledger, write=True) as opened:
        opened.forget(["1" * 32])
        opened.begin("1" * 32)
        opened.finish("1" * 32, result("gone", 0.75))
    assert track(ledger, mlflow=store)["changed"] == 1
    run = runs(store, "small/first")["1"]
    assert curve(store, run, "validation_score") == [(4, 0.75)] and run.data.metrics["best_validation_score"] == 0.75


def test_what_was_cut_off_is_completed(ledger: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(MlflowClient, "set_terminated", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted, match="the same command continues"):
        track(ledger, mlflow=store)
    monkeypatch.undo()
    assert track(ledger, mlflow=store)["changed"] == 5
    assert curve(store, runs(store, "small/first")["1"], "validation_score") == [(4, 0.25), (8, 0.5)]


def test_the_store_of_files_where_one_asks_for_it(ledger: Path, store: str, tmp_path: Path) -> None:
    place = f"file:{tmp_path / 'mlruns'}"
    track(ledger, mlflow=place)
    assert track(ledger, mlflow=place)["changed"] == 0
    run = runs(place, "small/first")["1"]
    assert run.data.metrics["test_macro_f1_low"] == 0.6
    assert sorted(curve(place, run, "validation_score")) == [(4, 0.25), (8, 0.5)]


def test_telemetry_is_off(ledger: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.telemetry import utils

    monkeypatch.setattr(utils, "_IS_IN_CI_ENV_OR_TESTING", False)
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    track(ledger, mlflow=store)
    assert utils.is_telemetry_disabled()


def test_follow_ends_when_nothing_waits(ledger: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        with Ledger(ledger, write=True) as opened:
            if len(naps) == 1:
                opened.evaluated("3" * 32, evaluation(8, 0.2))
            elif len(naps) == 2:
                opened.finish("3" * 32, result("gone", 0.1, 0.2))
            else:
                opened.fail("4" * 32, "no memory")

    monkeypatch.setattr(tracking.time, "sleep", nap)
    told = track(ledger, mlflow=store, tensorboard=ledger.parent / "events", follow=True)
    assert (told["waiting"], len(naps)) == (0, 3)
    assert runs(store, "small/first")["3"].info.status == "FINISHED"
    assert scalars(ledger.parent / "events", "3")["validation/score"] == [(4, 0.1), (8, 0.2)]


def test_what_cannot_be(ledger: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for place, message in {
        "ftp://server": "ftp: is not known",
        str(tmp_path / "file"): "cannot be made",
        "http://someone:secret@localhost:9": "cannot read or write",
    }.items():
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            patch.setattr(socket.socket, "connect", lambda *_: (_ for _ in ()).throw(ConnectionRefusedError()))
            with pytest.raises(UserError, match=message) as caught:
                track(ledger, mlflow=place)
        assert "secret" not in str(caught.value)
    track(ledger, mlflow=store, study="second")
    reader = client(store)
    assert reader.get_experiment_by_name("small/first") is None
    reader.delete_experiment(reader.get_experiment_by_name("second").experiment_id)
    with pytest.raises(UserError, match="was deleted"):
        track(ledger, mlflow=store)


def test_refused_without_a_tracker_or_an_unknown_study(ledger: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tracker is named"):
        track(ledger)
    with pytest.raises(UserError, match="holds no study third"):
        track(ledger, mlflow=str(tmp_path / "new"), study="third")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("package", ["mlflow", "tensorboard"])
def test_a_missing_package_is_named(
    package: str, ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=r'pip install "posology\[track\]"'):
        track(ledger, **{package: tmp_path / "x"})


@pytest.fixture
def events(tmp_path: Path) -> Path:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'posology[track]'")
    return tmp_path / "events"


def folder_of(events: Path, key: str) -> Path:
    (found,) = events.glob(f"small/first/*-{key * 8}")
    return found


def accumulated(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def scalars(events: Path, key: str) -> dict[str, list[tuple[int, float]]]:
    found = accumulated(folder_of(events, key))
    return {
        tag: [(each.step, pytest.approx(each.value)) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


def test_tensorboard_shows_curves_results_and_hyper_parameters(ledger: Path, events: Path) -> None:
    from tensorboard.plugins.hparams import api_pb2, metadata

    track(ledger, tensorboard=events)
    shown = scalars(events, "1")
    assert shown["validation/score"] == [(4, 0.25), (8, 0.5)] and shown["train/loss"] == [(4, 0.25), (8, 0.125)]
    assert shown["test/macro_f1"] == [(8, 0.7)] and shown["test/macro_f1_low"] == [(8, 0.6)]
    assert folder_of(events, "1").name == "mortality_minilm_lora_seed_1_rank=4_alpha=8-11111111"
    found = accumulated(folder_of(events, "1"))
    content = found.PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["learning_rate"].number_value == 2e-3 and start.hparams["method"].string_value == "lora"
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_SUCCESS
    running = accumulated(folder_of(events, "3"))
    assert running.Tags()["tensors"] == [] and running.Tags()["scalars"], "results come when it has ended"
    assert not list(events.glob("small/first/*-44444444")), "it has not begun"


def test_tensorboard_is_not_doubled_and_sees_news_while_it_reads(ledger: Path, events: Path) -> None:
    track(ledger, tensorboard=events)
    before = sorted(events.rglob("*"))
    assert track(ledger, tensorboard=events)["changed"] == 0 and sorted(events.rglob("*")) == before
    reading = accumulated(folder_of(events, "3"))
    with Ledger(ledger, write=True) as opened:
        opened.evaluated("3" * 32, evaluation(8, 0.2))
    assert track(ledger, tensorboard=events)["changed"] == 1
    reading.Reload()
    assert [(each.step, each.value) for each in reading.Scalars("validation/score")] == [
        (4, pytest.approx(0.1)), (8, pytest.approx(0.2)),
    ]  # fmt: skip
    (file,) = folder_of(events, "3").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    track(ledger, tensorboard=events)
    assert file.read_bytes() == whole, "a follower that was killed while it wrote"
    with Ledger(ledger, write=True) as opened:
        opened.finish("3" * 32, result("gone", 0.3))
    track(ledger, tensorboard=events)
    assert scalars(events, "3")["validation/score"] == [(4, 0.3)], "an attempt that was cut off does not count"
