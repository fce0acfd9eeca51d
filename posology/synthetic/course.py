"""What happens in an admission: how ill the patient arrives, what is done, what goes wrong, and how it ends.

One hidden number, the severity, moves the signs on arrival, complications, the risk of death and the length of stay;
age, condition and what the patient brought along move the last two as well. Each shows severity with noise, so that
the beginning of a note tells something of its end, but not all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from posology.synthetic.lexicon import Condition, lexicon
from posology.synthetic.state import Admission, Dose, Event, Kind, Patient

# Calibrated on 20,000 patients: 10 % of adults die; 13/37/31/19 % of the others stay up to 3, 7, 14 and more days.
_RISK = {"base": -3.1, "severity": 1.45, "age": 0.32, "elective": -0.9, "dependent": 0.3, "bedbound": 0.55}
_STAY = {"base": 1.88, "severity": 0.45, "chronic": 0.05, "noise": 0.57}

_COMPLICATION_RATE = 0.16


def draw(rng: random.Random, weights: Mapping[str, float]) -> str:
    """A key, by weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def make_admission(
    rng: random.Random,
    patient: Patient,
    reason: Condition,
    code: str,
    admitted: datetime,
    *,
    discharged: datetime | None = None,
    died: bool | None = None,
) -> Admission:
    """Makes an admission of a patient who has the `chronic` diseases.

    Args:
        rng: of everything in it.
        patient: whose; only read.
        reason: the first diagnosis.
        code: the ICD-9 code of the first diagnosis.
        admitted: when.
        discharged: when, if that is given; else it follows from the state.
        died: how it ended, if that is given; else it follows from the state.
    """
    number = len(patient.admissions)
    admission = Admission(
        id=100_000 + 8 * patient.number + number, number=number, admitted=admitted, discharged=admitted,
        kind="NEWBORN", source="PHYS REFERRAL/NORMAL DELI", disposition="HOME", ward=reason.ward, reason=reason.key,
        severity=rng.gauss(0, 1), risk=0.0, died=False, diagnoses=[code],
    )  # fmt: skip
    if reason.newborn:
        _newborn(rng, admission)
    else:
        _adult(rng, patient, admission, reason, died)
    if died is not None:
        admission.died = died
    admission.discharged = discharged or _discharged(rng, patient, admission, reason)
    admission.disposition = _disposition(rng, patient, admission)
    return admission


def _adult(rng: random.Random, patient: Patient, admission: Admission, reason: Condition, died: bool | None) -> None:
    admission.kind = _kind(rng, reason)
    admission.source = "PHYS REFERRAL/NORMAL DELI" if admission.kind == "ELECTIVE" else rng.choices(
        ("EMERGENCY ROOM ADMIT", "TRANSFER FROM HOSP/EXTRAM", "CLINIC REFERRAL/PREMATURE"), (60, 24, 16)
    )[0]  # fmt: skip
    for _ in range(200):  # where the end is given, what came before is drawn until it fits
        admission.complications = _complications(rng, admission, reason)
        admission.risk = _risk(patient, admission, reason)
        admission.died = rng.random() < admission.risk
        if died is None or admission.died == died:
            break
        admission.severity = rng.gauss(0, 1)
    admission.comorbid = list(dict.fromkeys([*patient.chronic, *admission.complications]))
    _arrival(rng, admission, reason)
    _events(rng, admission, reason)
    admission.home_drugs = _home_drugs(rng, patient)
    _codes(rng, admission, reason)


def _kind(rng: random.Random, reason: Condition) -> Kind:
    place = rng.random()
    if place < reason.elective:
        return "ELECTIVE"
    return "URGENT" if place > 0.96 else "EMERGENCY"


def _complications(rng: random.Random, admission: Admission, reason: Condition) -> list[str]:
    rate = _COMPLICATION_RATE * math.exp(0.45 * admission.severity)
    return [key for key in reason.complications if rng.random() < rate]


def _risk(patient: Patient, admission: Admission, reason: Condition) -> float:
    conditions = lexicon().conditions
    logit = (
        _RISK["base"]
        + _RISK["severity"] * admission.severity
        + _RISK["age"] * (patient.age(admission.admitted) - 65) / 10
        + reason.risk
        + sum(conditions[key].risk for key in [*patient.chronic, *admission.complications])
        + _RISK.get(patient.function, 0.0)
        + (_RISK["elective"] if admission.kind == "ELECTIVE" else 0.0)
    )
    return 1 / (1 + math.exp(-logit))


def _discharged(rng: random.Random, patient: Patient, admission: Admission, reason: Condition) -> datetime:
    conditions = lexicon().conditions
    mean = _STAY["base"] + _STAY["severity"] * admission.severity + reason.stay
    mean += _STAY["chronic"] * (len(patient.chronic) - 3) + (0.12 if patient.living == "nursing home" else 0.0)
    mean += sum(conditions[key].stay for key in admission.complications)
    noise = _STAY["noise"]
    if admission.died:
        mean, noise = mean - 0.5 - 0.15 * max(0.0, admission.severity), 0.95
    if reason.newborn:
        mean, noise = 1.2 + 1.1 * max(0.0, (2600 - admission.weight) / 800), 0.4
    days = min(150.0, math.exp(rng.gauss(mean, noise)))
    end = admission.admitted + timedelta(days=days)
    if not admission.died:  # people go home in daytime
        end = end.replace(hour=rng.randrange(10, 19))
    return max(end, admission.admitted + timedelta(hours=2)).replace(second=0)


def _disposition(rng: random.Random, patient: Patient, admission: Admission) -> str:
    if admission.died:
        return "DEAD/EXPIRED"
    if admission.kind == "NEWBORN":
        return "HOME"
    frail = admission.severity + (1.2 if patient.function in ("dependent", "bedbound") else 0.0) + rng.gauss(0, 0.8)
    if frail > 1.1:
        return rng.choice(("SNF", "REHAB/DISTINCT PART HOSP", "LONG TERM CARE HOSPITAL"))
    return rng.choice(("HOME", "HOME HEALTH CARE")) if frail > 0 else "HOME"


# Arrival


def _arrival(rng: random.Random, admission: Admission, reason: Condition) -> None:
    words = lexicon()
    wanted = rng.choice((2, 2, 3, 3, 4))
    admission.symptoms = rng.sample(reason.symptoms, min(wanted, len(reason.symptoms)))
    others = [key for key in words.symptoms if key not in reason.symptoms]
    admission.denied = rng.sample(others, 7)
    admission.marks = [
        key
        for key, mark in words.marks.items()
        if rng.random() < 1 / (1 + math.exp(-mark["slope"] * (admission.severity - mark["at"])))
    ]
    admission.signs = _signs(rng, admission, reason)


def _signs(rng: random.Random, admission: Admission, reason: Condition) -> dict[str, float]:
    severity, noisy = admission.severity, rng.gauss
    fever = "fever" in admission.symptoms
    signs = {
        "temperature": round(98.1 + (2.4 if fever else 0.0) + noisy(0, 0.8) - 0.25 * max(0.0, severity - 1.5), 1),
        "pulse": max(34, round(82 + 8.5 * severity + noisy(0, 12) + (9 if fever else 0))),
        "systolic": max(58, round(133 - 10 * severity + noisy(0, 17))),
        "breaths": max(8, round(17.5 + 2.4 * severity + noisy(0, 2.6))),
        "saturation": min(100, max(70, round(97 - 1.7 * max(-0.5, severity) + noisy(0, 1.9)))),
    }
    signs["diastolic"] = max(28, round(signs["systolic"] * 0.55 + noisy(0, 7)))
    for key, lab in lexicon().labs.items():
        value = lab.mean + lab.sd * (lab.severity * severity + noisy(0, 1))
        if lab.severity > 0 and severity > 0.5:  # derangement is skewed: what is high is very high in some
            value += lab.sd * lab.severity * rng.expovariate(1.2) * (severity - 0.5)
        signs[key] = round(max(lab.low, value), lab.decimals)
    if reason.key in ("acute kidney injury", "diabetic ketoacidosis"):
        signs["creatinine"] = round(signs["creatinine"] + rng.uniform(1.5, 5), 1)
    return signs


# Course


def _events(rng: random.Random, admission: Admission, reason: Condition) -> None:
    events: list[Event] = []
    tests = rng.sample(reason.tests, min(rng.choice((2, 3, 3, 4)), len(reason.tests)))
    drugs = rng.sample(reason.drugs, min(rng.choice((1, 2, 2, 3)), len(reason.drugs)))
    events += [Event(rng.choice((0, 0, 1, 2)), "test", key, reason.key) for key in tests]
    events += [Event(rng.choice((0, 0, 1, 3)), "treatment", key, reason.key) for key in drugs]
    chance = 0.85 if admission.kind == "ELECTIVE" else 0.5 + 0.08 * admission.severity
    for key in rng.sample(reason.procedures, min(2, len(reason.procedures))):
        if rng.random() < chance:
            events.append(Event(rng.choice((0, 1, 1, 2, 4)), "procedure", key, reason.key))
            chance -= 0.35
    for key in admission.complications:
        condition = lexicon().conditions[key]
        day = rng.randrange(1, 7)
        events.append(Event(day, "complication", key, reason.key))
        if condition.tests and rng.random() < 0.7:
            events.append(Event(day, "test", rng.choice(condition.tests), key))
        treatments = [("treatment", one) for one in condition.drugs]
        treatments += [("procedure", one) for one in condition.procedures if rng.random() < 0.4]
        if treatments and rng.random() < 0.85:
            events.append(Event(day, *rng.choice(treatments), key))
    admission.events = sorted(events, key=lambda event: event.day)


def _home_drugs(rng: random.Random, patient: Patient) -> list[Dose]:
    conditions = lexicon().conditions
    doses: dict[str, Dose] = {}
    for key in patient.chronic:
        usual = [drug for drug in conditions[key].drugs if not lexicon().drugs[drug].inpatient]
        for drug in rng.sample(usual, min(rng.choice((1, 1, 2)), len(usual))):
            doses.setdefault(drug, make_dose(rng, drug, key))
    for drug in rng.sample(_COMMON_DRUGS, rng.choice((0, 1, 2))):
        doses.setdefault(drug, make_dose(rng, drug, ""))
    return list(doses.values())


_COMMON_DRUGS = (
    "docusate",
    "senna",
    "acetaminophen",
    "multivitamin",
    "omeprazole",
    "lorazepam",
    "vitamin D",
    "aspirin",
)


def make_dose(rng: random.Random, key: str, problem: str) -> Dose:
    """How somebody takes a drug."""
    drug = lexicon().drugs[key]
    amount = rng.choice(drug.amounts) if drug.amounts else ""
    return Dose(key, amount, rng.choice(drug.routes), rng.choice(drug.often), problem)


def discharge_drugs(rng: random.Random, admission: Admission) -> list[Dose]:
    """What the patient takes after the stay: most of the home drugs, and some of what was begun."""
    doses = [dose for dose in admission.home_drugs if rng.random() < 0.85]
    taken = {dose.drug for dose in doses}
    begun = [event for event in admission.events if event.kind == "treatment" and event.what not in taken]
    drugs = lexicon().drugs
    return doses + [
        make_dose(rng, event.what, event.why) for event in begun if drugs[event.what].amounts and rng.random() < 0.8
    ]


# Codes


def _codes(rng: random.Random, admission: Admission, reason: Condition) -> None:
    conditions, procedures = lexicon().conditions, lexicon().procedures
    secondary = [_code(rng, conditions[key]) for key in admission.comorbid if rng.random() < 0.9]
    secondary += rng.sample(_STATUS_CODES, rng.choice((0, 0, 1, 2)))
    rng.shuffle(secondary)
    admission.diagnoses = list(dict.fromkeys([*admission.diagnoses, *secondary]))
    coded: list[str] = []
    for event in admission.events:
        if event.kind == "procedure":
            procedure = procedures[event.what]
            coded += [procedure.code, *(code for code in procedure.more if rng.random() < 0.6)]
    if not coded and rng.random() < 0.8:
        coded.append(rng.choice(_SMALL_PROCEDURES))
    admission.procedures = list(dict.fromkeys(coded))


_STATUS_CODES = ("V5861", "V5867", "V4581", "V4582", "V1582", "V1251", "V4986", "E8788", "E8798", "V667")
_SMALL_PROCEDURES = ("3893", "9904", "966", "3891", "8872", "9390", "4513", "8856", "9604", "3995")


def _code(rng: random.Random, condition: Condition) -> str:
    return condition.chronic_code or draw(rng, condition.codes)


# Newborns


def _newborn(rng: random.Random, admission: Admission) -> None:
    early = rng.random() < 0.35
    admission.weight = round(rng.gauss(1900, 550) if early else rng.gauss(3300, 400))
    admission.weight = max(620, admission.weight)
    admission.risk = 0.25 if admission.weight < 900 else 0.004
    admission.died = rng.random() < admission.risk
    small = admission.weight < 2300
    events = [Event(1, "procedure", "hepatitis vaccine", ""), Event(1, "test", "newborn screen", "")]
    events.append(Event(2, "test", "hearing screen", ""))
    if small or rng.random() < 0.15:
        events.append(Event(0, "test", "blood cultures", ""))
        events.append(Event(2, "procedure", "phototherapy", ""))
    if admission.weight < 1500:
        events.append(Event(0, "procedure", "surfactant", ""))
        events.append(Event(4, "test", "cranial ultrasound", ""))
    admission.events = events
    also: Sequence[str] = ("V053", "V290") + (("7742", "76518", "7706") if small else ())
    admission.diagnoses += [code for code in also if rng.random() < 0.8]
    procedures = lexicon().procedures
    coded = [procedures[event.what].code for event in events if event.kind == "procedure"]
    admission.procedures = [code for code in dict.fromkeys(coded) if rng.random() < 0.9]
    admission.signs = {"apgar1": rng.choice((6, 7, 8, 8)), "apgar5": rng.choice((8, 9, 9)), "weeks": _weeks(admission)}


def _weeks(admission: Admission) -> int:
    return min(41, max(25, round(40 - (3300 - admission.weight) / 190)))
