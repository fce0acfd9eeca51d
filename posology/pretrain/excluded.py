"""Evaluation documents in a corpus: exact copies, near duplicates, and parts of one another.

A model that has read the test notes has an unfair advantage. Documents are compared by their words, as `corpus.wording`
has it: exactly by SHA-256, nearly by the shingles they share (runs of `SHINGLE` words; Broder 1997, "On the
resemblance and containment of documents"). All shingles of the evaluation documents are held (12 bytes each), none of
the corpus. Two documents count as near where they share half of the shingles of the shorter one, so that a note with one
word in eight changed is found, and a test sentence inside a long note too. Markers that tell a model which relation of a
sentence is asked for are no part of the sentence.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from posology.corpus.document import Document
from posology.corpus.relations import unmarked, without_placeholders
from posology.corpus.wording import WORD, folded
from posology.tasks.prepared import PreparedTask

SHINGLE = 5
"""Words of a shingle: shorter ones are shared by chance, by longer ones each changed word costs more."""
NEAR = 0.5
"""Share of the shorter document's shingles that makes two documents near duplicates."""
FEWEST = 8
"""Shingles that a document must have to be compared so: phrases of a few words recur in every hospital."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_TABLE_BITS = 24
_CUT = "\ufdd0"
"""Stands, as a word of its own, where words are missing; a code point that Unicode keeps for internal use."""
SPLITS = ("validation", "test")


@functools.cache
def _cut_hash() -> int:
    # Not when this is imported: polars starts its threads at the first operation, and a process that is forked after
    # that, as by a server of workers, waits for them for ever.
    return int(pl.Series([_CUT]).hash(0)[0])


class Words(NamedTuple):
    """The words of some texts.

    Attributes:
        digests: SHA-256 of each text's words; of the text itself where it has none.
        hashes: (words,) of every word, text after text.
        counts: (texts,) words of each.
    """

    digests: list[bytes]
    hashes: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> Words:
        """Reads the words off texts."""
        column = pl.Series("words", [folded(text) for text in texts], dtype=pl.String)
        lists = column.str.extract_all(f"{WORD}|{_CUT}")
        joined = lists.list.join(" ").to_list()
        digests = [
            hashlib.sha256((own or text).encode("utf-8", "surrogatepass")).digest()
            for own, text in zip(joined, texts, strict=True)
        ]
        counts = lists.list.len().to_numpy().astype(np.int64)
        flat = lists.explode(empty_as_null=False) if counts.any() else pl.Series("words", [], dtype=pl.String)
        return cls(digests, flat.hash(0).to_numpy(), counts)

    def shingles(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all shingles, text after text, and the text of each. None reaches over missing words."""
        count = len(self.hashes) - SHINGLE + 1
        if count <= 0:
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        found = np.zeros(count, np.uint64)
        with np.errstate(over="ignore"):
            for place in range(SHINGLE):
                found = (found ^ self.hashes[place : place + count]) * _FACTOR
                found ^= found >> np.uint64(29)
        owners = np.repeat(np.arange(len(self.counts)), self.counts)
        whole = owners[:count] == owners[SHINGLE - 1 :]
        if (cuts := self.hashes == _cut_hash()).any():
            before = np.concatenate([[0], np.cumsum(cuts)])
            whole &= before[:-SHINGLE] == before[SHINGLE:]
        return found[whole], owners[:count][whole]


class Evaluation:
    """The evaluation documents of prepared tasks, to be looked for in a corpus.

    Args:
        texts: of the documents.

    Attributes:
        found: for each text whether the corpus had it, exactly or nearly, filled by `look`.
        fingerprint: SHA-256 of the texts' words.
    """

    def __init__(self, texts: Iterable[str]):
        kept = [text for text in dict.fromkeys(texts) if text.strip()]
        words = Words.of(kept)
        self.found = np.zeros(len(kept), bool)
        self.fingerprint = hashlib.sha256(b"".join(words.digests)).hexdigest()
        self._exact: dict[bytes, list[int]] = defaultdict(list)  # texts that differ in writing alone share a digest
        for number, digest in enumerate(words.digests):
            self._exact[digest].append(number)
        shingles, owners = words.shingles()
        order = np.lexsort((owners, shingles))
        shingles, owners = shingles[order], owners[order].astype(np.int32)
        first = np.ones(len(order), bool)  # of several equal shingles in one document
        first[1:] = (shingles[1:] != shingles[:-1]) | (owners[1:] != owners[:-1])
        self._shingles, self._owners = shingles[first], owners[first]
        self._partial = np.array([_CUT in text for text in kept], bool)
        self._sizes = np.bincount(self._owners, minlength=len(kept))
        self._table = np.zeros(2**_TABLE_BITS, bool)  # says no to most shingles of the corpus at once
        self._table[self._places(self._shingles)] = True

    def __len__(self) -> int:
        return len(self.found)

    def look(self, words: Words) -> list[str | None]:
        """For each text of a block `exact`, `near`, or None where no evaluation document is like it."""
        shingles, owners = words.shingles()
        hits = np.flatnonzero(self._table[self._places(shingles)])
        where = np.searchsorted(self._shingles, shingles[hits])
        real = where < len(self._shingles)
        real[real] = self._shingles[where[real]] == shingles[hits[real]]
        suspects = np.bincount(owners[hits[real]], minlength=len(words.counts))
        starts = np.searchsorted(owners, np.arange(len(words.counts) + 1))
        answers: list[str | None] = []
        for number, digest in enumerate(words.digests):
            own = slice(starts[number], starts[number + 1])
            near = suspects[number] >= NEAR * FEWEST and self._near(np.unique(shingles[own]))
            if same := self._exact.get(digest):
                self.found[same] = True
                answers.append("exact")
            else:
                answers.append("near" if near else None)
        return answers

    def _near(self, own: np.ndarray) -> bool:
        """Whether a document with these distinct shingles is a near duplicate of one or more."""
        first = np.searchsorted(self._shingles, own, side="left")
        last = np.searchsorted(self._shingles, own, side="right")
        sizes = last - first
        places = np.repeat(first, sizes) + np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        numbers, shared = np.unique(self._owners[places], return_counts=True)
        sizes = self._sizes[numbers]
        # Where words are missing shingles are, too: as many must be shared as by whole texts, but there may be fewer.
        comparable = (len(own) >= FEWEST) & (self._partial[numbers] | (sizes >= FEWEST))
        near = comparable & (shared >= NEAR * np.maximum(np.minimum(sizes, len(own)), FEWEST))
        self.found[numbers[near]] = True
        return bool(near.any())

    @staticmethod
    def _places(shingles: np.ndarray) -> np.ndarray:
        return (shingles >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)


def evaluation_texts(tasks: Sequence[PreparedTask]) -> Iterator[str]:
    """The texts of validation and test documents as a corpus would have them, second texts of pairs too."""
    for task in tasks:
        source = _source_of(task)
        for split in SPLITS:
            for document in task.documents(split):
                yield source(document.text)
                if document.text_pair is not None:
                    yield document.text_pair


def _source_of(task: PreparedTask) -> Callable[[str], str]:
    """What gives back the text that a document was made from, as far as it is still there.

    A task says it where its arguments were replaced; markers around them are the default, which it need not name.
    """
    if task.kind != "sequence-classification":
        return str
    published = task.source.get("format") == "i2b2-2010" and task.protocol == "paper"
    if published or (task.source.get("options") or {}).get("markers") == "instead":
        return lambda text: f" {_CUT} ".join(without_placeholders(text))
    return unmarked


def open_tasks(folders: Sequence[Path]) -> list[PreparedTask]:
    """The prepared tasks whose evaluation documents a corpus may not have.

    Raises:
        UserError: a folder is none.
    """
    return [PreparedTask.open(folder) for folder in folders]


def read_words(documents: Sequence[Document]) -> Words:
    """The words of documents."""
    return Words.of([document.text for document in documents])
