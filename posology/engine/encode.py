"""From documents to windows of word pieces that fit a backbone, with every piece accounted for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from posology.corpus.document import Document
from posology.engine.architectures import architecture_of
from posology.engine.decode import word_tags
from posology.engine.recipe import Recipe
from posology.engine.tokens import fingerprint, tokenise
from posology.errors import UserError


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer puts around one text, or around two."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    between: tuple[int, ...]
    after_pair: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Frame:
        """Reads the frame off the tokenizer by encoding one word alone and as a pair."""
        backend = tokenizer.backend_tokenizer
        word = backend.encode("the", add_special_tokens=False).ids
        single = backend.encode("the", add_special_tokens=True).ids
        start = _find(single, word, 0)
        pair = backend.encode("the", "the", add_special_tokens=True).ids
        first = _find(pair, word, 0)
        second = _find(pair, word, first + len(word))
        return cls(
            tuple(single[:start]),
            tuple(single[start + len(word) :]),
            tuple(pair[first + len(word) : second]),
            tuple(pair[second + len(word) :]),
        )

    def capacity(self, length: int) -> int:
        """How many pieces of one text fit into `length`."""
        return length - len(self.before) - len(self.after)


@dataclass(slots=True)
class Window:
    """A stretch of a document as a model sees it.

    Attributes:
        document: position of the document in its corpus.
        ids: piece ids with special tokens.
        second_from: where the second text of a pair begins in `ids`; 0 where there is none.
        columns, words: in token classification, which columns of `ids` are the first pieces of which words (or, read
            by piece, which pieces). Each is in just one window: the one that shows most context around it.
    """

    document: int
    ids: np.ndarray
    second_from: int
    columns: np.ndarray
    words: np.ndarray


@dataclass
class Encoded:
    """A corpus as windows.

    Attributes:
        windows: for each document its windows, at least one.
        pieces: pieces of each document, special tokens excluded.
        covered: of these, how many are in some window.
        owners: in token classification, for each document the word of each piece.
    """

    windows: list[list[Window]]
    pieces: np.ndarray
    covered: np.ndarray
    owners: list[np.ndarray]

    @property
    def coverage(self) -> float:
        """The share of all pieces that the model gets to see."""
        return float(self.covered.sum() / self.pieces.sum()) if self.pieces.sum() else 1.0


class Encoder:
    """Cuts documents into windows for one backbone and recipe.

    Args:
        tokenizer: as `load_tokenizer` gives it.
        config: the backbone's configuration.
        recipe: says how long windows are, and what happens to long texts.
        kind: of the task.
        virtual_tokens: positions that a prefix or prompt takes from the backbone.

    Raises:
        UserError: no room is left for text, or the tokenizer is not the backbone's.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: Any, recipe: Recipe, kind: str, virtual_tokens: int = 0
    ):
        self._backend = tokenizer.backend_tokenizer
        self._frame = frame = Frame.of(tokenizer)
        _check_ids(tokenizer, frame, config)
        special = (frame.before, frame.after, frame.between, frame.after_pair)
        self._special = [np.array(part, np.int32) for part in special]
        self._recipe, self._kind = recipe, kind
        self.virtual_tokens = virtual_tokens
        self.max_length = min(recipe.max_length, positions(config) - virtual_tokens)
        self._capacity = self._frame.capacity(self.max_length)
        if self._capacity < 4:
            raise UserError(
                f"{virtual_tokens} virtual tokens leave {max(0, self._capacity)} of {positions(config)} positions for text",
                "Take fewer virtual tokens or a longer max_length",
                "virtual_tokens",
            )
        if recipe.long_text == "window" and recipe.overlap >= self._capacity:
            raise UserError(
                f"overlap={recipe.overlap} is no smaller than a window of {self._capacity} pieces",
                "Take a smaller overlap or a longer max_length",
                "overlap",
            )

    @functools.cached_property
    def key(self) -> tuple[object, ...]:
        """Encoders with equal keys cut the same documents into the same windows."""
        recipe = self._recipe
        overlap = recipe.overlap if recipe.long_text == "window" else 0
        return fingerprint(self._backend), self._frame, self._kind, self.max_length, recipe.long_text, overlap

    def encode(self, documents: Sequence[Document], unit: str = "word", *, cache: Path | None = None) -> Encoded:
        """Windows of all documents, in their order.

        Args:
            documents: with `words` in token classification.
            unit: `word`: a word's first piece stands for it; `piece`: every piece stands for itself.
            cache: the folder of the prepared task that the documents are of, to keep their pieces in.
        """
        by_word = self._kind == "token-classification"
        found = tokenise(self._backend, documents, by_word=by_word, cache=cache)
        windows, pieces, covered = [], np.zeros(len(documents), int), np.zeros(len(documents), int)
        all_owners = []
        for index, (ids, owners, second) in enumerate(found):
            room = self._room(len(ids), second)
            spans = self._spans(len(ids), room)
            kept_second = second[: max(0, self._capacity_of_pair() - room)] if second is not None else None
            own = [self._window(index, ids[start:stop], kept_second) for start, stop in spans]
            if by_word:
                owners = owners if owners is not None else np.empty(0, np.int32)
                all_owners.append(owners)
                firsts = np.arange(len(ids)) if unit == "piece" else _firsts(owners, len(documents[index].words))
                self._place_words(own, spans, firsts, len(ids))
            windows.append(own)
            pieces[index] = len(ids) + len(second if second is not None else ())
            covered[index] = spans[-1][1] + len(kept_second if kept_second is not None else ())
        return Encoded(windows, pieces, covered, all_owners)

    def read(
        self, documents: Sequence[Document], unit: str, *, cache: Path | None = None
    ) -> tuple[list[Document], Encoded]:
        """The documents as they are learnt and scored by a unit (see `by_piece`), and their windows (see `encode`)."""
        encoded = self.encode(documents, unit, cache=cache)
        return (by_piece(documents, encoded.owners) if unit == "piece" else list(documents)), encoded

    def _capacity_of_pair(self) -> int:
        frame = self._frame
        return self.max_length - len(frame.before) - len(frame.between) - len(frame.after_pair)

    def _room(self, first: int, second: np.ndarray | None) -> int:
        """Pieces of the first text per window; the second has half of the window, or what a short first text leaves."""
        if second is None:
            return self._capacity
        both = self._capacity_of_pair()
        return both - min(len(second), max(both // 2, both - first))

    def _spans(self, count: int, room: int) -> list[tuple[int, int]]:
        if count <= room or self._recipe.long_text == "truncate":
            return [(0, min(count, room))]
        step = room - min(self._recipe.overlap, room // 2)  # the second text of a pair may leave little room
        starts = [*range(0, count - room, step), count - room]  # the last window is a full one
        return [(start, start + room) for start in starts]

    def _window(self, index: int, ids: np.ndarray, second: np.ndarray | None) -> Window:
        """A window without its words."""
        before, after, between, after_pair = self._special
        if second is None:
            return Window(index, np.concatenate((before, ids, after)), 0, _NONE, _NONE)
        second_from = len(before) + len(ids) + len(between)
        return Window(index, np.concatenate((before, ids, between, second, after_pair)), second_from, _NONE, _NONE)

    def _place_words(
        self, windows: Sequence[Window], spans: Sequence[tuple[int, int]], firsts: np.ndarray, count: int
    ) -> None:
        """Gives each word to one window; `firsts` are the places of their first pieces among `count`, -1 for none."""
        words = np.flatnonzero((firsts >= 0) & (firsts < spans[-1][1]))
        places = firsts[words]
        owners = _owner(places, np.array(spans), count) if len(spans) > 1 else np.zeros(len(words), np.int64)
        borders = np.searchsorted(owners, np.arange(len(spans) + 1))  # a later word never has an earlier window
        for number, (window, (start, _)) in enumerate(zip(windows, spans, strict=True)):
            own = slice(borders[number], borders[number + 1])
            window.words = words[own]
            window.columns = places[own].astype(np.int64) - start + len(self._frame.before)


_NONE = np.empty(0, np.int64)


def by_piece(documents: Sequence[Document], owners: Sequence[np.ndarray]) -> list[Document]:
    """Tagged documents with their pieces in place of words: each piece has the place and the tag of its word.

    So the paper's code has it: `B-` is repeated on every piece of a word, and a word without pieces is gone.

    Args:
        documents: tagged, or with spans.
        owners: for each document the word of each piece.
    """
    pieces = []
    for document, own in zip(documents, owners, strict=True):
        tags = word_tags(document)
        pieces.append(
            replace(document, words=[document.words[word] for word in own], tags=[tags[word] for word in own])
        )
    return pieces


def _check_ids(tokenizer: PreTrainedTokenizerBase, frame: Frame, config: Any) -> None:
    """Raises UserError where the tokenizer can give an id that the backbone has no embedding for.

    A special token that was added, such as one for padding, is never read from a text: many backbones have none for it.
    """
    backend = tokenizer.backend_tokenizer
    added = [id for id, token in backend.get_added_tokens_decoder().items() if not token.special]
    around = (*frame.before, *frame.after, *frame.between, *frame.after_pair)
    largest = max(*backend.get_vocab(with_added_tokens=False).values(), *added, *around)
    if largest >= config.vocab_size:
        raise UserError(
            f"its tokenizer gives ids up to {largest}, and it has embeddings for those below {config.vocab_size} only",
            "Take the tokenizer that the backbone was trained with",
            tokenizer.name_or_path or None,
        )


def positions(config: Any) -> int:
    """How many positions a backbone has for pieces, special and virtual tokens."""
    limit = int(config.max_position_embeddings)
    # RoBERTa numbers positions from the padding index on.
    return limit - config.pad_token_id - 1 if architecture_of(config).name == "roberta" else limit


def _firsts(owners: np.ndarray, words: int) -> np.ndarray:
    """The first piece of each word, -1 where the tokenizer dropped the word."""
    firsts = np.full(words, -1, np.int32)
    # Written from the back, so that the first piece of a word is what stays.
    firsts[owners[::-1]] = np.arange(len(owners) - 1, -1, -1)
    return firsts


def _owner(pieces: np.ndarray, spans: np.ndarray, count: int) -> np.ndarray:
    """For each piece the window in which the nearer cut is farthest away; the document's own ends are no cuts.

    Args:
        pieces: rising places among `count`, each in some window.
        spans: (windows, 2) start and end of windows of one length, rising.
        count: pieces of the document.
    """
    first = np.searchsorted(spans[:, 1], pieces, side="right")  # the first and the last window that hold the piece
    last = np.searchsorted(spans[:, 0], pieces, side="right") - 1
    best, most = first, np.full(len(pieces), -1)
    for further in range(int((last - first).max(initial=-1)) + 1):
        window = np.minimum(first + further, last)
        start, stop = spans[window, 0], spans[window, 1]
        left = np.where(start > 0, pieces - start, count)
        right = np.where(stop < count, stop - 1 - pieces, count)
        context = np.minimum(left, right)
        best = np.where(context > most, window, best)
        most = np.maximum(context, most)
    return best


def _find(ids: list[int], part: list[int], start: int) -> int:
    for position in range(start, len(ids) - len(part) + 1):
        if ids[position : position + len(part)] == part:
            return position
    raise UserError("the tokenizer changes a word when it adds special tokens", "Use another backbone", "tokenizer")
