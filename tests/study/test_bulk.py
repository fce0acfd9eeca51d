"""Predictions for many files on a cluster: the same as one by one, whatever is there already or cannot be read."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

if any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow")):
    pytest.skip("Ray Data is not installed (the extra `ray`)", allow_module_level=True)

import posology
from posology.errors import UserError
from posology.study import bulk
from posology.study.bulk import predict_files
from posology.tasks.prepared import PreparedTask
from tests.study.nodes import Deadly, cluster_of


@pytest.fixture(scope="module")
def artifact(backbone: Path, classification: PreparedTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "head"
    posology.train(classification.folder, str(backbone), "head", out, overrides={"epochs": 1, "precision": "fp32"})
    return out


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """Five files, one of which cannot be read."""
    folder = tmp_path / "in"
    folder.mkdir()
    paths = [folder / f"part-{number}.jsonl" for number in range(5)]
    for number, path in enumerate(paths):
        rows = [{"id": f"{number}-{row}", "text": f"the patient has fever {row}"} for row in range(4)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    paths[2].write_text('{"id": "2-0", "text": "secret-word"\n')
    return paths


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_refused_before_a_cluster_is_looked_for(artifact: Path, inputs: list[Path], tmp_path: Path) -> None:
    twin = tmp_path / "part-0.csv"
    shutil.copy(inputs[0], twin)
    for chosen, out, problem in (
        ([inputs[0], twin], tmp_path / "out", "has the name of"),
        ([tmp_path / "none.csv"], tmp_path / "out", "does not exist"),
        ([], tmp_path / "out", "no files"),
        ([inputs[0]], tmp_path / "in", "holds no predictions"),
    ):
        with pytest.raises(UserError, match=problem):
            predict_files(artifact, chosen, out, address="127.0.0.1:1")
    with pytest.raises(UserError, match="no artifact"):
        predict_files(tmp_path / "none", inputs, tmp_path / "out", address="127.0.0.1:1")
    with pytest.raises(UserError, match="no ending"):
        predict_files(artifact, inputs, tmp_path / "out", address="127.0.0.1:1", suffix=".txt")


@pytest.mark.slow
def test_files_are_predicted_once_and_failures_listed(
    artifact: Path, inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with cluster_of(3) as cluster:
        first = predict_files(artifact, inputs, out, address=cluster.address, id="id")
        assert {name: first[name] for name in ("files", "done", "skipped", "failed", "documents")} == {
            "files": 5, "done": 4, "skipped": 0, "failed": 1, "documents": 16,
        }  # fmt: skip
        (failed,) = rows(out / bulk.FAILED)
        assert failed["input"] == str(inputs[2]) and ":1:" in failed["problem"]
        assert "secret-word" not in failed["problem"]
        posology.predict(artifact, inputs[1], tmp_path / "alone.jsonl", id="id")
        assert [row["id"] for row in rows(out / "part-1.jsonl")] == [f"1-{row}" for row in range(4)]
        for own, alone in zip(rows(out / "part-1.jsonl"), rows(tmp_path / "alone.jsonl"), strict=True):
            assert own["label"] == alone["label"] and own["score"] == pytest.approx(alone["score"], abs=1e-6)
        assert (out / "part-1.jsonl").stat().st_mode & 0o077 == 0

        shutil.copy(inputs[0], inputs[2])  # mended, and another one changed
        stamp = (out / "part-1.jsonl").stat().st_mtime + 10
        os.utime(inputs[1], (stamp, stamp))
        untouched = (out / "part-3.jsonl").stat().st_mtime_ns
        second = predict_files(artifact, inputs, out, address=cluster.address, id="id")
        assert (second["done"], second["skipped"], second["failed"]) == (2, 3, 0)
        assert not (out / bulk.FAILED).exists()
        assert (out / "part-3.jsonl").stat().st_mtime_ns == untouched

        deadly = inputs[0].with_name("deadly.jsonl")
        shutil.copy(inputs[0], deadly)
        fresh = inputs[0].with_name("fresh.jsonl")
        shutil.copy(inputs[0], fresh)
        monkeypatch.setattr(bulk, "_FilePredictor", Deadly)
        third = predict_files(artifact, [*inputs, deadly, fresh], out, address=cluster.address, id="id")
        assert (third["done"], third["skipped"], third["failed"]) == (1, 5, 1)
        (failed,) = rows(out / bulk.FAILED)
        assert failed["input"] == str(deadly) and "died" in failed["problem"]
    with pytest.raises(UserError, match="other options"):
        predict_files(artifact, inputs, out, address="127.0.0.1:1", with_text=True)
    # All that is left is there, so that no cluster is needed.
    assert not list(out.glob(".*"))
    assert predict_files(artifact, inputs, out, address="127.0.0.1:1", id="id")["skipped"] == 5


def answers_at_once(waiting: Any, *_: Any) -> Any:
    """In place of a cluster: each answer names its input."""
    for source, target in waiting:
        target.write_text(json.dumps({"of": str(source)}) + "\n")
        yield {"input": str(source), "problem": None, "documents": 1}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_rows", answers_at_once)
    monkeypatch.setattr(bulk, "connected", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(bulk.Resources, "slots", lambda self, ray: 1)


def test_answers_to_another_file_of_the_same_name_are_not_taken_for_its_own(
    artifact: Path, tmp_path: Path, at_once: None
) -> None:
    out = tmp_path / "out"
    monday, tuesday = (tmp_path / day / "notes.csv" for day in ("mon", "tue"))
    for path in (tuesday, monday):  # Tuesday's is the older one, by its time
        path.parent.mkdir()
        path.write_text("id,text\n1,fever\n")
        os.utime(path, (1000, 1000))
    assert predict_files(artifact, [monday], out)["done"] == 1
    with pytest.raises(UserError, match="would take the place of those to") as caught:
        predict_files(artifact, [tuesday], out)
    assert str(monday) in str(caught.value) and str(tuesday) in str(caught.value)
    assert rows(out / "notes.jsonl") == [{"of": str(monday)}]
    assert predict_files(artifact, [monday], out)["skipped"] == 1

    monday.write_text("id,text\n2,pain and fever\n")
    os.utime(monday, (500, 500))  # put back from an archive: older than its answers, and another file
    assert predict_files(artifact, [monday], out)["done"] == 1
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("fever")
    assert predict_files(artifact, [folder], out)["done"] == 1
    assert predict_files(artifact, [folder], out)["skipped"] == 1
    (folder / "b.txt").write_text("pain")
    os.utime(folder / "b.txt", (500, 500))
    os.utime(folder, (500, 500))
    assert predict_files(artifact, [folder], out)["done"] == 1
    with open(out / "answered.txt", "a") as stream:
        stream.write('{"answers": "no')  # killed there
    assert predict_files(artifact, [monday, folder], out)["skipped"] == 2
