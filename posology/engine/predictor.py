"""A task model ready to answer: what training validates with, and what an artifact becomes when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from posology import console
from posology.corpus.document import Document
from posology.engine.batch import cut
from posology.engine.decode import tags_of
from posology.engine.encode import Encoded, Encoder
from posology.engine.methods import Adapted
from posology.engine.model import Answers, Model
from posology.engine.precision import Precision
from posology.errors import UserError

TOKEN_BUDGET = 2048
"""Pieces that one forward pass may hold, padding included where there is some: enough to fill the cores, little
enough to stay in memory."""


@dataclass
class Predictor(Model):
    """An adapted backbone with all it needs to read documents.

    Attributes:
        adapted: the model.
        encoder: cuts documents into windows.
        labels: classes, or entity types.
        precision: device and type of its products.
        text_pair: whether it was trained on pairs of texts.
        units: `("word",)`, or `("word", "piece")` for a tagger that was trained on every piece.
    """

    adapted: Adapted
    encoder: Encoder
    labels: tuple[str, ...]
    precision: Precision
    text_pair: bool = False
    units: tuple[str, ...] = ("word",)

    @property
    def kind(self) -> str:
        """Of the task."""
        return self.adapted.kind

    def answer(self, documents: Sequence[Document], description: str = "predicting", *, unit: str = "word") -> Answers:
        """Reads documents; see `Model.answer`. Asked by `word`, taggers answer for the first piece of each word."""
        documents, encoded = self.encoder.read(documents, unit)
        return Answers(documents, self.logits(encoded, description), encoded.coverage)

    @torch.inference_mode()
    def logits(self, encoded: Encoded, description: str = "predicting") -> list[np.ndarray]:
        """Logits of each document: (classes,), the mean over its windows; or (words, tags).

        In token classification words that the tokenizer dropped have rows of NaN; those after the last one read have
        none. Where documents were read by piece, pieces stand for words.
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
            for group in cut([[window] for window in windows], TOKEN_BUDGET, padded=adapted.layout == "padded"):
                batch = adapted.batch(group, self.precision.device)
                output = adapted.logits(batch.inputs, batch.segments)
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


def outputs_of(kind: str, labels: Sequence[str]) -> list[str]:
    """The names of a model's outputs: the classes, or the tags of the entity types."""
    return tags_of(labels) if kind == "token-classification" else list(labels)


def units_of(trained: str) -> tuple[str, ...]:
    """The units that a tagger trained on one can be scored by: a word's later pieces are learnt only by piece."""
    return ("word", "piece") if trained == "piece" else ("word",)


def pool(logits: torch.Tensor, owner: torch.Tensor, documents: int) -> torch.Tensor:
    """Logits of documents from logits of their windows: the mean. (windows, classes) -> (documents, classes)."""
    sums = torch.zeros(documents, logits.shape[1], dtype=logits.dtype, device=logits.device)
    counts = torch.bincount(owner, minlength=documents).to(logits.dtype)
    return sums.index_add(0, owner, logits) / counts[:, None]
