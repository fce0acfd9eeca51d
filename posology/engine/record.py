"""What `posology.json` and `posology train --json` say of a run."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

from posology.engine.backbone import Source
from posology.engine.predictor import Predictor
from posology.engine.recipe import Recipe
from posology.engine.training import Fit
from posology.evaluation.statistics import clean
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
        },
        "kind": task.kind,
        "labels": list(task.labels),
    }


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
            "parameters": adapted.backbone_parameters,
        },
        "method": adapted.method,
        "recipe": recipe.model_dump(mode="json"),
        "head": list(adapted.head),
        "pooling": adapted.pooling,
        "virtual_tokens": predictor.encoder.virtual_tokens,
        "parameters": adapted.count_trainable(),
        "precision": predictor.precision.reason,
        "threshold": None,
        "temperature": 1.0,
        "versions": versions("torch", "transformers", "peft", "tokenizers"),
    }


def summary(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What a training prints as JSON."""
    return {
        "artifact": str(out),
        "task": record["task"]["name"],
        "kind": record["kind"],
        "metric": record["task"]["metric"],
        "backbone": record["backbone"]["name"],
        "backbone_parameters": record["backbone"]["parameters"],
        "method": record["method"],
        "seed": record["seed"],
        "metrics": record["test"]["metrics"],
        "validation": record["validation"],
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
