"""i2b2/VA 2010: concepts, assertions and relations. Text in `.txt`, annotations in `.con`, `.ast` and `.rel`.

One sentence a line; positions are LINE:TOKEN (see `TokenLines`), the last token inclusive:

    .con  c="<text>" L:T L:T||t="<type>"
    .ast  c="<text>" L:T L:T||t="problem"||a="<assertion>"
    .rel  c="<text>" L:T L:T||r="<relation>"||c="<text>" L:T L:T

Task: Uzuner et al. (2011), https://doi.org/10.1136/amiajnl-2011-000203
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posology.corpus.i2b2 import Problems, TokenLines, decoded, refuse_empty, same_text
from posology.corpus.i2b2_2010_files import GOLD, Files, record_files
from posology.errors import UserError

TYPES = ("problem", "test", "treatment")
ASSERTIONS = ("present", "absent", "possible", "conditional", "hypothetical", "associated_with_someone_else")
RELATIONS = ("PIP", "TeCP", "TeRP", "TrAP", "TrCP", "TrIP", "TrNAP", "TrWP")

_POINTER = r'c="(.*)"\s+(\d{1,6}):(\d{1,6})\s+(\d{1,6}):(\d{1,6})'
_CONCEPT = re.compile(_POINTER + r'\s*\|\|t="([^"]*)"')
_ASSERTION = re.compile(_POINTER + r'\s*\|\|t="problem"\|\|a="([^"]*)"')
_RELATION = re.compile(_POINTER + r'\s*\|\|r="([^"]*)"\|\|' + _POINTER)
_FORMS = {
    _CONCEPT: 'c="text" LINE:TOKEN LINE:TOKEN||t="type"',
    _ASSERTION: 'c="text" LINE:TOKEN LINE:TOKEN||t="problem"||a="assertion"',
    _RELATION: 'c="text" LINE:TOKEN LINE:TOKEN||r="relation"||c="text" LINE:TOKEN LINE:TOKEN',
}


@dataclass(slots=True)
class Concept:
    """A problem, test or treatment, `text[start:end]`.

    Attributes:
        line: from 1.
        first: its first token in that line, from 0 as the file counts.
        last: its last token, inclusive, in `last_line`.
        assertion: of a problem, where there is one.
        last_line: differs from `line` only for a concept that goes over a line's end; 0 stands for `line`.
    """

    start: int
    end: int
    type: str
    line: int
    first: int
    last: int
    assertion: str | None = None
    last_line: int = 0

    def __post_init__(self) -> None:
        self.last_line = self.last_line or self.line

    @classmethod
    def at(cls, tokens: TokenLines, start: int, end: int, type: str, assertion: str | None = None) -> Concept:
        """The concept at these characters.

        Args:
            tokens: of the record's text.

        Raises:
            ValueError: the format cannot express it, because it does not begin and end where tokens do.
        """
        line, first, last_line, last = tokens.position(start, end)
        if tokens.span(line, first, last_line, last) != (start, end):
            raise ValueError(f"the characters {start} {end} are not whole tokens")
        return cls(start, end, type, line, first, last, assertion, last_line)

    @property
    def position(self) -> tuple[int, int, int, int]:
        return self.line, self.first, self.last_line, self.last


@dataclass(slots=True)
class Relation:
    """A relation from `first` (treatment, test or first problem) to `second` (problem)."""

    label: str
    first: Concept
    second: Concept


@dataclass(slots=True)
class Record:
    """One record.

    Attributes:
        id: the file's name without extension, with the hospital before it (`beth/record-105`) where that is known.
        hospital: `beth`, `partners` or empty.
        split: `train` or `test` where the tree tells, otherwise None.
        concepts: in the order of the .con file.
        relations: in the order of the .rel file.
        place: the text file.
        lacks: `.ast`, `.rel`: files that the record has not, so that nothing is known of its assertions or relations.
    """

    id: str
    text: str
    hospital: str
    split: str | None
    concepts: list[Concept] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    place: str = ""
    lacks: frozenset[str] = frozenset()


def read(root: Path, problems: Problems) -> Iterator[Record]:
    """Yields the records of a tree as distributed, or of a folder of such files.

    As distributed: `concept_assertion_relation_training_data/{beth,partners}/{txt,concept,ast,rel}` for training,
    `test_data` and `reference_standard_for_test_data/{concepts,ast,rel}` for the test; `root` may be the folder above
    these or one of them. Otherwise a folder with `txt`, `concept`, `ast` and `rel` in it, or with all files in itself.

    Args:
        problems: gets what was read leniently; annotations that do not fit the text are reported there and dropped.

    Raises:
        UserError: there are no such files, a text or .con file has no counterpart, a line is malformed, or an
            annotation stands where there is no line or token.
    """
    root = Path(root)
    records = record_files(root)
    for extension in (".ast", ".rel"):
        lacking = sum(extension not in record.gold for record in records)
        if 0 < lacking < len(records):
            sentence = f"{lacking} of {len(records)} records have no {extension} file: nothing is known of theirs"
            problems.append((str(root), sentence))
    for files in records:
        yield _record(files, problems)


def _record(files: Files, problems: Problems) -> Record:
    text = decoded(files.text, problems)
    refuse_empty(text, files.text)
    name = files.text.stem
    record = Record(
        f"{files.hospital}/{name}" if files.hospital else name,
        text,
        files.hospital,
        files.split,
        place=str(files.text),
        lacks=frozenset(GOLD.keys() - files.gold.keys()),
    )
    pointers = _Pointers(text, problems)
    for place, match in _lines(files.gold[".con"], _CONCEPT, problems):
        kind = _known(match[6], TYPES, place)
        if (span := pointers.span(match.groups()[:5], place)) is not None:
            line, first, last_line, last = pointers.position(match.groups()[:5])
            record.concepts.append(Concept(*span, kind, line, first, last, last_line=last_line))
    pointers.concepts = record.concepts
    if ".ast" in files.gold:
        for place, match in _lines(files.gold[".ast"], _ASSERTION, problems):
            assertion = _known(match[6], ASSERTIONS, place)
            if concept := pointers.concept(match.groups()[:5], "problem", place):
                concept.assertion = assertion
    if ".rel" in files.gold:
        for place, match in _lines(files.gold[".rel"], _RELATION, problems):
            label = _known(match[6], RELATIONS, place)
            kind = {"Tr": "treatment", "Te": "test"}.get(label[:2], "problem")
            first_concept = pointers.concept(match.groups()[:5], kind, place)
            second_concept = first_concept and pointers.concept(match.groups()[6:], "problem", place)
            if first_concept and second_concept:
                record.relations.append(Relation(label, first_concept, second_concept))
    return record


class _Pointers:
    """Finds what the pointers of one record's annotation files, `c="text" L:T L:T`, point to."""

    def __init__(self, text: str, problems: Problems):
        self.text, self.problems = text, problems
        self.tokens = TokenLines(text)
        self.concepts: list[Concept] = []

    @staticmethod
    def position(pointer: Sequence[str]) -> tuple[int, int, int, int]:
        line, first, last_line, last = map(int, pointer[1:])
        return line, first, last_line, last

    def span(self, pointer: Sequence[str], place: str) -> tuple[int, int] | None:
        """The characters, or None, reported, where their text is not the quoted one."""
        line, first, last_line, last = self.position(pointer)
        span = self.tokens.span(line, first, last_line, last)
        if span is None:
            raise UserError(
                f"there are no tokens from {line}:{first} to {last_line}:{last} in its text, "
                f"which has {len(self.tokens.lines)} lines",
                "Mend the position, or use the text as it was annotated",
                place,
            )
        if span[0] < span[1] and same_text(self.text[slice(*span)], pointer[0]):
            return span
        self.problems.append((place, "the text at its position is not the text that it quotes: dropped"))
        return None

    def concept(self, pointer: Sequence[str], kind: str, place: str) -> Concept | None:
        """The concept, of this kind where a position has several, or None, reported, where there is none."""
        if self.span(pointer, place) is None:
            return None
        there = [concept for concept in self.concepts if concept.position == self.position(pointer)]
        if not there:
            self.problems.append((place, "its concept is not in the .con file, or was dropped: dropped"))
            return None
        return min(there, key=lambda concept: concept.type != kind)


def _lines(path: Path, form: re.Pattern[str], problems: Problems) -> Iterator[tuple[str, re.Match[str]]]:
    """The lines of an annotation file with their places."""
    for number, line in enumerate(decoded(path, problems).split("\n"), start=1):
        if not line.strip():
            continue
        match = form.fullmatch(line.strip())
        if match is None:
            raise UserError("is no line of this format", f"Write it as {_FORMS[form]}", f"{path}:{number}")
        yield f"{path}:{number}", match


def _known(value: str, known: Sequence[str], place: str) -> str:
    if value not in known:
        raise UserError(f"its type, assertion or relation is none of {', '.join(known)}", "Mend the line", place)
    return value


def write(
    record: Record,
    txt_folder: Path,
    concept_folder: Path,
    ast_folder: Path | None = None,
    rel_folder: Path | None = None,
) -> None:
    """Writes a record's files, named by its id without the hospital, into folders that are made where missing."""
    name = record.id.rpartition("/")[2]

    def pointer(concept: Concept) -> str:
        quoted = " ".join(record.text[concept.start : concept.end].split()).lower()
        return f'c="{quoted}" {concept.line}:{concept.first} {concept.last_line}:{concept.last}'

    contents: list[tuple[Path | None, str, list[str]]] = [
        (concept_folder, ".con", [f'{pointer(one)}||t="{one.type}"' for one in record.concepts]),
        (
            ast_folder,
            ".ast",
            [f'{pointer(one)}||t="{one.type}"||a="{one.assertion}"' for one in record.concepts if one.assertion],
        ),
        (
            rel_folder,
            ".rel",
            [f'{pointer(one.first)}||r="{one.label}"||{pointer(one.second)}' for one in record.relations],
        ),
    ]
    txt_folder.mkdir(parents=True, exist_ok=True)
    (txt_folder / f"{name}.txt").write_bytes(record.text.encode("utf-8"))
    for folder, extension, lines in contents:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}{extension}").write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
