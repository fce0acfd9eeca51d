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


class Model(ABC):
    """A trained model of a task.

    Attributes:
        labels: classes, or entity types.
        text_pair: whether it was trained on pairs of texts.
        units: the units of a prepared task (`PreparedTask.unit`) that it can be scored by.
    """

    labels: tuple[str, ...]
    text_pair: bool
    units: tuple[str, ...]

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
        self, documents: Sequence[Document], logits: Sequence[np.ndarray]
    ) -> list[tuple[list[Span], list[float]]]:
        """Entities of each document, as characters of its text, with their scores."""
        return [
            entities(document.words, fill(values, len(document.words)), self.labels)
            for document, values in zip(documents, logits, strict=True)
        ]

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
        return metrics.classification_metrics(self.gold(documents), softmax(np.stack(logits)))

    def evaluate(self, documents: Sequence[Document], logits: Sequence[np.ndarray]) -> dict[str, object]:
        """Every metric with a 95 % bootstrap interval over groups, and results by label.

        Returns:
            `metrics` ({name: {value, low, high}}), `per_label`, `documents`, `groups`.
        """
        groups = [document.group for document in documents]
        if self.kind == "token-classification":
            counts = self.counts(documents, logits)
            intervals = statistics.entity_intervals(counts, groups)
        else:
            gold, probabilities = self.gold(documents), softmax(np.stack(logits))
            counts = metrics.class_counts(gold, probabilities)
            intervals = statistics.classification_intervals(gold, probabilities, groups)
        return {
            "metrics": statistics.clean(intervals),
            "per_label": statistics.clean(metrics.per_class(counts, self.labels)),
            "documents": len(documents),
            "groups": len(set(groups)),
        }


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
