"""BRAT standoff annotation: pairs of `NAME.txt` and `NAME.ann`.

Format: https://brat.nlplab.org/standoff.html
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from posology.corpus.document import Document, Span
from posology.corpus.tags import words_of
from posology.corpus.textfile import lines_of, read_text
from posology.errors import UserError

Discontinuous = Literal["hull", "parts", "drop"]

_ENTITY = re.compile(r"(T\S+)\t(\S+) (\d+ \d+(?:;\d+ \d+)*)\t(.*)", re.DOTALL)
_RELATION = re.compile(r"(R\S+)\t(\S+) \S+?:(\S+) \S+?:(\S+)\s*")
_ATTRIBUTE = re.compile(r"([AM]\S+)\t(\S+) (\S+)(?: (.*))?")
_IGNORED = {"#": "notes", "E": "events", "N": "normalisations", "*": "equivalences"}


@dataclass(slots=True)
class Entity:
    """A text-bound annotation (T line).

    Attributes:
        fragments: `(start, end)` in characters, in order; more than one if it is discontinuous.
        attributes: values of its A and M lines by name; None for those that are just set.
    """

    id: str
    label: str
    fragments: list[tuple[int, int]]
    attributes: dict[str, str | None] = field(default_factory=dict)

    @property
    def start(self) -> int:
        return self.fragments[0][0]

    @property
    def end(self) -> int:
        return self.fragments[-1][1]


@dataclass(slots=True)
class Relation:
    """A binary relation (R line) from `first` to `second`, with the line it stands on."""

    label: str
    first: Entity
    second: Entity
    place: str


@dataclass(slots=True)
class BratDocument:
    """One pair of files.

    Attributes:
        ignored: how many lines of each kind that is not read (`notes`, `events` ...) there were.
        place: the `.ann` file.
    """

    id: str
    text: str
    entities: list[Entity]
    relations: list[Relation]
    ignored: Counter[str]
    place: str


def read_brat(folder: Path, *, name: str, encoding: str = "utf-8") -> Iterator[BratDocument]:
    """Yields the documents of a folder and its sub-folders.

    Args:
        name: what ids begin with, empty for nothing; the path without its extension follows.

    Raises:
        UserError: a file of a pair is missing, or a line is malformed or does not fit the text.
    """
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".ann")):
        other = path.with_suffix(".ann" if path.suffix == ".txt" else ".txt")
        if not other.is_file():
            mend = "Make an empty one if nothing is annotated" if other.suffix == ".ann" else "Put the text beside it"
            raise UserError(f"there is no {other.name} beside it", mend, path)
        if path.suffix == ".ann":
            relative = path.relative_to(folder).with_suffix("").as_posix()
            text = read_text(other, encoding)
            yield _parse(f"{name}/{relative}" if name else relative, text, path, read_text(path, encoding))


def entity_document(
    brat: BratDocument, *, discontinuous: Discontinuous = "hull", counts: Counter[str] | None = None
) -> Document:
    """A document with the entities as spans and words made by `words_of`.

    Args:
        discontinuous: whether an entity of several fragments becomes the stretch from its first to its last character
            (`hull`), one span for each fragment (`parts`) or nothing (`drop`).
        counts: gets `discontinuous_entities` and the ignored lines.
    """
    counts = counts if counts is not None else Counter()
    count_ignored(brat, counts)
    spans = []
    for entity in brat.entities:
        fragments = entity.fragments
        if len(fragments) > 1:
            counts[f"discontinuous_entities_{discontinuous}"] += 1
            fragments = {"hull": [(entity.start, entity.end)], "parts": fragments, "drop": []}[discontinuous]
        spans += [Span(start, end, entity.label) for start, end in fragments]
    return Document(id=brat.id, text=brat.text, words=words_of(brat.text), spans=spans, place=brat.place)


def count_ignored(brat: BratDocument, counts: Counter[str]) -> None:
    """Adds the lines that were not read to `counts`."""
    for kind, number in brat.ignored.items():
        counts[f"ignored_{kind}"] += number


def _parse(id: str, text: str, path: Path, annotation: str) -> BratDocument:
    entities: dict[str, Entity] = {}
    ignored: Counter[str] = Counter()
    later: list[tuple[str, str]] = []  # relations and attributes may stand before the entities they name
    for number, line in enumerate(lines_of(annotation), start=1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        if line[0] == "T":
            entity = _entity(line, text, place)
            if entity.id in entities:
                raise UserError(f"{entity.id} is annotated twice", "Give every annotation its own number", place)
            entities[entity.id] = entity
        elif line[0] in "RAM":
            later.append((place, line))
        elif line[0] in _IGNORED:
            ignored[_IGNORED[line[0]]] += 1
        else:
            raise UserError(
                "is no line of BRAT's standoff format (T, R, A, M, E, N, * or #)", "Mend or remove the line", place
            )
    relations = []
    for place, line in later:
        if line[0] == "R":
            relation = _relation(line, entities, place)
            if relation is None:
                ignored["relations_of_events"] += 1
            else:
                relations.append(relation)
        elif not _set_attribute(line, entities, place):
            ignored["attributes_of_events_and_relations"] += 1
    return BratDocument(id, text, list(entities.values()), relations, ignored, str(path))


def _entity(line: str, text: str, place: str) -> Entity:
    match = _ENTITY.fullmatch(line)
    if match is None:
        raise UserError("is no BRAT entity", "Write it as T1<tab>Type START END<tab>text", place)
    id, label, offsets, quoted = match.groups()
    fragments = []
    for pair in offsets.split(";"):
        start, end = map(int, pair.split(" "))
        if not start < end <= len(text):
            raise UserError(
                f"{id}: offsets {start} {end} are empty or outside the text of {len(text)} characters",
                "Mend the offsets (characters from 0, exclusive end) or the text",
                place,
            )
        fragments.append((start, end))
    # BRAT shows line breaks as blanks. Not every tool quotes blanks at the edges.
    covered = re.sub(r"\s", " ", " ".join(text[start:end] for start, end in fragments))
    if covered.strip() != re.sub(r"\s", " ", quoted).strip():
        raise UserError(
            f"{id}: the text at {offsets} is not the text that the annotation quotes",
            "Mend the offsets, or use the .txt exactly as it was annotated: encoding and line ends count",
            place,
        )
    return Entity(id, label, _joined(sorted(fragments), text))


def _joined(fragments: list[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """Fragments with nothing but white space between them are one: BRAT cuts entities at line ends."""
    joined = fragments[:1]
    for start, end in fragments[1:]:
        last_start, last_end = joined[-1]
        if not text[last_end:start].strip():
            joined[-1] = last_start, max(end, last_end)
        else:
            joined.append((start, end))
    return joined


def _relation(line: str, entities: dict[str, Entity], place: str) -> Relation | None:
    match = _RELATION.fullmatch(line)
    if match is None:
        raise UserError("is no BRAT relation", "Write it as R1<tab>Type Arg1:T1 Arg2:T2", place)
    id, label, first, second = match.groups()
    for argument in (first, second):
        if argument not in entities and argument[0] != "E":
            raise UserError(
                f"{id}: its argument {argument} is not annotated", "Add the T line or remove the relation", place
            )
    if first not in entities or second not in entities:
        return None
    return Relation(label, entities[first], entities[second], place)


def _set_attribute(line: str, entities: dict[str, Entity], place: str) -> bool:
    match = _ATTRIBUTE.fullmatch(line)
    if match is None:
        raise UserError("is no BRAT attribute", "Write it as A1<tab>Name T1 [value]", place)
    id, name, target, value = match.groups()
    if target in entities:
        entities[target].attributes[name] = value
        return True
    if target[0] not in "ER":
        raise UserError(f"{id}: its target {target} is not annotated", "Add the T line or remove the attribute", place)
    return False
