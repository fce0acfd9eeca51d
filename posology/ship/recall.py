"""What share of identifiers a tagger finds, how much more it finds when it is made less strict, and what that costs.

The unit is the word: an identifier's word is found if it is replaced as part of any identifier, of whichever type, since
that is what keeps it from being read. Strict entities (borders and type right) and characters are told beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posology.corpus.document import Document
from posology.corpus.i2b2_2014 import CATEGORY
from posology.corpus.tags import snap
from posology.engine.decode import best_tags, tags_of, word_tags
from posology.engine.model import Model, fill
from posology.errors import UserError
from posology.evaluation import metrics, statistics

TARGETS = (0.95, 0.98, 0.99, 0.995)
"""Recalls whose price is told beside the one that is wanted."""
_MARGIN = 1e-4
"""By how much a logit must be ahead so that rounding does not decide."""


@dataclass(frozen=True)
class Labelled:
    """Labelled documents and what a tagger makes of them.

    Attributes:
        model: the tagger.
        documents: with spans.
        logits: for each (words, tags), with rows of NaN for words that were not read.
        gold: for each whether its words are in an identifier.
    """

    model: Model
    documents: Sequence[Document]
    logits: Sequence[np.ndarray]
    gold: Sequence[np.ndarray]

    @classmethod
    def of(cls, model: Model, documents: Sequence[Document], logits: Sequence[np.ndarray]) -> Labelled:
        """From logits as `Model.answer` gives them."""
        filled = [fill(own, len(document.words)) for document, own in zip(documents, logits, strict=True)]
        gold = [np.array([tag != "O" for tag in word_tags(document)], bool) for document in documents]
        return cls(model, documents, filled, gold)

    @property
    def most(self) -> float:
        """The share of the identifiers' words that were read: no recall is above it."""
        read = np.concatenate([~np.isnan(own[:, 0][gold]) for own, gold in zip(self.logits, self.gold, strict=True)])
        return float(read.mean()) if len(read) else 0.0

    def tags(self, offset: float) -> list[np.ndarray]:
        """The tags of all words with the logit of O lowered."""
        return [best_tags(_lowered(own, offset)) for own in self.logits]


def fit(labelled: Labelled, target: float) -> float:
    """The least offset with which a share `target` of the identifiers' words is found; 0 where none is needed.

    Raises:
        UserError: there is nothing to fit it on, or words that were not read keep it from being reached.
    """
    if not 0 < target <= 1:
        raise UserError(f"{target} is no share", "Give a number above 0, and 1 at most", "--recall")
    margins = [
        (own[:, 1:].max(axis=1) - own[:, 0])[gold] for own, gold in zip(labelled.logits, labelled.gold, strict=True)
    ]
    lacking = np.sort(-np.nan_to_num(np.concatenate([np.empty(0), *margins]), nan=-np.inf))
    if not len(lacking):
        raise UserError("its validation split has no identifiers", "Name a task that has", "--data")
    needed = math.ceil(target * len(lacking) - 1e-9)
    while True:
        offset = max(0.0, float(lacking[needed - 1]) + _MARGIN)
        if not math.isfinite(offset):
            raise UserError(
                f"{target:.2%} cannot be reached: the tokenizer drops some words of identifiers",
                "Give less",
                "--recall",
            )
        tags = labelled.tags(offset)
        found = sum(int((own[gold] != 0).sum()) for own, gold in zip(tags, labelled.gold, strict=True))
        if found >= target * len(lacking) - 1e-9 or needed == len(lacking):
            return offset
        needed = min(len(lacking), needed + max(1, math.ceil(target * len(lacking) - found)))


def price(labelled: Labelled, offset: float) -> dict[str, Any]:
    """What is found with an offset.

    Returns:
        `offset`; `word`, `character` and `entity`, each with `recall` and `precision` ({value, low, high}, 95 % intervals
        over groups); and `by_category` the words' recall (of the identifiers of a category) and precision (of what was
        replaced as such) with their numbers, `gold` and `replaced`.
    """
    groups = [document.group for document in labelled.documents]
    tags = labelled.tags(offset)
    words = np.stack(
        [_counted(own != 0, gold) for own, gold in zip(tags, labelled.gold, strict=True)]
    )  # (documents, 1, 3)
    model = labelled.model
    decoded = model.spans(labelled.documents, labelled.logits, offset)
    entities, characters = [], []
    for document, (spans, _) in zip(labelled.documents, decoded, strict=True):
        entities.append(metrics.entity_counts(snap(document.words, document.spans), spans, model.labels))
        inside = np.zeros((2, len(document.text)), bool)
        for row, own in enumerate((spans, document.spans)):
            for span in own:
                inside[row, span.start : span.end] = True
        ink = np.array([not character.isspace() for character in document.text], bool)
        characters.append(_counted(inside[0] & ink, inside[1] & ink))
    return {
        "offset": offset,
        "word": _scores(words, groups),
        "character": _scores(np.stack(characters), groups),
        "entity": _scores(np.stack(entities), groups),
        "by_category": _by_category(labelled, tags, groups),
    }


def _by_category(labelled: Labelled, tags: Sequence[np.ndarray], groups: Sequence[str]) -> dict[str, Any]:
    labels = labelled.model.labels
    categories = [CATEGORY.get(label, label) for label in labels]
    names = list(dict.fromkeys(categories))
    category_of = {tag: -1 for tag in tags_of(labels)} | {
        f"{letter}-{label}": names.index(category)
        for label, category in zip(labels, categories, strict=True)
        for letter in "BI"
    }
    of_output = np.array([category_of[tag] for tag in tags_of(labels)])
    found = np.zeros((len(tags), len(names), 3))
    right = np.zeros((len(tags), len(names), 3))
    for row, (document, own, gold) in enumerate(zip(labelled.documents, tags, labelled.gold, strict=True)):
        true = np.array([category_of[tag] for tag in word_tags(document)], int)
        replaced = of_output[own]
        for place in range(len(names)):
            belongs, called = true == place, replaced == place
            found[row, place] = (belongs & (own != 0)).sum(), 0, belongs.sum()
            right[row, place] = (called & gold).sum(), called.sum(), 0
    result = {}
    for place, name in enumerate(names):
        recall = statistics.entity_intervals(found[:, [place]], groups)["entity_recall"]
        precision = statistics.entity_intervals(right[:, [place]], groups)["entity_precision"]
        gold_words, replaced_words = int(found[:, place, 2].sum()), int(right[:, place, 1].sum())
        result[name] = {
            "recall": recall if gold_words else None,
            "precision": precision if replaced_words else None,
            "gold": gold_words,
            "replaced": replaced_words,
        }
    clean: dict[str, Any] = statistics.clean(result)
    return clean


def _scores(counts: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    found = statistics.clean(statistics.entity_intervals(counts, groups))
    return {name: found[f"entity_{name}"] for name in ("recall", "precision")}


def _counted(found: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """(1, 3) right, found and gold."""
    return np.array([[(found & gold).sum(), found.sum(), gold.sum()]])


def _lowered(logits: np.ndarray, offset: float) -> np.ndarray:
    if not offset:
        return logits
    lowered = logits.copy()
    lowered[:, 0] -= offset
    return lowered
