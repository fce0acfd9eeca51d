"""Answers by document are kept with a run, without text, and give the metrics of its record again."""

from __future__ import annotations

import stat
from pathlib import Path

import polars as pl
import pytest

import posology
from posology.engine import predictions
from posology.engine.decode import softmax
from posology.errors import UserError
from posology.evaluation import metrics
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import KINDS

FAST = {"epochs": 2, "precision": "fp32"}


@pytest.mark.parametrize("kind", KINDS)
def test_kept_answers_give_the_scores_of_the_record(
    kind: str, backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path
) -> None:
    task = classification if kind == KINDS[0] else tagging
    run = posology.train(task.folder, str(backbone), "lora", tmp_path / "run", overrides=FAST)
    kept = predictions.read(tmp_path / "run")
    documents = task.documents("test")
    assert kept.ids == [document.id for document in documents]
    assert kept.groups == [document.group for document in documents]
    if kind == KINDS[0]:
        assert kept.gold is not None and kept.logits is not None
        again = metrics.classification_metrics(kept.gold, softmax(kept.logits))
    else:
        assert kept.counts is not None
        again = metrics.entity_metrics(kept.counts)
    for name, score in run["metrics"].items():
        assert again[name] == pytest.approx(score["value"], abs=1e-6), name
    path = predictions.path_of(tmp_path / "run")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not {"text", "words", "spans"} & set(pl.read_parquet(path).columns)


def test_baselines_keep_theirs_too(classification: PreparedTask, tmp_path: Path) -> None:
    posology.train(classification.folder, None, "tf-idf", tmp_path / "run")
    assert len(predictions.read(tmp_path / "run").ids) == 24


def test_an_artifact_without_answers_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no answers by document"):
        predictions.read(tmp_path)
