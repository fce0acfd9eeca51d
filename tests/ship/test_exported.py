"""Exports at work in `posology predict` and `redact`: as their artifact says, without its backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import posology
from posology.corpus.document import Document
from posology.engine.artifact import load
from posology.errors import UserError
from posology.ship.exported import Exported, load_any
from posology.ship.redact import Redactor
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import KINDS

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NOTES = ["no fever", "patient had pain, abc " * 9, "", "the fever of the patient: pain"]


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest,
    backbone: Path,
    classification: PreparedTask,
    tagging: PreparedTask,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """An artifact and its export."""
    from posology.ship.export import export

    folder = tmp_path_factory.mktemp("pair")
    task = classification if request.param == KINDS[0] else tagging
    fast = {"epochs": 3, "learning_rate": 5e-3, "max_length": 40, "overlap": 8, "precision": "fp32"}
    posology.train(task.folder, str(backbone), "lora", folder / "run", overrides=fast)
    export(folder / "run", out=folder / "export")
    return folder / "run", folder / "export"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_export_answers_as_its_artifact_does(pair: tuple[Path, Path], tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps({"id": str(row), "text": note}) for row, note in enumerate(NOTES)))
    results = [posology.predict(folder, source, tmp_path / f"{folder.name}.jsonl", id="id") for folder in pair]
    assert results[0]["found"] == results[1]["found"] and results[1]["rejected"] == 1
    assert results[1]["coverage"] == 1.0
    for own, expected in zip(*(rows(tmp_path / f"{folder.name}.jsonl") for folder in pair), strict=True):
        assert own["id"] == expected["id"] and own.get("label") == expected.get("label")
        scores = [
            [span["score"] for span in row["spans"]] if "spans" in row else [row["score"]] for row in (own, expected)
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
        places = [[(span["start"], span["end"]) for span in row.get("spans", [])] for row in (own, expected)]
        assert places[0] == places[1]


def test_what_an_artifact_says_of_its_probabilities_an_export_says_too(pair: tuple[Path, Path]) -> None:
    artifact, exported = load(pair[0]), load_any(pair[1])
    assert isinstance(exported, Exported) and not isinstance(load_any(pair[0]), Exported)
    assert exported.kind == artifact.kind and exported.labels == artifact.labels
    assert exported.temperature == artifact.temperature and exported.threshold == artifact.threshold
    if exported.kind == KINDS[1]:
        documents = [Document(str(row), note) for row, note in enumerate(NOTES)]
        found = [[one.text for one in Redactor(model).redact(documents)] for model in (artifact, exported)]
        assert found[0] == found[1] != NOTES
    else:
        with pytest.raises(UserError, match="finds no identifiers"):
            Redactor(exported)


def test_what_cannot_be_opened_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds its own"):
        load_any(pair[1], backbone="minilm")
    record = json.loads((pair[1] / "posology.json").read_text())
    (tmp_path / "posology.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"cannot be opened|cannot be read"):
        load_any(tmp_path)
    (tmp_path / "posology.json").write_text(json.dumps(record | {"format": "safetensors"}))
    with pytest.raises(UserError, match="export for transformers"):
        load_any(tmp_path)
    with pytest.raises(UserError, match="is no artifact"):
        load_any(tmp_path / "nothing")
