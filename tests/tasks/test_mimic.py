from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from posology.errors import UserError
from posology.tasks.built import Built, Protocol
from posology.tasks.mimic import build
from posology.tasks.mimic_splits import hashed_split, random_split, read_patient_lists
from tests.data import corpus
from tests.mimic_tables import Row, admission, code, note, write_table

BOTH: Sequence[Protocol] = ("paper", "standard")
SECRET = "Quillfeather"
TRAIN, VALIDATION, TEST = 1, 24, 2
"""Patients, by the split that their hash puts them in."""


def _text(complaint: str, course: str = "Got better.") -> str:
    return (
        f"Chief Complaint:\n{complaint}\n\nHistory of Present Illness:\nCame by car.\n\n"
        f"Past Medical History:\nGout.\n\nSocial History:\nBaker.\n\nBrief Hospital Course:\n{course}\n"
    )


def _paper_text(complaint: str) -> str:
    return (
        f"CHIEF COMPLAINT: {complaint}\n\nPRESENT ILLNESS: Came by car.\n\nMEDICAL HISTORY: Gout.\n\n"
        "MEDICATION ON ADMISSION: \n\nALLERGIES: \n\nPHYSICAL EXAM: \n\nFAMILY HISTORY: \n\nSOCIAL HISTORY: Baker."
    )


def _standard_text(complaint: str) -> str:
    return (
        f"CHIEF COMPLAINT: {complaint}\n\nPRESENT ILLNESS: Came by car.\n\nMEDICAL HISTORY: Gout.\n\n"
        "SOCIAL HISTORY: Baker."
    )


def _tables(folder: Path, admissions: Iterable[Row], notes: Iterable[Row], **form: bool) -> Path:
    write_table(folder, "ADMISSIONS", admissions, **form)
    write_table(folder, "NOTEEVENTS", notes, **form)
    return folder


def _steps(built: Built) -> dict[str, int]:
    """What was left out, in order, and who is left under an empty key."""
    assert built.flow is not None
    assert built.flow.left == sum(len(documents) for documents in built.splits.values())
    return {reason: number for reason, number in built.flow.steps if number} | {"": built.flow.left}


def _labels(built: Built) -> dict[str, str | None]:
    return {one.id: one.label for documents in built.splits.values() for one in documents}


def _texts(built: Built) -> dict[str, str]:
    return {one.id: one.text for documents in built.splits.values() for one in documents}


# Whom the flow of mortality and length of stay leaves out, and why, in one small hospital.
HOSPITAL = [
    admission(101, TRAIN),
    admission(102, VALIDATION),
    admission(103, TEST, hospital_expire_flag=1),
    admission(104, TRAIN, admission_type="NEWBORN"),
    admission(105, TRAIN),  # has no note at all
    admission(106, TRAIN),  # has a nurse's note only
    admission(107, TRAIN),  # its summary is filed again, later, for 108
    admission(108, TRAIN),
    admission(109, TRAIN),  # has an addendum and no report
    admission(110, TRAIN),  # its report is flagged as an error
    admission(111, TRAIN),  # its report is empty
    admission(112, TRAIN),  # its report has no section of the admission
    admission(113, TRAIN, hospital_expire_flag=1, dischtime="2100-12-31 23:00:00"),
    admission(114, TRAIN, dischtime="2100-12-31 00:00:00"),
    admission(115, TRAIN, dischtime=""),
    admission(116, TRAIN, hospital_expire_flag=""),
]
NOTES = [
    note(101, "ADDENDUM: swallowed pill.", TRAIN, description="Addendum", chartdate="2101-01-07"),
    note(101, _text("cough"), TRAIN),
    note(101, "Sleeps.", TRAIN, category="Nursing"),
    note(102, _text("fever"), VALIDATION),
    note(102, _text("fever"), VALIDATION),  # filed twice
    note(103, _text("rash", "Patient expired."), TEST),
    note(104, _text("birth"), TRAIN),
    note(106, _text("fatigue"), TRAIN, category="Nursing"),
    note(108, _text("chills"), TRAIN, chartdate="2101-03-01"),
    note(107, _text("chills"), TRAIN, chartdate="2101-02-01"),
    note(109, _text("thirst"), TRAIN, description="Addendum"),
    note(110, _text("nausea"), TRAIN, iserror=1),
    note(111, "", TRAIN),
    note(112, "Discharge Condition:\nGood.\n\n", TRAIN),
    note(113, _text("the patient expired"), TRAIN),
    note(114, _text("vertigo"), TRAIN),
    note(115, _text("itching"), TRAIN),
    note(116, _text("cramps"), TRAIN),
    note("", _text("nobody"), TRAIN),
    note(999, _text("unknown"), TRAIN),
]
ALL_EMPTY = "chief complaint, present illness and medical history all empty"
NONE = "no chief complaint, present illness or medical history"


@pytest.mark.parametrize("form", [{}, {"upper": False}, {"gz": True}, {"upper": False, "gz": True}])
def test_mortality_as_published(tmp_path: Path, form: dict[str, bool]) -> None:
    built = build("mimic-mp", _tables(tmp_path, HOSPITAL, NOTES, **form), "paper")
    assert _steps(built) == {
        "newborn": 1,
        "not in NOTEEVENTS": 1,
        "no discharge summary": 2,  # 106 and 111
        "its text is that of a later admission": 1,
        "no summary is a Report": 1,
        "HOSPITAL_EXPIRE_FLAG is empty": 1,
        ALL_EMPTY: 1,
        "a death is told of": 1,  # 113
        "class that training lacks": 1,  # 103 is the only one who died
        "": 6,
    }
    assert built.labels == ["survived"]
    texts = _texts(built)
    # The addendum is joined, and its heading ends the last section of the report.
    assert texts["101"] == _paper_text("cough")
    assert texts["110"] == _paper_text("nausea")  # the published code does not look at ISERROR
    assert list(texts) == ["101", "108", "110", "114", "115", "102"]
    assert built.metric == "macro_f1" and built.defects
    assert built.counts["discharge_summaries"] == 18 and built.counts["notes"] == 20
    assert built.counts["discharge_summaries_without_admission"] == 1
    assert built.counts["discharge_summaries_of_unknown_admissions"] == 1
    assert built.files == [
        "NOTEEVENTS.csv" + ".gz" * form.get("gz", False),
        "ADMISSIONS.csv" + ".gz" * form.get("gz", False),
    ]


@pytest.mark.parametrize("form", [{}, {"upper": False, "gz": True}])
def test_mortality_done_right(tmp_path: Path, form: dict[str, bool]) -> None:
    built = build("mimic-mp", _tables(tmp_path, HOSPITAL, NOTES, **form), "standard")
    assert _steps(built) == {
        "newborn": 1,
        "not in NOTEEVENTS": 1,
        "no discharge summary": 1,  # 106
        "every discharge summary is flagged as an error": 1,
        "every discharge summary is empty": 1,
        "every discharge summary is filed under other admissions, too": 2,  # 107 and 108
        "HOSPITAL_EXPIRE_FLAG is empty": 1,
        NONE: 1,
        "": 7,
    }
    assert built.labels == ["survived", "died"]
    assert _labels(built) == dict.fromkeys(("101", "102", "109", "114", "115"), "survived") | {
        "103": "died",
        "113": "died",
    }
    assert [one.id for one in built.splits["validation"]] == ["102"]
    assert [one.id for one in built.splits["test"]] == ["103"]
    texts = _texts(built)
    assert texts["102"] == _standard_text("fever")
    assert "expired" not in texts["113"] and "Came by car." in texts["113"]
    assert sum(number for key, number in built.counts.items() if key.startswith("leak_removed")) == 1
    assert {one.group for one in built.splits["train"]} == {str(TRAIN)}
    assert built.counts["texts_filed_under_several_admissions"] == 2
    assert built.counts["repeated_texts_left_out"] == 1
    assert built.metric == "auroc" and not built.defects
    assert not built.problems


def test_length_of_stay_as_published(tmp_path: Path) -> None:
    built = build("mimic-los", _tables(tmp_path, HOSPITAL, NOTES), "paper")
    assert _steps(built) == {
        "newborn": 1,
        "not in NOTEEVENTS": 1,
        "no discharge summary": 2,
        "its text is that of a later admission": 1,
        "no summary is a Report": 1,
        "HOSPITAL_EXPIRE_FLAG is empty": 1,
        "died in hospital": 2,
        "ADMITTIME or DISCHTIME is empty": 1,
        ALL_EMPTY: 1,
        "": 5,
    }
    assert _labels(built) == dict.fromkeys(("101", "108", "110", "102"), "3-7 days") | {"114": "<=3 days"}
    ((place, what),) = built.problems
    assert place.endswith("ADMISSIONS.csv, row 14")
    assert what == "DISCHTIME of HADM_ID 114 is before ADMITTIME: its class is that of the shortest stays"


def test_length_of_stay_done_right(tmp_path: Path) -> None:
    built = build("mimic-los", _tables(tmp_path, HOSPITAL, NOTES), "standard")
    steps = _steps(built)
    assert (steps["died in hospital"], steps["ADMITTIME or DISCHTIME is empty"]) == (2, 1)
    assert steps["DISCHTIME is before ADMITTIME"] == 1
    assert _labels(built) == dict.fromkeys(("101", "102", "109"), "3-7 days")
    ((place, what),) = built.problems
    assert place.endswith("ADMISSIONS.csv, row 14") and what.endswith("HADM_ID 114 is before ADMITTIME: it is left out")


@pytest.mark.parametrize(
    ("discharged", "paper", "standard"),
    [
        ("2101-01-04 00:00:00", "<=3 days", "<=3 days"),
        ("2101-01-04 01:00:00", "<=3 days", "3-7 days"),  # 3.04 days
        ("2101-01-08 00:00:00", "3-7 days", "3-7 days"),
        ("2101-01-15 00:00:00", "7-14 days", "7-14 days"),
        ("2101-01-15 12:00:00", ">14 days", ">14 days"),
    ],
)
def test_classes_of_stays(tmp_path: Path, discharged: str, paper: str, standard: str) -> None:
    _tables(tmp_path, [admission(1, TRAIN, dischtime=discharged)], [note(1, _text("cough"), TRAIN)])
    assert [_labels(build("mimic-los", tmp_path, protocol)) for protocol in BOTH] == [{"1": paper}, {"1": standard}]


def test_notes_are_joined_by_date_and_reports_go_first(tmp_path: Path) -> None:
    admissions = [admission(1, TRAIN)]
    notes = [
        note(1, "Allergies:\nNuts.\n\nDischarge Condition:\nGood.\n", TRAIN, description="Addendum"),
        note(1, _text("later"), TRAIN, chartdate="2101-01-09"),
        note(1, _text("earlier"), TRAIN),
    ]
    _tables(tmp_path, admissions, notes)
    # The paper's first match decides, and rows of one date keep their order: the addendum comes first.
    assert _texts(build("mimic-mp", tmp_path, "paper"))["1"] == _paper_text("earlier").replace(
        "ALLERGIES: ", "ALLERGIES: Nuts."
    )
    built = build("mimic-mp", tmp_path, "standard")
    assert _texts(built)["1"].startswith("CHIEF COMPLAINT: earlier\nlater\n\n")
    assert built.splits["train"][0].place.endswith("NOTEEVENTS.csv, row 3")


def test_a_note_of_another_patient_is_told(tmp_path: Path) -> None:
    notes = [note(1, _text("cough"), TEST), note(2, _text("rash"), TRAIN)]
    built = build("mimic-mp", _tables(tmp_path, [admission(1, TRAIN), admission(2, TRAIN)], notes), "standard")
    ((place, what),) = built.problems
    assert place.endswith("NOTEEVENTS.csv, row 1")
    assert what == "SUBJECT_ID is not that of HADM_ID 1 in ADMISSIONS, which counts"
    assert {one.group for one in built.splits["train"]} == {str(TRAIN)}


TRIAGED: dict[int, tuple[int, str | None, str | None, list[str]]] = {
    # HADM_ID: patient, code of the first diagnosis and procedure, discharge summaries
    201: (TRAIN, "41401", "3601", ["heart attack 1", "heart attack 2", "much better"]),  # a digit is the difference
    202: (TRAIN, "0389", "3601", ["sepsis"]),
    203: (TRAIN, "V3001", "3601", ["baby"]),
    204: (TRAIN, "4019", "3601", ["hypertension"]),
    205: (TRAIN, "", "3601", ["row without a code"]),
    206: (TRAIN, "486", None, ["pneumonia"]),
    207: (TRAIN, None, "3601", ["without first diagnosis"]),
    208: (TRAIN, "5789", "", ["bleeding"]),  # the procedure has a row and no code
    209: (TRAIN, "431", "3601", ["heart attack 3"]),
    210: (TRAIN, "431", "3601", ["[**2101-1-3**] 77"]),
    211: (VALIDATION, "4280", "3601", ["heart failure"]),
    212: (TRAIN, "4280", "3601", []),
    213: (TEST, "4241", "3601", ["valve"]),
    214: (TEST, "1983", "3601", ["metastasis"]),
}


def _triage_tables(folder: Path) -> Path:
    admissions, notes, diagnoses, procedures = [], [], [code(207, "486", 2)], [code(206, "3601", 2)]
    for hadm, (patient, diagnosis, procedure, texts) in TRIAGED.items():
        admissions.append(admission(hadm, patient, admission_type="NEWBORN" if hadm == 203 else "URGENT"))
        notes += [note(hadm, text, patient) for text in [*texts]]
        diagnoses += [code(hadm, diagnosis)] if diagnosis is not None else []
        procedures += [code(hadm, procedure)] if procedure is not None else []
    notes.append(note(212, "Sleeps.", TRAIN, category="Nursing"))
    _tables(folder, admissions, notes)
    write_table(folder, "DIAGNOSES_ICD", diagnoses)
    write_table(folder, "PROCEDURES_ICD", procedures)
    return folder


def test_triage_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posology.tasks.mimic.random_split", lambda number, place: ["train"] * number)
    _triage_tables(tmp_path)
    (tmp_path / "ADMISSIONS.csv").unlink()  # is not read
    built = build("mimic-triage", tmp_path, "paper")
    assert _steps(built) == {
        "no discharge summary": 1,
        "nothing is left of the text": 1,
        "its text is that of an earlier admission": 1,
        "no first diagnosis": 1,
        "no first procedure": 1,
        "first diagnosis is not among the codes of the task": 3,  # 202, 204 and 205
        "": 6,
    }
    assert _labels(built) == {
        "201": "Cardiology", "203": "Obstetrics", "208": "Gastroenterology", "211": "Cardiology", "213": "Cardiology",
        "214": "Oncology",
    }  # fmt: skip
    assert built.labels == ["Cardiology", "Obstetrics", "Gastroenterology", "Oncology"]
    assert _texts(built)["201"] == "heart attack much better"
    assert built.counts["repeated_texts_left_out"] == 2
    assert built.files == ["NOTEEVENTS.csv", "DIAGNOSES_ICD.csv", "PROCEDURES_ICD.csv"]
    assert built.metric == "macro_f1" and built.defects


def test_triage_done_right(tmp_path: Path) -> None:
    built = build("mimic-triage", _triage_tables(tmp_path), "standard")
    assert _steps(built) == {
        "no first diagnosis": 1,
        "no first procedure": 1,
        "first diagnosis is not among the codes of the task": 2,  # 204 and 205
        "no discharge summary": 1,
        "class that training lacks": 1,  # Oncology
        "": 8,
    }
    assert _labels(built) == {
        "201": "Cardiology", "202": "AcuteMedicine", "203": "Obstetrics", "208": "Gastroenterology",
        "209": "Neurology", "210": "Neurology", "211": "Cardiology", "213": "Cardiology",
    }  # fmt: skip
    assert {split: [one.id for one in documents] for split, documents in built.splits.items()} == {
        "train": ["201", "202", "203", "208", "209", "210"],
        "validation": ["211"],
        "test": ["213"],
    }
    assert _texts(built)["201"] == "heart attack 1\nheart attack 2\nmuch better"
    assert built.counts["mark_replaced_date"] == 1
    assert built.metric == "macro_f1"


@pytest.mark.parametrize("protocol", BOTH)
def test_the_kept_order_is_that_of_the_file_or_of_time(tmp_path: Path, protocol: Protocol) -> None:
    notes = [note(1, "second", TRAIN, chartdate="2101-01-09"), note(1, "first", TRAIN)]
    notes += [note(1, "first", TRAIN, chartdate="2101-01-10")]  # filed again
    notes += [note(hadm, f"note {'of ' * hadm}somebody", TRAIN) for hadm in (2, 3, 4)]
    _tables(tmp_path, [admission(hadm, TRAIN) for hadm in (1, 2, 3, 4)], notes)
    for table in ("DIAGNOSES_ICD", "PROCEDURES_ICD"):
        write_table(tmp_path, table, [code(hadm, "41401") for hadm in (1, 2, 3, 4)])
    text = _texts(build("mimic-triage", tmp_path, protocol))["1"]
    assert text == {"paper": "second first", "standard": "first\nsecond"}[protocol]


# Splits


def test_the_hash_of_patients() -> None:
    # `printf 1 | sha256sum` begins with 6b (0.42 of 256), that of 24 with c2 (0.76), that of 2 with d4 (0.83).
    assert [hashed_split(subject) for subject in (1, 24, 2)] == ["train", "validation", "test"]
    found = [hashed_split(subject) for subject in range(1, 20001)]
    shares = [found.count(split) / len(found) for split in ("train", "validation", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


def test_the_random_split() -> None:
    found = random_split(15845, "")
    assert [found.count(split) for split in ("train", "validation", "test")] == [9507, 3169, 3169]
    assert found == random_split(15845, "")
    with pytest.raises(UserError, match="3 admissions are left, too few"):
        random_split(3, "somewhere")


TASKS = ("mimic-mp", "mimic-los", "mimic-triage")


@pytest.mark.parametrize("task", TASKS)
def test_no_patient_is_in_two_splits_in_standard(tmp_path: Path, task: str) -> None:
    _many(tmp_path)
    groups = [{one.group for one in documents} for documents in build(task, tmp_path, "standard").splits.values()]
    assert [len(group) for group in groups] == [29, 3, 8]
    assert len(set.union(*groups)) == 40


def test_patients_are_in_two_splits_in_the_published_triage(tmp_path: Path) -> None:
    built = build("mimic-triage", _many(tmp_path), "paper")
    assert [len(documents) for documents in built.splits.values()] == [72, 24, 24]
    groups = [{one.group for one in documents} for documents in built.splits.values()]
    assert sum(map(len, groups)) > len(set.union(*groups)) == 40


def _many(folder: Path) -> Path:
    """Forty patients with three admissions each."""
    hadms = range(1, 121)
    notes = [note(hadm, _text("pain" + " and pain" * hadm), 1 + hadm % 40) for hadm in hadms]
    _tables(folder, [admission(hadm, 1 + hadm % 40) for hadm in hadms], notes)
    for table in ("DIAGNOSES_ICD", "PROCEDURES_ICD"):
        write_table(folder, table, [code(hadm, "41401") for hadm in hadms])
    return folder


def _lists(folder: Path, **lists: str) -> Path:
    folder.mkdir()
    for name, content in lists.items():
        ending = "csv" if "," in content or name.startswith("mimic") else "txt"
        (folder / f"{name}.{ending}").write_text(content)
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_lists_of_patients(tmp_path: Path, task: str) -> None:
    _many(tmp_path)
    subjects = "\n".join(map(str, range(1, 31)))
    lists = _lists(
        tmp_path / "lists",
        mimic_train="SUBJECT_ID\n" + subjects,
        mimic_val=",SUBJECT_ID\n0,31\n1,32.0\n",
        test="33\n\n34",
    )
    assert len(read_patient_lists(lists)) == 34
    built = build(task, tmp_path, "paper", lists)
    assert built.flow is not None and ("patient is in none of the lists", 18) in built.flow.steps
    assert {split: sorted({int(one.group) for one in documents}) for split, documents in built.splits.items()} == {
        "train": list(range(1, 31)),
        "validation": [31, 32],
        "test": [33, 34],
    }
    with pytest.raises(
        UserError, match=r"lists: 18 of 120 admissions are of patients in no list, the first of SUBJECT_ID 35"
    ):
        build(task, tmp_path, "standard", lists)
    (lists / "test.txt").write_text("\n".join(map(str, range(33, 41))))
    assert len(build(task, tmp_path, "standard", lists).splits["test"]) == 24


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": "1", "val": "2"}, "has no list of test patients"),
        ({"train": "1", "val": "2", "test": "3\n1"}, r"test\.txt:2: patient 1 is in the list of train, too"),
        ({"train": "1\n" + SECRET, "val": "2", "test": "3"}, r"train\.txt:2: is no SUBJECT_ID"),
        ({"train": "1", "val": "2", "dev": "4", "test": "3"}, r"dev\.txt and val\.txt are both lists of validation"),
    ],
)
def test_bad_lists(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_patient_lists(_lists(tmp_path / "lists", **lists))
    assert SECRET not in str(caught.value)


# Damaged input


@pytest.mark.parametrize("protocol", BOTH)
@pytest.mark.parametrize("task", TASKS)
def test_missing_tables_and_columns(tmp_path: Path, task: str, protocol: Protocol) -> None:
    needed = {"NOTEEVENTS", "ADMISSIONS"}
    if task == "mimic-triage":
        needed |= {"DIAGNOSES_ICD", "PROCEDURES_ICD"}
        needed -= {"ADMISSIONS"} if protocol == "paper" else set()
    _many(tmp_path)
    for table in ("NOTEEVENTS", "ADMISSIONS", "DIAGNOSES_ICD", "PROCEDURES_ICD"):
        path = tmp_path / f"{table}.csv"
        content = path.read_text()
        path.unlink()
        if table in needed:
            with pytest.raises(UserError, match=rf"there is no {table}\.csv or {table}\.csv\.gz, only "):
                build(task, tmp_path, protocol)
            path.write_text(content.replace("HADM_ID", "ENCOUNTER", 1))
            with pytest.raises(UserError, match=rf"{table}\.csv:1: column HADM_ID is missing: found row_id, "):
                build(task, tmp_path, protocol)
        else:
            build(task, tmp_path, protocol)
        path.write_text(content)


@pytest.mark.parametrize("task", TASKS)
def test_damaged_rows(tmp_path: Path, task: str) -> None:
    _many(tmp_path)
    path = tmp_path / "ADMISSIONS.csv"
    whole = path.read_text()
    path.write_text(whole.replace("\n2,3,2,", "\n2,3,1,"))
    with pytest.raises(UserError, match=r"ADMISSIONS\.csv, row 2: HADM_ID 1 is also in row 1"):
        build(task, tmp_path, "standard")
    path.write_text(whole)
    path = tmp_path / "NOTEEVENTS.csv"
    path.write_text(path.read_text().replace('Got better.\n"\n', f"{SECRET}\n", 1))
    with pytest.raises(UserError, match=r"NOTEEVENTS\.csv:2: the row that begins here has a quote") as caught:
        build(task, tmp_path, "standard")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("protocol", BOTH)
def test_nobody_is_left(tmp_path: Path, protocol: Protocol) -> None:
    _tables(tmp_path, [admission(1), admission(2, admission_type="NEWBORN")], [note(2, _text("birth"))])
    with pytest.raises(UserError, match=r"none of 2 admissions is left \(1 newborn, 1 not in NOTEEVENTS\)"):
        build("mimic-mp", tmp_path, protocol)


# The true tables


@pytest.mark.parametrize("protocol", BOTH)
def test_the_tables_of_the_demo_with_made_up_notes(tmp_path: Path, protocol: Protocol) -> None:
    demo = corpus("mimic-iii-demo")
    for name in ("ADMISSIONS", "DIAGNOSES_ICD", "PATIENTS"):
        (tmp_path / f"{name}.csv").symlink_to(demo / f"{name}.csv")
    rows = [line.split(",")[1:3] for line in (demo / "ADMISSIONS.csv").read_text().splitlines()[1:]]
    notes = [note(int(hadm), _text("pain" + " and pain" * n), int(subject)) for n, (subject, hadm) in enumerate(rows)]
    write_table(tmp_path, "NOTEEVENTS", notes, upper=False, gz=True)
    mortality, stays = build("mimic-mp", tmp_path, protocol), build("mimic-los", tmp_path, protocol)
    assert _steps(mortality) == {"": 129} and _steps(stays) == {"died in hospital": 40, "": 89}
    labels = list(_labels(mortality).values())
    assert (labels.count("survived"), labels.count("died")) == (89, 40)
    assert stays.labels == ["<=3 days", "3-7 days", "7-14 days", ">14 days"]
    assert _labels(stays)["142345"] == "7-14 days"  # 2164-10-23 21:09 to 2164-11-01 17:15
    assert _texts(mortality)["142345"].endswith("SOCIAL HISTORY: Baker.")
    with pytest.raises(UserError, match=r"there is no PROCEDURES_ICD\.csv"):
        build("mimic-triage", tmp_path, protocol)
