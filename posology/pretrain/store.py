"""The corpus as pieces on disk: read once, then any text of it in any order, in memory that does not grow with it.

    .NAME.corpus/            beside the output NAME, readable by its owner only, removed when the work is done
        training.pieces      ids one after the other, 16 bits (32 for large vocabularies); the top bit begins a word
        training.windows     where each text begins, and the document it is of: 2 x int64, and one more at the end
        held.pieces, held.windows     of the documents that are held out
        facts.json           counts, and what they follow from
        lock                 held by the process that makes or reads it

Pieces are notes in another spelling. They are read with `pread`, not mapped: mapped pages would count as memory in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from transformers import PreTrainedTokenizerBase

from posology import console
from posology.corpus.document import Document
from posology.engine.checkpoint import left_behind
from posology.engine.tokens import fingerprint
from posology.errors import UserError
from posology.files import check_space, write_json
from posology.pretrain.corpus import Corpus, blocks
from posology.pretrain.excluded import Evaluation, Words, read_words
from posology.pretrain.vocabulary import WordCounts, coverage, lowers

BLOCK_CHARACTERS = 2**20
_FACTS, _LOCK = "facts.json", "lock"
_ROW = 16
_BYTES_PER_CHARACTER = 0.6
"""Of the pieces on disk, for each byte of a corpus: about four characters make a piece of two bytes."""


@dataclass(frozen=True)
class Reading:
    """What the pieces on disk follow from beside the corpus and the tokenizer.

    Attributes:
        length: pieces of a text, at most; longer documents are cut between words.
        held_out: share of the documents (or patients, where they are known) that is not trained on.
        with_text: note the terms that cost most pieces.
    """

    length: int
    held_out: float
    with_text: bool = False

    def holds_out(self, digest: bytes) -> bool:
        """Whether a document is held out: follows from its words (or its patient) alone."""
        return int.from_bytes(digest[:8], "big") < self.held_out * 2**64


class Texts:
    """Texts of one part of a store.

    Args:
        folder: of the store.
        name: `training` or `held`.
        dtype: of the pieces.
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]):
        self._pieces = open(folder / f"{name}.pieces", "rb", buffering=0)  # noqa: SIM115  (open as long as this is used)
        self._windows = open(folder / f"{name}.windows", "rb", buffering=0)  # noqa: SIM115
        self._dtype, self._flag = dtype, dtype.type(1 << (8 * dtype.itemsize - 1))
        self._count = os.fstat(self._windows.fileno()).st_size // _ROW - 1

    def __len__(self) -> int:
        return self._count

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray, int]:
        """A text: ids of its pieces, whether each begins a word, and the number of its document."""
        row = np.frombuffer(os.pread(self._windows.fileno(), 2 * _ROW, number * _ROW), np.int64)
        size = self._dtype.itemsize
        content = os.pread(self._pieces.fileno(), int(row[2] - row[0]) * size, int(row[0]) * size)
        found = np.frombuffer(content, self._dtype)
        return (found & ~self._flag).astype(np.int64), (found & self._flag) != 0, int(row[1])

    def documents(self) -> np.ndarray:
        """Where the texts of each document begin, and where those of the last one end: (documents + 1,)."""
        rows = np.fromfile(self._windows.name, np.int64).reshape(-1, 2)
        return np.flatnonzero(np.diff(rows[:, 1], prepend=-1))

    def close(self) -> None:
        """Gives the files back."""
        self._pieces.close()
        self._windows.close()


class _Writer:
    """Writes one part of a store.

    Attributes:
        digest: of everything written.
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]):
        self._dtype, self._flag = dtype, dtype.type(1 << (8 * dtype.itemsize - 1))
        self._pieces = _own_file(folder / f"{name}.pieces")
        self._windows = _own_file(folder / f"{name}.windows")
        self.documents = self.windows = self.pieces = 0
        self.digest = hashlib.sha256()

    def add(self, ids: np.ndarray, starts: np.ndarray, length: int) -> None:
        """Adds a document."""
        content = ids.astype(self._dtype)
        content[starts] |= self._flag
        borders = cuts(starts, length)
        rows = np.empty((len(borders), 2), np.int64)
        rows[:, 0] = [self.pieces + begin for begin, _ in borders]
        rows[:, 1] = self.documents
        for file, written in ((self._pieces, content.tobytes()), (self._windows, rows.tobytes())):
            file.write(written)
            self.digest.update(written)
        self.documents += 1
        self.windows += len(borders)
        self.pieces += len(ids)

    def close(self) -> None:
        self._windows.write(np.array([self.pieces, -1], np.int64).tobytes())
        self._pieces.close()
        self._windows.close()


class Store:
    """A corpus as pieces on disk; a context, at whose end it is deleted, unless there is a checkpoint to go on from.

    Args:
        out: the output beside which it lies.
        facts: below.
        lock: its lock's file descriptor.

    Attributes:
        training, held: texts to train on, and those held out.
        facts: `fingerprint` of the corpus (of its words), `content` (a hash of all pieces in both parts), `documents`,
            `dropped`, `excluded` ({`exact`, `near`}), `coverage`, and for each part `documents`, `windows` and `pieces`.
    """

    def __init__(self, out: Path, facts: dict[str, Any], lock: int):
        self.folder, self.facts = folder_of(out), facts
        self._out, self._lock = out, lock
        dtype = np.dtype(facts["dtype"])
        self.training, self.held = (Texts(self.folder, name, dtype) for name in ("training", "held"))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and left_behind(self._out):
            self.close()
        else:
            self.remove()

    def close(self) -> None:
        """Gives the files back."""
        self.training.close()
        self.held.close()
        os.close(self._lock)

    def remove(self) -> None:
        """Deletes it."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def folder_of(out: Path) -> Path:
    """Where the pieces are while `out` is being made."""
    out = out.absolute()
    return out.parent / f".{out.name}.corpus"


def cuts(starts: np.ndarray, length: int) -> list[tuple[int, int]]:
    """Where a document is cut into texts of at most `length` pieces: evenly, and before a word where that can be."""
    begin, count = 0, len(starts)
    found = []
    while count - begin > length:
        left = count - begin
        end = begin + -(-left // -(-left // length))
        before = np.flatnonzero(starts[begin + 1 : end + 1])
        end = begin + 1 + int(before[-1]) if len(before) else end
        found.append((begin, end))
        begin = end
    return [*found, (begin, count)]


def open_store(
    corpus: Corpus,
    out: Path,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    evaluation: Evaluation | None,
    *,
    fresh: bool = False,
) -> Store:
    """The pieces of a corpus: those on disk where they are of the same corpus and settings, else made now.

    Args:
        corpus: read once, unless it was before.
        out: the output folder, beside which they lie.
        tokenizer: cuts words into pieces.
        reading: lengths and shares.
        evaluation: documents that are left out.
        fresh: make them now in any case.

    Raises:
        UserError: the corpus cannot be read, nothing is left to train on or to hold out, the disk is full, or another
            process makes the same output.
    """
    folder = folder_of(out)
    key = _key(corpus, tokenizer, reading, evaluation)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _locked(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    if not fresh:
        with contextlib.suppress(OSError, ValueError, KeyError):  # none, or not whole
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            if facts["key"] == key:
                return Store(out, facts, lock)
    try:
        for path in folder.iterdir():
            if path.name != _LOCK:
                path.unlink()
        check_space(folder, int(_BYTES_PER_CHARACTER * corpus.bytes))
        facts = _make(corpus, folder, tokenizer, reading, evaluation)
        _check(facts, reading)
        write_json(folder / _FACTS, facts | {"key": key})
        return Store(out, facts, lock)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        if isinstance(error, OSError):
            raise _cannot_write(folder, error) from error
        raise


def _locked(folder: Path) -> int:
    """The lock of a store, held until it is closed."""
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(
            "another process reads a corpus for this folder", "Wait until it ends, or name another folder", "--out"
        ) from None
    except OSError:  # a file system without locks
        pass
    return lock


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"the pieces of the corpus cannot be written there ({error.strerror or error})",
        "Free some space, or name another --out",
        folder.parent,
    )


def count_words(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, reading: Reading, evaluation: Evaluation | None
) -> WordCounts:
    """Counts the words of the documents that will be trained on, in a pass of its own."""
    counts = WordCounts(lowers(tokenizer.backend_tokenizer))
    with console.progress("counting words", None) as advance:
        for block in blocks(iter(corpus), BLOCK_CHARACTERS, advance):
            words = read_words(block)
            verdicts = evaluation.look(words) if evaluation is not None else [None] * len(block)
            kept = [
                document
                for number, (document, verdict) in enumerate(zip(block, verdicts, strict=True))
                if verdict is None and not reading.holds_out(_decider(document, words, number))
            ]
            counts.add([document.text for document in kept], [document.group for document in kept])
    return counts


def _make(
    corpus: Corpus,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    evaluation: Evaluation | None,
) -> dict[str, Any]:
    backend = tokenizer.backend_tokenizer
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**15 else np.uint32)
    parts = {name: _Writer(folder, name, dtype) for name in ("training", "held")}
    digest, excluded = hashlib.sha256(), Counter[str]()
    counts, documents, empty = WordCounts(lowers(backend)), 0, 0
    with console.progress("reading the corpus", None) as advance:
        for block in blocks(iter(corpus), BLOCK_CHARACTERS, advance):
            documents += len(block)
            words = read_words(block)
            digest.update(b"".join(words.digests))
            verdicts = evaluation.look(words) if evaluation is not None else [None] * len(block)
            excluded.update(verdict for verdict in verdicts if verdict is not None)
            kept = [number for number, verdict in enumerate(verdicts) if verdict is None]
            encodings = backend.encode_batch([block[number].text for number in kept], add_special_tokens=False)
            counts.add([block[number].text for number in kept])
            for number, encoding in zip(kept, encodings, strict=True):
                ids = np.array(encoding.ids, np.int64)
                if not len(ids):
                    empty += 1
                    continue
                starts = np.diff(np.array(encoding.word_ids, np.int64), prepend=-1) != 0
                held = reading.holds_out(_decider(block[number], words, number))
                parts["held" if held else "training"].add(ids, starts, reading.length)
    for part in parts.values():
        part.close()
    return {
        "dtype": dtype.name,
        "fingerprint": digest.hexdigest(),
        "content": hashlib.sha256(b"".join(part.digest.digest() for part in parts.values())).hexdigest(),
        "documents": documents,
        "dropped": {"empty": corpus.counts["dropped_empty"] + empty, "error": corpus.counts["dropped_error"]},
        "excluded": {kind: excluded[kind] for kind in ("exact", "near")},
        "evaluation": None
        if evaluation is None
        else {"documents": len(evaluation), "found": int(evaluation.found.sum())},
        "coverage": coverage(counts, tokenizer, with_text=reading.with_text),
        **{
            name: {"documents": part.documents, "windows": part.windows, "pieces": part.pieces}
            for name, part in parts.items()
        },
    }


def _decider(document: Document, words: Words, number: int) -> bytes:
    """What decides whether a document is held out: its patient, where the corpus says who that is."""
    return hashlib.sha256(document.group.encode()).digest() if document.group else words.digests[number]


def _check(facts: dict[str, Any], reading: Reading) -> None:
    if not facts["documents"]:
        raise UserError("has no document with text", "Name another file or column", "CORPUS")
    left = facts["documents"] - sum(facts["excluded"].values())
    for part, mend in (
        ("training", "Lower --held-out, or give a larger corpus"),
        ("held", "Raise --held-out, or give a larger corpus"),
    ):
        if not facts[part]["documents"]:
            what = "to train on" if part == "training" else "to measure perplexity on"
            raise UserError(
                f"of {facts['documents']:,} documents {left:,} are no evaluation documents, and at a share of "
                f"{reading.held_out:g} none is left {what}",
                mend,
                "CORPUS",
            )


def _key(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, reading: Reading, evaluation: Evaluation | None) -> str:
    parts: Sequence[object] = (
        corpus.stamp(),
        fingerprint(tokenizer.backend_tokenizer),
        [reading.length, reading.held_out, reading.with_text],
        None if evaluation is None else evaluation.fingerprint,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _own_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb")
