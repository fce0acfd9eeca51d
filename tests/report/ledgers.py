"""Small ledgers as studies leave them: runs that nobody trained, with answers by document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from posology.corpus.document import Document, Span
from posology.engine.decode import softmax
from posology.evaluation.metrics import classification_metrics, entity_metrics
from posology.study.cell import Cell
from posology.study.ledger import Ledger
from posology.tasks.prepared import write_prepared

DOCUMENTS = 120
MODELS = {"minilm": 22_713_216, "minilm:3": 17_389_824, "biobert": 108_310_272, "tinybert": 14_350_248}


def prepared(
    folder: Path,
    *,
    kind: str = "sequence-classification",
    metric: str = "macro_f1",
    size: int = DOCUMENTS,
    **facts: Any,
) -> Path:
    """A prepared task of so many test documents, two of a group; documents say nothing."""
    tagging = kind == "token-classification"
    splits = {
        split: [
            Document(
                id=f"{split}{n}",
                group=f"{split}{n // 2}",
                text=f"text {n}",
                label=None if tagging else ("no", "yes")[n % 2],
                words=[(0, 4)] if tagging else [],
                spans=[Span(0, 4, "thing")] if tagging else [],
            )
            for n in range(count)
        ]
        for split, count in (("train", 8), ("validation", 4), ("test", size))
    }
    labels = ["thing"] if tagging else ["no", "yes"]
    write_prepared(folder, name=folder.name, kind=kind, labels=labels, metric=metric, splits=splits, **facts)  # type: ignore[arg-type]
    return folder


def run(data: Path, method: str, right: float, *, backbone: str | None = "minilm", **more: Any) -> dict[str, Any]:
    """What is wanted of a run: `right` is the share of documents that it gets right; further fields of its cell, and
    `seconds`, `validation`, `answers` (whether they are kept), `study`, `ids`, `measures`, `state`."""
    return {"data": data, "method": method, "right": right, "backbone": backbone, **more}


def write(path: Path, runs: Sequence[dict[str, Any]]) -> Path:
    """A ledger of these runs."""
    own = {"right", "seconds", "validation", "answers", "study", "ids", "measures", "state", "trained", "tokens"}
    with Ledger(path, write=True) as ledger:
        studies: dict[str, list[tuple[str, Cell]]] = {}
        for number, wanted in enumerate(runs):
            cell = Cell(
                task=wanted.get("task", wanted["data"].name),
                **{name: value for name, value in wanted.items() if name not in own | {"task"}},
            )
            studies.setdefault(wanted.get("study", "s"), []).append((f"{number:032x}", cell))
        for study, entries in studies.items():
            ledger.add(study, [cell for _, cell in entries], keys=[key for key, _ in entries])
        ledger.artifacts.mkdir(exist_ok=True)
        for number, wanted in enumerate(runs):
            key = f"{number:032x}"
            if wanted.get("state") == "failed":
                ledger.fail(key, "no memory was left")
            elif wanted.get("state") != "pending":
                ledger.finish(key, _result(wanted, ledger.artifacts / key, number))
    return path


def _result(wanted: dict[str, Any], artifact: Path, number: int) -> dict[str, Any]:
    from posology.tasks.prepared import PreparedTask

    try:
        task = PreparedTask.open(wanted["data"])
        kind, metric, size = task.kind, task.metric, task.counts["test"]
    except Exception:
        kind, metric, size = "sequence-classification", "macro_f1", DOCUMENTS
    metrics = _answers(wanted, kind, size, artifact, number)
    size_of = MODELS[wanted["backbone"]] if wanted["backbone"] else 0
    seconds = float(wanted.get("seconds", size_of / 1e6 + 1))
    score = metrics[metric]["value"]
    trained = wanted.get("trained", size_of if wanted["method"] == "full" else 50_000)
    return {
        "artifact": str(artifact), "task": wanted["data"].name, "kind": kind, "metric": metric,
        "backbone": wanted["backbone"] or "none", "backbone_parameters": size_of, "method": wanted["method"],
        "seed": wanted.get("seed", 42), "metrics": metrics, "validation": {metric: wanted.get("validation", score)},
        "per_label": {"yes": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 3}}, "seconds": seconds,
        "trainable_parameters": trained, "adapter_bytes": 4 * trained, "coverage": {"test": 1.0},
        "training": {"seconds": seconds, "stopped": "epochs", "tokens_per_second": 800.0, "examples_per_second": 8.0,
                     "evaluations": [{"step": 5, "epoch": 1.0, "seconds": seconds, "loss": 0.5, "score": score}]},
        "measures": wanted.get("measures", {}),
    }  # fmt: skip


def _answers(wanted: dict[str, Any], kind: str, size: int, artifact: Path, number: int) -> dict[str, dict[str, Any]]:
    artifact.mkdir()
    generator = np.random.default_rng(number)
    right = generator.permutation(size) < round(wanted["right"] * size)
    table: dict[str, Any] = {
        "id": [f"{wanted.get('ids', 'test')}{n}" for n in range(size)],
        "group": [f"test{n // 2}" for n in range(size)],
    }
    if kind == "token-classification":
        counts = np.stack([right, np.ones(size), np.ones(size)], axis=1).astype(np.int32)[:, None, :]
        values = entity_metrics(counts)
        table["counts"] = pl.Series(counts.reshape(size, -1))
    else:
        gold = np.arange(size) % 2
        chosen = np.where(right, gold, 1 - gold)
        logits = (np.eye(2)[chosen] * 2).astype(np.float32)
        values = classification_metrics(gold, softmax(logits))
        table |= {"label": gold, "logits": pl.Series(logits)}
    if wanted.get("answers", True):
        pl.DataFrame(table).write_parquet(artifact / "test.parquet")
    return {name: {"value": value, "low": value - 0.05, "high": value + 0.05} for name, value in values.items()}
