"""The baseline for token classification: a dictionary of the mentions and words of the training documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from posology.corpus.document import Document
from posology.engine.bag_of_words import write_baseline
from posology.engine.decode import chunks, tags_of, word_tags
from posology.engine.model import Answers, BaselineModel

Key = tuple[str, ...]


class DictionarySettings(BaseModel):
    """The dictionary has nothing to set."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DictionaryTagger(BaselineModel):
    """Finds in a text what was an entity in training, without any notion of context.

    A text is a sequence of its words as the task cuts them, case-folded (`str.casefold`). From left to right:

    1. The longest mention of the dictionary that begins at the word becomes an entity. The dictionary has every word
       sequence that is an entity somewhere in training, with the type it has there most often, if it is an entity of
       that type in more than half of all places where the sequence occurs in the training documents (inside of longer
       entities as well).
    2. A word at which no mention begins has the tag (O, B- or I- with a type) that it had most often in training; O if
       it was not there, and O or else the earlier label of equally frequent ones. An I- that continues nothing becomes
       a B-.

    Its probabilities are shares: of the places where mention or word had the tag, plus one, among all its places plus
    two.

    Args:
        labels: entity types.
        vocabulary: `mentions`, each a list of words, and `words` whose tag is not O.
        arrays: `mention_labels` (mentions,): indices of labels; `mention_counts` (mentions, 2): places where it is
            such an entity, and all its places; `word_tags` (words,): indices in the order of `tags_of`;
            `word_counts` (words, 2).

    Raises:
        ValueError: these do not fit each other.
    """

    kind = "token-classification"
    text_pair = False
    units = ("word", "piece")

    def __init__(self, labels: tuple[str, ...], vocabulary: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        self.labels = labels
        self._vocabulary, self._arrays = vocabulary, arrays
        for entries, first, second in (
            ("mentions", "mention_labels", "mention_counts"),
            ("words", "word_tags", "word_counts"),
        ):
            if not len(vocabulary[entries]) == len(arrays[first]) == len(arrays[second]):
                raise ValueError("vocabulary and numbers do not fit each other")
        if max(arrays["mention_labels"], default=0) >= len(labels) or max(arrays["word_tags"], default=0) > 2 * len(
            labels
        ):
            raise ValueError("numbers and labels do not fit each other")
        self._mentions = {
            tuple(mention): (int(label), _share(counts))
            for mention, label, counts in zip(
                vocabulary["mentions"], arrays["mention_labels"], arrays["mention_counts"], strict=True
            )
        }
        self._words = {
            word: (int(tag), _share(counts))
            for word, tag, counts in zip(vocabulary["words"], arrays["word_tags"], arrays["word_counts"], strict=True)
        }
        self._lengths = _lengths(self._mentions)

    @classmethod
    def fit(cls, training: Sequence[Document], labels: tuple[str, ...]) -> DictionaryTagger:
        """Builds the dictionary from tagged documents."""
        index = {tag: position for position, tag in enumerate(tags_of(labels))}
        entities: dict[Key, Counter[str]] = {}
        tags_of_word: dict[str, Counter[int]] = {}
        texts = []
        for document in training:
            words, tags = folded(document), word_tags(document)
            texts.append(words)
            for first, last, label in chunks(tags):
                entities.setdefault(tuple(words[first:last]), Counter())[label] += 1
            for word, tag in zip(words, tags, strict=True):
                tags_of_word.setdefault(word, Counter())[index[tag]] += 1
        lengths = _lengths(entities)
        places: Counter[Key] = Counter()
        for words in texts:
            places.update(key for start in range(len(words)) for key in _at(words, start, lengths) if key in entities)
        mentions = {}
        for key in sorted(entities):
            label = max(labels, key=entities[key].__getitem__)
            if 2 * entities[key][label] > places[key]:
                mentions[key] = (labels.index(label), entities[key][label], places[key])
        words_kept = {}
        for word in sorted(tags_of_word):
            counts = tags_of_word[word]
            commonest = min(counts, key=lambda position: (-counts[position], position))
            if commonest:
                words_kept[word] = (commonest, counts[commonest], counts.total())
        of_mentions = np.array(list(mentions.values()), np.int32).reshape(-1, 3)
        of_words = np.array(list(words_kept.values()), np.int32).reshape(-1, 3)
        return cls(
            labels,
            {"mentions": [list(key) for key in mentions], "words": list(words_kept)},
            {
                "mention_labels": of_mentions[:, 0],
                "mention_counts": of_mentions[:, 1:],
                "word_tags": of_words[:, 0],
                "word_counts": of_words[:, 1:],
            },
        )

    def answer(self, documents: Sequence[Document], description: str = "predicting", *, unit: str = "word") -> Answers:
        """Reads documents, whole; see `Model.answer`. It knows no pieces: asked for these, it answers by word."""
        width = 2 * len(self.labels) + 1
        logits = []
        for document in documents:
            tags, shares = self.tag(folded(document))
            rest = (1 - shares) / (width - 1)
            probabilities = np.repeat(rest[:, None], width, axis=1)
            probabilities[np.arange(len(tags)), tags] = shares
            logits.append(np.log(probabilities))
        return Answers(documents, logits, 1.0)

    def tag(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The tag of each case-folded word, in the order of `tags_of`, and its share: (words,) each."""
        tags, shares = np.zeros(len(words), np.int64), np.zeros(len(words))
        start = 0
        while start < len(words):
            mention = next((key for key in _at(words, start, self._lengths) if key in self._mentions), None)
            if mention is not None:
                label, share = self._mentions[mention]
                end = start + len(mention)
                tags[start:end] = 2 * label + 2
                tags[start] = 2 * label + 1
            else:
                tag, share = self._words.get(words[start], (0, 0.5))
                end = start + 1
                inside = tag > 0 and tag % 2 == 0
                dangling = inside and (start == 0 or tags[start - 1] not in (tag - 1, tag))
                tags[start] = tag - 1 if dangling else tag
            shares[start:end] = share
            start = end
        return tags, shares

    @property
    def entries(self) -> int:
        """Mentions and words."""
        return len(self._mentions) + len(self._words)

    @property
    def bytes(self) -> int:
        """About how many it takes on disk."""
        return 64 * self.entries

    def save(self, folder: Path) -> None:
        """Writes `baseline.safetensors` and `vocabulary.json`."""
        write_baseline(folder, self._vocabulary, self._arrays)


class DictionaryFitter:
    """Builds a dictionary; there is nothing that validation could choose.

    Args:
        training, validation: documents.
        labels: entity types.
        settings: empty.
        seed: unused.
    """

    def __init__(
        self,
        training: Sequence[Document],
        validation: Sequence[Document],
        labels: tuple[str, ...],
        settings: DictionarySettings,
        seed: int,
    ):
        self._training, self._validation, self._labels = training, validation, labels
        self.candidates = [settings]

    def fit(self, settings: DictionarySettings) -> DictionaryTagger:
        """The dictionary."""
        return DictionaryTagger.fit(self._training, self._labels)

    def validate(self, model: DictionaryTagger) -> dict[str, float]:
        """Every metric on validation."""
        return model.score(self._validation, model.answer(self._validation).logits)


def folded(document: Document) -> list[str]:
    """The words of a document, case-folded."""
    return [document.text[start:end].casefold() for start, end in document.words]


def _lengths(mentions: Mapping[Key, object]) -> dict[str, list[int]]:
    """For each first word the lengths of the mentions that begin with it, longest first."""
    found: dict[str, set[int]] = {}
    for key in mentions:
        found.setdefault(key[0], set()).add(len(key))
    return {word: sorted(lengths, reverse=True) for word, lengths in found.items()}


def _at(words: Sequence[str], start: int, lengths: Mapping[str, list[int]]) -> Iterator[Key]:
    """What may be a mention that begins at a word, longest first."""
    for length in lengths.get(words[start], ()):
        if start + length <= len(words):
            yield tuple(words[start : start + length])


def _share(counts: np.ndarray) -> float:
    return float((counts[0] + 1) / (counts[1] + 2))
