"""The records of i2b2 2014: letters, visit and emergency notes of patients over time, with surrogate identifiers.

Frames, and what only looks like an identifier, are in `records_2014.yaml`; the clinical parts are the hospital's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from posology.corpus.i2b2_2014 import CATEGORY, Record, Tag
from posology.synthetic.cast import stays
from posology.synthetic.identifiers import Identifiers
from posology.synthetic.lexicon import lexicon
from posology.synthetic.markup import Slot
from posology.synthetic.notes import discharge_summary
from posology.synthetic.phrases import CONTENT, Filling, Phrasebook, Pool, Scribe, Term, read_yaml
from posology.synthetic.sections import Author, joined
from posology.synthetic.state import Admission, Patient
from posology.synthetic.written import Written

_FRAMES = Path(__file__).parent / "records_2014.yaml"
_PART = re.compile(r"(?P<name>\w+)(?: (?P<low>[\d.]+)(?:-(?P<high>\d+))?)?")
_WRAPPED = 0.35
"""Share of records whose lines somebody's editor has broken."""
_LINE = 78
_SECTIONS = {
    "HISTORY": "present illness",
    "PAST": "medical history",
    "DRUGS": "medications on admission",
    "EXAM": "physical exam",
}


@dataclass(frozen=True)
class Part:
    """A part of a layout: a pool of phrases, or a clinical section in capitals, and how often it occurs."""

    name: str
    chance: float
    low: int
    high: int


@cache
def layouts() -> tuple[list[list[Part]], list[float]]:
    """The types of records and their shares."""
    types = read_yaml(_FRAMES)["layouts"].values()
    return [[_part(part) for part in one["parts"].split(",")] for one in types], [one["share"] for one in types]


@cache
def rare_kinds() -> list[str]:
    """Kinds of identifiers of which a corpus has a handful, in the order in which records take turns with them."""
    return [kind.strip() for kind in read_yaml(_FRAMES)["rare"].split(",")]


def _part(words: str) -> Part:
    match = _PART.fullmatch(words.strip())
    if match is None:
        raise ValueError(f"{words!r} is no part of a layout")
    low, high = match["low"] or "1", match["high"]
    if high:
        return Part(match["name"], 1.0, int(low), int(high))
    return Part(match["name"], min(float(low), 1.0), 1, 1)


class Chronicle:
    """Writes the records of one patient, one after the other.

    Args:
        rng: of everything but the patient's identity.
        seen_only: whether rare wordings are left out.
    """

    def __init__(self, patient: Patient, rng: random.Random, seen_only: bool):
        self.patient, self._rng, self._seen_only = patient, rng, seen_only
        self._identifiers = Identifiers(patient, rng)
        book = Phrasebook.load(CONTENT / "grammar.yaml", _FRAMES)
        female = patient.sex == "F"
        self._words = {
            "he": "she" if female else "he",
            "himher": "her" if female else "him",
            "hisher": "her" if female else "his",
            "mr": "Ms." if female else "Mr.",
            "sexletter": "F" if female else "M",
        }
        self._scribe = Scribe(book, rng, self._fill, self._identifiers, misspelling=0.002, seen_only=seen_only)
        self._today = patient.admissions[0].admitted

    def record(self, admission: Admission, extra: str = "") -> Written:
        """A record about a stay, or about a visit at that time.

        Args:
            admission: what the clinical parts tell; its first day is the record's date.
            extra: a kind of identifier that is rare, to be mentioned.
        """
        rng = self._rng
        self._today = admission.admitted
        layout = rng.choices(*layouts())[0]
        sections = self._sections(admission)
        today = self._identifiers.text("DATE", f"{self._today.date().isoformat()}/iso")
        written = Written("Record date: ").add(today)
        parts = [self._part(part, sections) for part in layout if rng.random() < part.chance]
        if extra:
            parts.insert(rng.randrange(2, len(parts)), self._scribe.write(f"rare_{extra}"))
        for part in parts:
            if part.text:
                written.add("\n\n" if rng.random() < 0.85 else "\n").add(part)
        return written

    def _sections(self, admission: Admission) -> dict[str, Written]:
        """The clinical text of a layout's parts in capitals."""
        author = replace(Author.drawn(self._rng), brief=self._rng.random() < 0.5)
        summary = discharge_summary(
            self.patient, admission, self._identifiers, self._rng, author=author, seen_only=self._seen_only, leaks=False
        )
        by_name = {section.name: section for section in summary}
        with_headings = self._rng.random() < 0.8
        sections = {}
        for part, name in _SECTIONS.items():
            found = [by_name[name]] if name in by_name else []
            sections[part] = joined(found) if with_headings or not found else found[0].text()
        return sections

    def _part(self, part: Part, sections: Mapping[str, Written]) -> Written:
        if part.name.isupper():
            return sections[part.name]
        written = Written()
        between = "\n" if part.name in ("timeline", "labs") or self._rng.random() < 0.25 else " "
        for number in range(self._rng.randint(part.low, part.high)):
            written.add(between if number else "").add(self._scribe.write(part.name, capital=False))
        return written

    def _fill(self, slot: Slot) -> Filling:
        rng = self._rng
        if slot.name in self._words:
            return self._words[slot.name]
        if slot.name == "DATE":
            name, _, form = slot.argument.partition("/")
            return f"{self._day(name).isoformat()}/{form}"
        if slot.name == "AGE":
            whose, _, form = slot.argument.partition("/")
            years = self.patient.age(self._today) if whose == "own" else rng.randrange(14, 99)
            return f"{years}/{form}"
        return Term(slot.name, self._wording(slot.name).draw(rng, self._seen_only))

    def _wording(self, slot: str) -> Pool:
        known, rng = lexicon(), self._rng
        if slot == "problem":
            own = [*self.patient.chronic, *(one.reason for one in stays(self.patient))]
            return known.conditions[rng.choice(own)].names
        tables: Mapping[str, Mapping[str, Any]] = {
            "symptom": known.symptoms, "drug": known.drugs, "procedure": known.procedures,
        }  # fmt: skip
        found = tables[slot][rng.choice(list(tables[slot]))]
        return found if slot == "symptom" else found.names

    def _day(self, name: str) -> date:
        low, high = {"today": (0, 1), "recent": (-45, -1), "past": (-5000, -60), "next": (5, 120)}.get(name, (0, 0))
        if name == "birth":
            return self.patient.born.date()
        return (self._today + timedelta(days=self._rng.randrange(low, high))).date()


def as_record(written: Written, id: str, split: str, rng: random.Random) -> Record:
    """The record for a text: its identifiers as tags, lines broken now and then."""
    text = _broken(written.text) if rng.random() < _WRAPPED else written.text
    before = "\n\n\n"
    record = Record(id, id.partition("-")[0], f"{before}{text}\n", split)
    found = sorted({(one.start, one.end, one.kind) for one in written.mentions if one.kind in CATEGORY})
    for number, (start, end, kind) in enumerate(found):
        if number and start < found[number - 1][1]:
            raise ValueError(f"{id}: identifiers overlap at {start}")
        tag = Tag(start + len(before), end + len(before), CATEGORY[kind], kind, "", f"P{number}")
        record.tags.append(tag)
    return record


def _broken(text: str) -> str:
    """Lines longer than `_LINE` characters broken at blanks; no offset changes."""
    lines = []
    for line in text.split("\n"):
        start = 0
        while len(line) - start > _LINE:
            blank = line.rfind(" ", start + 1, start + _LINE)
            if blank <= start or line[blank - 1] == " ":  # columns of a table stay as they are
                break
            line = f"{line[:blank]}\n{line[blank + 1 :]}"
            start = blank + 1
        lines.append(line)
    return "\n".join(lines)
