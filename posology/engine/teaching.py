"""Learning from a teacher: what an artifact answers is a target beside the labels, and in their place where there are none.

    loss of a document or word = (1 - weight) x cross entropy with its label
                               + weight x T^2 x cross entropy of softmax(student / T) with softmax(teacher / T)

(Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network"; T^2 keeps the size of the gradients.) A
document without a label has the second term alone. Taggers are compared word by word, so that teacher and student may
cut words into other pieces.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from posology import console
from posology.corpus import tabular
from posology.corpus.document import Document
from posology.corpus.tags import words_of
from posology.engine import artifact as artifacts
from posology.engine.batch import Batch
from posology.engine.encode import Encoded
from posology.engine.inputs import Inputs
from posology.engine.predictor import outputs_of
from posology.engine.training import UNLABELLED, Training
from posology.errors import UserError
from posology.files import sha256
from posology.tasks.leaks import text_key
from posology.tasks.prepared import PreparedTask

TEMPERATURE, WEIGHT = 2.0, 0.5
_LEAST = -13.8
"""Logarithm of the probability, one in a million, that a class has of which a teacher says that it cannot be: a forest
says so where no tree has met the class, and a logit of -inf no temperature softens."""


@dataclass(frozen=True)
class Teaching:
    """Whom a run learns from, and how.

    Attributes:
        artifact: the teacher's folder; a baseline can teach, too.
        unlabelled: further documents, which the teacher alone labels: a table, or a folder of .txt files.
        text: their column of text; guessed where only one may be meant.
        temperature: T above.
        weight: of the teacher, from 0 (labels alone) to 1 (the teacher alone).

    Raises:
        UserError: a number out of its range.
    """

    artifact: Path
    unlabelled: Path | None = None
    text: str | None = None
    temperature: float = TEMPERATURE
    weight: float = WEIGHT

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"a temperature of {self.temperature:g} is none", "Give more than 0", "--temperature")
        if not 0 <= self.weight <= 1:
            raise UserError(f"a weight of {self.weight:g} is no share", "Give a number from 0 to 1", "--weight")
        if self.unlabelled is not None and not self.weight:
            raise UserError(
                "with a weight of 0 nothing is learnt from documents without labels",
                "Raise --weight, or leave out --unlabelled",
                "--weight",
            )

    def settings(self) -> dict[str, Any]:
        """What the weights at the end depend on."""
        return {
            "teacher": fingerprint(self.artifact),
            "temperature": self.temperature,
            "teacher_weight": self.weight,
            "unlabelled": None if self.unlabelled is None else [_content(self.unlabelled), self.text],
        }


@dataclass(frozen=True)
class Soft:
    """What a teacher says of the documents of a training.

    Attributes:
        logits: for each document (classes,), or (words, tags); NaN where the teacher says nothing.
        temperature, weight: see `Teaching`.
        record: what `posology.json` says of the teacher.
    """

    logits: Sequence[np.ndarray]
    temperature: float
    weight: float
    record: dict[str, Any]


class Student(Training):
    """A training with a teacher; further arguments as in `Training`."""

    def __init__(self, *arguments: Any, soft: Soft, **named: Any):
        super().__init__(*arguments, **named)
        self._soft = np.concatenate([np.atleast_2d(values) for values in soft.logits])
        self._temperature, self._weight = soft.temperature, soft.weight

    def loss(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The sum of the losses of a micro-batch, as above; arguments as in `Training.loss`."""
        if not self._weight:
            return super().loss(answers, batch)
        answers, places = self._placed(answers, batch)
        wanted = torch.from_numpy(self._soft[places]).to(answers.device)
        known = ~wanted.isnan().any(dim=1)
        goal = functional.softmax(wanted[known] / self._temperature, dim=1)
        soft = functional.cross_entropy(answers[known] / self._temperature, goal, reduction="sum")
        hard = self._cross_entropy(answers, places)
        return (1 - self._weight) * hard + self._weight * self._temperature**2 * soft


def fingerprint(folder: Path | str) -> str:
    """SHA-256 of all that an artifact's answers follow from: equal for equal teachers, wherever they lie.

    Raises:
        UserError: it is no artifact.
    """
    record = artifacts.read_record(folder)
    facts = {name: record.get(name) for name in ("kind", "labels", "method", "recipe", "pooling", "head", "text_pair")}
    facts["backbone"] = [record["backbone"].get("sha256"), record["backbone"].get("layers")]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and path.suffix in (".safetensors", ".json") and path.name != artifacts.RECORD:
            digest.update(f"{path.name} {sha256(path)}".encode())
    return digest.hexdigest()


def read_unlabelled(
    teaching: Teaching, task: PreparedTask, training: Sequence[Document]
) -> tuple[list[Document], dict[str, Any] | None]:
    """Documents that the teacher alone labels, and what there is to say of them.

    Left out are those with the text of a document that is trained on with its label, and those of validation and test: a
    student that has learnt what its teacher says of these would be scored on what it knows.

    Args:
        teaching: names them.
        task: what the student learns.
        training: its documents with labels.

    Raises:
        UserError: they cannot be read, or none is left.
    """
    if teaching.unlabelled is None:
        return [], None
    source = teaching.unlabelled
    splits = {"test": task.documents("test"), "validation": task.documents("validation"), "train": training}
    known = {split: {text_key(document) for document in own} for split, own in splits.items()}
    found: list[Document] = []
    left_out = dict.fromkeys(known, 0)
    inputs = Inputs(source, tabular.Columns(text=teaching.text), drop_empty=True, strict=True)
    for document in (document for block in inputs.blocks() for document in block.documents):
        key = text_key(document)
        split = next((split for split, keys in known.items() if key in keys), None)
        if split is not None:
            left_out[split] += 1
            continue
        document.label, document.spans, document.tags = None, [], None
        document.words = words_of(document.text) if task.kind == "token-classification" else []
        found.append(document)
    if gone := sum(left_out.values()):
        parts = ", ".join(f"{count:,} of {split}" for split, count in left_out.items() if count)
        console.say(f"{gone:,} documents without labels have the text of one of the task's ({parts}): left out")
    if not found:
        raise UserError("has no text that the task does not have too", "Give other documents", source)
    return found, {"documents": len(found), "left_out": left_out, "sha256": _content(source)}


def without_labels(count: Sequence[int], kind: str) -> list[np.ndarray]:
    """Targets of documents that have no label, of so many words each."""
    if kind == "sequence-classification":
        return [np.array(UNLABELLED) for _ in count]
    return [np.full(words, UNLABELLED, np.int64) for words in count]


def ask(
    teaching: Teaching,
    task: PreparedTask,
    documents: Sequence[Document],
    encoded: Encoded,
    unlabelled: dict[str, Any] | None,
) -> Soft:
    """What the teacher says of documents.

    Args:
        teaching: names it.
        task: what the student learns.
        documents: with words, not pieces.
        encoded: the same, as the student reads them.
        unlabelled: what the record is to say of those among them that have no label.

    Raises:
        UserError: the teacher cannot be loaded, was taught something else, or answers nothing at all.
    """
    folder = teaching.artifact
    model = artifacts.load(folder, task=task)
    if model.kind != task.kind:
        raise UserError(
            f"is for {model.kind}, and {task.name} is {task.kind}", "Name a teacher for data of its kind", folder
        )
    if missing := sorted(set(task.labels) - set(model.labels)):
        raise UserError(
            f"does not know the label{'s' * (len(missing) > 1)} {', '.join(missing)} of {task.name}",
            "Name a teacher that was trained on the same labels",
            folder,
        )
    paired = any(document.text_pair is not None for document in documents)
    if paired != model.text_pair:
        found, wanted = ("pairs", "single texts") if paired else ("single texts", "pairs")
        raise UserError(f"was trained on {wanted}, and {task.name} has {found}", "Name another teacher", folder)
    names = outputs_of(model.kind, model.labels)
    columns = [names.index(name) for name in outputs_of(task.kind, task.labels)]
    answers = model.answer(documents, "asking the teacher")
    logits = [_bounded(values[..., columns]).astype(np.float32) for values in answers.logits]
    if task.kind == "token-classification":
        logits = [_by_word(values, len(document.words)) for values, document in zip(logits, documents, strict=True)]
    if task.unit == "piece":  # each piece learns what the teacher says of its word
        logits = [values[own] for values, own in zip(logits, encoded.owners, strict=True)]
    if all(np.isnan(values).any(axis=-1).all() for values in logits):
        raise UserError("has no answer to any of the documents", "Name another teacher", folder)
    if answers.coverage < 1:
        console.say(f"the teacher reads {answers.coverage:.1%} of the text; the rest has labels only")
    return Soft(logits, teaching.temperature, teaching.weight, _record(teaching, unlabelled))


def _bounded(logits: np.ndarray) -> np.ndarray:
    """With a very small probability instead of none; NaN, where nothing is said, stays."""
    with np.errstate(invalid="ignore"):  # of NaN
        whole = np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return np.where(np.isneginf(logits), whole + _LEAST, logits)


def _by_word(values: np.ndarray, words: int) -> np.ndarray:
    """One row for each word, (words, tags), with NaN behind the last one that was read."""
    whole = np.full((words, values.shape[1]), np.nan, np.float32)
    whole[: len(values)] = values
    return whole


def _record(teaching: Teaching, unlabelled: dict[str, Any] | None) -> dict[str, Any]:
    record = artifacts.read_record(teaching.artifact)
    return {
        "key": fingerprint(teaching.artifact),
        "name": f"{record['method']} on {record['backbone']['name']}"
        if record["backbone"].get("sha256")
        else record["method"],
        "task": record["task"].get("fingerprint"),
        "method": record["method"],
        "backbone": {name: record["backbone"].get(name) for name in ("name", "sha256", "layers")},
        "parameters": (record.get("parameters") or {}).get("total"),
        "temperature": teaching.temperature,
        "weight": teaching.weight,
        "unlabelled": unlabelled,
    }


def _content(source: Path) -> str:
    """SHA-256 of a file, or of the texts of a folder."""
    if not os.path.isdir(source):
        return sha256(source) if os.path.isfile(source) else ""
    digest = hashlib.sha256()
    for path in sorted(source.glob("*.txt")):
        digest.update(sha256(path).encode())
    return digest.hexdigest()
