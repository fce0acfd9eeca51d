"""Word pieces of documents before they are cut into windows: made once per tokenizer and text.

Pieces can be kept on disk, in `.tokens` inside of the prepared task whose texts they are: pieces are text in another
spelling, so they lie where the notes lie, readable by their owner only, and go when the notes go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from posology.corpus.document import Document
from posology.errors import UserError
from posology.files import staged_file

FOLDER = ".tokens"
SWITCH = "POSOLOGY_TOKEN_CACHE"
"""Set to 0, this variable of the environment keeps pieces off the disk."""
_MOST_BYTES = 2**30
"""What one task's folder may hold; files that were not used for the longest time go first."""
_TEXTS_AT_ONCE, _CHARACTERS_AT_ONCE = 1024, 2**20
_NO_SECOND = -1


@dataclass(frozen=True)
class Pieces:
    """Piece ids of documents, without special tokens.

    Attributes:
        ids: of all first texts, one after the other, int32.
        lengths: pieces of each first text, int32.
        seconds: ids of all second texts.
        second_lengths: pieces of each second text, -1 where a document has none.
        owners: in token classification the word of each piece, in its document, as long as `ids`; else empty.
    """

    ids: np.ndarray
    lengths: np.ndarray
    seconds: np.ndarray
    second_lengths: np.ndarray
    owners: np.ndarray

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]:
        """For each document its ids, the words they belong to, and the ids of its second text."""
        ends = np.cumsum(self.lengths, dtype=np.int64).tolist()
        second_ends = np.cumsum(np.maximum(self.second_lengths, 0), dtype=np.int64).tolist()
        start = second_start = 0
        for end, second_end, second in zip(ends, second_ends, self.second_lengths.tolist(), strict=True):
            yield (
                self.ids[start:end],
                self.owners[start:end] if len(self.owners) else None,
                self.seconds[second_start:second_end] if second != _NO_SECOND else None,
            )
            start, second_start = end, second_end

    def flat(self) -> np.ndarray:
        """Everything in one int32 array, which `unflat` reads."""
        sizes = np.array([len(self.lengths), len(self.seconds), len(self.owners)], np.int32)
        return np.concatenate([sizes, self.lengths, self.second_lengths, self.ids, self.seconds, self.owners])

    @classmethod
    def unflat(cls, array: np.ndarray) -> Pieces:
        """The opposite of `flat`, without copying.

        Raises:
            ValueError: the array is no such thing.
        """
        if array.dtype != np.int32 or array.ndim != 1 or len(array) < 3:
            raise ValueError("no array of pieces")
        documents, seconds, owners = (int(size) for size in array[:3])
        ids = int(array[3 : 3 + documents].sum(dtype=np.int64))
        sizes = (3, documents, documents, ids, seconds, owners)
        if min(sizes) < 0 or sum(sizes) != len(array):
            raise ValueError("an array of pieces that is not whole")
        _, lengths, second_lengths, first, second, words = np.split(array, np.cumsum(sizes)[:-1])
        return cls(first, lengths, second, second_lengths, words)


def tokenise(backend: Tokenizer, documents: Sequence[Document], *, by_word: bool, cache: Path | None = None) -> Pieces:
    """The pieces of documents.

    Args:
        backend: a tokenizer that neither truncates nor pads.
        documents: with `words` where they are read by word.
        by_word: cut each word alone, for token classification: pieces are those of running text but never cross a
            word's border.
        cache: the prepared task that the documents are of; their pieces are kept there, and taken from there.
    """
    path = None
    if cache is not None and os.environ.get(SWITCH, "1") != "0":
        path = cache / FOLDER / f"{_key(backend, documents, by_word)}.npy"
        found = _load(path)
        if found is not None:
            return found
    pieces = _by_word(backend, documents) if by_word else _by_text(backend, documents)
    if path is not None:
        _keep(path, pieces)
    return pieces


def fingerprint(backend: Tokenizer) -> str:
    """SHA-256 of everything that a tokenizer does."""
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def _by_text(backend: Tokenizer, documents: Sequence[Document]) -> Pieces:
    first = _encode(backend, [document.text for document in documents])
    pairs = [document.text_pair for document in documents]
    paired = [pair for pair in pairs if pair is not None]
    second = _encode(backend, paired) if paired else []
    second_lengths = np.full(len(documents), _NO_SECOND, np.int32)
    second_lengths[[pair is not None for pair in pairs]] = _lengths(second)
    return Pieces(_joined(first), _lengths(first), _joined(second), second_lengths, np.empty(0, np.int32))


def _by_word(backend: Tokenizer, documents: Sequence[Document]) -> Pieces:
    """Each word is cut once, however often it occurs.

    It is given with the blank before it, as byte-level tokenizers want it.
    """
    known: dict[str, int] = {}
    words: list[int] = []
    for document in documents:
        text = document.text
        for begin, end in document.words:
            word = text[begin:end]
            if begin > 0 and text[begin - 1].isspace():
                word = " " + word
            words.append(known.setdefault(word, len(known)))
    cut = [
        encoding.ids
        for start in range(0, len(known), _TEXTS_AT_ONCE)
        for encoding in backend.encode_batch(
            [[word] for word in list(known)[start : start + _TEXTS_AT_ONCE]],
            is_pretokenized=True,
            add_special_tokens=False,
        )
    ]
    numbers = np.array(words, np.int64)
    sizes = _lengths(cut)
    # Where each word's pieces begin among those of the known words, and the word's pieces from there on.
    begins = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[:-1] if known else np.empty(0, np.int64)
    counts = sizes[numbers].astype(np.int64)
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    ids = _joined(cut)[np.repeat(begins[numbers], counts) + offsets]
    per_document = np.array([len(document.words) for document in documents], np.int64)
    in_document = np.arange(len(numbers)) - np.repeat(np.cumsum(per_document) - per_document, per_document)
    owners = np.repeat(in_document, counts).astype(np.int32)
    totals = np.concatenate([[0], np.cumsum(counts)])[np.concatenate([[0], np.cumsum(per_document)])]
    none = np.full(len(documents), _NO_SECOND, np.int32)
    return Pieces(ids, np.diff(totals).astype(np.int32), np.empty(0, np.int32), none, owners)


def _encode(backend: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of texts, so many at once that what the tokenizer notes of each piece stays small."""
    found: list[np.ndarray] = []
    batch: list[str] = []
    characters = 0
    for number, text in enumerate(texts, start=1):
        batch.append(text)
        characters += len(text)
        if number == len(texts) or len(batch) == _TEXTS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            found += [
                np.array(encoding.ids, np.int32)
                for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)
            ]
            batch, characters = [], 0
    return found


def _lengths(parts: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    return np.array([len(part) for part in parts], np.int32)


def _joined(parts: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int32), *(np.asarray(part, np.int32) for part in parts)])


def _key(backend: Tokenizer, documents: Sequence[Document], by_word: bool) -> str:
    """SHA-256 of all that pieces depend on: the tokenizer and, by document, texts and words."""
    digest = hashlib.sha256(fingerprint(backend).encode())
    for document in documents:
        for text in (document.text, document.text_pair):
            content = text.encode() if text is not None else b""
            digest.update(b"%d:" % (len(content) if text is not None else _NO_SECOND))
            digest.update(content)
        if by_word:
            digest.update(repr(document.words).encode())
    return digest.hexdigest()


def _load(path: Path) -> Pieces | None:
    """Pieces that were kept, mapped into memory; None where there are none, or none that can be used."""
    try:
        # As a plain array, whose slices are cheap.
        pieces = Pieces.unflat(np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)))
        os.utime(path)
    except (OSError, ValueError, EOFError):
        return None
    return pieces


def _keep(path: Path, pieces: Pieces) -> None:
    """Writes pieces, and makes room; a folder that cannot be written is no reason to stop."""
    array = pieces.flat()
    if array.nbytes > _MOST_BYTES:
        return
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with staged_file(path) as staging, open(staging, "wb") as stream:
            np.save(stream, array)
        by_use = sorted(path.parent.glob("*.npy"), key=lambda own: own.stat().st_mtime)
        held = sum(own.stat().st_size for own in by_use)
        for oldest in by_use:
            if held <= _MOST_BYTES or oldest == path:
                break
            held -= oldest.stat().st_size
            oldest.unlink()
