"""CoNLL files: a token and its tag on each line, an empty line between sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from posology.corpus.document import Document, Span
from posology.corpus.tags import TagError, decode, detect_scheme, repair, tag_error
from posology.corpus.textfile import lines_of, read_text
from posology.errors import UserError

_BOUNDARY = re.compile(r"-DOCSTART-|###\S+$")  # `###MEDLINE:95369245` is how the GENIA corpora begin a document


@dataclass(slots=True)
class Sentence:
    """Tokens with tags in some scheme.

    Attributes:
        id: unique within its corpus.
        group: the document it belongs to, or empty where the file marks none.
        places: `file:line` (or `file, row N`) of each token.
    """

    id: str
    group: str
    tokens: list[str]
    tags: list[str]
    places: list[str]


def read_sentences(
    path: Path, *, name: str, token_column: int = 0, tag_column: int = -1, encoding: str = "utf-8"
) -> Iterator[Sentence]:
    """Yields the sentences of a file, tags undecoded.

    Columns are separated by tabs if the first token's line has one, otherwise by runs of spaces. `-DOCSTART-` (or
    `###NAME`) lines begin a document, whose sentences get one group.

    Args:
        name: what ids and groups begin with; unique for each file of a corpus.
        token_column: from 0; negative counts from the right.
        tag_column: likewise.

    Raises:
        UserError: a line without a token or a tag, or no sentence at all.
    """
    lines = lines_of(read_text(path, encoding))
    first = next((line for line in lines if line.strip(" \t") and not _BOUNDARY.match(line)), None)
    if first is None:
        raise UserError("has no tokens", "Give a file with a token and its tag on each line", path)
    tabs = "\t" in first
    number, document, group = 0, 0, ""
    tokens: list[str] = []
    tags: list[str] = []
    places: list[str] = []
    for line_number, line in enumerate([*lines, ""], start=1):
        boundary = _BOUNDARY.match(line)
        if boundary or not line.strip(" \t"):
            if tokens:
                number += 1
                yield Sentence(f"{name}-{number}", group, tokens, tags, places)
                tokens, tags, places = [], [], []
            if boundary:
                document += 1
                group = f"{name}-document-{document}"
            continue
        place = f"{path}:{line_number}"
        token, tag = _columns(line, tabs, token_column, tag_column, place)
        tokens.append(token)
        tags.append(tag)
        places.append(place)


def _columns(line: str, tabs: bool, token_column: int, tag_column: int, place: str) -> tuple[str, str]:
    columns = line.split("\t") if tabs else re.split(" +", line.strip(" "))
    separator = "tabs" if tabs else "spaces"
    if len(columns) < 2:
        raise UserError(
            f"expected at least 2 columns separated by {separator}, found 1",
            "Put a token and its tag on every line, and an empty line between sentences",
            place,
        )
    try:
        token, tag = columns[token_column], columns[tag_column].strip()
    except IndexError:
        raise UserError(
            f"has {len(columns)} columns separated by {separator}, so not both {token_column} and {tag_column}",
            "Mend --token-column or --tag-column (from 0; -1 is the last)",
            place,
        ) from None
    if not token:
        raise UserError("the token is empty", "Remove the line or mend --token-column", place)
    return token, tag


def documents(
    sentences: Sequence[Sentence], *, scheme: str | None = None, mend: bool = False, counts: Counter[str] | None = None
) -> Iterator[Document]:
    """Turns sentences into documents: tokens joined by one space, words at their offsets, tags as spans.

    Args:
        sentences: all of a corpus, since they decide the scheme together.
        scheme: one of `tags.SCHEMES`; None detects it.
        mend: read an IOB2 I- that has no B- before it as a B-.
        counts: gets `repaired_tags`.

    Raises:
        UserError: a tag that its scheme forbids, or no scheme fits.
    """
    counts = counts if counts is not None else Counter()
    tags = [sentence.tags for sentence in sentences]
    if mend:
        scheme = "iob2"
        tags = list(_mended(sentences, counts))
    scheme = scheme or detect_scheme(tags, lambda number, index: sentences[number].places[index])
    for sentence, sequence in zip(sentences, tags, strict=True):
        words = []
        start = 0
        for token in sentence.tokens:
            words.append((start, start + len(token)))
            start += len(token) + 1
        try:
            entities = decode(sequence, scheme)
        except TagError as error:
            raise tag_error(error, sentence.places[error.index]) from None
        yield Document(
            id=sentence.id,
            group=sentence.group,
            text=" ".join(sentence.tokens),
            words=words,
            spans=[Span(words[first][0], words[last - 1][1], label) for first, last, label in entities],
            place=sentence.places[0],
        )


def _mended(sentences: Iterable[Sentence], counts: Counter[str]) -> Iterator[list[str]]:
    for sentence in sentences:
        try:
            tags, changed = repair(sentence.tags)
        except TagError as error:
            raise tag_error(error, sentence.places[error.index]) from None
        if changed:
            counts["repaired_tags"] += changed
        yield tags
