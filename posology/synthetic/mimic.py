"""The synthetic hospital as a MIMIC-III folder: the five tables that the clinical tasks read, as release 1.4 has them.

Strings and header are quoted, numbers and times are not, ICD-9 codes are strings without the dot. As in MIMIC-III,
people over 89 are 300 years old, days lie between 2100 and 2200, names are `[**marks**]` that lines may break, a few
texts occur with two admissions, and notes of outpatients have no admission.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TextIO

from posology.synthetic.identifiers import Identifiers
from posology.synthetic.lexicon import lexicon
from posology.synthetic.notes import Author, Section, discharge_summary, short_note
from posology.synthetic.state import Admission, Patient

COLUMNS = {
    "PATIENTS": "ROW_ID,SUBJECT_ID,GENDER,DOB,DOD,DOD_HOSP,DOD_SSN,EXPIRE_FLAG",
    "ADMISSIONS": (
        "ROW_ID,SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,DEATHTIME,ADMISSION_TYPE,ADMISSION_LOCATION,DISCHARGE_LOCATION,"
        "INSURANCE,LANGUAGE,RELIGION,MARITAL_STATUS,ETHNICITY,EDREGTIME,EDOUTTIME,DIAGNOSIS,HOSPITAL_EXPIRE_FLAG,"
        "HAS_CHARTEVENTS_DATA"
    ),
    "DIAGNOSES_ICD": "ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE",
    "PROCEDURES_ICD": "ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE",
    "NOTEEVENTS": "ROW_ID,SUBJECT_ID,HADM_ID,CHARTDATE,CHARTTIME,STORETIME,CATEGORY,DESCRIPTION,CGID,ISERROR,TEXT",
}

_SHORT_NOTES = (  # kind, CATEGORY, DESCRIPTION, chance per admission, whether it has a time
    ("nursing", "Nursing/other", "Report", 0.5, True),
    ("nursing", "Nursing", "Nursing Progress Note", 0.3, True),
    ("physician", "Physician ", "Physician Resident Progress Note", 0.3, True),
    ("radiology", "Radiology", "CHEST (PORTABLE AP)", 0.5, True),
    ("ecg", "ECG", "Report", 0.35, False),
    ("echo", "Echo", "Report", 0.2, False),
)
_ADDENDUM, _DUPLICATE, _ERROR, _OUTPATIENT = 0.06, 0.03, 0.002, 0.06
_COPY_FORWARD = 0.4
_OLDEST = 89

Value = str | int | datetime | date | None


class Table:
    """A CSV file that is written row by row; ROW_ID counts up."""

    def __init__(self, stream: TextIO, columns: str, lower: bool = False):
        self._stream = stream
        self.rows = 0
        names = columns.split(",")
        stream.write(",".join(name.lower() if lower else f'"{name}"' for name in names) + "\n")

    def add(self, *values: Value) -> None:
        """Writes a row, less its ROW_ID."""
        self.rows += 1
        self._stream.write(",".join([str(self.rows), *map(_cell, values)]) + "\n")


def new_csv(folder: Path, name: str) -> TextIO:
    """Opens a table's file for writing."""
    return open(folder / f"{name}.csv", "w", encoding="utf-8", newline="")


def _cell(value: Value) -> str:
    if isinstance(value, str):
        return '"' + value.replace('"', '""') + '"' if value else ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return "" if value is None else str(value)


def write_mimic(patients: Iterable[Patient], folder: Path, seed: int, *, short_notes: bool = True) -> dict[str, int]:
    """Writes PATIENTS, ADMISSIONS, DIAGNOSES_ICD, PROCEDURES_ICD and NOTEEVENTS as `.csv`, one patient at a time.

    Args:
        patients: of `make_hospital`.
        folder: is made if need be; files of these names are replaced.
        seed: of the notes.
        short_notes: whether there are notes other than discharge summaries, as most are in MIMIC-III.

    Returns:
        The number of rows of each table, by its name in lower case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        tables = {name: Table(stack.enter_context(new_csv(folder, name)), columns) for name, columns in COLUMNS.items()}
        for patient in patients:
            rng = random.Random(f"notes {patient.number} of hospital {seed}")
            tables["PATIENTS"].add(*_patient_row(patient))
            for admission in patient.admissions:
                tables["ADMISSIONS"].add(*_admission_row(patient, admission, rng))
                for name, codes in (("DIAGNOSES_ICD", admission.diagnoses), ("PROCEDURES_ICD", admission.procedures)):
                    for number, code in enumerate(codes, start=1):
                        tables[name].add(patient.id, admission.id, number, code)
            for row in note_rows(patient, rng, short_notes=short_notes):
                tables["NOTEEVENTS"].add(*row)
    return {name.lower(): table.rows for name, table in tables.items()}


def _patient_row(patient: Patient) -> Sequence[Value]:
    first, died = patient.admissions[0].admitted, patient.died
    born = patient.born.replace(hour=0, minute=0, second=0, microsecond=0)
    if patient.age(first) > _OLDEST:
        born = first.replace(hour=0, minute=0, second=0) - timedelta(days=300 * 365.25)
    day = died.replace(hour=0, minute=0, second=0, microsecond=0) if died else None
    here = day if patient.admissions[-1].died else None
    return patient.id, patient.sex, born, day, here, day if here is None else None, int(day is not None)


def _admission_row(patient: Patient, admission: Admission, rng: random.Random) -> Sequence[Value]:
    emergency = admission.source == "EMERGENCY ROOM ADMIT"
    registered = admission.admitted - timedelta(minutes=rng.randrange(90, 500)) if emergency else None
    left = admission.admitted + timedelta(minutes=rng.randrange(20, 300)) if emergency else None
    condition = lexicon().conditions[admission.reason]
    diagnosis = "NEWBORN" if condition.newborn else condition.key.upper()
    return (
        patient.id, admission.id, admission.admitted, admission.discharged,
        admission.discharged if admission.died else None, admission.kind, admission.source, admission.disposition,
        patient.insurance, patient.language, patient.religion, patient.marital, patient.ethnicity, registered, left,
        diagnosis, int(admission.died), 1,
    )  # fmt: skip


def note_rows(patient: Patient, rng: random.Random, *, short_notes: bool = True) -> Iterator[Sequence[Value]]:
    """The rows of NOTEEVENTS for a patient, less ROW_ID."""
    identifiers = Identifiers(patient, rng, "mimic")
    earlier: list[Section] = []
    last_text = ""
    for admission in patient.admissions:
        author = Author.drawn(rng)
        copied = earlier if rng.random() < _COPY_FORWARD else []
        sections = discharge_summary(patient, admission, identifiers, rng, author=author, earlier=copied)
        if last_text and rng.random() < _DUPLICATE:
            summary = last_text
        else:
            summary = summary_text(patient, admission, sections, identifiers, author)
        if short_notes:
            yield from _short_rows(patient, admission, identifiers, rng)
        end = admission.discharged
        error = 1 if rng.random() < _ERROR else None
        yield _row(patient, admission, end, None, "Discharge summary", "Report", summary, error=error)
        if rng.random() < _ADDENDUM:
            addendum = short_note("addendum", patient, admission, identifiers, rng).text
            text = f"{_head(patient, admission, identifiers)}\n\nAddendum:\n{addendum}\n"
            when = end + timedelta(days=rng.randrange(0, 9))
            yield _row(patient, admission, when, None, "Discharge summary", "Addendum", text)
        earlier, last_text = sections, summary
    if short_notes and patient.chronic and rng.random() < _OUTPATIENT:
        last = patient.admissions[-1]
        text = short_note("outpatient", patient, last, identifiers, rng).text
        when = patient.admissions[0].admitted - timedelta(days=rng.randrange(20, 200))
        yield _row(patient, None, when, None, "Radiology", "Outpatient report", text)


def _short_rows(
    patient: Patient, admission: Admission, identifiers: Identifiers, rng: random.Random
) -> Iterator[Sequence[Value]]:
    if admission.kind == "NEWBORN":
        return
    for kind, category, description, chance, timed in _SHORT_NOTES:
        if rng.random() < chance:
            when = admission.admitted + timedelta(days=rng.random() * admission.days)
            text = short_note(kind, patient, admission, identifiers, rng).text + "\n"
            time, caregiver = when if timed else None, rng.randrange(14_000, 21_000)
            yield _row(patient, admission, when, time, category, description, text, caregiver)


def _row(
    patient: Patient, admission: Admission | None, day: datetime, time: datetime | None, category: str, description: str,
    text: str, caregiver: int | None = None, error: int | None = None,
) -> Sequence[Value]:  # fmt: skip
    stored = time + timedelta(minutes=17) if time else None
    number = admission.id if admission else None
    return (
        patient.id, number, day.date(), time, stored, category, description, caregiver,
        str(error) if error else None, text,
    )  # fmt: skip


# Text


def _head(patient: Patient, admission: Admission, identifiers: Identifiers) -> str:
    dates = [identifiers.text("DATE", f"{day.date().isoformat()}/iso").text for day in (
        admission.admitted, admission.discharged, patient.born)]  # fmt: skip
    service = lexicon().wards[admission.ward]["service"]
    return (
        f"Admission Date:  {dates[0]}              Discharge Date:   {dates[1]}\n\n"
        f"Date of Birth:  {dates[2]}             Sex:   {patient.sex}\n\nService: {service}"
    )


def summary_text(
    patient: Patient, admission: Admission, sections: Sequence[Section], identifiers: Identifiers, author: Author
) -> str:
    """A discharge summary as in NOTEEVENTS: dates before it, who signed after it, lines of prose broken."""
    parts = [_head(patient, admission, identifiers)]
    for section in sections:
        lines = [line.text for line in section.lines]
        body = broken(" ".join(lines), author.width) if section.prose else "\n".join(lines)
        if section.name == "chief complaint":
            parts.append(f"Attending:{identifiers.text('DOCTOR', 'attending/full').text}\n{section.heading}:\n{body}")
        else:
            parts.append(f"{section.heading}:\n{body}")
    parts.append(f"{' ' * 29}{identifiers.text('DOCTOR', 'author/full').text}\n\nCompleted by:[**Hospital1 18**]")
    return "\n\n".join(parts) + "\n"


def broken(text: str, width: int) -> str:
    """Text in lines of at most `width` characters, broken at blanks."""
    lines, start = [], 0
    while len(text) - start > width:
        blank = text.rfind(" ", start, start + width + 1)
        if blank <= start:
            blank = text.find(" ", start + width)
            if blank < 0:
                break
        lines.append(text[start:blank])
        start = blank + 1
    lines.append(text[start:])
    return "\n".join(lines)
