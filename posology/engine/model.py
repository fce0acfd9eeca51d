"""What every model of a task can do, be it an adapted backbone or a baseline: answer documents and be scored on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from posology.corpus.document import Document, Span
from posology.corpus.tags import snap
from posology.engine.decode import chunks, entities, softmax, tags_of
from posology.evaluation import metrics, statistics


class Answers(NamedTuple):
    """What a model makes of some documents.

    Attributes:
        documents: as they are scored: by the unit that was asked for.
        logits: for each (classes,), or (words, tags) up to the last word that was read.
        coverage: the share of their text that was read.
    """

    documents: Sequence[Document]
    logits: list[np.ndarray]
    coverage: float


class Threshold(NamedTuple):
    """When a classifier of two classes answers with one of them.

    Attributes:
        positive: the index of that class.
        probability: at or above which it is the answer.
    """

    positive: int
    probability: float


class Model(ABC):
    """A trained model of a task.

    Temperature and threshold are of use only for what is told of single documents, `brier` and
    `expected_calibration_error`. Logits are as the model gives them; every other metric is taken from these.

    Attributes:
        labels: classes, or entity types.
        text_pair: whether it was trained on pairs of texts.
        units: the units of a prepared task (`PreparedTask.unit`) that it can be scored by.
        temperature: what logits are divided by for calibrated probabilities; see `posology.engine.calibrate`.
        threshold: of a classifier of two classes; None: the most probable class is the answer.
    """

    labels: tuple[str, ...]
    text_pair: bool
    units: tuple[str, ...]
    temperature = 1.0
    threshold: Threshold | None = None

    @property
    @abstractmethod
    def kind(self) -> str:
        """Of the task."""

    @abstractmethod
    def answer(self, documents: Sequence[Document], description: str = "predicting", *, unit: str = "word") -> Answers:
        """Reads documents.

        Args:
            documents: with `words` in token classification.
            description: of the progress bar.
            unit: what taggers give logits for, one of `units`.
        """

    def spans(
        self, documents: Sequence[Document], logits: Sequence[np.ndarray], outside_offset: float = 0.0
    ) -> list[tuple[list[Span], list[float]]]:
        """Entities of each document, as characters of its text, with their scores; see `entities` for the offset."""
        return [
            entities(document.words, fill(values, len(document.words)), self.labels, self.temperature, outside_offset)
            for document, values in zip(documents, logits, strict=True)
        ]

    def probabilities(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Calibrated probabilities of classes, (documents, classes)."""
        return softmax(np.stack(logits), self.temperature)

    def classes(self, probabilities: np.ndarray) -> np.ndarray:
        """The answer to each document, (documents,) class indices: the most probable one, or as the threshold says."""
        if self.threshold is None:
            return probabilities.argmax(axis=1)
        positive, probability = self.threshold
        return np.where(probabilities[:, positive] >= probability, positive, 1 - positive)

    def gold(self, documents: Sequence[Document]) -> np.ndarray:
        """Class indices of labelled documents."""
        index = {label: position for position, label in enumerate(self.labels)}
        return np.array([index[str(document.label)] for document in documents])

    def counts(self, documents: Sequence[Document], logits: Sequence[np.ndarray]) -> np.ndarray:
        """Right, predicted and gold entities by document and type, (documents, types, 3).

        Documents that bring tags are counted as published: each position has its most probable tag, an entity is what
        the CoNLL-2000 script `conlleval` (and seqeval by default) takes for one, and what was not read is not scored.
        """
        rows = []
        tags = tags_of(self.labels)
        for document, values in zip(documents, logits, strict=True):
            if document.tags is None:
                gold = snap(document.words, document.spans)
                found, _ = entities(document.words, fill(values, len(document.words)), self.labels)
            else:
                gold = chunks(document.tags[: len(values)])
                found = chunks([tags[position] for position in values.argmax(axis=1)])
            rows.append(metrics.entity_counts(gold, found, self.labels))
        return np.stack(rows)

    def score(self, documents: Sequence[Document], logits: Sequence[np.ndarray]) -> dict[str, float]:
        """Every metric of the task, without intervals."""
        if self.kind == "token-classification":
            return metrics.entity_metrics(self.counts(documents, logits))
        scores = self._class_scores(documents, logits)(np.ones((len(documents), 1)))
        return {name: float(values[0]) for name, values in scores.items()}

    def evaluate(self, documents: Sequence[Document], logits: Sequence[np.ndarray]) -> dict[str, object]:
        """Every metric with a 95 % interval over groups, and results by label.

        Returns:
            `metrics` ({name: {value, low, high}}), `per_label` (as `metrics.per_class`, with `f1_low` and `f1_high`), `documents`, `groups`, and the `temperature` of the
            probabilities that `brier` and `expected_calibration_error` are taken from.
        """
        groups = [document.group for document in documents]
        if self.kind == "token-classification":
            counts = self.counts(documents, logits)
            intervals = statistics.entity_intervals(counts, groups)
        else:
            scores = self._class_scores(documents, logits)
            counts = metrics.class_counts(scores.gold, softmax(np.stack(logits)))
            intervals = statistics.intervals(scores, groups)
        return {
            "metrics": statistics.clean(intervals),
            "per_label": statistics.clean(
                statistics.with_intervals(metrics.per_class(counts, self.labels), counts, groups)
            ),
            "documents": len(documents),
            "groups": len(set(groups)),
            "temperature": self.temperature,
        }

    def scores(
        self, documents: Sequence[Document], logits: Sequence[np.ndarray]
    ) -> metrics.ClassificationScores | metrics.EntityScores:
        """The answers as what every metric is taken from, for any part and weighting of the documents."""
        if self.kind == "token-classification":
            return metrics.EntityScores(self.counts(documents, logits))
        return self._class_scores(documents, logits)

    def _class_scores(
        self, documents: Sequence[Document], logits: Sequence[np.ndarray]
    ) -> metrics.ClassificationScores:
        """Of a temperature of 1, so that one fitted later changes neither a class nor a ranking between documents."""
        raw = softmax(np.stack(logits))
        calibrated = None if self.temperature == 1.0 else self.probabilities(logits)
        return metrics.ClassificationScores(self.gold(documents), raw, calibrated)


class BaselineModel(Model):
    """A model without a backbone: numbers, and the words they belong to."""

    @property
    @abstractmethod
    def entries(self) -> int:
        """How many numbers or entries training found: what a backbone's trainable parameters are compared with."""

    @property
    @abstractmethod
    def bytes(self) -> int:
        """About how many it takes on disk."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes its numbers and its vocabulary into an existing folder."""


def fill(logits: np.ndarray, words: int) -> np.ndarray:
    """`logits` with rows of NaN for the words after its last."""
    if len(logits) >= words:
        return logits
    return np.concatenate([logits, np.full((words - len(logits), logits.shape[1]), np.nan, logits.dtype)])
