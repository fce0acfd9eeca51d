"""MIMIC-III tables as they are downloaded: `NAME.csv` or `NAME.csv.gz`, the header in either case.

Small tables are read whole. NOTEEVENTS (two million rows, 4 GB) is read in blocks of bytes: what stays are facts about
the discharge summaries, whose texts wait in a temporary file. Format: https://mimic.mit.edu/docs/iii/tables/
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import BinaryIO

import polars as pl

from posology.console import progress
from posology.corpus import csvblocks
from posology.corpus.textfile import entries_of
from posology.errors import UserError

DISCHARGE = "Discharge summary"
"""The CATEGORY of discharge summaries."""

COLUMNS: dict[str, Sequence[str]] = {
    "ADMISSIONS": ("subject_id", "hadm_id", "admittime", "dischtime", "admission_type", "hospital_expire_flag"),
    "PATIENTS": ("subject_id", "gender", "dob"),
    "DIAGNOSES_ICD": ("hadm_id", "seq_num", "icd9_code"),
    "PROCEDURES_ICD": ("hadm_id", "seq_num", "icd9_code"),
    "NOTEEVENTS": ("subject_id", "hadm_id", "chartdate", "charttime", "category", "description", "iserror", "text"),
}
"""The tables that are read, and what is read of them."""

_TIMES = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d")


@dataclass(frozen=True, slots=True)
class Admission:
    """A row of ADMISSIONS.

    Attributes:
        type: ADMISSION_TYPE, such as `EMERGENCY` or `NEWBORN`; empty where the field is.
        died: in hospital; None where the flag is empty.
        place: `file, row N`, rows counted from 1 without the header.
    """

    subject: int
    hadm: int
    type: str
    admitted: datetime | None
    discharged: datetime | None
    died: bool | None
    place: str


@dataclass(frozen=True, slots=True)
class Summary:
    """A discharge summary that names its admission, without its text.

    Attributes:
        row: in NOTEEVENTS, from 1, without the header.
        description: `Report` or `Addendum`.
        flagged: whether ISERROR says that it was filed by mistake.
        digest: 16 bytes, equal for equal texts.
        offset, length: where `Notes.text` finds the text, in bytes; the length is 0 where TEXT is empty.
    """

    row: int
    subject: int
    hadm: int
    date: date | None
    time: datetime | None
    description: str
    flagged: bool
    digest: bytes
    offset: int
    length: int


@dataclass
class Notes:
    """What NOTEEVENTS holds, as far as the discharge summaries go.

    Attributes:
        summaries: in the order of the file; those without HADM_ID are only counted.
        rows: of the whole table.
        admissions: HADM_IDs that any note names.
        without_admission: discharge summaries without HADM_ID.
        categories: rows by CATEGORY.
    """

    path: Path
    _texts: BinaryIO
    summaries: list[Summary] = field(default_factory=list)
    rows: int = 0
    admissions: set[int] = field(default_factory=set)
    without_admission: int = 0
    categories: Counter[str] = field(default_factory=Counter)

    def text(self, summary: Summary) -> str:
        """The text of a summary, its line ends as LF."""
        self._texts.seek(summary.offset)
        return self._texts.read(summary.length).decode()

    def place(self, summary: Summary) -> str:
        """`file, row N`."""
        return f"{self.path}, row {summary.row}"


def find_table(folder: Path, name: str) -> Path:
    """The file of a table, `.csv` before `.csv.gz`, whatever the case of its name.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError("there is no such folder", "Name the folder that holds the tables of MIMIC-III", folder)
    entries = [path for path in entries_of(folder) if path.is_file()]
    for ending in (".csv", ".csv.gz"):
        for path in entries:
            if path.name.lower() == name.lower() + ending:
                return path
    tables = [path.name for path in entries if path.name.lower().endswith((".csv", ".csv.gz"))]
    found = ", ".join(tables[:30]) + (" ..." if len(tables) > 30 else "")
    raise UserError(
        f"there is no {name}.csv or {name}.csv.gz, only {found}" if tables else "holds no .csv or .csv.gz files",
        f"Put {name} there, or name the folder that holds it",
        folder,
    )


def read_admissions(folder: Path) -> dict[int, Admission]:
    """The admissions by HADM_ID, ascending.

    Raises:
        UserError: table or column missing, a field that is no number, time or flag, or a HADM_ID that occurs twice.
    """
    path, frame = _read_whole(folder, "ADMISSIONS")
    frame = frame.with_columns(
        _numbers(frame, "subject_id", path, required=True),
        _numbers(frame, "hadm_id", path, required=True),
        _numbers(frame, "hospital_expire_flag", path),
        _times(frame, "admittime", path),
        _times(frame, "dischtime", path),
    )
    admissions: dict[int, Admission] = {}
    for row in frame.sort("hadm_id", "row").iter_rows(named=True):
        place = f"{path}, row {row['row']}"
        if row["hadm_id"] in admissions:
            raise UserError(
                f"HADM_ID {row['hadm_id']} is also in row {admissions[row['hadm_id']].place.rpartition(' ')[2]}",
                "Keep one row for each admission",
                place,
            )
        died = row["hospital_expire_flag"]
        if died not in (0, 1, None):
            raise UserError(f"HOSPITAL_EXPIRE_FLAG is {died} and should be 0 or 1", "Mend the field", place)
        admissions[row["hadm_id"]] = Admission(
            row["subject_id"],
            row["hadm_id"],
            (row["admission_type"] or "").strip().upper(),
            row["admittime"],
            row["dischtime"],
            None if died is None else bool(died),
            place,
        )
    return admissions


def read_first_codes(folder: Path, table: str, problems: list[tuple[str, str]]) -> dict[int, str]:
    """The ICD-9 code of the SEQ_NUM 1 row of each admission that has one; empty where the code is.

    Args:
        table: `DIAGNOSES_ICD` or `PROCEDURES_ICD`.
        problems: gets a second SEQ_NUM 1 row of an admission, which is left out.

    Raises:
        UserError: table or column missing, or a number that is none.
    """
    path, frame = _read_whole(folder, table)
    frame = frame.with_columns(_numbers(frame, "hadm_id", path), _numbers(frame, "seq_num", path))
    codes: dict[int, str] = {}
    for row, hadm, _, code in frame.filter(pl.col("seq_num") == 1, pl.col("hadm_id").is_not_null()).iter_rows():
        if hadm in codes:
            problems.append(
                (f"{path}, row {row}", f"HADM_ID {hadm} has another row with SEQ_NUM 1: this one is left out")
            )
        else:
            codes[hadm] = (code or "").strip()
    return codes


def read_codes(folder: Path, table: str) -> dict[int, list[str]]:
    """The ICD-9 codes of each admission in the order of SEQ_NUM; rows that lack a field are left out.

    Raises:
        UserError: table or column missing, or a number that is none.
    """
    path, frame = _read_whole(folder, table)
    frame = frame.with_columns(_numbers(frame, "hadm_id", path), _numbers(frame, "seq_num", path)).drop_nulls()
    codes: dict[int, list[str]] = {}
    for _, hadm, _, code in frame.sort("seq_num", "row").iter_rows():
        codes.setdefault(hadm, []).append(code.strip())
    return codes


def read_patients(folder: Path) -> dict[int, tuple[str, datetime | None]]:
    """GENDER and date of birth by SUBJECT_ID.

    Raises:
        UserError: table or column missing, or a field that is no number or time.
    """
    path, frame = _read_whole(folder, "PATIENTS")
    frame = frame.with_columns(_numbers(frame, "subject_id", path, required=True), _times(frame, "dob", path))
    return {subject: ((gender or "").strip().upper(), born) for _, subject, gender, born in frame.iter_rows()}


@contextlib.contextmanager
def read_notes(folder: Path, *, block_bytes: int = csvblocks.BLOCK_BYTES) -> Iterator[Notes]:
    """Reads NOTEEVENTS; the texts can be had until the block ends.

    Memory does not grow with the table but for some 300 bytes for each discharge summary. The temporary file has no
    name, so nothing of it survives the process; it lies where TMPDIR says.

    Raises:
        UserError: table or column missing, a broken row, no discharge summaries, or no room for their texts.
    """
    path = find_table(folder, "NOTEEVENTS")
    with tempfile.TemporaryFile() as texts, progress(f"Reading {path.name}", path.stat().st_size) as advance:
        notes = Notes(path, texts)
        for frame in csvblocks.read_blocks(path, COLUMNS["NOTEEVENTS"], advance, block_bytes):
            _take(frame, notes)
        if not notes.summaries:
            raise _no_summaries(notes)
        yield notes


def _take(frame: pl.DataFrame, notes: Notes) -> None:
    """Adds a block of NOTEEVENTS."""
    notes.rows += frame.height
    frame = frame.with_columns(_numbers(frame, "hadm_id", notes.path), pl.col("category").str.strip_chars())
    notes.admissions.update(frame["hadm_id"].drop_nulls().unique())
    for category, number in frame["category"].value_counts().iter_rows():
        notes.categories[category or ""] += number
    frame = frame.filter(pl.col("category") == DISCHARGE)
    notes.without_admission += frame["hadm_id"].null_count()
    frame = frame.filter(pl.col("hadm_id").is_not_null())
    frame = frame.with_columns(
        _numbers(frame, "subject_id", notes.path, required=True),
        _times(frame, "chartdate", notes.path),
        _times(frame, "charttime", notes.path),
        pl.col("description").str.strip_chars().fill_null(""),
        pl.col("iserror").str.strip_chars().is_in(["1", "1.0"]).fill_null(False),
        pl.col("text").str.replace_all("\r\n", "\n", literal=True).fill_null(""),
    )
    offset = notes.summaries[-1].offset + notes.summaries[-1].length if notes.summaries else 0
    try:
        for row, subject, hadm, day, time, _, description, flagged, text in frame.iter_rows():
            content = text.encode()
            notes._texts.write(content)
            digest = hashlib.blake2b(content, digest_size=16).digest()
            day = day.date() if day else None
            notes.summaries.append(
                Summary(row, subject, hadm, day, time, description, flagged, digest, offset, len(content))
            )
            offset += len(content)
        notes._texts.flush()
    except OSError as error:
        raise UserError(
            f"the texts of discharge summaries cannot be written there ({error.strerror or error})",
            "Free some space, or name a folder on another disk in the environment variable TMPDIR",
            tempfile.gettempdir(),
        ) from error


def _no_summaries(notes: Notes) -> UserError:
    if notes.without_admission:
        return UserError("none of its discharge summaries has a HADM_ID", "Give the table as downloaded", notes.path)
    # A category is text too where columns are mixed up; the true ones are short.
    known = [f"{name} ({number})" for name, number in notes.categories.most_common(20) if 0 < len(name) <= 30]
    return UserError(
        f"has no notes with CATEGORY {DISCHARGE!r} among its {notes.rows} rows; found: {', '.join(known) or 'none'}",
        "Give the table as downloaded",
        notes.path,
    )


def _read_whole(folder: Path, name: str) -> tuple[Path, pl.DataFrame]:
    path = find_table(folder, name)
    with progress(f"Reading {path.name}", path.stat().st_size) as advance:
        return path, pl.concat(csvblocks.read_blocks(path, COLUMNS[name], advance))


def _numbers(frame: pl.DataFrame, column: str, path: Path, *, required: bool = False) -> pl.Series:
    """The column as integers; `123.0` is one too, since other programs write columns with gaps like that."""
    found = frame[column].str.strip_chars()
    numbers = found.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)
    _check(frame, numbers, column, path, "a whole number", required=required)
    return numbers


def _times(frame: pl.DataFrame, column: str, path: Path) -> pl.Series:
    found = frame[column].str.strip_chars()
    times = found.str.to_datetime(_TIMES[0], strict=False)
    if times.null_count() > found.null_count():
        tried = [found.str.to_datetime(format, strict=False) for format in _TIMES]
        times = pl.select(pl.coalesce(tried)).to_series().alias(column)
    _check(frame, times, column, path, "a time like 2101-10-20 19:08:00")
    return times


def _check(
    frame: pl.DataFrame, read: pl.Series, column: str, path: Path, expected: str, *, required: bool = False
) -> None:
    """Raises UserError for the first field that is not what was expected; never with what stands there."""
    wrong = read.is_null() if required else read.is_null() & frame[column].is_not_null()
    if wrong.any():
        row = frame.row(wrong.arg_true()[0], named=True)
        what = "is empty" if row[column] is None else f"is not {expected}"
        raise UserError(f"{column.upper()} {what}", "Mend the row", f"{path}, row {row['row']}")
