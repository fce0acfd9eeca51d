"""How well a tokenizer knows the words of a corpus, and new whole words for it."""

from __future__ import annotations

import hashlib
import inspect
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posology.corpus.wording import encodable
from posology.errors import UserError

FEWEST_GROUPS = 10
"""Patients in whose notes a word must stand to become part of the vocabulary, which goes wherever the backbone goes. A
name is rarely that of so many, but nothing here can tell one from other words; and where patients are not known, single
documents count in their place, of which one patient may have as many."""
_WORD = r"\p{L}[\p{L}\p{M}\p{N}]*"
_MOST_WORDS = 200_000
_WORST, _SHORTEST = 50, 3


class Count(NamedTuple):
    """How often a word occurs, and where.

    Attributes:
        occurrences: of the word.
        groups: numbers that stand for the patients (or documents) whose notes have it; None: `FEWEST_GROUPS` or more.
    """

    occurrences: int
    groups: tuple[int, ...] | None


class WordCounts:
    """Counts words in bounded memory: where there are too many, the rarest are forgotten (lossy counting, Manku and
    Motwani 2002), so that the counts of frequent words are right and rare ones are missing.

    Words are counted as they are written, with composed letters, since that is what a tokenizer cuts; other than in
    `corpus.wording`, where only capitals differ they may be two words.

    Args:
        lower: whether capitals make no difference.

    Attributes:
        counts: by word, those that are known.
        occurrences: of all words.
    """

    def __init__(self, lower: bool):
        self._lower = lower
        self.counts: dict[str, Count] = {}
        self.occurrences = 0
        self._texts = 0

    def add(self, texts: Sequence[str], groups: Sequence[str] | None = None) -> None:
        """Counts the words of some documents.

        Args:
            texts: of the documents.
            groups: the patient of each; empty where that is not known.
        """
        composed = [unicodedata.normalize("NFC", encodable(text)) for text in texts]
        column = pl.Series("word", composed, dtype=pl.String)
        words = (column.str.to_lowercase() if self._lower else column).str.extract_all(_WORD)
        numbers = pl.Series("group", self._numbers(len(texts), groups), dtype=pl.UInt64)
        frame = pl.DataFrame([words, numbers]).explode("word").drop_nulls()
        self.occurrences += frame.height
        grouped = frame.group_by("word", maintain_order=True).agg(
            pl.len().alias("all"), pl.col("group").unique(maintain_order=True).head(FEWEST_GROUPS)
        )
        for word, occurrences, found in grouped.iter_rows():
            before = self.counts.get(word, _NONE)
            known = before.groups
            if known is not None:
                both = {*known, *found}
                known = tuple(both) if len(both) < FEWEST_GROUPS else None
            self.counts[word] = Count(before.occurrences + occurrences, known)
        rare = 0
        while len(self.counts) > _MOST_WORDS:
            rare += 1
            self.counts = {word: count for word, count in self.counts.items() if count.occurrences > rare}

    def _numbers(self, texts: int, groups: Sequence[str] | None) -> list[int]:
        """What stands for the group of each text: a hash of its name, or the number of the text."""
        first, self._texts = self._texts, self._texts + texts
        return [
            _hash(group) if group else first + number
            for number, group in enumerate(groups if groups is not None else [""] * texts)
        ]


def _hash(group: str) -> int:
    """64 bits, so that names of any length take little room."""
    return int.from_bytes(hashlib.blake2b(group.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


_NONE = Count(0, ())


def lowers(backend: Tokenizer) -> bool:
    """Whether a tokenizer takes capitals for small letters."""
    return backend.normalizer is not None and backend.normalizer.normalize_str("A") == "a"


def coverage(counts: WordCounts, tokenizer: PreTrainedTokenizerBase, *, with_text: bool) -> dict[str, Any]:
    """How a tokenizer cuts the words of a corpus. Only words that begin with a letter count.

    Args:
        counts: of the corpus.
        tokenizer: its pieces are counted.
        with_text: name the terms that cost most pieces: they are words of notes.

    Returns:
        `words` (occurrences), `distinct` (those still known), `pieces_per_word`, the shares of words that are one piece
        (`whole`), four or more (`shattered`) or have a piece that is not known (`unknown`); with `with_text` `worst`, a
        list of `term`, `pieces` and `occurrences`.
    """
    pieces, unknown = _pieces(list(counts.counts), tokenizer)
    table = pl.DataFrame(
        {
            "term": list(counts.counts),
            "pieces": pieces,
            "unknown": unknown,
            "occurrences": [count.occurrences for count in counts.counts.values()],
        },
        schema={"term": pl.String, "pieces": pl.Int64, "unknown": pl.Boolean, "occurrences": pl.Int64},
    )
    weight = pl.col("occurrences")
    total = max(1, int(table["occurrences"].sum()))

    def share(chosen: pl.Expr) -> float:
        return int(table.filter(chosen)["occurrences"].sum()) / total

    found: dict[str, Any] = {
        "words": counts.occurrences,
        "distinct": len(counts.counts),
        "pieces_per_word": float((table["pieces"] * table["occurrences"]).sum()) / total,
        "whole": share(pl.col("pieces") == 1),
        "shattered": share(pl.col("pieces") >= 4),
        "unknown": share(pl.col("unknown")),
    }
    if with_text:
        worst = table.sort((pl.col("pieces") - 1) * weight, "term", descending=[True, False]).head(_WORST)
        found["worst"] = worst.filter(pl.col("pieces") > 1).select("term", "pieces", "occurrences").to_dicts()
    return found


def new_words(counts: WordCounts, tokenizer: PreTrainedTokenizerBase, number: int) -> list[str]:
    """The words whose becoming one piece saves most pieces of the corpus.

    Args:
        counts: of the corpus.
        tokenizer: as it is.
        number: of words wanted; fewer where no more stand in notes of `FEWEST_GROUPS` patients.

    Raises:
        UserError: no word is worth it.
    """
    words = [
        word
        for word, count in counts.counts.items()
        if count.groups is None and len(word) >= _SHORTEST and word.isalpha()
    ]
    pieces, _ = _pieces(words, tokenizer)
    saved = {
        word: (own - 1) * counts.counts[word].occurrences for word, own in zip(words, pieces, strict=True) if own > 1
    }
    if not saved:
        raise UserError(
            f"no word of several pieces stands in {FEWEST_GROUPS} documents or more (of as many patients, where they are "
            "known)",
            "Leave it out",
            "--extend-vocabulary",
        )
    return sorted(saved, key=lambda word: (-saved[word], word))[:number]


def extend(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> dict[int, list[int]]:
    """Adds words to a tokenizer.

    Returns:
        For each new id the pieces that the word had before.
    """
    backend = tokenizer.backend_tokenizer
    old = [encoding.ids for encoding in backend.encode_batch(_as_running_text(words), add_special_tokens=False)]
    blank = len(backend.encode("a a", add_special_tokens=False).tokens[-1]) > 1  # a byte-level piece holds its blank
    tokens = [AddedToken(word, single_word=True, normalized=True, lstrip=blank) for word in words]
    first = len(tokenizer)
    tokenizer.add_tokens(tokens)
    ids = backend.get_vocab(with_added_tokens=True)
    return {ids[word]: pieces for word, pieces in zip(words, old, strict=True) if ids[word] >= first}


@torch.no_grad()
def grow(model: PreTrainedModel, pieces: dict[int, list[int]], size: int) -> None:
    """Makes room in a masked language model for new words: what belongs to each starts as the mean of its old pieces.

    Args:
        model: changed in place; everything in it that is as long as the vocabulary grows.
        pieces: for each new id those it stands for.
        size: of the vocabulary.
    """
    size = max(size, model.get_input_embeddings().weight.shape[0])
    # MobileBERT's own does not know the argument, which only spares drawing what is replaced below.
    known = "mean_resizing" in inspect.signature(model.resize_token_embeddings).parameters
    model.resize_token_embeddings(size, **({"mean_resizing": False} if known else {}))
    places = torch.tensor(list(pieces))
    for weight in model.parameters():
        if size not in weight.shape:
            continue
        dimension = list(weight.shape).index(size)
        means = [weight.index_select(dimension, torch.tensor(own)).mean(dimension) for own in pieces.values()]
        weight.index_copy_(dimension, places, torch.stack(means, dimension))


def _pieces(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Of each word, how many pieces it has in running text, and whether one of them is unknown."""
    backend, unknown = tokenizer.backend_tokenizer, tokenizer.unk_token_id
    sizes: list[int] = []
    lost: list[bool] = []
    for start in range(0, len(words), 8192):
        part = _as_running_text(words[start : start + 8192])
        for encoding in backend.encode_batch_fast(part, add_special_tokens=False):
            ids = encoding.ids
            sizes.append(len(ids))
            lost.append(unknown is not None and unknown in ids)
    return sizes, lost


def _as_running_text(words: Sequence[str]) -> list[str]:
    """With the blank before each, as byte-level tokenizers want it."""
    return [f" {word}" for word in words]
