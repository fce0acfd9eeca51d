"""One run from a prepared task to an artifact, and its evaluation on other data."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel

from posology import console
from posology.corpus.document import Document
from posology.engine import artifact as artifacts
from posology.engine import baselines
from posology.engine.architectures import architecture_of
from posology.engine.backbone import Source, load_config, load_model, load_tokenizer, resolve
from posology.engine.baselines import BASELINES
from posology.engine.decode import word_tags
from posology.engine.encode import Encoder
from posology.engine.loop import Fit, fit
from posology.engine.methods import VIRTUAL, adapt, check, check_method
from posology.engine.model import Model
from posology.engine.precision import decide
from posology.engine.predictor import Predictor, outputs_of, units_of
from posology.engine.recipe import Recipe, make_recipe
from posology.errors import Interrupted, UserError
from posology.evaluation.statistics import clean
from posology.files import check_free, check_writable
from posology.tasks.prepared import PreparedTask


def train(
    data: Path | str,
    backbone: str | None,
    method: str,
    out: Path | str,
    *,
    recipe: str = "standard",
    overrides: Mapping[str, Any] | None = None,
    seed: int = 42,
    max_seconds: float | None = None,
    shots: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Adapts a backbone to a prepared task and writes the artifact.

    The checkpoint that is best on validation by the task's metric is kept, and scored once on test.

    Args:
        data: a prepared task.
        backbone: catalogue name, folder, or `NAME:K`. Baselines have none and do not look at it.
        method: a key of `METHODS`, or of `BASELINES`.
        out: the artifact's folder.
        recipe: `standard` or `paper`.
        overrides: fields of the recipe, or settings of a baseline, to replace.
        seed: of initialisation, order and dropout.
        max_seconds: wall clock of training, evaluations excluded; a baseline tries no further setting after it.
        shots: train on so many documents per class (or per entity type), drawn by `seed`.
        overwrite: replace an existing folder.

    Returns:
        What `posology train --json` prints: `artifact`, `metrics`, `seconds`, `trainable_parameters` and the rest of
        `posology.json`.

    Raises:
        UserError: input that does not fit; nothing is written.
        Interrupted: stopped by the user; the artifact holds the best state so far, without a test score.
    """
    out = Path(out)
    check_free(out, marker=artifacts.RECORD, overwrite=overwrite)
    _check_budgets(seed, max_seconds)
    task = PreparedTask.open(data)
    check_method(method)
    asked = {"recipe_name": recipe, "seed": seed, "budget": {"max_seconds": max_seconds, "shots": shots}}
    if method in BASELINES:
        settings = baselines.make_settings(method, task.kind, recipe, overrides)
        return _train_baseline(task, method, settings, out, asked, overwrite)
    if backbone is None:
        raise UserError(
            f"{method} adapts a backbone, and none is named", "Name one of `posology backbones`", "--backbone"
        )
    source = resolve(backbone)
    chosen = make_recipe(method, recipe, overrides, width=load_config(source).hidden_size)
    return _train_adapted(task, source, method, chosen, out, asked, overwrite)


def _train_adapted(
    task: PreparedTask, source: Source, method: str, chosen: Recipe, out: Path, asked: dict[str, Any], overwrite: bool
) -> dict[str, Any]:
    """`train` for a method that adapts a backbone; `asked` is what the record says of seed and budget."""
    seed, budget = asked["seed"], asked["budget"]
    predictor = _build(task, source, method, chosen, seed)
    artifacts.check_writable(out, predictor.adapted)
    training, validation = _training_documents(task, budget["shots"], seed)
    paired = any(document.text_pair is not None for document in training)
    training, encoded = predictor.encoder.read(training, task.unit)
    validation, encoded_validation = predictor.encoder.read(validation, task.unit)
    console.say(
        f"{len(training):,} training documents, {int(encoded.pieces.sum()):,} pieces, {encoded.coverage:.1%} of them "
        f"read in {sum(map(len, encoded.windows)):,} windows of up to {predictor.encoder.max_length}"
    )
    scores: list[dict[str, float]] = []

    def validate() -> float:
        scores.append(predictor.score(validation, predictor.logits(encoded_validation, "validating")))
        return scores[-1][task.metric]

    result = fit(
        predictor.adapted,
        encoded,
        targets(training, task.kind, task.labels),
        chosen,
        seed=seed,
        precision=predictor.precision,
        validate=validate,
        max_seconds=budget["max_seconds"],
    )
    record = (
        _task_record(task)
        | _adapted_record(source, predictor, chosen)
        | asked
        | {
            "training": _training(result, len(training)),
            "validation": clean(scores[result.best]) if result.best is not None else None,
            "coverage": {"train": encoded.coverage, "validation": encoded_validation.coverage},
            "text_pair": paired,
            "scoring": _scoring(task, task.unit),
            "test": None,
        }
    )
    # Written before the test, so that nothing that happens there costs the training.
    artifacts.save(out, predictor.adapted, source, record, overwrite=overwrite)
    state = "the best state so far" if result.evaluations else "weights that were never validated"
    return _test(out, task, predictor, record, state, interrupted=result.stopped == "interrupted")


def _train_baseline(
    task: PreparedTask, method: str, settings: BaseModel, out: Path, asked: dict[str, Any], overwrite: bool
) -> dict[str, Any]:
    """`train` for a method without a backbone; `asked` as above."""
    seed, budget = asked["seed"], asked["budget"]
    check_writable(out, 0)
    training, validation = _training_documents(task, budget["shots"], seed)
    console.say(f"{len(training):,} training documents; {method} reads all of their text and uses no backbone")
    result = baselines.fit(
        method,
        training,
        validation,
        task.labels,
        settings,
        task.metric,
        seed=seed,
        max_seconds=budget["max_seconds"],
    )
    record = (
        _task_record(task)
        | asked
        | {
            "backbone": {
                "name": "none",
                "folder": None,
                "hub_id": None,
                "layers": None,
                "sha256": None,
                "parameters": 0,
            },
            "method": method,
            "recipe": result.settings.model_dump(mode="json"),
            "head": [],
            "virtual_tokens": 0,
            "parameters": {"head": 0, "method": result.model.entries, "total": result.model.entries},
            "versions": versions("scikit-learn", "numpy"),
            "training": result.record(len(training)),
            "validation": clean(result.scores),
            "coverage": {"train": 1.0, "validation": 1.0},
            "text_pair": result.model.text_pair,
            "scoring": _scoring(task, "word"),
            "test": None,
        }
    )
    artifacts.save_baseline(out, result.model, record, overwrite=overwrite)
    console.say(f"{out} holds words of the training documents as they are: keep it as you keep these documents")
    return _test(out, task, result.model, record, "the best so far", interrupted=result.stopped == "interrupted")


def _training_documents(task: PreparedTask, shots: int | None, seed: int) -> tuple[list[Document], list[Document]]:
    """Documents to train on, and those of validation."""
    training, validation = task.documents("train"), task.documents("validation")
    _check_metric(task, validation)
    return (training if shots is None else few(training, shots, seed)), validation


def _test(
    out: Path, task: PreparedTask, model: Model, record: dict[str, Any], state: str, *, interrupted: bool
) -> dict[str, Any]:
    """Scores a saved model on test, once, and notes it in its artifact; `state` says what an interrupted one holds."""
    try:
        if interrupted:
            raise KeyboardInterrupt
        answers = model.answer(task.documents("test"), "testing", unit=task.unit)
        record["test"] = model.evaluate(answers.documents, answers.logits)
        record["coverage"]["test"] = answers.coverage
    except KeyboardInterrupt:
        raise Interrupted(f"{out} holds {state}, not scored on test") from None
    artifacts.update(out, record)
    return summary(out, record)


def _check_budgets(seed: int, max_seconds: float | None) -> None:
    if seed < 0:
        raise UserError(f"{seed} is no seed", "Give a number from 0", "--seed")
    if max_seconds is not None and not max_seconds > 0:
        raise UserError(f"{max_seconds} seconds are none", "Give more than 0", "--max-seconds")


def _check_metric(task: PreparedTask, validation: Sequence[Document]) -> None:
    """Raises UserError, before any training, where the task's metric cannot choose a checkpoint."""
    if not validation:
        raise UserError("has no validation documents", "Prepare it with a validation split", task.folder)
    if task.metric in ("auroc", "average_precision") and len({document.label for document in validation}) < 2:
        raise UserError(
            f"{task.metric} is undefined on a validation split of one class",
            "Prepare the task with another --metric, or with a larger validation split",
            task.folder,
        )


def _build(task: PreparedTask, source: Source, method: str, recipe: Recipe, seed: int) -> Predictor:
    """The model to train, and what it needs to read documents."""
    config = load_config(source)
    check(method, architecture_of(config, source.family), recipe)
    precision = decide(recipe.precision)
    console.say(precision.reason)
    mean = recipe.pooling == "mean" or (recipe.pooling == "auto" and source.layers is not None)
    virtual_tokens = recipe.virtual_tokens if method in VIRTUAL else 0
    encoder = Encoder(load_tokenizer(source), config, recipe, task.kind, virtual_tokens)
    base, new_modules = load_model(source, task.kind, outputs_of(task.kind, task.labels), recipe, seed=seed, mean=mean)
    if new_modules:
        console.say(f"the backbone has no weights for {', '.join(new_modules)}: trained beside the head")
    adapted = adapt(
        base,
        method,
        recipe,
        task.kind,
        family=source.family,
        new_modules=new_modules,
        attention=precision.attention,
        mean=mean or getattr(base.config, "classifier_pooling", "") == "mean",
    )
    adapted.module.to(precision.device)
    return Predictor(adapted, encoder, task.labels, precision, units=units_of(task.unit))


def _task_record(task: PreparedTask) -> dict[str, Any]:
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


def _scoring(task: PreparedTask, unit: str) -> dict[str, str] | None:
    """What entities were counted on, and by which rule; None for classifiers."""
    if task.kind != "token-classification":
        return None
    return {"unit": unit, "rule": "conlleval" if task.unit == "piece" else "strict"}


def _adapted_record(source: Source, predictor: Predictor, recipe: Recipe) -> dict[str, Any]:
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


def evaluate(
    artifact: Path | str,
    data: Path | str,
    *,
    split: Literal["train", "validation", "test"] = "test",
    backbone: str | None = None,
) -> dict[str, Any]:
    """Scores an artifact on a split of a prepared task.

    Args:
        artifact: a folder that `train` wrote, or an adapter made by PEFT.
        data: a prepared task with the same labels.
        split: which split.
        backbone: where the backbone is, if not where it was in training.

    Returns:
        `metrics` ({name: {value, low, high}}), `per_label`, `documents`, `groups`, `coverage`, `split`.

    Raises:
        UserError: the artifact does not fit the task.
    """
    task = PreparedTask.open(data)
    model = artifacts.load(artifact, task=task, backbone=backbone)
    if model.kind != task.kind:
        raise UserError(f"is for {model.kind}, and {task.name} is {task.kind}", "Choose data of its kind", artifact)
    unknown = sorted(set(task.labels) - set(model.labels))
    if unknown:
        raise UserError(
            f"does not know the label{'s' * (len(unknown) > 1)} {', '.join(unknown)} of {task.name}",
            "Choose data with its labels, or train anew",
            artifact,
        )
    if task.unit not in model.units:
        raise UserError(
            f"knows the first pieces of words only, and {task.name} is scored on every piece",
            "Choose data that are scored by word, or train anew",
            artifact,
        )
    answers = model.answer(task.documents(split), "evaluating", unit=task.unit)
    result = model.evaluate(answers.documents, answers.logits)
    return {"artifact": str(artifact), "task": task.name, "split": split, **result, "coverage": answers.coverage}


def targets(documents: Sequence[Document], kind: str, labels: Sequence[str]) -> list[np.ndarray]:
    """What the loss compares with: the class of each document, or the tag of each of its words."""
    index = {name: position for position, name in enumerate(outputs_of(kind, labels))}
    if kind == "sequence-classification":
        return [np.array(index[str(document.label)]) for document in documents]
    return [np.array([index[tag] for tag in word_tags(document)], np.int64) for document in documents]


def few(documents: Sequence[Document], shots: int, seed: int) -> list[Document]:
    """`shots` documents of each class, or of each entity type; classes with fewer keep all they have.

    A document counts for every type it holds, and documents without entities make one class more.
    """
    if shots < 1:
        raise UserError(f"{shots} documents per class are none", "Give a number from 1", "--shots")
    order = np.random.default_rng(seed).permutation(len(documents))
    taken: dict[str | None, int] = {}
    chosen = []
    for position in order:
        document = documents[position]
        classes: set[str | None] = {span.label for span in document.spans} or {document.label}
        if any(taken.get(name, 0) < shots for name in classes):
            chosen.append(int(position))
            for name in classes:
                taken[name] = taken.get(name, 0) + 1
    return [documents[position] for position in sorted(chosen)]


def versions(*names: str) -> dict[str, str]:
    """The versions that a result depends on: of Python, Posology and these packages."""
    found = {name: importlib.metadata.version(name) for name in ("posology", *names)}
    return {"python": platform.python_version(), **found, "threads": str(torch.get_num_threads())}


def _training(result: Fit, documents: int) -> dict[str, Any]:
    return {
        "documents": documents,
        "seconds": result.seconds,
        "evaluation_seconds": result.evaluation_seconds,
        "examples_per_second": result.documents / result.seconds if result.seconds else None,
        "tokens_per_second": result.tokens / result.seconds if result.seconds else None,
        "stopped": result.stopped,
        "best": result.best,
        "evaluations": clean(result.evaluations),
    }
