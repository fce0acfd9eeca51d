"""Small tables in the form in which MIMIC-III is distributed."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

HEADERS = {
    "ADMISSIONS": "row_id,subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admission_location,"
    "discharge_location,insurance,language,religion,marital_status,ethnicity,edregtime,edouttime,diagnosis,"
    "hospital_expire_flag,has_chartevents_data",
    "DIAGNOSES_ICD": "row_id,subject_id,hadm_id,seq_num,icd9_code",
    "PROCEDURES_ICD": "row_id,subject_id,hadm_id,seq_num,icd9_code",
    "NOTEEVENTS": "row_id,subject_id,hadm_id,chartdate,charttime,storetime,category,description,cgid,iserror,text",
}
IN, OUT = "2101-01-01 00:00:00", "2101-01-05 12:00:00"

Row = Mapping[str, object]


def admission(hadm: int, subject: int = 0, **fields: object) -> Row:
    """A row of ADMISSIONS: an emergency that is survived after four and a half days."""
    usual = {"admittime": IN, "dischtime": OUT, "admission_type": "EMERGENCY", "hospital_expire_flag": 0}
    return usual | {"hadm_id": hadm, "subject_id": subject or hadm % 1000, "has_chartevents_data": 1} | fields


def note(hadm: int | str, text: str, subject: int = 0, **fields: object) -> Row:
    """A row of NOTEEVENTS: the report that is a discharge summary."""
    patient = subject or (hadm % 1000 if isinstance(hadm, int) else 1)
    usual = {"chartdate": "2101-01-05", "category": "Discharge summary", "description": "Report"}
    return usual | {"hadm_id": hadm, "subject_id": patient, "text": text} | fields


def code(hadm: int, icd9: str, seq_num: int = 1) -> Row:
    """A row of DIAGNOSES_ICD or PROCEDURES_ICD."""
    return {"hadm_id": hadm, "subject_id": hadm % 1000, "seq_num": seq_num, "icd9_code": icd9}


def write_table(folder: Path, table: str, rows: Iterable[Row], *, upper: bool = True, gz: bool = False) -> Path:
    """Writes a table as the full release (upper case, quoted header) or the demo (lower case) has it."""
    names = HEADERS[table].split(",")
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for number, row in enumerate(rows, start=1):
        writer.writerow([({"row_id": number} | dict(row)).get(name, "") for name in names])
    header, _, body = stream.getvalue().partition("\n")
    if upper:
        header = ",".join(f'"{name.upper()}"' for name in names)
    content = f"{header}\n{body}".encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{table}.csv" + ".gz" * gz)
    path.write_bytes(gzip.compress(content) if gz else content)
    return path
