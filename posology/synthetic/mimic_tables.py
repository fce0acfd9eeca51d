"""Notes for the admissions of true MIMIC-III tables that come without notes, such as the openly published demo.

Codes, sex, age, times and outcome are the tables'; what the codes leave open is drawn to fit them. PROCEDURES_ICD,
which the demo lacks, is made up too.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

from posology.corpus import mimic3
from posology.corpus.textfile import entries_of
from posology.errors import UserError
from posology.synthetic.course import make_admission
from posology.synthetic.hospital import describe_patient
from posology.synthetic.lexicon import Condition, lexicon
from posology.synthetic.mimic import COLUMNS, Table, new_csv, note_rows
from posology.synthetic.state import Patient

_OLDEST = 91


def write_notes_for(tables: Path, folder: Path, seed: int) -> dict[str, int]:
    """Copies the tables and writes NOTEEVENTS.csv (and PROCEDURES_ICD.csv, if there is none) beside them.

    Args:
        tables: folder with PATIENTS, ADMISSIONS and DIAGNOSES_ICD as `.csv` or `.csv.gz`, header in either case.
        folder: is made if need be.
        seed: of what is drawn.

    Returns:
        The number of rows of each table written or read, by its name in lower case.

    Raises:
        UserError: a table or a column is missing, or a field that is needed is empty or wrong.
    """
    people = mimic3.read_patients(tables)
    codes = mimic3.read_codes(tables, "DIAGNOSES_ICD")
    stays = sorted(
        mimic3.read_admissions(tables).values(), key=lambda stay: (stay.subject, str(stay.admitted), stay.hadm)
    )
    for stay in stays:
        _check(stay, people)
    folder.mkdir(parents=True, exist_ok=True)
    given = [path for path in entries_of(tables) if path.name.upper().endswith((".CSV", ".CSV.GZ"))]
    procedures_known = any(path.name.upper().startswith("PROCEDURES_ICD.") for path in given)
    for path in given:
        if not path.name.upper().startswith("NOTEEVENTS"):
            shutil.copyfile(path, folder / path.name)
    with ExitStack() as stack:
        made = {
            name: Table(stack.enter_context(new_csv(folder, name)), COLUMNS[name], lower=True)
            for name in ("NOTEEVENTS", *(() if procedures_known else ("PROCEDURES_ICD",)))
        }
        for subject, own in groupby(stays, key=lambda stay: stay.subject):
            rng = random.Random(f"notes for patient {subject}, seed {seed}")
            patient = _patient(people[subject], list(own), codes, rng)
            for note in note_rows(patient, rng):
                made["NOTEEVENTS"].add(*note)
            for admission in patient.admissions if not procedures_known else ():
                for number, code in enumerate(admission.procedures, start=1):
                    made["PROCEDURES_ICD"].add(patient.id, admission.id, number, code)
    known = {"patients": len(people), "admissions": len(stays), "diagnoses_icd": sum(map(len, codes.values()))}
    return known | {name.lower(): table.rows for name, table in made.items()}


def _check(stay: mimic3.Admission, people: Mapping[int, tuple[str, datetime | None]]) -> None:
    """Raises UserError if the tables do not say what a note needs."""
    if stay.subject not in people:
        raise UserError(
            f"SUBJECT_ID {stay.subject} is not in PATIENTS", "Add the patient or remove the row", stay.place
        )
    if stay.admitted is None or stay.discharged is None or people[stay.subject][1] is None:
        raise UserError("ADMITTIME, DISCHTIME or the patient's DOB is empty", "Fill in the field", stay.place)


def _patient(
    person: tuple[str, datetime | None],
    stays: list[mimic3.Admission],
    codes: Mapping[int, list[str]],
    rng: random.Random,
) -> Patient:
    """The patient of a row of PATIENTS, with an admission for each row of ADMISSIONS."""
    (gender, born), first = person, stays[0].admitted
    assert born is not None and first is not None  # `_check` saw to it
    if (first - born).days > 150 * 365:  # dates of birth of the very old are shifted by 300 years
        born = first - timedelta(days=_OLDEST * 365.25)
    patient = describe_patient(rng, stays[0].subject, "F" if gender == "F" else "M", born, first)
    patient.id = stays[0].subject
    patient.identity = rng.getrandbits(48)
    for stay in stays:
        assert stay.admitted is not None and stay.discharged is not None
        own = codes.get(stay.hadm, [])
        reason = _reason(own, stay.type == "NEWBORN")
        known = [condition for code in own[1:] if (condition := lexicon().of_code(code)) and condition.chronic]
        fitting = [one.key for one in known if one is not reason and one.sex in ("", patient.sex)]
        patient.chronic = list(dict.fromkeys(fitting))
        admission = make_admission(
            rng, patient, reason, own[0] if own else "", stay.admitted,
            discharged=stay.discharged, died=bool(stay.died),
        )  # fmt: skip
        admission.id = stay.hadm
        admission.diagnoses = own
        patient.admissions.append(admission)
    return patient


def _reason(codes: list[str], newborn: bool) -> Condition:
    """The condition of the first diagnosis; a generic one where the lexicon has none like it."""
    conditions = lexicon().conditions
    found = lexicon().of_code(codes[0]) if codes else None
    if newborn:
        return found if found and found.newborn else conditions["newborn vaginal"]
    return found if found and not found.newborn and found.symptoms else conditions["generic illness"]
