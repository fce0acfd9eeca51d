"""i2b2 2010 relations as sequences: one example for each pair of concepts on a line.

`paper` follows BLUE's conversion script, on whose files the paper's code trained; `standard` does the same job with the
mentions kept readable between typed markers and the types in their places.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from posology.corpus import i2b2_2010
from posology.corpus.document import Document
from posology.corpus.i2b2_2010 import Concept, Record
from posology.corpus.relations import Argument, Markers, mark
from posology.errors import UserError
from posology.tasks.built import Built, Protocol
from posology.tasks.split import apply_lists, complete, how_split

NEGATIVE = "false"
LABELS = ("PIP", "TeCP", "TeRP", "TrAP", "TrCP", "TrIP", "TrNAP", "TrWP", NEGATIVE)

_ORDER = ("treatment", "test", "problem")
"""Which of two concepts is the first argument: that is how the corpus writes its relations."""

_DEFECTS = (
    "The official test set is halved at random into validation and test, so models are chosen on half of the official "
    "test set, and sentences of one record are in both halves.",
    "Where the concept that is listed first stands later in the line, the two mentions get each other's type.",
    "The mentions themselves are replaced by their types, so the model cannot read them.",
    "A relation that is listed twice gives two rows, and a pair with two relations gives the same text with two labels.",
)


def build(
    source: Path, protocol: Protocol, *, markers: Markers = "around", seed: int = 42, splits: Path | None = None
) -> Built:
    """Builds `i2b2-2010-re` from the tree as distributed.

    Args:
        markers: in `standard`, whether typed markers stand around the mentions or instead of them.
        seed: of the splits that are made.
        splits: lists of record names that make the splits, for `standard`.

    Raises:
        UserError: the tree cannot be read, has no relations, or lacks a part that the protocol needs.
    """
    problems: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    records = sorted(i2b2_2010.read(source, problems), key=lambda record: record.id)
    # Without its file of relations a record says nothing: its pairs are not negative examples.
    counts["records_without_relation_file_left_out"] = sum(".rel" in record.lacks for record in records)
    records = [record for record in records if ".rel" not in record.lacks]
    if not any(record.relations for record in records):
        raise UserError("has no relations (.rel files)", "Name the folder as it was downloaded", source)
    counts["records"] = len(records)
    relations = [relation for record in records for relation in record.relations]
    counts["relations"] = len(relations)
    counts["relations_across_lines_left_out"] = sum(one.first.line != one.second.line for one in relations)
    write = _as_published if protocol == "paper" else _readable
    documents = [document for record in records for document in write(record, markers, counts)]
    if protocol == "paper":
        by_split, remarks = _halved(documents, seed, source), [_PAPER_REMARK]
    else:
        remarks = [
            f"Typed markers stand {markers} the two mentions. The treatment, else the test, is the first argument."
        ]
        if splits is not None:
            remarks.append(f"The splits are those of the given lists of {apply_lists(documents, splits)['lists_of']}s.")
        else:
            remarks.append(how_split(documents, seed))
        by_split, _ = complete(documents, seed=seed, place=source, by_text=False)
    return Built(
        "sequence-classification",
        LABELS,
        by_split,
        "macro_f1",
        counts=counts,
        defects=_DEFECTS if protocol == "paper" else (),
        remarks=remarks,
        problems=problems,
    )


_PAPER_REMARK = (
    "Training is every record of both hospitals; BLUE held back one record for its development set, whose name is not "
    "known. Where a hospital is missing from the source, it is missing here. Halves of the test set are drawn with the given seed; the paper's cannot be repeated."
)


def _pairs(record: Record) -> Iterator[tuple[Concept, Concept, list[str]]]:
    """Every unordered pair of concepts on a line, in the order of the file, with its relations in reverse order."""
    related: dict[frozenset[tuple[int, int, str]], list[str]] = {}
    for relation in reversed(record.relations):
        related.setdefault(_key(relation.first, relation.second), []).append(relation.label)
    for first, second in combinations(record.concepts, 2):
        if first.line == second.line:
            yield first, second, related.get(_key(first, second), [])


def _key(first: Concept, second: Concept) -> frozenset[tuple[int, int, str]]:
    return frozenset((concept.start, concept.end, concept.type) for concept in (first, second))


def _as_published(record: Record, _: Markers, counts: Counter[str]) -> Iterator[Document]:
    for number, (first, second, labels) in enumerate(_pairs(record), start=1):
        text = _blinded(record, first, second)
        counts["pairs_with_several_relations"] += len(labels) > 1
        for row, label in enumerate(labels or [NEGATIVE]):
            yield _document(record, f"{number}.{row + 1}" if row else str(number), text, label)


def _blinded(record: Record, first: Concept, second: Concept) -> str:
    """The line with `@type$` for each mention, or `@type1-type2$` for two that touch; types in the order of the file."""
    begin, line = _line(record, first, second)
    left, right = sorted((first, second), key=lambda concept: (concept.start, concept.end))
    if right.start <= left.end:
        spans = [(left.start, max(left.end, right.end), f"@{first.type}-{second.type}$")]
    else:
        spans = [(left.start, left.end, f"@{first.type}$"), (right.start, right.end, f"@{second.type}$")]
    for start, end, marker in reversed(spans):
        line = line[: start - begin] + marker + line[end - begin :]
    return line


def _readable(record: Record, markers: Markers, counts: Counter[str]) -> Iterator[Document]:
    for number, (one, other, labels) in enumerate(_pairs(record), start=1):
        begin, line = _line(record, one, other)
        first, second = sorted(
            (one, other), key=lambda concept: (_ORDER.index(concept.type), concept.start, concept.end)
        )
        counts["pairs_with_several_relations"] += len(set(labels)) > 1
        if max(first.start, second.start) < min(first.end, second.end):
            counts["overlapping_pairs_left_out"] += 1
            counts["relations_of_overlapping_pairs_left_out"] += bool(labels)
            continue
        marked = [Argument(concept.start - begin, concept.end - begin, concept.type) for concept in (first, second)]
        label = labels[-1] if labels else NEGATIVE  # the first in the file
        yield _document(record, str(number), mark(line, marked[0], marked[1], markers).strip(), label)


def _line(record: Record, first: Concept, second: Concept) -> tuple[int, str]:
    """The offset of the line on which two concepts begin, and that line, on to where both have ended."""
    begin = record.text.rfind("\n", 0, first.start) + 1
    end = record.text.find("\n", max(first.end, second.end))
    return begin, record.text[begin : end if end >= 0 else len(record.text)]


def _document(record: Record, number: str, text: str, label: str) -> Document:
    return Document(
        id=f"{record.id}:{number}", text=text, group=record.id, label=label, split=record.split, place=record.place
    )


def _halved(documents: Sequence[Document], seed: int, source: Path) -> dict[str, list[Document]]:
    official = [document for document in documents if document.split == "test"]
    training = [document for document in documents if document.split == "train"]
    if len(official) < 2 or not training:
        raise UserError(
            "protocol paper needs both official sets, of which one is missing or has no pairs of concepts",
            "Name the folder as it was downloaded, or take --protocol standard",
            source,
        )
    random.Random(seed).shuffle(official)
    half = len(official) // 2
    return {"train": training, "validation": official[:half], "test": official[half:]}
