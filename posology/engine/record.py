"""What `posology.json` and `posology train --json` say of a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posology.engine.backbone import Source
from posology.engine.lineage import lineage
from posology.engine.predictor import Predictor
from posology.engine.recipe import Recipe
from posology.engine.training import Fit
from posology.evaluation.statistics import clean
from posology.machine import processor_name
from posology.tasks.prepared import PreparedTask


def task_record(task: PreparedTask) -> dict[str, Any]:
    """What `posology.json` says of the task."""
    return {
        "task": {
            "name": task.name,
            "metric": task.metric,
            "protocol": task.protocol,
            "fingerprint": task.fingerprint,
            "unit": task.unit,
            "data": _data(task),
        },
        "kind": task.kind,
        "labels": list(task.labels),
        "threshold": None,
        "temperature": 1.0,
        "calibration": None,
    }


_NOTED = (
    "splits", "flow", "groups", "counts", "leaks", "leak_rule", "dropped_leaks", "group_overlap",
    "same_text_other_label", "defects", "remarks", "problems_found",
)  # fmt: skip


def _data(task: PreparedTask) -> dict[str, Any]:
    """What the model card says of the documents: numbers, and sentences of the program. No name of a file, which may be
    a patient's."""
    source: dict[str, Any] = {name: task.source[name] for name in ("format", "synthetic") if name in task.source}
    return {"documents": task.counts, **source, **{name: task.notes[name] for name in _NOTED if name in task.notes}}


def scoring(task: PreparedTask, unit: str) -> dict[str, str] | None:
    """What entities were counted on, and by which rule; None for classifiers."""
    if task.kind != "token-classification":
        return None
    return {"unit": unit, "rule": "conlleval" if task.unit == "piece" else "strict"}


def adapted_record(source: Source, predictor: Predictor, recipe: Recipe) -> dict[str, Any]:
    """What `posology.json` says of backbone and method."""
    adapted = predictor.adapted
    return {
        "backbone": {
            "name": source.title,
            "folder": None if source.hub_id else str(source.folder.absolute()),
            "hub_id": source.hub_id,
            "layers": source.layers,
            "sha256": source.fingerprint,
            "reading": source.reading,
            "parameters": adapted.backbone_parameters,
            **lineage(source)._asdict(),
        },
        "method": adapted.method,
        "recipe": recipe.model_dump(mode="json"),
        "head": list(adapted.head),
        "pooling": adapted.pooling,
        "virtual_tokens": predictor.encoder.virtual_tokens,
        "parameters": adapted.count_trainable(),
        "precision": predictor.precision.reason,
        "versions": versions("torch", "transformers", "peft", "tokenizers"),
    }


def summary(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What a training prints as JSON."""
    return {
        "artifact": str(out),
        "task": record["task"]["name"],
        "fingerprint": record["task"].get("fingerprint"),
        "kind": record["kind"],
        "metric": record["task"]["metric"],
        "backbone": record["backbone"]["name"],
        "backbone_parameters": record["backbone"]["parameters"],
        "domain": record["backbone"].get("domain"),
        "pretraining": record["backbone"].get("pretraining"),
        "family": record["backbone"].get("family"),
        "distilled_from": (record.get("distilled_from") or {}).get("name") or record["backbone"].get("distilled_from"),
        "method": record["method"],
        "seed": record["seed"],
        "metrics": record["test"]["metrics"],
        "validation": record["validation"],
        "temperature": record["temperature"],
        "calibration": record["calibration"],
        "per_label": record["test"]["per_label"],
        "seconds": record["training"]["seconds"],
        "trainable_parameters": record["parameters"]["method"] + record["parameters"]["head"],
        "parameters": record["parameters"],
        "adapter_bytes": record["adapter_bytes"],
        "coverage": record["coverage"],
        "training": record["training"],
    }


def versions(*names: str) -> dict[str, str]:
    """The versions that a result depends on: of Python, Posology and these packages."""
    found = {name: importlib.metadata.version(name) for name in ("posology", *names)}
    return {"python": platform.python_version(), **found, "threads": str(torch.get_num_threads())}


def machine() -> dict[str, Any]:
    """What a training ran on, for its model card."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def label_counts(targets: Sequence[np.ndarray], kind: str, labels: Sequence[str]) -> dict[str, int]:
    """How many training documents each class has, or how many entities each type.

    Args:
        targets: of each document, as `posology.engine.run.targets` gives them: a class, or a tag of each word.
    """
    found = np.concatenate([np.atleast_1d(each) for each in targets])
    if kind == "token-classification":
        found = (found[found % 2 == 1] - 1) // 2  # tags are O, then B- and I- of each type: B- begins an entity
    return dict(zip(labels, np.bincount(found, minlength=len(labels)).tolist(), strict=True))


def training_record(result: Fit, documents: int) -> dict[str, Any]:
    """What `posology.json` says of a training on so many documents."""
    return {
        "documents": documents,
        "seconds": result.seconds,
        "evaluation_seconds": result.evaluation_seconds,
        "checkpoint_seconds": result.checkpoint_seconds,
        "activation_seconds": result.activation_seconds,
        "resumed": result.resumed,
        "examples_per_second": result.documents / result.seconds if result.seconds else None,
        "tokens_per_second": result.tokens / result.seconds if result.seconds else None,
        "stopped": result.stopped,
        "best": result.best,
        "evaluations": clean(result.evaluations),
    }
