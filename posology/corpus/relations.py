"""Relations as sequences: one example for each pair of candidate arguments, marked in its sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from posology.corpus.brat import BratDocument, Entity, count_ignored
from posology.corpus.document import Document
from posology.errors import UserError

Markers = Literal["around", "instead"]
Sentences = Literal["sentence", "line"]

MARKS = "<< >> [[ ]]"
"""How ChemProt as published by SciBERT marks the first and the second argument."""

# A full stop, question or exclamation mark before white space and something that may begin a sentence.
_SENTENCE_END = re.compile(r"(?<=[.!?])[ \t]+(?=[\"'(\[]?[A-Z0-9])")
_LINE_END = re.compile(r"\s*\n\s*")
# What `mark` writes.
_AROUND = re.compile(r"\[(E[12](?::[^\]]+)?)\] (.*?) \[/\1\]", re.DOTALL)
_INSTEAD = re.compile(r"@[^\s@$]+\$")


class Argument(NamedTuple):
    """One of the two arguments of a pair: its place in the text and its type, empty if unknown."""

    start: int
    end: int
    type: str


def mark(text: str, first: Argument, second: Argument, markers: Markers) -> str:
    """The text with its two arguments marked.

    `around` gives `[E1:Chemical] x [/E1:Chemical]` (`E1` the first argument, `E2` the second), `instead` replaces them
    by `@Chemical$`. Without types it is `[E1] x [/E1]` and `@E1$`. The arguments must not overlap.
    """
    marked = text
    for name, argument in sorted((("E1", first), ("E2", second)), key=lambda item: -item[1].start):
        if markers == "instead":
            inserted = f"@{argument.type or name}$"
        else:
            tag = f"{name}:{argument.type}" if argument.type else name
            inserted = f"[{tag}] {text[argument.start : argument.end]} [/{tag}]"
        marked = marked[: argument.start] + inserted + marked[argument.end :]
    return marked


def unmarked(text: str) -> str:
    """The text that `mark` was given, from one with markers around its arguments; others stay as they are."""
    return _AROUND.sub(r"\2", text)


def without_placeholders(text: str) -> list[str]:
    """What stood before, between and after the arguments that `mark` has replaced; `@problem-test$` is one, too."""
    return _INSTEAD.split(text)


def from_marked(
    documents: Sequence[Document], *, marks: str = MARKS, markers: Markers = "around"
) -> Iterator[Document]:
    """Sentences in which the arguments are marked already, with our markers in place of theirs.

    An opening mark that is followed by a blank goes before one that is not, because `>>` and `[[` also occur in
    chemical names and comparisons; the blanks inside the marks are not kept.

    Args:
        marks: opening and closing mark of the first and of the second argument, separated by blanks.

    Raises:
        UserError: a mark is missing or occurs more than once.
    """
    parts = marks.split()
    if len(parts) != 4:
        raise UserError(
            f"expected four marks separated by blanks, found {len(parts)}", f"Write them as {MARKS!r}", "--marks"
        )
    for document in documents:
        first = _marked(document, parts[0], parts[1])
        second = _marked(document, parts[2], parts[3])
        if first[0] < second[1] and second[0] < first[1]:
            raise UserError(
                "the marked arguments overlap", "Mark two separate arguments or remove the row", document.place
            )
        yield replace(document, text=_without_marks(document.text, first, second, parts, markers))


def _marked(document: Document, opening: str, closing: str) -> tuple[int, int]:
    """Where the marked argument begins and ends, marks included."""
    text = document.text
    for pattern in (re.escape(opening) + "(?= )", re.escape(opening)):
        found = [match.start() for match in re.finditer(pattern, text)]
        if len(found) == 1:
            inside = found[0] + len(opening)
            for end in (f" {closing}", closing):
                close = text.find(end, inside)
                if close > inside and text[inside:close].strip():
                    return found[0], close + len(end)
            break
    raise UserError(
        f"expected one argument between {opening} and {closing}",
        "Mend the row, or name the marks with --marks",
        document.place,
    )


def _without_marks(
    text: str, first: tuple[int, int], second: tuple[int, int], parts: Sequence[str], markers: Markers
) -> str:
    """The text with both arguments stripped of their marks and marked anew."""
    pieces: list[str] = []
    arguments: dict[str, Argument] = {}
    length = last = 0
    named = {"E1": (*first, parts[0], parts[1]), "E2": (*second, parts[2], parts[3])}
    for name, (start, end, opening, closing) in sorted(named.items(), key=lambda item: item[1][0]):
        inner = text[start + len(opening) : end - len(closing)].strip()
        pieces += [text[last:start], inner]
        length += start - last
        arguments[name] = Argument(length, length + len(inner), "")
        length += len(inner)
        last = end
    return mark("".join([*pieces, text[last:]]), arguments["E1"], arguments["E2"], markers)


def from_brat(
    documents: Sequence[BratDocument],
    *,
    arguments: Sequence[tuple[str, str]] | None = None,
    negative: str = "false",
    markers: Markers = "around",
    sentences: Sentences = "sentence",
    counts: Counter[str] | None = None,
) -> Iterator[Document]:
    """One example for every ordered pair of entities within a sentence whose types may be related.

    The label is the type of the relation from the first to the second entity, otherwise `negative`; a pair with
    several relations gives one example for each. Discontinuous entities are marked from their first to their last
    character. Pairs that overlap are left out and counted, and so are relations that no example shows.

    Args:
        documents: all of a corpus.
        arguments: `(first type, second type)` pairs to consider; None takes those that some relation in the corpus has.
        sentences: `line` cuts texts at line ends, `sentence` at sentence ends too; never inside an entity.

    Raises:
        UserError: there are no relations, or `negative` is the name of one.
    """
    counts = counts if counts is not None else Counter()
    relations = [relation for document in documents for relation in document.relations]
    if not relations:
        raise UserError("there are no relations (R lines)", "Check the .ann files or prepare an entities task")
    clash = next((relation for relation in relations if relation.label == negative), None)
    if clash is not None:
        raise UserError(
            f"a relation has the type {negative!r}, which stands for unrelated pairs",
            "Add --negative NAME",
            clash.place,
        )
    allowed = set(arguments or ((relation.first.label, relation.second.label) for relation in relations))
    for document in documents:
        count_ignored(document, counts)
        yield from _pairs(document, allowed, negative, markers, sentences, counts)


def _pairs(
    document: BratDocument,
    allowed: set[tuple[str, str]],
    negative: str,
    markers: Markers,
    sentences: Sentences,
    counts: Counter[str],
) -> Iterator[Document]:
    related: dict[tuple[str, str], list[str]] = {}
    for relation in document.relations:
        labels = related.setdefault((relation.first.id, relation.second.id), [])
        if relation.label not in labels:
            labels.append(relation.label)
    for start, end in _sentences(document, sentences):
        inside = [entity for entity in document.entities if start <= entity.start and entity.end <= end]
        for first in inside:
            for second in inside:
                if first is second or (first.label, second.label) not in allowed:
                    continue
                if first.start < second.end and second.start < first.end:
                    counts["overlapping_pairs_left_out"] += 1
                    continue
                labels = related.pop((first.id, second.id), [negative])
                counts["pairs_with_several_relations"] += len(labels) > 1
                text = mark(document.text[start:end], _argument(first, start), _argument(second, start), markers)
                for number, label in enumerate(labels):
                    yield Document(
                        id=f"{document.id}/{first.id}-{second.id}" + (f"-{number + 1}" if number else ""),
                        group=document.id,
                        text=text,
                        label=label,
                        place=document.place,
                    )
    counts["relations_left_out"] += sum(map(len, related.values()))


def _argument(entity: Entity, start: int) -> Argument:
    return Argument(entity.start - start, entity.end - start, entity.label)


def _sentences(document: BratDocument, sentences: Sentences) -> Iterator[tuple[int, int]]:
    """Stretches of the text, cut where asked but not inside an entity."""
    patterns = (_LINE_END,) if sentences == "line" else (_LINE_END, _SENTENCE_END)
    cuts = sorted(match.span() for pattern in patterns for match in pattern.finditer(document.text))
    start = 0
    for cut_start, cut_end in cuts:
        if any(entity.start < cut_end and cut_start < entity.end for entity in document.entities):
            continue
        if start < cut_start:
            yield start, cut_start
        start = cut_end
    if start < len(document.text):
        yield start, len(document.text)
