"""The measures of a run that is done: operations, speed of prediction, bytes on disk (definitions in docs/measures.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from posology.engine import artifact as artifacts
from posology.engine.adapted import Adapted
from posology.engine.backbone import resolve
from posology.engine.encode import Encoded, Encoder
from posology.engine.methods import METHODS
from posology.engine.predictor import Predictor
from posology.engine.run import training_documents
from posology.measure.flops import cost_of
from posology.measure.latency import latencies, percentiles, tokens_per_second
from posology.tasks.prepared import PreparedTask

SECONDS = 0.3
"""For each of the two samples of prediction: a study has many runs."""
_ADAPTER = re.compile(r"\.default(\.|$)")
"""How PEFT calls what an adapter adds, heads included."""
_LOADED = (".safetensors", ".json", ".txt", ".model")
"""Endings of the files of a backbone that are read: weights, configuration, tokenizer."""


def measures(
    artifact: Path | str,
    data: Path | str,
    *,
    energy: float | None = None,
    backbone: str | None = None,
    seconds: float = SECONDS,
) -> dict[str, float]:
    """What a run took, and what using it takes on this machine.

    Args:
        artifact: that it left.
        data: the prepared task; documents of its test split are read, its training documents counted.
        energy: joules of the run, where they were measured.
        backbone: where it is, if not where it was in training.
        seconds: of each of the two samples of prediction, beside one document that warms up.

    Returns:
        `training_flops` of the run; `flops_per_token` of a forward pass; `latency_p50_ms` and `latency_p95_ms` of one
        document; `prediction_tokens_per_second` of many; `bytes` on disk of artifact and backbone; `energy_joules`.
        Names that have no meaning or were not measured are missing: baselines have latency and bytes only.

    Raises:
        UserError: the artifact or the task cannot be read.
    """
    folder, task = Path(artifact), PreparedTask.open(data)
    record, model = artifacts.read_record(folder), artifacts.load(folder, backbone=backbone)
    documents = task.documents("test")
    unit = task.unit if task.unit in model.units else model.units[0]
    found = {"bytes": float(_bytes(folder, record, backbone))}
    if energy is not None:
        found["energy_joules"] = energy
    if isinstance(model, Predictor):
        found |= _operations(model, task, record, _lengths(model.encoder.encode(documents, unit)))
        model.merge()
    answered = latencies(model, documents, unit, seconds=seconds)
    found |= {f"latency_{name}_ms": value for name, value in percentiles(answered).items() if name != "p99"}
    if isinstance(model, Predictor):
        pace = tokens_per_second(model, documents, unit, each=float(answered.mean()), seconds=seconds)
        found["prediction_tokens_per_second"] = pace
    return found


def _operations(
    predictor: Predictor, task: PreparedTask, record: Mapping[str, Any], tested: np.ndarray
) -> dict[str, float]:
    """`flops_per_token` on windows of the lengths `tested`, and `training_flops`."""
    _mark_trained(predictor.adapted)
    cost = cost_of(predictor.adapted)
    found = {"flops_per_token": cost.predicting(tested) / float(tested.sum())}
    training = record["training"]
    if training.get("tokens_per_second"):
        lengths = _training_lengths(predictor.encoder, task, record["budget"]["shots"], record["seed"])
        passes = training["tokens_per_second"] * training["seconds"] / float(lengths.sum())
        found["training_flops"] = passes * cost.training(lengths)
    return found


def _mark_trained(adapted: Adapted) -> None:
    """What was trained asks for gradients again: an artifact is loaded without, and its cost is read off them."""
    storage = METHODS[adapted.method].storage
    heads = tuple(f"{name}." for name in adapted.head)
    for name, weight in adapted.module.named_parameters():
        if storage == "peft":
            trained = _ADAPTER.search(name) is not None
        else:
            biases = adapted.method == "bitfit" and name.endswith(".bias")
            trained = storage == "model" or biases or name.startswith(heads)
        weight.requires_grad_(trained)


def _training_lengths(encoder: Encoder, task: PreparedTask, shots: int | None, seed: int) -> np.ndarray:
    key = task.fingerprint, encoder.key, shots, seed if shots is not None else None
    if key not in _KNOWN:
        _KNOWN.clear()  # runs that follow each other share their documents more often than not
        documents, _ = training_documents(task, shots, seed)
        _KNOWN[key] = _lengths(encoder.encode(documents, task.unit, cache=task.folder))
    return _KNOWN[key]


_KNOWN: dict[object, np.ndarray] = {}


def _lengths(encoded: Encoded) -> np.ndarray:
    return np.array([len(window.ids) for own in encoded.windows for window in own])


def _bytes(folder: Path, record: Mapping[str, Any], backbone: str | None) -> int:
    """Of all files of an artifact, and of those of its backbone, where it has one and does not hold it itself."""
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if record["method"] in METHODS and METHODS[record["method"]].storage != "model":
        source = resolve(backbone or record["backbone"]["folder"] or record["backbone"]["name"])
        total += sum(path.stat().st_size for path in source.folder.iterdir() if path.suffix in _LOADED)
    return total
