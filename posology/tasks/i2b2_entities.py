"""The three i2b2 entity tasks: concepts (2010), clinical events (2012), identifiers (2014).

`standard`: words and character spans, whole records or their lines, strict entity F1 on words. `paper`: token and tag
files as bio-lm's scripts made them, which the paper's code read, with the tags' oddities (`docs/clinical.md`).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from posology.corpus import i2b2_2010, i2b2_2012, i2b2_2014
from posology.corpus.document import Document, Span
from posology.corpus.tags import covering_words, keep_longest, loose_spans, words_of
from posology.errors import UserError
from posology.tasks.built import Built, Protocol
from posology.tasks.split import apply_lists, complete, how_split

View = Literal["lines", "documents"]

_DEV_SHARE = 0.1
_PAPER_SEED = 1
"""The original's seed. It draws from unordered sets, which cannot be repeated; here names are sorted first."""

_SHARED_DEFECTS = (
    "Every word piece bears its word's tag, B- included, and F1 is counted over pieces, so it depends on the tokenizer.",
    "The last sentence of every split is lost, as in the loader of the paper's code.",
    "With the paper's recipe, what lies beyond 480 pieces is never scored.",
)
_DEFECTS = {
    "i2b2-2010-ner": (
        "Training and validation hold the records of Partners only: the paths of the second hospital overwrite the first.",
        "Overlapping concepts are written in the order of the file, later ones over earlier ones, so an I- may stand alone.",
    ),
    "i2b2-2012-ner": (
        "Touching events of one type are one entity, and an event that goes on after a nested one resumes with I-.",
    ),
    "i2b2-2014-ner": (
        "A tag that covers part of a word splits the word, which tells the model where identifiers end.",
        "Touching tags of one type are one entity.",
    ),
}


@dataclass(frozen=True)
class Annotated:
    """A record of any of the three corpora, reduced to what the entity tasks need.

    Attributes:
        spans: in the order of the file, which decides in `paper` which of two overlapping ones stays.
        words: the words that the corpus itself defines, or None.
    """

    id: str
    group: str
    text: str
    split: str | None
    spans: list[Span]
    place: str
    hospital: str = ""
    words: list[tuple[int, int]] | None = None


def build(
    task: str, source: Path, protocol: Protocol, *, view: View = "lines", seed: int = 42, splits: Path | None = None
) -> Built:
    """Builds one of the tasks from the tree as distributed.

    Args:
        task: `i2b2-2010-ner`, `i2b2-2012-ner` or `i2b2-2014-ner`.
        view: whether a line or a whole record is one document. In `standard`, lines that share an entity stay together.
        seed: of the splits that are made.
        splits: lists of record (2014: patient) names that make the splits, for `standard`.

    Raises:
        UserError: the tree cannot be read, or lacks a part that the protocol needs.
    """
    problems: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    records = sorted(_READERS[task](source, problems, counts), key=lambda record: record.id)
    if not records:
        raise UserError("has no annotated records", "Name the folder as it was downloaded", source)
    counts["records"] = len(records)
    counts["annotations"] = sum(len(record.spans) for record in records)
    if protocol == "paper":
        return _paper(task, records, problems, counts, source)
    return _standard(task, records, problems, counts, source, view, seed, splits)


def _concepts(source: Path, problems: list[tuple[str, str]], counts: Counter[str]) -> Iterator[Annotated]:
    for record in i2b2_2010.read(source, problems):
        spans = [Span(concept.start, concept.end, concept.type) for concept in record.concepts]
        yield Annotated(
            record.id,
            record.id,
            record.text,
            record.split,
            spans,
            record.place,
            record.hospital,
            _runs(record.text),
        )


def _events(source: Path, problems: list[tuple[str, str]], counts: Counter[str]) -> Iterator[Annotated]:
    for record in i2b2_2012.read(source, problems):
        counts["events_without_type_left_out"] += sum(not event.type for event in record.events)
        spans = [Span(event.start, event.end, event.type) for event in record.events if event.type]
        yield Annotated(record.id, record.id, record.text, record.split, spans, record.place)


def _identifiers(source: Path, problems: list[tuple[str, str]], counts: Counter[str]) -> Iterator[Annotated]:
    for record in i2b2_2014.read(source, problems):
        counts["identifiers_without_type_left_out"] += sum(not tag.type for tag in record.tags)
        spans = [Span(tag.start, tag.end, tag.type) for tag in record.tags if tag.type]
        yield Annotated(record.id, record.patient, record.text, record.split, spans, record.place)


_READERS = {"i2b2-2010-ner": _concepts, "i2b2-2012-ner": _events, "i2b2-2014-ner": _identifiers}


def _standard(
    task: str,
    records: Sequence[Annotated],
    problems: list[tuple[str, str]],
    counts: Counter[str],
    source: Path,
    view: View,
    seed: int,
    splits: Path | None,
) -> Built:
    documents = [document for record in records for document in _documents(record, view, counts)]
    if splits is not None:
        lists = apply_lists(documents, splits)
        remarks = [f"The splits are those of the given lists of {lists['lists_of']}s."]
    else:
        remarks = [how_split(documents, seed)]
    by_split, _ = complete(documents, seed=seed, place=source, by_text=False)
    remarks.append(
        f"One document is {'a line of a record; lines that share an entity are kept together' if view == 'lines' else 'a whole record'}."
    )
    if task == "i2b2-2010-ner":
        remarks.append("Words are the corpus's own tokens, which blanks separate.")
    labels = sorted({span.label for document in documents for span in document.spans})
    trained = {span.label for document in by_split["train"] for span in document.spans}
    if untrained := [label for label in labels if label not in trained]:
        remarks.append(
            f"Training has no example of {', '.join(untrained)}: nothing can learn these, and test counts them."
        )
    return Built(
        "token-classification", labels, by_split, "entity_f1", counts=counts, remarks=remarks, problems=problems
    )


def _documents(record: Annotated, view: View, counts: Counter[str]) -> Iterator[Document]:
    """The record, or its lines, with spans that do not overlap."""
    given = {_trimmed(record.text, span) for span in record.spans}
    spans = keep_longest(sorted(given))
    counts["overlapping_entities_left_out"] += len(given) - len(spans)
    words = record.words if record.words is not None else words_of(record.text)
    visible = covering_words(words, spans)
    counts["entities_without_words_left_out"] += len(spans) - len(visible)
    stretches = [(0, len(record.text))] if view == "documents" else list(_stretches(record.text, visible))
    next_word = next_span = 0
    for number, (start, end) in enumerate(stretches, start=1):
        first_word, first_span = next_word, next_span
        while next_word < len(words) and words[next_word][0] < end:
            next_word += 1
        while next_span < len(visible) and visible[next_span].start < end:
            next_span += 1
        if next_word == first_word:
            continue
        yield Document(
            id=record.id if view == "documents" else f"{record.id}:{number}",
            text=record.text[start:end],
            group=record.group,
            words=[(left - start, right - start) for left, right in words[first_word:next_word]],
            spans=[Span(one.start - start, one.end - start, one.label) for one in visible[first_span:next_span]],
            split=record.split,
            place=record.place,
        )


def _trimmed(text: str, span: Span) -> Span:
    """The span without white space at its ends, where a tag may have taken in a line break."""
    inside = text[span.start : span.end]
    start = span.end - len(inside.lstrip())
    return Span(start, start + len(inside.strip()), span.label) if inside.strip() else span


def _stretches(text: str, spans: Sequence[Span]) -> Iterator[tuple[int, int]]:
    """Lines of a text without their ends, those that share an entity as one."""
    crossing = [(span.start, span.end) for span in spans if "\n" in text[span.start : span.end]]
    start = 0
    for cut in (index for index, letter in enumerate(text + "\n") if letter == "\n"):
        if any(begin < cut < end for begin, end in crossing):
            continue
        yield start, cut
        start = cut + 1


def _runs(text: str) -> list[tuple[int, int]]:
    """What 2010 calls tokens: what stands between blanks and tabs."""
    return [match.span() for match in re.finditer(r"[^ \t\n]+", text)]


def _paper(
    task: str, records: Sequence[Annotated], problems: list[tuple[str, str]], counts: Counter[str], source: Path
) -> Built:
    training = [record for record in records if record.split == "train"]
    test = [record for record in records if record.split == "test"]
    if task == "i2b2-2010-ner":
        training = [record for record in training if record.hospital == "partners"]
    if not training or not test:
        what = "training records of Partners" if task == "i2b2-2010-ner" and not training else "both official sets"
        raise UserError(
            f"protocol paper needs {what if training or test else 'the tree as distributed'}, which is not there",
            "Name the folder as it was downloaded, or take --protocol standard",
            source,
        )
    groups = sorted({record.group for record in training})
    dev = set(random.Random(_PAPER_SEED).sample(groups, max(1, round(_DEV_SHARE * len(groups)))))
    parts = {
        "train": [record for record in training if record.group not in dev],
        "validation": [record for record in training if record.group in dev],
        "test": test,
    }
    by_split = {}
    for split, own in parts.items():
        documents = [document for record in own for document in _tagged(record, task, counts)]
        by_split[split] = documents[:-1]  # as the paper's loader does
    found = {tag for documents in by_split.values() for document in documents for tag in document.tags or ()}
    counts["tags_seen"] = len(found)
    return Built(
        "token-classification",
        sorted({tag[2:] for tag in found - {"O"}}),
        by_split,
        "entity_f1",
        counts=counts,
        defects=[*_DEFECTS[task], *_SHARED_DEFECTS],
        remarks=[
            "Validation is a tenth of the training records (2014: patients), drawn from sorted names; the original draws "
            "from unordered sets, so its choice cannot be repeated.",
            "Texts are the published token lists joined by blanks: their offsets are not those of the original files.",
            "Annotations whose quoted text is not at their offsets are left out or realigned everywhere; the original checks "
            "training files only (2012, 2014) and would keep such tags of test files where they stand.",
            "The paper's counts of sentences include empty ones, which cannot be documents here; they are counted apart.",
        ],
        problems=problems,
        unit="piece",
    )


def _tagged(record: Annotated, task: str, counts: Counter[str]) -> Iterator[Document]:
    """One document for each line that has tokens."""
    tag_line = _token_tags if task == "i2b2-2010-ner" else _character_tags
    for number, pairs in enumerate(tag_line(record), start=1):
        if not pairs:
            # The 2010 script writes two sentence breaks for a blank line; the others skip it.
            counts["empty_sentences"] += 2 * (task == "i2b2-2010-ner")
            continue
        words, length = [], 0
        for token, _ in pairs:
            words.append((length, length + len(token)))
            length += len(token) + 1
        tags = [tag for _, tag in pairs]
        yield Document(
            id=f"{record.id}:{number}",
            text=" ".join(token for token, _ in pairs),
            group=record.group,
            words=words,
            spans=loose_spans(words, tags),
            tags=tags,
            place=record.place,
        )


def _token_tags(record: Annotated) -> Iterator[list[tuple[str, str]]]:
    """Tokens and tags of each line of a 2010 record; concepts overwrite one another in the order of the file."""
    runs = record.words or []
    tags = ["O"] * len(runs)
    index = {start: position for position, (start, _) in enumerate(runs)}
    ends = {end: position for position, (_, end) in enumerate(runs)}
    for span in record.spans:
        first, last = index[span.start], ends[span.end]
        tags[first : last + 1] = [f"B-{span.label}"] + [f"I-{span.label}"] * (last - first)
    position, start = 0, 0
    for line in record.text.removesuffix("\n").split("\n"):
        pairs = []
        end = start + len(line)
        while position < len(runs) and runs[position][0] < end:
            pairs.append((record.text[slice(*runs[position])], tags[position]))
            position += 1
        yield pairs
        start = end + 1


def _character_tags(record: Annotated) -> Iterator[list[tuple[str, str]]]:
    """Tokens and tags of each line of a 2012 or 2014 record, by marking characters and cutting where marks change."""
    marks = [""] * len(record.text)
    for span in record.spans:
        marks[span.start] = f"B-{span.label}"
        marks[span.start + 1 : span.end] = [f"I-{span.label}"] * (span.end - span.start - 1)
    start = 0
    for line in record.text.split("\n"):
        characters = zip(line, marks[start : start + len(line)], strict=True)
        pairs = []
        for label, stretch in groupby(characters, key=lambda pair: pair[1][2:]):
            letters, own = zip(*stretch, strict=True)
            for place, word in enumerate("".join(letters).split()):
                tag = "O" if not label else f"I-{label}" if place else own[0]
                pairs.append((word, tag))
        yield pairs
        start += len(line) + 1
