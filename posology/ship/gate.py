"""What an export loses against the artifact it was made from, and whether that is too much."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posology.corpus.document import Document
from posology.corpus.tags import words_of
from posology.engine.batch import collate
from posology.engine.decode import best_tags
from posology.engine.encode import Window
from posology.engine.model import Model, fill
from posology.engine.predictor import Predictor
from posology.errors import UserError
from posology.ship.runtime import Runtime

_LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 55)


@dataclass(frozen=True)
class Limits:
    """What an export may lose.

    Attributes:
        loss: points (hundredths) of the task's metric.
        changed: per cent of labels that may be others.
    """

    loss: float
    changed: float


@dataclass(frozen=True)
class Measured:
    """An export beside its artifact in float32, on validation.

    Attributes:
        metric: its name; `before` and `after` are the artifact's and the export's.
        loss: by how many points (hundredths) it falls; below 0 where it rises.
        changed: per cent of labels that are others. Of a classifier: documents with another class. Of a tagger: words with
            another tag among those that either of the two tags as part of an entity, since most words are in none.
        labels: how many these are: documents, or words.
        documents: of the split.
        logits: the largest difference of a logit.
    """

    metric: str
    before: float
    after: float
    loss: float
    changed: float
    labels: int
    documents: int
    logits: float

    def within(self, limits: Limits) -> bool:
        """Whether the export may go."""
        return self.loss <= limits.loss and self.changed <= limits.changed

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def sentence(self, limits: Limits) -> str:
        """What was measured, and what was allowed."""
        what = "labels" if self.labels == self.documents else "words in entities"
        return (
            f"{self.metric} goes from {self.before:.4f} to {self.after:.4f}, {self.loss:+.2f} points of loss "
            f"({limits.loss:g} allowed), and {self.changed:.1f} % of {self.labels:,} {what} change ({limits.changed:g} % allowed)"
        )


def measure(
    model: Model, documents: Sequence[Document], ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], metric: str
) -> Measured:
    """Compares the logits of an export with those of its artifact.

    Args:
        model: the artifact; knows how answers are scored.
        documents: labelled.
        ours, theirs: logits of the artifact and of the export.
        metric: of the task.
    """
    before, after = (model.score(documents, logits)[metric] for logits in (ours, theirs))
    if model.kind == "sequence-classification":
        first, second = (model.classes(model.probabilities(logits)) for logits in (ours, theirs))
    else:
        first, second = (
            np.concatenate(
                [best_tags(fill(own, len(document.words))) for document, own in zip(documents, logits, strict=True)]
            )
            for logits in (ours, theirs)
        )
        inside = (first != 0) | (second != 0)
        first, second = first[inside], second[inside]
    changed = 100 * float((first != second).mean()) if len(first) else 0.0
    loss = 100 * (before - after)
    return Measured(metric, before, after, loss, changed, len(first), len(documents), difference(ours, theirs))


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The largest difference of two lists of logits; infinite where they are not of the same words."""
    largest = 0.0
    for first, second in zip(ours, theirs, strict=True):
        if first.shape != second.shape or (np.isnan(first) != np.isnan(second)).any():
            return float("inf")
        largest = max(largest, float(np.nan_to_num(np.abs(first - second)).max(initial=0)))
    return largest


def answers(runtime: Runtime, documents: Sequence[Document]) -> list[np.ndarray]:
    """Logits of an export."""
    return runtime.logits(
        [document.text for document in documents],
        [document.text_pair or "" for document in documents] if runtime.text_pair else None,
        [document.words for document in documents] if runtime.kind == "token-classification" else None,
    )


def generated(tokenizer: PreTrainedTokenizerBase, max_length: int, text_pair: bool, seed: int = 0) -> list[Document]:
    """Texts of random pieces of a vocabulary, from one piece to more than two windows."""
    draw = random.Random(seed)
    ids = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))

    def text(pieces: int) -> str:
        return " ".join(["a", *(tokenizer.decode([piece]) for piece in draw.choices(ids, k=pieces - 1))])

    lengths = [length for length in _LENGTHS if length < max_length] + [max_length, int(2.5 * max_length)]
    return [
        Document(
            f"generated-{pieces}",
            written := text(pieces),
            text_pair=text(max(1, pieces // 2)) if text_pair else None,
            words=words_of(written),
        )
        for pieces in lengths
    ]


def single_windows(predictor: Predictor, documents: Sequence[Document]) -> list[Window]:
    """The windows of those documents that fit into one."""
    return [own[0] for own in predictor.encoder.encode(documents).windows if len(own) == 1]


@torch.inference_mode()
def window_logits(predictor: Predictor, windows: Sequence[Window]) -> list[np.ndarray]:
    """An artifact's logits, (1, classes) or (words, tags), for each window alone."""
    predictor.adapted.module.eval()
    return [predictor.adapted.answers(predictor.adapted.batch([window])).numpy() for window in windows]


@torch.inference_mode()
def transformers_logits(model: PreTrainedModel, windows: Sequence[Window]) -> list[np.ndarray]:
    """The same from a model of transformers, by its own forward pass."""
    found = []
    for window in windows:
        batch = collate([window], model.config.pad_token_id)
        logits = model(**batch.inputs).logits
        found.append((logits[batch.rows, batch.columns] if len(window.words) else logits).numpy())
    return found


def check_equal(largest: float, ours: Sequence[np.ndarray], tolerance: float, place: object) -> None:
    """Raises UserError where logits differ by more than a tolerance, relative to the largest of them (at least 1)."""
    scale = max(1.0, *(float(np.nan_to_num(np.abs(values)).max(initial=0)) for values in ours))
    if not largest <= tolerance * scale:
        raise UserError(
            f"its logits in float32 differ from the artifact's by {largest:.1e}, and {tolerance * scale:.0e} is allowed",
            "Nothing was written; report this with the architecture and the method",
            place,
        )
