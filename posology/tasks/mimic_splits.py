"""How the MIMIC-III tasks are split: by a hash of the patient, by lists of patients, or at random by admission."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

from posology.corpus.textfile import bare_name, entries_of, lines_of, read_text
from posology.errors import UserError
from posology.tasks.prepared import SPLITS
from posology.tasks.split import split_of_name

HASHED = (
    "Patients are split 70/10/20 by their SUBJECT_ID: the first eight bytes of the SHA-256 of its decimal digits, as a "
    "fraction of 2^64, are below 0.7 in training and below 0.8 in validation."
)


def hashed_split(subject: int) -> str:
    """The split of a patient, the same on every machine and whoever else is in the data."""
    digest = hashlib.sha256(str(subject).encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if fraction < 0.7 else "validation" if fraction < 0.8 else "test"


def random_split(number: int, place: object) -> list[str]:
    """60/20/20 as the published triage code drew it: twice scikit-learn's `train_test_split` with seed 42.

    Raises:
        UserError: there are too few for three splits.
    """
    from sklearn.model_selection import train_test_split

    if number < 4:
        raise UserError(f"{number} admissions are left, too few for three splits", "Give more admissions", place)
    train, rest = train_test_split(range(number), test_size=0.4, random_state=42)
    # What the published code calls validation is its test set, and the other way round.
    test, validation = train_test_split(rest, test_size=0.5, random_state=42)
    members = {"train": train, "validation": validation, "test": test}
    split_of = {member: split for split in SPLITS for member in members[split]}
    return [split_of[member] for member in range(number)]


def read_patient_lists(folder: Path) -> dict[int, str]:
    """Splits by SUBJECT_ID, from files called train, val (or dev ...) and test, `mimic_` before it or not.

    A `.txt` has one id on each line; of a `.csv` the column `SUBJECT_ID` counts, or the first one. The lists of the
    published code can be used as they are.

    Raises:
        UserError: a list is missing, an entry is no SUBJECT_ID, or a patient is in two lists.
    """
    if not folder.is_dir():
        raise UserError("there is no such folder", "Name a folder with train.csv, val.csv and test.csv", folder)
    lists: dict[str, Path] = {}
    for path in entries_of(folder):
        split = split_of_name(bare_name(path).lower().removeprefix("mimic_"))
        if split and path.suffix.lower() in (".txt", ".csv"):
            if split in lists:
                raise UserError(f"{lists[split].name} and {path.name} are both lists of {split}", "Keep one", folder)
            lists[split] = path
    missing = [split for split in SPLITS if split not in lists]
    if missing:
        raise UserError(
            f"has no list of {missing[0]} patients",
            "Put train, val and test there, each .txt or .csv, with one SUBJECT_ID on each line",
            folder,
        )
    splits: dict[int, str] = {}
    for split in SPLITS:
        for line, subject in _subjects(lists[split]):
            if splits.setdefault(subject, split) != split:
                raise UserError(
                    f"patient {subject} is in the list of {splits[subject]}, too",
                    "Remove the patient from one of them",
                    f"{lists[split]}:{line}",
                )
    return splits


def _subjects(path: Path) -> list[tuple[int, int]]:
    """`(line, SUBJECT_ID)` of each entry."""
    fields = [[line] for line in lines_of(read_text(path))]
    column = 0
    if path.suffix.lower() == ".csv":
        fields = [next(csv.reader(line), []) for line in fields]
        header = [name.strip().lower() for name in fields[0]] if fields else []
        column = header.index("subject_id") if "subject_id" in header else 0
    rows = [(line, row[column]) for line, row in enumerate(fields, start=1) if len(row) > column]
    entries = [(line, text.strip().removesuffix(".0")) for line, text in rows if text.strip()]
    if entries and not entries[0][1].isdecimal():
        entries = entries[1:]  # a header
    for line, text in entries:
        if not text.isdecimal():
            raise UserError("is no SUBJECT_ID", "Write one whole number on each line", f"{path}:{line}")
    return [(line, int(text)) for line, text in entries]
