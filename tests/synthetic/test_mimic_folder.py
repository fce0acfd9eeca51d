from __future__ import annotations

import random
import shutil
from pathlib import Path

import polars as pl
import pytest

from posology.errors import UserError
from posology.synthetic.hospital import Patient, make_hospital
from posology.synthetic.mimic import COLUMNS, broken, note_rows, write_mimic
from posology.synthetic.mimic_tables import write_notes_for
from tests.data import corpus

PATIENTS, SEED = 250, 9


def table(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_csv(folder / f"{name}.csv", infer_schema_length=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hospital") / "mimic-iii"
    counts = write_mimic(make_hospital(PATIENTS, SEED), made, SEED)
    assert counts == {name.lower(): table(made, name).height for name in COLUMNS}
    return made


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    return list(make_hospital(PATIENTS, SEED))


def test_columns_and_quoting(folder: Path):
    for name, columns in COLUMNS.items():
        lines = (folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()
        assert lines[0] == ",".join(f'"{column}"' for column in columns.split(","))
        assert table(folder, name)["ROW_ID"].to_list() == [
            str(number + 1) for number in range(table(folder, name).height)
        ]
    second = (folder / "DIAGNOSES_ICD.csv").read_text(encoding="utf-8").splitlines()[1].split(",")
    assert second[4].startswith('"') and not second[1].startswith('"')


def test_tables_are_the_state(folder: Path, patients: list[Patient]):
    stays = {str(one.id): (patient, one) for patient in patients for one in patient.admissions}
    admissions = table(folder, "ADMISSIONS")
    assert set(admissions["HADM_ID"]) == set(stays)
    for row in admissions.iter_rows(named=True):
        patient, one = stays[row["HADM_ID"]]
        assert row["SUBJECT_ID"] == str(patient.id)
        assert row["ADMITTIME"] == f"{one.admitted:%Y-%m-%d %H:%M:%S}" and row["DISCHTIME"] >= row["ADMITTIME"]
        assert row["HOSPITAL_EXPIRE_FLAG"] == str(int(one.died)) and bool(row["DEATHTIME"]) == one.died
    for name in ("DIAGNOSES_ICD", "PROCEDURES_ICD"):
        for (stay,), rows in table(folder, name).group_by("HADM_ID"):
            codes = rows.sort(pl.col("SEQ_NUM").cast(int))["ICD9_CODE"].to_list()
            assert codes == (stays[stay][1].diagnoses if name == "DIAGNOSES_ICD" else stays[stay][1].procedures)
    first = table(folder, "DIAGNOSES_ICD").filter(pl.col("SEQ_NUM") == "1")["ICD9_CODE"]
    assert "0389" in first.to_list()


def test_notes(folder: Path, patients: list[Patient]):
    notes = table(folder, "NOTEEVENTS")
    reports = notes.filter((pl.col("CATEGORY") == "Discharge summary") & (pl.col("DESCRIPTION") == "Report"))
    assert reports.height == reports["HADM_ID"].n_unique() == sum(len(patient.admissions) for patient in patients)
    assert reports["CHARTTIME"].null_count() == reports.height
    texts = reports["TEXT"].to_list()
    assert all(text.startswith("Admission Date:  [**2") and text.count("\n\n") > 4 for text in texts)
    assert sum("\n\nHistory of Present Illness:\n" in text for text in texts) > 0.7 * len(texts)
    assert any('"' in text for text in notes["TEXT"])
    addenda = notes.filter(pl.col("DESCRIPTION") == "Addendum")
    assert addenda.height > 5 and all("Addendum:" in text for text in addenda["TEXT"])
    assert notes["HADM_ID"].null_count() > 0
    assert set(notes["CATEGORY"]) >= {"Nursing", "Radiology", "ECG", "Echo", "Physician ", "Discharge summary"}
    assert max(len(line) for text in texts for line in text.splitlines()) < 400


def test_some_texts_occur_with_two_admissions():
    patients = [patient for patient in make_hospital(1000, SEED) if len(patient.admissions) > 1]
    rows = [row for patient in patients for row in note_rows(patient, random.Random(patient.id), short_notes=False)]
    assert 0 < len(rows) - len({row[-1] for row in rows}) < 0.05 * len(rows)


def test_the_same_seed_gives_the_same_files(folder: Path, tmp_path: Path):
    write_mimic(make_hospital(20, SEED), tmp_path, SEED)
    for name in COLUMNS:
        assert (folder / f"{name}.csv").read_text().startswith((tmp_path / f"{name}.csv").read_text())
    write_mimic(make_hospital(20, SEED), tmp_path / "other", SEED + 1)
    assert (tmp_path / "other/NOTEEVENTS.csv").read_text() != (tmp_path / "NOTEEVENTS.csv").read_text()


def test_lines_are_broken_at_blanks():
    text = "one two three four [**Known lastname 12**] " + "x" * 30
    lines = broken(text, 12).split("\n")
    assert " ".join(lines) == text
    assert all(len(line) <= 12 for line in lines[:-1]) and broken("short", 12) == "short"


def test_notes_for_true_tables(tmp_path: Path):
    tables = corpus("mimic-iii-demo")
    counts = write_notes_for(tables, tmp_path, 7)
    assert counts["admissions"] == 129 and counts["patients"] == 100 and counts["diagnoses_icd"] == 1761
    for name in ("ADMISSIONS", "PATIENTS", "DIAGNOSES_ICD"):
        assert (tmp_path / f"{name}.csv").read_bytes() == (tables / f"{name}.csv").read_bytes()
    notes, admissions = table(tmp_path, "NOTEEVENTS"), table(tables, "ADMISSIONS")
    assert notes.columns == COLUMNS["NOTEEVENTS"].lower().split(",")
    reports = notes.filter((pl.col("category") == "Discharge summary") & (pl.col("description") == "Report"))
    assert set(reports["hadm_id"]) == set(admissions["hadm_id"])
    died = set(admissions.filter(pl.col("hospital_expire_flag") == "1")["hadm_id"])
    told = {
        row["hadm_id"]
        for row in reports.iter_rows(named=True)
        if "\n\nDischarge Medications:" not in row["text"].title()
    }
    assert died <= told
    procedures = table(tmp_path, "PROCEDURES_ICD")
    assert procedures.columns == COLUMNS["PROCEDURES_ICD"].lower().split(",")
    assert set(procedures["hadm_id"]) <= set(admissions["hadm_id"]) and procedures["hadm_id"].n_unique() > 80


def test_missing_tables_and_columns(tmp_path: Path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    with pytest.raises(UserError, match=r"holds no \.csv"):
        write_notes_for(source, out, 1)
    for name in ("PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD"):
        (source / f"{name}.csv").write_text(COLUMNS[name].replace("ADMITTIME,", "") + "\n")
    with pytest.raises(UserError, match="column ADMITTIME is missing"):
        write_notes_for(source, out, 1)
    assert not out.exists()


@pytest.mark.parametrize(
    ("table", "old", "new", "sentence"),
    [
        ("PATIENTS", "10006", "ten", "SUBJECT_ID is not a whole number"),
        ("ADMISSIONS", "2164-10-23 21:09:00", "", "ADMITTIME, DISCHTIME or the patient's DOB is empty"),
        ("ADMISSIONS", "2164-10-23 21:09:00", "yesterday", "ADMITTIME is not a time"),
        ("ADMISSIONS", "12258,10006", "12258,99999", "SUBJECT_ID 99999 is not in PATIENTS"),
        ("DIAGNOSES_ICD", "112344,10006,142345,1", "112344,10006,142345,one", "SEQ_NUM is not a whole number"),
    ],
)
def test_damaged_tables_are_told_with_their_row(tmp_path: Path, table: str, old: str, new: str, sentence: str) -> None:
    source = tmp_path / "in"
    shutil.copytree(corpus("mimic-iii-demo"), source)
    path = source / f"{table}.csv"
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.chmod(0o600)
    path.write_text(content.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as refusal:
        write_notes_for(source, tmp_path / "out", 1)
    assert sentence in str(refusal.value)
    assert f"{table}.csv, row 1:" in str(refusal.value)
    assert not (tmp_path / "out").exists()
