"""What is known of a patient and an admission: facts, without a word of text.

Names, addresses and numbers are no part of the state: whoever writes about a patient draws them from
`Patient.identity`, so that they are the same in all notes of a patient. Keys such as `heart failure` are those of the
lexicon (`lexicon.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

Sex = Literal["F", "M"]
Kind = Literal["EMERGENCY", "URGENT", "ELECTIVE", "NEWBORN"]


@dataclass(frozen=True, slots=True)
class Dose:
    """A drug as it is taken.

    Attributes:
        drug: key of the lexicon's `drugs`.
        amount: such as `40 mg`.
        route: such as `PO`.
        frequency: key of the lexicon's `frequencies`, such as `daily`.
        problem: key of the condition it is for, or "".
    """

    drug: str
    amount: str
    route: str
    frequency: str
    problem: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something of the hospital course.

    Attributes:
        day: of the stay, from 0.
        kind: `treatment`, `test`, `complication` or `procedure`.
        what: key of the lexicon (of a drug, a test, a condition or a procedure).
        why: key of the condition behind it, or "".
    """

    day: int
    kind: str
    what: str
    why: str


@dataclass(slots=True)
class Admission:
    """A stay.

    Attributes:
        id: HADM_ID.
        number: of the patient's admissions, from 0.
        kind: ADMISSION_TYPE.
        source: ADMISSION_LOCATION.
        disposition: DISCHARGE_LOCATION.
        ward: key of the lexicon's `wards`.
        reason: key of the condition that is diagnosis 1.
        comorbid: keys of the further conditions coded, chronic ones and complications.
        complications: keys of what went wrong during the stay.
        severity: of the illness on arrival among all admissions, about standard normal; what the admission sections
            of a note show, each sign with noise.
        risk: the probability of death it was drawn with.
        symptoms, denied: keys of symptoms had and not had on arrival.
        signs: vital signs and laboratory values on arrival, by key: `temperature` (degrees F), `pulse`, `systolic`,
            `diastolic`, `breaths`, `saturation` (%), `lactate` and the other keys of `labs`
        marks: what else was so on arrival and tells of severity: keys of the lexicon's `marks`.
        events: in order of the day.
        home_drugs: what the patient took before.
        discharge_drugs: what the patient takes after.
        diagnoses, procedures: ICD-9 codes without the dot, in order of SEQ_NUM.
        weight: of a newborn, in grams, else 0.
    """

    id: int
    number: int
    admitted: datetime
    discharged: datetime
    kind: Kind
    source: str
    disposition: str
    ward: str
    reason: str
    severity: float
    risk: float
    died: bool
    comorbid: list[str] = field(default_factory=list)
    complications: list[str] = field(default_factory=list)
    symptoms: list[str] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)
    signs: Mapping[str, float] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    home_drugs: list[Dose] = field(default_factory=list)
    discharge_drugs: list[Dose] = field(default_factory=list)
    diagnoses: list[str] = field(default_factory=list)
    procedures: list[str] = field(default_factory=list)
    weight: int = 0

    @property
    def days(self) -> float:
        """Length of stay in days."""
        return (self.discharged - self.admitted).total_seconds() / 86_400


@dataclass(slots=True)
class Patient:
    """A person.

    Attributes:
        id: SUBJECT_ID.
        number: among the patients, from 0.
        identity: seed of the names and numbers of this patient.
        born: truly; what a table makes of the very old is its own business.
        smoking, alcohol, living, function: keys of the lexicon's `social`.
        family: (relative, key of a condition), such as (`mother`, `breast cancer`).
        allergies: (key of a drug, key of a symptom).
        chronic: keys of conditions.
        died: when, in hospital or after; None if alive.
    """

    id: int
    number: int
    identity: int
    sex: Sex
    born: datetime
    marital: str
    religion: str
    language: str
    ethnicity: str
    insurance: str
    smoking: str
    alcohol: str
    living: str
    function: str
    family: list[tuple[str, str]] = field(default_factory=list)
    allergies: list[tuple[str, str]] = field(default_factory=list)
    chronic: list[str] = field(default_factory=list)
    admissions: list[Admission] = field(default_factory=list)
    died: datetime | None = None

    def age(self, on: datetime | date) -> int:
        """Completed years."""
        return on.year - self.born.year - ((on.month, on.day) < (self.born.month, self.born.day))
