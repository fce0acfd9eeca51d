"""Names, dates, places and numbers in generated notes: surrogates as in i2b2 2014, or marks as in MIMIC-III.

Surrogates come in the forms in which people write them ("2084-02-17", "Feb 17", "'84"; "QUILLFEATHER, HARLAN").
Names are composed from parts, so that most of them occur with one patient only, and some are ordinary words. Marks
are what de-identification left in MIMIC-III, such as `[**Last Name (NamePattern1) 567**]`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import date
from typing import Any, Literal, Protocol

from posology.corpus.i2b2_2014 import CATEGORY
from posology.synthetic import naming
from posology.synthetic.written import Written

Style = Literal["surrogate", "mimic"]

KINDS = tuple(CATEGORY)
"""The TYPEs of i2b2 2014."""

_OF_THE_PATIENT = {"PATIENT", "PROFESSION", "STREET", "CITY", "STATE", "ZIP", "SSN", "MEDICALRECORD", "HEALTHPLAN"}
_OLDEST_IN_CLEAR = 89  # ages above are identifiers under HIPAA, and marked in MIMIC-III
_USUAL_DATES = (
    ("short", "numeric", "long", "month", "iso", "year", "weekday", "holiday"),
    (36, 28, 13, 9, 6, 4, 3, 1),
)


class Person(Protocol):
    """What a patient's identifiers follow from."""

    @property
    def sex(self) -> Literal["F", "M"]: ...

    @property
    def identity(self) -> int:
        """The seed of all names and numbers that stay the same in a patient's notes."""


class Identifiers:
    """Everything that identifies one patient and the people and places around it, the same in all its notes."""

    def __init__(self, patient: Person, rng: random.Random, style: Style = "surrogate"):
        """
        Args:
            patient: whose notes these are. Who and what has a name depends on nothing but `patient.identity`, so that
                it is the same in all notes of a patient.
            rng: of the forms, and of people and places without a name.
            style: `surrogate` for realistic replacements, `mimic` for marks.
        """
        self.patient = patient
        self.style = style
        self._rng = rng
        self._things: dict[str, Any] = {}

    def text(self, kind: str, which: str = "") -> Written:
        """One identifier, marked with its kind where it is one (a young patient's age is not, in MIMIC-III).

        Args:
            kind: one of `KINDS`.
            which: `NAME`, `NAME/FORM` or `/FORM`. The name of a DATE is an ISO date, or an ISO date and time, and that
                of an AGE a number of years. For the others, the same name is the same person, place or number every
                time, in varying forms; without a name it is the patient's own (name, address, profession, record
                number) or else another one every time. Forms of names: `full`, `last`, `first`, `short` (initial and
                last), `register` (Last, First), `register_caps`, `caps`, `nickname`, `initials`; of dates: `iso`,
                `numeric`, `short`, `long`, `month`, `year`, `weekday`, `holiday`; of ages: `number`, `decade`,
                `words`; of hospitals: `full`, `short`, `caps`; of states: `full`, `short`. Without a form, one of the
                usual ones is drawn.

        Returns:
            The text. Mentions of kind DATE have the attribute `value`: the date as far as the text gives it.
        """
        name, _, form = which.partition("/")
        if kind not in KINDS:
            raise ValueError(f"{kind} is no kind of identifier")
        if kind == "DATE":
            return self._date(name, form)
        if kind == "AGE":
            return self._age(int(name), form)
        if self.style == "mimic":
            return self._mark(kind, name, form)
        return Written().add(self._surrogate(kind, name, form), kind)

    def _date(self, moment: str, form: str) -> Written:
        iso, _, hour = moment.partition("T")
        form = form or self._rng.choices(*_USUAL_DATES)[0]
        day = date.fromisoformat(iso)
        words = (naming.mark_day if self.style == "mimic" else naming.write_day)(day, form, self._rng)
        written = Written().add(words, "DATE", value={"year": iso[:4], "month": iso[:7]}.get(form, iso))
        return written.add(f"{self._rng.choice((', ', ' ', ' at '))}{hour[:5]}") if hour else written

    def _age(self, years: int, form: str) -> Written:
        if self.style == "surrogate":
            return Written().add(naming.write_age(years, form, self._rng), "AGE")
        if years > _OLDEST_IN_CLEAR:
            return Written().add(self._rng.choice(naming.lists()["marks"]["AGE"]).replace("#", "1"), "AGE")
        return Written(naming.write_age(years, form, self._rng))

    def _thing(self, kind: str, name: str, make: Callable[[random.Random], Any]) -> Any:
        """What `name` stands for, made when it is first asked for."""
        if not name and kind not in _OF_THE_PATIENT:
            return make(self._rng)
        key = f"{kind} {name}"
        if key not in self._things:
            self._things[key] = make(random.Random(f"{self.patient.identity} {self.style} {key}"))
        return self._things[key]

    # Surrogates

    def _surrogate(self, kind: str, name: str, form: str) -> str:
        rng = self._rng
        if kind in ("PATIENT", "DOCTOR"):
            return self._person(kind, name, form)
        if kind == "STATE":
            state, short = self._thing(
                kind, name, lambda rng: rng.choice(list(naming.lists()["places"]["states"].items()))
            )
            return state if form == "full" or (not form and rng.random() < 0.5) else short[0]
        if kind == "HOSPITAL":
            full = self._thing(kind, name, naming.make_hospital_name)
            return naming.hospital_form(full, form or rng.choices(("full", "short", "caps"), (60, 28, 12))[0])
        if kind in ("USERNAME", "EMAIL"):  # follow from the name of the doctor who is called so
            doctor = self._name("DOCTOR", name)
            return self._thing(
                kind, name, lambda rng: (naming.username if kind == "USERNAME" else naming.email)(doctor, rng)
            )
        if kind in naming.MAKERS:
            return self._thing(kind, name, naming.MAKERS[kind])
        patterns = naming.lists()["numbers"]["PAGER" if kind == "PHONE" and "pager" in name else kind]
        return self._thing(kind, name, lambda rng: naming.digits(rng.choice(patterns), rng))

    def _name(self, kind: str, name: str) -> naming.Name:
        female = self.patient.sex == "F" if kind == "PATIENT" and not name else None
        return self._thing(kind, name, lambda rng: naming.make_name(rng, female))

    def _person(self, kind: str, name: str, form: str) -> str:
        person, rng = self._name(kind, name), self._rng
        usual = ("last", "full", "short", "register", "first", "caps", "nickname")
        weights = (52, 30, 4, 2, 3, 6, 3) if kind == "PATIENT" else (52, 34, 6, 2, 1, 5, 0)
        form = form or rng.choices(usual, weights)[0]
        if form in ("full", "caps"):
            middle = f" {person.middle}." if rng.random() < 0.3 else ""
            written = f"{person.first}{middle} {person.last}"
            return written.upper() if form == "caps" else written
        nicknames: dict[str, list[str]] = naming.lists()["nicknames"]
        return {
            "last": person.last,
            "first": person.first,
            "short": f"{person.first[0]}. {person.last}",
            "nickname": nicknames.get(person.first, [person.first])[0],
            "register": f"{person.last}, {person.first}",
            "register_caps": f"{person.last}, {person.first} {person.middle}".upper(),
            "initials": naming.initials(person).lower() if rng.random() < 0.5 else naming.initials(person),
        }[form]

    # Marks

    def _mark(self, kind: str, name: str, form: str) -> Written:
        marks = naming.lists()["marks"]
        if kind == "PROFESSION":  # no identifier under HIPAA: MIMIC-III has it in clear
            return Written(self._thing(kind, name, naming.make_profession))
        if kind not in ("PATIENT", "DOCTOR"):
            return Written().add(self._numbered(kind, name, marks[kind]), kind)
        form = form or self._rng.choices(("last", "full"), (70, 30))[0]
        if form == "initials":
            return Written().add(self._numbered(kind + form, name, marks["initials"]), kind)
        whose = "" if kind == "PATIENT" and not name else "_of_others"
        name = name or ("own" if not whose else "")
        last = self._numbered(kind + "last", name, marks["last" + whose])
        first = self._numbered(kind + "first", name, marks["first" + whose])
        parts = {"first": first, "nickname": first, "last": last}
        parts["register"] = parts["register_caps"] = f"{last}, {first}"
        return Written().add(parts.get(form, f"{first} {last}"), kind)

    def _numbered(self, kind: str, name: str, marks: list[str]) -> str:
        """One of the marks with its number, the same for the same name."""

        def make(rng: random.Random) -> str:
            number = str(rng.randrange(1, 10 ** rng.randrange(1, 5))) if rng.random() < 0.85 else ""
            return rng.choice(marks).replace("#", number)

        return self._thing(kind, name, make)
