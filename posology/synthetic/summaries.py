"""Discharge summaries as the two hospitals of i2b2 2010 and 2012 write them, with surrogate names."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from posology.synthetic.identifiers import Identifiers
from posology.synthetic.lexicon import lexicon
from posology.synthetic.markup import Slot
from posology.synthetic.notes import discharge_summary
from posology.synthetic.phrases import CONTENT, Filling, Phrasebook, Scribe
from posology.synthetic.scene import Scene
from posology.synthetic.sections import ADMISSION_SECTIONS, Author, Section, joined
from posology.synthetic.state import Admission, Patient
from posology.synthetic.variation import varied
from posology.synthetic.written import Written

FRAMES = Path(__file__).parent / "summaries.yaml"
_MORE = {"present illness": ("more_story", 1, 4), "hospital course": ("more_course", 2, 6)}
"""Pools of further phrases by section, and how many are drawn."""
_LISTS = ("medications on admission", "discharge medications", "allergies")


class Summary:
    """A discharge summary in two halves: what was known on admission, and what came then.

    Beth writes in sections with lists; Partners in capitals and mostly in prose, and leaves more sections out.

    Args:
        at: the hospital, `beth` or `partners`.
        seen_only: whether rare wordings are left out.
    """

    def __init__(self, patient: Patient, admission: Admission, at: str, rng: random.Random, *, seen_only: bool):
        self._patient, self._admission, self._at, self._rng = patient, admission, at, rng
        self._identifiers = Identifiers(patient, rng)
        author = replace(
            Author.drawn(rng),
            variant=1 if at == "partners" else rng.choices((0, 2), (85, 15))[0],
            brief=rng.random() < (0.2 if at == "partners" else 0.5),
        )
        sections = discharge_summary(
            patient, admission, self._identifiers, rng, author=author, seen_only=seen_only, leaks=False
        )
        if at == "partners":
            keep = {"present illness", "hospital course", "discharge diagnosis"}
            sections = [one for one in sections if one.name in keep or rng.random() < 0.8]
        known = [one for one in sections if one.name in ADMISSION_SECTIONS]
        self._known = sorted(known, key=lambda one: one.name == "medications on admission")
        self._later = [one for one in sections if one.name not in ADMISSION_SECTIONS]
        book = Phrasebook.load(CONTENT / "grammar.yaml", FRAMES)
        self._scene = Scene(patient, admission, rng, seen_only=seen_only)
        possessive = "her" if patient.sex == "F" else "his"
        self._scribe = Scribe(
            book, rng, self._fill, self._identifiers, possessive=possessive, misspelling=author.misspelling,
            seen_only=seen_only,
        )  # fmt: skip
        for section in sections:
            if section.name in _MORE:
                self._insert(section)
            if section.name not in _LISTS:
                section.lines = [varied(line, self._scribe, rng) for line in section.lines]

    def halves(self) -> tuple[Written, Written]:
        """The two halves."""
        head = self._scribe.write(f"{self._at}_head", capital=False)
        tail = self._scribe.write(f"{self._at}_tail", capital=False)
        history = head.add("\n").add(joined(self._known)).add("\n")
        course = joined(self._later).add("\n").add(tail).add("\n")
        return history, course

    def written(self) -> Written:
        """All of it."""
        history, course = self.halves()
        return history.add(course)

    def _insert(self, section: Section) -> None:
        """More phrases, anywhere after the first."""
        pool, low, high = _MORE[section.name]
        for _ in range(self._rng.randint(low, high)):
            line = self._scribe.write(pool)
            if line.text:
                section.lines.insert(self._rng.randint(1, len(section.lines)), line)

    def _fill(self, slot: Slot) -> Filling:
        days = {
            "admitted": self._admission.admitted, "discharged": self._admission.discharged,
            "birth": self._patient.born,
        }  # fmt: skip
        name, _, form = slot.argument.partition("/")
        if slot.name == "DATE" and name in days:
            return f"{days[name].date().isoformat()}/{form}"
        if slot.name == "sexletter":
            return self._patient.sex
        if slot.name == "service":
            return str(lexicon().wards[self._admission.ward]["service"])
        return self._scene.fill(slot)
