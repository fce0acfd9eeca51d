"""Notes for the admissions of true MIMIC-III tables that come without notes, such as the openly published demo.

Codes, sex, age, times and outcome are the tables'; what the codes leave open is drawn to fit them. PROCEDURES_ICD,
which the demo lacks, is made up too.
"""

from __future__ import annotations

import csv
import gzip
import random
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

from posology.errors import UserError
from posology.synthetic.course import make_admission
from posology.synthetic.hospital import describe_patient
from posology.synthetic.lexicon import Condition, lexicon
from posology.synthetic.mimic import COLUMNS, Table, new_csv, note_rows
from posology.synthetic.state import Patient

_NEEDED = ("PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD")
_OLDEST = 91
Row = Mapping[str, str]


def write_notes_for(tables: Path, folder: Path, seed: int) -> dict[str, int]:
    """Copies the tables and writes NOTEEVENTS.csv (and PROCEDURES_ICD.csv, if there is none) beside them.

    Args:
        tables: folder with PATIENTS, ADMISSIONS and DIAGNOSES_ICD as `.csv` or `.csv.gz`, header in either case.
        folder: is made if need be.
        seed: of what is drawn.

    Returns:
        The number of rows of each table written or read, by its name in lower case.

    Raises:
        UserError: a table or a column is missing.
    """
    read = {name: _read(tables, name) for name in _NEEDED}
    codes: dict[str, list[tuple[int, str]]] = {}
    for row in read["DIAGNOSES_ICD"]:
        if row["seq_num"] and row["icd9_code"]:
            codes.setdefault(row["hadm_id"], []).append((int(row["seq_num"]), row["icd9_code"]))
    stays = sorted(read["ADMISSIONS"], key=lambda row: (int(row["subject_id"]), row["admittime"]))
    people = {row["subject_id"]: row for row in read["PATIENTS"]}
    folder.mkdir(parents=True, exist_ok=True)
    procedures_known = _find(tables, "PROCEDURES_ICD") is not None
    for path in sorted(tables.iterdir()):
        if path.name.upper().endswith((".CSV", ".CSV.GZ")) and not path.name.upper().startswith("NOTEEVENTS"):
            shutil.copyfile(path, folder / path.name)
    with ExitStack() as stack:
        made = {
            name: Table(stack.enter_context(new_csv(folder, name)), COLUMNS[name], lower=True)
            for name in ("NOTEEVENTS", *(() if procedures_known else ("PROCEDURES_ICD",)))
        }
        for subject, rows in groupby(stays, key=lambda row: row["subject_id"]):
            rng = random.Random(f"notes for patient {subject}, seed {seed}")
            patient = _patient(people[subject], list(rows), codes, rng)
            for note in note_rows(patient, rng):
                made["NOTEEVENTS"].add(*note)
            for admission in patient.admissions if not procedures_known else ():
                for number, code in enumerate(admission.procedures, start=1):
                    made["PROCEDURES_ICD"].add(patient.id, admission.id, number, code)
    return {name.lower(): len(rows) for name, rows in read.items()} | {
        name.lower(): table.rows for name, table in made.items()
    }


def _patient(row: Row, stays: list[Row], codes: Mapping[str, list[tuple[int, str]]], rng: random.Random) -> Patient:
    """The patient of a row of PATIENTS, with an admission for each row of ADMISSIONS."""
    born, first = _time(row["dob"]), _time(stays[0]["admittime"])
    if (first - born).days > 150 * 365:  # dates of birth of the very old are shifted by 300 years
        born = first - timedelta(days=_OLDEST * 365.25)
    patient = describe_patient(rng, int(row["subject_id"]), "F" if row["gender"] == "F" else "M", born, first)
    patient.id = int(row["subject_id"])
    patient.identity = rng.getrandbits(48)
    for stay in stays:
        own = [code for _, code in sorted(codes.get(stay["hadm_id"], []))]
        reason = _reason(own, stay["admission_type"] == "NEWBORN")
        known = [condition for code in own[1:] if (condition := lexicon().of_code(code)) and condition.chronic]
        fitting = [one.key for one in known if one is not reason and one.sex in ("", patient.sex)]
        patient.chronic = list(dict.fromkeys(fitting))
        admission = make_admission(
            rng, patient, reason, own[0] if own else "", _time(stay["admittime"]),
            discharged=_time(stay["dischtime"]), died=stay["hospital_expire_flag"] == "1",
        )  # fmt: skip
        admission.id = int(stay["hadm_id"])
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


def _read(tables: Path, name: str) -> list[Row]:
    path = _find(tables, name)
    if path is None:
        raise UserError(f"holds no {name}.csv or {name}.csv.gz", "Name the folder with the tables", tables)
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        header = [column.lower() for column in next(reader, [])]
        missing = [column for column in COLUMNS[name].lower().split(",") if column not in header and column in _USED]
        if missing:
            raise UserError(f"has no column {missing[0].upper()}", "Check that this is the table of MIMIC-III", path)
        return [dict(zip(header, row, strict=False)) for row in reader]


_USED = {
    "subject_id", "hadm_id", "gender", "dob", "admittime", "dischtime", "admission_type", "hospital_expire_flag",
    "seq_num", "icd9_code",
}  # fmt: skip


def _find(tables: Path, name: str) -> Path | None:
    wanted = {f"{name}.CSV", f"{name}.CSV.GZ"}
    return next((path for path in sorted(tables.iterdir()) if path.name.upper() in wanted), None)


def _time(words: str) -> datetime:
    return datetime.fromisoformat(words)
