"""Who lies in the synthetic hospital: patients and their admissions, as facts without a word of text.

`make_hospital` draws each patient from a stream of its own, seeded by (seed, number): patient 17 is the same however
many there are. Names, addresses and numbers are no part of the state: whoever writes about a patient draws them from
`Random(patient.identity)`, so that they are the same in all notes of a patient. Keys such as `heart failure` are those
of the lexicon (`lexicon.py`). All of it is fictional.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from posology.synthetic.course import draw, make_admission
from posology.synthetic.lexicon import Condition, lexicon
from posology.synthetic.phrases import Pool
from posology.synthetic.state import Admission, Dose, Event, Patient, Sex

__all__ = ["Admission", "Dose", "Event", "Patient", "make_hospital", "make_patient"]


_READMISSION = 0.26
"""Chance that a patient who survived comes back."""

_MOST_ADMISSIONS = 8


def make_hospital(patients: int, seed: int) -> Iterator[Patient]:
    """Makes patients one by one.

    Args:
        patients: how many.
        seed: of everything; patient number k does not depend on `patients`.
    """
    for number in range(patients):
        yield make_patient(number, seed)


def make_patient(number: int, seed: int) -> Patient:
    """Makes patient `number` of the hospital of this seed, with all admissions."""
    rng = random.Random(f"patient {number} of hospital {seed}")
    tables = _tables()
    newborn = rng.random() < tables.newborn_share
    reason, code = (tables.newborns if newborn else tables.reasons).draw(rng)
    admitted = datetime(2100, 6, 7) + timedelta(minutes=rng.randrange(90 * 365 * 24 * 60))
    patient = _newborn(rng, number, admitted) if newborn else _adult(rng, number, reason, admitted)
    while True:
        admission = make_admission(rng, patient, reason, code, admitted)
        patient.admissions.append(admission)
        if admission.died or newborn or len(patient.admissions) == _MOST_ADMISSIONS or rng.random() > _READMISSION:
            break
        admitted = admission.discharged + timedelta(minutes=round(60 * 24 * rng.expovariate(1 / 240) + 2000))
        reason, code = _next_reason(rng, patient, reason)
    _after(rng, patient)
    return patient


def describe_patient(rng: random.Random, number: int, sex: Sex, born: datetime, on: datetime) -> Patient:
    """A patient of given sex and age, with habits, household, allergies and family but no conditions."""
    social = lexicon().social
    age = (on - born).days / 365.25
    frail = min(1.0, max(0.0, (age - 50) / 60))
    function = draw(rng, social["function"])
    if function in ("dependent", "bedbound") and rng.random() > frail + 0.25:
        function = "independent"
    return Patient(
        id=10_000 + number,
        number=number,
        identity=rng.getrandbits(48),
        sex=sex,
        born=born,
        marital=draw(rng, social["marital"]),
        religion=draw(rng, social["religion"]),
        language=draw(rng, social["language"]),
        ethnicity=draw(rng, social["ethnicity"]),
        insurance="Medicare" if age >= 65 and rng.random() < 0.85 else draw(rng, social["insurance"]),
        smoking=draw(rng, social["smoking"]),
        alcohol=draw(rng, social["alcohol"]),
        living=draw(rng, social["living"]),
        function=function,
        family=[
            (rng.choice(social["relatives"]), _tables().family.draw(rng)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))
        ],
        allergies=[(rng.choice(_ALLERGENS), rng.choice(_REACTIONS)) for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 2)))],
    )


_ALLERGENS = (
    "penicillin", "sulfa", "codeine", "iodine", "morphine", "levofloxacin", "vancomycin", "lisinopril", "aspirin",
    "ibuprofen", "heparin", "atorvastatin", "metronidazole", "phenytoin", "cefazolin",
)  # fmt: skip
_REACTIONS = (
    "rash symptom", "itching", "nausea", "breathlessness", "cough", "confusion", "diarrhea", "wheeze", "dizziness",
)  # fmt: skip


def _adult(rng: random.Random, number: int, reason: Condition, on: datetime) -> Patient:
    age = min(97.0, max(18.0, rng.gauss(*reason.age)))
    sex: Sex = "F" if rng.random() < 0.44 else "M"
    patient = describe_patient(rng, number, sex, on - timedelta(days=age * 365.25), on)
    # Chronic diseases come with age: none of the usual ones at 20, half as many again at 80.
    factor = min(1.5, max(0.1, (age - 20) / 40))
    patient.chronic = [
        condition.key
        for condition in _tables().chronic
        if rng.random() < condition.chronic * factor and condition.sex in ("", sex) and condition is not reason
    ]
    rng.shuffle(patient.chronic)
    return patient


def _newborn(rng: random.Random, number: int, on: datetime) -> Patient:
    sex: Sex = "F" if rng.random() < 0.48 else "M"
    patient = describe_patient(rng, number, sex, on, on)
    patient.marital, patient.religion, patient.insurance = "", "NOT SPECIFIED", rng.choice(("Private", "Medicaid"))
    patient.smoking = patient.alcohol = patient.living = patient.function = ""
    patient.allergies = []
    return patient


def _next_reason(rng: random.Random, patient: Patient, last: Condition) -> tuple[Condition, str]:
    """Why somebody comes back: often the same disease, a known one, or a new one; the last one is known from now on."""
    tables = _tables()
    if last.chronic and last.key not in patient.chronic:
        patient.chronic.append(last.key)
    if rng.random() < 0.35:
        known = [tables.by_key[key] for key in [last.key, *patient.chronic] if key in tables.by_key]
        if known:
            return rng.choice(known).draw(rng)
    return tables.reasons.draw(rng)


def _after(rng: random.Random, patient: Patient) -> None:
    """Death, in hospital or in the years after."""
    last = patient.admissions[-1]
    if last.died:
        patient.died = last.discharged
    elif last.kind != "NEWBORN" and rng.random() < min(0.9, 0.25 + 0.8 * last.risk):
        patient.died = last.discharged + timedelta(days=rng.expovariate(1 / 500) + 1)


@dataclass(frozen=True)
class _Tables:
    """Pools of reasons for admission, as (condition, code)."""

    reasons: Pool
    newborns: Pool
    newborn_share: float
    by_key: Mapping[str, Pool]
    chronic: Sequence[Condition]
    family: Pool


@cache
def _tables() -> _Tables:
    weighted: dict[bool, list[tuple[tuple[Condition, str], float]]] = {True: [], False: []}
    by_key: dict[str, Pool] = {}
    for condition in lexicon().conditions.values():
        own: list[tuple[tuple[Condition, str], float]] = []
        for codes, weight in ((condition.codes, condition.reason), (condition.other_codes, condition.other_reason)):
            total = sum(codes.values())
            own += [((condition, code), weight * share / total) for code, share in codes.items() if weight]
        weighted[condition.newborn] += own
        if own and not condition.newborn:
            by_key[condition.key] = _pool(own)
    sums = {newborn: sum(weight for _, weight in entries) for newborn, entries in weighted.items()}
    ones = list(lexicon().conditions.values())
    return _Tables(
        reasons=_pool(weighted[False]),
        newborns=_pool(weighted[True]),
        # Newborns come once, the others again and again, and the weights are of admissions.
        newborn_share=sums[True] / (sums[True] + sums[False] * (1 - 0.9 * _READMISSION)),
        by_key=by_key,
        chronic=[condition for condition in ones if condition.chronic],
        family=_pool([(condition.key, condition.family) for condition in ones if condition.family]),
    )


def _pool(entries: Sequence[tuple[Any, float]]) -> Pool:
    return Pool([one for one, _ in entries], [weight for _, weight in entries], [False] * len(entries))
