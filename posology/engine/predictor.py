"""A task model ready to answer: what training validates with, and what an artifact becomes when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from posology import console
from posology.corpus.document import Document, Span
from posology.corpus.tags import snap
from posology.engine.batch import collate, cut
from posology.engine.decode import entities, softmax, tags_of
from posology.engine.encode import Encoded, Encoder
from posology.engine.methods import Adapted
from posology.engine.precision import Precision
from posology.errors import UserError
from posology.evaluation import metrics, statistics

TOKEN_BUDGET = 2048
"""Padded pieces that one forward pass may hold: enough to fill the cores, little enough to stay in memory."""


@dataclass
class Predictor:
    """An adapted model with all it needs to read documents.

    Attributes:
        adapted: the model.
        encoder: cuts documents into windows.
        labels: classes, or entity types.
        precision: device and type of its products.
        text_pair: whether it was trained on pairs of texts.
    """

    adapted: Adapted
    encoder: Encoder
    labels: tuple[str, ...]
    precision: Precision
    text_pair: bool = False

    @property
    def kind(self) -> str:
        """Of the task."""
        return self.adapted.kind

    @torch.inference_mode()
    def logits(self, encoded: Encoded, description: str = "predicting") -> list[np.ndarray]:
        """Logits of each document: (classes,), the mean over its windows; or (words, tags).

        In token classification words that the tokenizer dropped, or that truncation cut off, have rows of NaN.
        """
        adapted = self.adapted
        adapted.module.eval()
        windows = [window for own in encoded.windows for window in own]
        outputs = adapted.base.config.num_labels
        if self.kind == "sequence-classification":
            results = [np.zeros(outputs, np.float32) for _ in encoded.windows]
        else:
            last = [max((int(window.words.max(initial=-1)) for window in own), default=-1) for own in encoded.windows]
            results = [np.full((word + 1, outputs), np.nan, np.float32) for word in last]
        with console.progress(description, len(windows)) as advance, self.precision.autocast():
            for group in cut([[window] for window in windows], TOKEN_BUDGET):
                batch = collate(group, adapted.base.config.pad_token_id, self.precision.device)
                output = adapted.logits(batch.inputs)
                if self.kind == "token-classification":
                    output = output[batch.rows, batch.columns]
                values = output.cpu().numpy()
                if not np.isfinite(values).all():
                    raise UserError(
                        "the model's answers are not finite numbers", "Train it anew at a lower learning rate"
                    )
                if self.kind == "sequence-classification":
                    for window, row in zip(group, values, strict=True):
                        results[window.document] += row / len(encoded.windows[window.document])
                else:
                    for row, document in enumerate(batch.documents):
                        own = batch.words[:, 0] == row
                        results[document][batch.words[own, 1]] = values[own]
                advance(len(group))
        return results

    def spans(
        self, documents: Sequence[Document], logits: Sequence[np.ndarray]
    ) -> list[tuple[list[Span], list[float]]]:
        """Entities of each document with their scores."""
        return [
            entities(document.words, fill(values, len(document.words)), self.labels)
            for document, values in zip(documents, logits, strict=True)
        ]

    def gold(self, documents: Sequence[Document]) -> np.ndarray:
        """Class indices of labelled documents."""
        index = {label: position for position, label in enumerate(self.labels)}
        return np.array([index[str(document.label)] for document in documents])

    def counts(self, documents: Sequence[Document], logits: Sequence[np.ndarray]) -> np.ndarray:
        """Right, predicted and gold entities by document and type, (documents, types, 3)."""
        found = self.spans(documents, logits)
        return np.stack(
            [
                metrics.entity_counts(snap(document.words, document.spans), spans, self.labels)
                for document, (spans, _) in zip(documents, found, strict=True)
            ]
        )

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


def outputs_of(kind: str, labels: Sequence[str]) -> list[str]:
    """The names of a model's outputs: the classes, or the tags of the entity types."""
    return tags_of(labels) if kind == "token-classification" else list(labels)


def pool(logits: torch.Tensor, owner: torch.Tensor, documents: int) -> torch.Tensor:
    """Logits of documents from logits of their windows: the mean. (windows, classes) -> (documents, classes)."""
    sums = torch.zeros(documents, logits.shape[1], dtype=logits.dtype, device=logits.device)
    counts = torch.bincount(owner, minlength=documents).to(logits.dtype)
    return sums.index_add(0, owner, logits) / counts[:, None]


def fill(logits: np.ndarray, words: int) -> np.ndarray:
    """`logits` with rows of NaN for the words after its last."""
    if len(logits) >= words:
        return logits
    return np.concatenate([logits, np.full((words - len(logits), logits.shape[1]), np.nan, logits.dtype)])
