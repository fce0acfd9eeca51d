"""Probabilities one can rely on, and thresholds: a temperature for every model, fitted on validation.

A temperature divides all logits, so that it changes neither the class of a document nor an entity. It is fitted after
every training and again, with a threshold where one is wanted, by `posology calibrate`. Labels and rankings are scored
from logits as they are; of calibrated probabilities are `predict`'s answers, `brier` and `expected_calibration_error`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posology import console
from posology.corpus.document import Document
from posology.engine import artifact as artifacts
from posology.engine.decode import softmax, tags_of, word_tags
from posology.engine.model import Answers, Model, Threshold
from posology.errors import UserError
from posology.evaluation import calibration, thresholds
from posology.evaluation.statistics import clean
from posology.tasks.prepared import PreparedTask

_CALIBRATED = ("brier", "expected_calibration_error")


def calibrate(
    artifact: Path | str,
    data: Path | str,
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
    cost_ratio: float | None = None,
    positive: str | None = None,
    backbone: str | None = None,
) -> dict[str, Any]:
    """Fits an artifact's temperature, and a threshold if one is wanted, on validation; test shows what they reach.

    Both are written into its `posology.json` in place of earlier ones. From then on `predict` gives probabilities at
    that temperature, and labels of a classifier of two classes by the threshold: without a goal, the more probable one.

    Args:
        artifact: a folder that `train` wrote.
        data: a prepared task with the same labels.
        sensitivity: the threshold finds at least this share of the positive validation documents, and as few others as
            it can.
        specificity: the threshold leaves at least this share of the negative ones alone, and finds what it can.
        cost_ratio: the threshold costs least where a missed positive document costs so many times a false alarm.
        positive: the label that is to be found; of two the second if it is not named.
        backbone: where the backbone is, if not where it was in training.

    Returns:
        `artifact`, `task`, `temperature`; `calibration` as `posology.json` has it; `test`, as in `calibration_report`,
        None without test documents; `threshold` (None without a goal): `positive`, `probability`, `goal`, what it
        reaches on `validation` and `test`, each {name: {value, low, high}}, and what validation lets one expect of as
        many new documents as test has, `expected`, {name: {low, high}}; `decision_curve` on test, of the threshold only.

    Raises:
        UserError: the artifact does not fit the data, or the goal does not fit the task; nothing is written.
    """
    task, folder = PreparedTask.open(data), Path(artifact)
    record = artifacts.read_record(folder)
    goal = _goal(sensitivity=sensitivity, specificity=specificity, cost_ratio=cost_ratio)
    target = _positive(record, goal, positive, folder)
    model = artifacts.load_for(folder, task, backbone=backbone)
    validation = _answers(model, task, "validation", "calibrating")
    if validation is None:
        raise UserError("has no validation documents", "Prepare it with a validation split", task.folder)
    model.threshold = None
    record |= fit_calibration(model, task, validation.documents, validation.logits)
    record["threshold"] = None
    test = _answers(model, task, "test", "testing")
    curve = None
    if target is not None:
        is_positive = model.gold(validation.documents) == target
        if is_positive.all() or not is_positive.any():
            raise UserError(
                f"its validation split has documents of one class only, as seen from {model.labels[target]}",
                "Prepare the task with a validation split that has both",
                task.folder,
            )
        likely = model.probabilities(validation.logits)[:, target]
        probability = thresholds.choose_threshold(is_positive, likely, **goal)
        model.threshold = Threshold(target, probability)
        record["threshold"] = {
            "positive": model.labels[target],
            "probability": probability,
            "goal": goal,
            "expected": thresholds.expected_point(
                is_positive,
                likely,
                [document.group for document in validation.documents],
                new_groups=None if test is None else len({document.group for document in test.documents}),
                **goal,
            ),
            "validation": _reached(model, validation),
            "test": None if test is None else _reached(model, test),
        }
        if test is not None:
            is_positive = model.gold(test.documents) == target
            curve = thresholds.decision_curve(is_positive, model.probabilities(test.logits)[:, target])
    # The record's own test scores are to be those of the temperature it has.
    if record["test"] is not None and test is not None and record["task"].get("fingerprint") == task.fingerprint:
        again = model.evaluate(test.documents, test.logits)
        scores: Any = again["metrics"]
        record["test"]["metrics"] |= {name: scores[name] for name in _CALIBRATED if name in scores}
        record["test"]["temperature"] = model.temperature
    artifacts.update(folder, record)
    return {
        "artifact": str(artifact),
        "task": task.name,
        "temperature": model.temperature,
        "calibration": record["calibration"],
        "test": None if test is None else calibration_report(model, test.documents, test.logits),
        "threshold": record["threshold"],
        "decision_curve": curve,
    }


def fit_calibration(
    model: Model, task: PreparedTask, documents: Sequence[Document], logits: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Fits a model's temperature on its answers to validation documents, and sets it.

    Returns:
        What `posology.json` says of it: `temperature`, and `calibration` with `split`, `data` (the fingerprint of the
        task), `unit` that one row stands for (document, word or piece), `count` of rows, `documents`, `refused` (why
        the temperature is 1; None where it was fitted), and `nll`, `brier`, `ece`, `adaptive_ece` of these rows
        `before` and `after`.
    """
    gold, values = rows(model, documents, logits)
    model.temperature, refused = calibration.fit_temperature(gold, values, len(documents))
    before, after = (
        calibration.calibration_scores(gold, softmax(values, temperature)) for temperature in (1.0, model.temperature)
    )
    if refused is None:
        found = f"expected calibration error on validation {before['ece']:.3f}, then {after['ece']:.3f}"
        console.say(f"temperature {model.temperature:.2f}: {found}")
    else:
        console.say(f"not calibrated: {refused}")
    return clean(
        {
            "temperature": model.temperature,
            "calibration": {
                "split": "validation",
                "data": task.fingerprint,
                "unit": _unit(model, task),
                "count": len(gold),
                "documents": len(documents),
                "refused": refused,
                "before": before,
                "after": after,
            },
        }
    )


def calibration_report(model: Model, documents: Sequence[Document], logits: Sequence[np.ndarray]) -> dict[str, Any]:
    """How well a model's probabilities fit labelled documents.

    Returns:
        `temperature`, `count` of rows (documents, or words), and `before` and `after` it `nll`, `brier`, `ece`,
        `adaptive_ece`, `decomposition` (see `brier_decomposition`) and `reliability`, the bins of `reliability_curve`.
    """
    gold, values = rows(model, documents, logits)

    def of(temperature: float) -> dict[str, Any]:
        probabilities = softmax(values, temperature)
        return {
            **calibration.calibration_scores(gold, probabilities),
            "decomposition": calibration.brier_decomposition(gold, probabilities),
            "reliability": calibration.reliability_curve(gold, probabilities),
        }

    before = of(1.0)
    after = before if model.temperature == 1.0 else of(model.temperature)
    report: dict[str, Any] = clean(
        {"temperature": model.temperature, "count": len(gold), "before": before, "after": after}
    )
    return report


def threshold_report(
    model: Model, documents: Sequence[Document], logits: Sequence[np.ndarray]
) -> dict[str, Any] | None:
    """What a model's threshold reaches on labelled documents: `positive`, `probability` and `metrics` with intervals.

    None where the model has none.
    """
    if model.threshold is None:
        return None
    reached = _reached(model, Answers(documents, list(logits), 1.0))
    return {
        "positive": model.labels[model.threshold.positive],
        "probability": model.threshold.probability,
        "metrics": reached,
    }


def rows(model: Model, documents: Sequence[Document], logits: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What calibration is fitted and measured on: right outputs (n,), and logits (n, outputs).

    For a tagger a row is a word that was read, or a piece where documents were read by piece.
    """
    if model.kind == "sequence-classification":
        return model.gold(documents), np.stack(logits)
    index = {tag: position for position, tag in enumerate(tags_of(model.labels))}
    gold, values = [np.empty(0, np.int64)], [np.empty((0, len(index)), np.float32)]
    for document, own in zip(documents, logits, strict=True):
        read = ~np.isnan(own[:, 0])
        tags = np.array([index[tag] for tag in word_tags(document)[: len(own)]], np.int64)
        gold.append(tags[read])
        values.append(own[read])
    return np.concatenate(gold), np.concatenate(values)


def _reached(model: Model, answers: Answers) -> dict[str, Any]:
    """What the model's threshold reaches, with intervals."""
    assert model.threshold is not None
    positive, probability = model.threshold
    groups = [document.group for document in answers.documents]
    is_positive = model.gold(answers.documents) == positive
    likely = model.probabilities(answers.logits)[:, positive]
    point: dict[str, Any] = clean(thresholds.operating_point(is_positive, likely, probability, groups))
    return point


def _answers(model: Model, task: PreparedTask, split: str, description: str) -> Answers | None:
    """What the model makes of a split; None where it is empty."""
    documents = task.documents(split)
    return model.answer(documents, description, unit=task.unit) if documents else None


def _unit(model: Model, task: PreparedTask) -> str:
    return "document" if model.kind == "sequence-classification" else task.unit


def _goal(**goals: float | None) -> dict[str, Any]:
    """The one goal that was given, by its name, if any."""
    given = {name: value for name, value in goals.items() if value is not None}
    if len(given) > 1:
        raise UserError(
            f"{len(given)} goals were given, and a threshold reaches one", "Leave one of them", ", ".join(given)
        )
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        if name == "cost_ratio" and not value > 0:
            raise UserError(f"{value} is no ratio of costs", "Give a number above 0", option)
        if name != "cost_ratio" and not 0 < value <= 1:
            raise UserError(f"{value} is no share", "Give a number above 0, and 1 at most", option)
    return given


def _positive(record: dict[str, Any], goal: dict[str, float], label: str | None, folder: Path) -> int | None:
    """The index of the class that a threshold is to find; None where none is wanted."""
    if not goal:
        if label is not None:
            raise UserError(
                "is of use only with a goal", "Add --sensitivity, --specificity or --cost-ratio", "--positive"
            )
        return None
    labels: list[str] = record["labels"]
    if record["kind"] != "sequence-classification" or len(labels) != 2:
        raise UserError(
            f"is no classifier of two classes (it has {len(labels)} labels), and a threshold is between two",
            "Leave the goal out to fit the temperature alone",
            folder,
        )
    if label is None:
        return 1
    if label not in labels:
        raise UserError(f"{label} is not one of {', '.join(labels)}", "Name one of these", "--positive")
    return labels.index(label)
