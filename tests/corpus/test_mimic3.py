from __future__ import annotations

import errno
import io
import os
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from posology.corpus.mimic3 import find_table, read_admissions, read_first_codes, read_notes
from posology.errors import UserError
from posology.tasks.mimic_splits import read_patient_lists
from tests.data import corpus
from tests.mimic_tables import admission, code, note, write_table

SECRET = "Quillfeather"


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("upper", [False, True])
def test_admissions(tmp_path: Path, upper: bool, gz: bool) -> None:
    rows = [
        admission(100002, 7, hospital_expire_flag=1, admission_type="ELECTIVE"),
        admission(100001, 8, admittime="2101-01-01", dischtime="", hospital_expire_flag=""),
    ]
    path = write_table(tmp_path, "ADMISSIONS", rows, upper=upper, gz=gz)
    first, second = read_admissions(tmp_path).values()
    assert (first.hadm, first.subject, first.type, first.died) == (100001, 8, "EMERGENCY", None)
    assert (first.admitted, first.discharged) == (datetime(2101, 1, 1), None)
    assert (second.hadm, second.subject, second.type, second.died) == (100002, 7, "ELECTIVE", True)
    assert second.discharged == datetime(2101, 1, 5, 12)
    assert first.place == f"{path}, row 2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hadm_id": 100001}, r"row 2: HADM_ID 100001 is also in row 1"),
        ({"hadm_id": SECRET}, r"row 2: HADM_ID is not a whole number"),
        ({"hadm_id": "12.5"}, r"row 2: HADM_ID is not a whole number"),
        ({"subject_id": ""}, r"row 2: SUBJECT_ID is empty"),
        ({"dischtime": SECRET}, r"row 2: DISCHTIME is not a time like"),
        ({"hospital_expire_flag": 2}, r"row 2: HOSPITAL_EXPIRE_FLAG is 2 and should be 0 or 1"),
    ],
)
def test_bad_admissions(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_table(tmp_path, "ADMISSIONS", [admission(100001), admission(100002, **fields)])
    with pytest.raises(UserError, match=message) as caught:
        read_admissions(tmp_path)
    assert SECRET not in str(caught.value)


def test_codes_are_text_and_the_first_of_two_counts(tmp_path: Path) -> None:
    rows = [
        code(1, "4019", 2), code(1, "0389"), code(2, "41401", 3), code(3, ""), code(1, "486"), code(4, "V3001"),
        code(5, "486") | {"seq_num": "1.0", "hadm_id": "5.0"}, code(6, "486") | {"seq_num": ""},
    ]  # fmt: skip
    path = write_table(tmp_path, "DIAGNOSES_ICD", rows)
    problems: list[tuple[str, str]] = []
    codes = read_first_codes(tmp_path, "DIAGNOSES_ICD", problems)
    assert codes == {1: "0389", 3: "", 4: "V3001", 5: "486"}
    assert problems == [(f"{path}, row 5", "HADM_ID 1 has another row with SEQ_NUM 1: this one is left out")]


NOTES = [
    note(100001, 'Discharge "summary"\nof two lines', chartdate="2101-01-05", charttime="2101-01-05 10:00:00"),
    note(100002, f"{SECRET} sleeps", category="Nursing", chartdate="", charttime=""),
    note("", f"{SECRET} has no admission"),
    note("100003.0", "line one\r\nline two\r\n", description="Addendum", chartdate="2101-02-03 00:00:00"),
    note(100001, "", iserror=1, chartdate=""),
    note(100004, "Échographie", category="Echo "),
    note(100005, 'Discharge "summary"\nof two lines', category=" Discharge summary "),
]


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("block_bytes", [1, 50, 333, 2**20])
def test_notes(tmp_path: Path, block_bytes: int, gz: bool) -> None:
    path = write_table(tmp_path, "NOTEEVENTS", NOTES, gz=gz)
    with read_notes(tmp_path, block_bytes=block_bytes) as notes:
        first, addendum, empty, padded = notes.summaries
        texts = [notes.text(summary) for summary in reversed(notes.summaries)][::-1]
        assert notes.place(addendum) == f"{path}, row 4"
    assert texts == ['Discharge "summary"\nof two lines', "line one\nline two\n", "", texts[0]]
    assert (notes.rows, notes.without_admission) == (7, 1)
    assert notes.admissions == {100001, 100002, 100003, 100004, 100005}
    assert notes.categories == {"Discharge summary": 5, "Nursing": 1, "Echo": 1}
    assert (first.row, first.hadm, first.subject, first.description) == (1, 100001, 1, "Report")
    assert (first.date, first.time) == (date(2101, 1, 5), datetime(2101, 1, 5, 10))
    assert (addendum.hadm, addendum.date, addendum.time) == (100003, date(2101, 2, 3), None)
    assert (addendum.description, addendum.flagged) == ("Addendum", False)
    assert (empty.date, empty.length, empty.flagged) == (None, 0, True)
    assert padded.digest == first.digest != addendum.digest


def test_the_temporary_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    write_table(tmp_path, "NOTEEVENTS", NOTES)
    with read_notes(tmp_path) as notes:
        assert notes.text(notes.summaries[0]) and os.listdir(tmp_path / "scratch") == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    write_table(tmp_path, "NOTEEVENTS", NOTES)
    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with pytest.raises(UserError, match=r"cannot be written there \(No space left on device\).*TMPDIR"):
        with read_notes(tmp_path):
            pass


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"no notes with CATEGORY 'Discharge summary' among its 0 rows; found: none"),
        ([NOTES[1], NOTES[1], NOTES[5]], r"among its 3 rows; found: Nursing \(2\), Echo \(1\)"),
        ([NOTES[1] | {"category": SECRET * 9}], r"among its 1 rows; found: none"),
        ([NOTES[2]], r"none of its discharge summaries has a HADM_ID"),
        ([NOTES[1], NOTES[0] | {"subject_id": ""}], r"NOTEEVENTS\.csv, row 2: SUBJECT_ID is empty"),
        ([NOTES[0] | {"hadm_id": SECRET}], r"NOTEEVENTS\.csv, row 1: HADM_ID is not a whole number"),
        ([NOTES[1], NOTES[0] | {"chartdate": SECRET}], r"NOTEEVENTS\.csv, row 2: CHARTDATE is not a time"),
    ],
)
def test_bad_notes(tmp_path: Path, rows: list[Any], message: str) -> None:
    write_table(tmp_path, "NOTEEVENTS", rows)
    with pytest.raises(UserError, match=message) as caught:
        with read_notes(tmp_path):
            pass
    assert SECRET not in str(caught.value)


def test_a_broken_quote_is_named_by_its_line(tmp_path: Path) -> None:
    path = write_table(tmp_path, "NOTEEVENTS", NOTES)
    path.write_text(path.read_text().replace('of two lines"', "of two lines", 1))
    with pytest.raises(UserError, match=r"NOTEEVENTS\.csv:2: the row that begins here has a quote"):
        with read_notes(tmp_path):
            pass


def test_tables_are_found_in_any_case_unpacked_before_packed(tmp_path: Path) -> None:
    for name in ("noteevents.CSV.gz", "Admissions.csv", "ADMISSIONS.csv.gz", "PATIENTS.txt"):
        (tmp_path / name).touch()
    assert find_table(tmp_path, "NOTEEVENTS").name == "noteevents.CSV.gz"
    assert find_table(tmp_path, "ADMISSIONS").name == "Admissions.csv"
    with pytest.raises(
        UserError, match=r"no PROCEDURES_ICD\.csv or PROCEDURES_ICD\.csv\.gz, only ADMISSIONS\.csv\.gz, Adm"
    ):
        find_table(tmp_path, "PROCEDURES_ICD")
    with pytest.raises(UserError, match="there is no such folder"):
        find_table(tmp_path / "nowhere", "ADMISSIONS")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.csv or \.csv\.gz files"):
        find_table(tmp_path / "empty", "ADMISSIONS")


def test_the_true_tables_of_the_demo() -> None:
    folder = corpus("mimic-iii-demo")
    admissions = read_admissions(folder)
    assert len(admissions) == 129 and len({one.subject for one in admissions.values()}) == 100
    assert sum(bool(one.died) for one in admissions.values()) == 40
    codes = read_first_codes(folder, "DIAGNOSES_ICD", problems := [])
    assert len(codes) == 129 and codes[142345] == "99591" and not problems
    assert "0389" in codes.values()
    with pytest.raises(UserError, match=r"among its 0 rows"):
        with read_notes(folder):
            pass


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    for read in (lambda: find_table(tmp_path, "ADMISSIONS"), lambda: read_patient_lists(tmp_path)):
        with pytest.raises(UserError, match=r"cannot be listed \(Permission denied\)"):
            read()
