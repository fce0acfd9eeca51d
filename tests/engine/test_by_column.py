"""`evaluate` by a column of the task or of a table beside it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import posology
from posology.errors import UserError
from posology.evaluation.statistics import clean
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_by_column(
    kind: str, backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path
) -> None:
    task = classification if kind == KINDS[0] else tagging
    run = tmp_path / "run"
    posology.train(task.folder, str(backbone), "lora", run, overrides={"epochs": 1, "precision": "fp32"})
    ids = [document.id for document in task.documents("test")]
    table = tmp_path / "wards.csv"
    pl.DataFrame(
        {"id": ids, "ward": ["surgery", "medicine"] * (len(ids) // 2) + ["surgery"] * (len(ids) % 2)}
    ).write_csv(table)
    result = posology.evaluate(run, task.folder, by="ward", table=table)
    assert list(result["by"]) == ["medicine", "surgery"]
    assert sum(found["documents"] for found in result["by"].values()) == result["documents"] == len(ids)
    for found in result["by"].values():
        assert set(result["metrics"]) < set(found)
        assert found["small"] is True
    whole = pl.DataFrame({"id": ids, "ward": ["all"] * len(ids)})
    whole.write_csv(table)
    result = posology.evaluate(run, task.folder, by="ward", table=table)
    for name, score in result["metrics"].items():
        assert result["by"]["all"][name] == clean(score)
    if kind == KINDS[0]:
        assert set(posology.evaluate(run, task.folder, by="label")["by"]) <= set(task.labels)
    assert "by" not in posology.evaluate(run, task.folder)
    with pytest.raises(UserError, match="has no column 'ward'"):
        posology.evaluate(run, task.folder, by="ward")
    with pytest.raises(UserError, match="Add --by COLUMN"):
        posology.evaluate(run, task.folder, table=table)
