from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import posology
from posology.errors import UserError
from posology.tasks.built import Flow
from posology.tasks.card import task_card
from posology.tasks.clinical import TASKS
from tests.tasks.i2b2_trees import Record2010, concept, identifier, relation, write_2010, write_2014

TEXT = "CT showed edema .\nEnd .\n"
CT, EDEMA = concept("CT", 1, 0, 0, "test"), concept("edema", 1, 2, 2, "problem")
RECORD = Record2010(TEXT, CT + EDEMA, relation(CT, "TeRP", EDEMA))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    records = {f"r{number}": RECORD for number in range(10)}
    return write_2010(tmp_path / "i2b2", beth=records, partners=records, test={f"t{n}": RECORD for n in range(4)})


def card_of(out: Path) -> str:
    return (out / "README.md").read_text(encoding="utf-8")


def test_counts_stand_beside_the_published_ones(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = posology.prepare("i2b2-2010-re", tree, tmp_path / "out", protocol="paper")
    # Evaluation is the whole official test set, of which the protocol makes validation and test.
    assert task.counts == {"train": 20, "validation": 2, "test": 2}
    assert task.notes["published"] == {
        "train": {"here": 20, "paper": 22256, "difference": -22236},
        "evaluation": {"here": 4, "paper": 43000, "difference": -42996},
        "classes": {"here": 9, "paper": 9, "difference": 0},
    }
    assert "4  evaluation (paper 43,000; -42,996)" in capsys.readouterr().err
    assert "| evaluation | 4 | 43,000 | -42,996 |" in card_of(tmp_path / "out")


def test_the_halves_of_a_record_in_two_splits_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "CT showed edema .\nCT showed edema .\n"
    twice = Record2010(
        text, CT + EDEMA + concept("CT", 2, 0, 0, "test") + concept("edema", 2, 2, 2, "problem"), RECORD.relations
    )
    tree = write_2010(tmp_path / "i2b2", beth={"a": RECORD}, test={"t": twice})
    task = posology.prepare("i2b2-2010-re", tree, tmp_path / "out", protocol="paper")
    assert task.notes["group_overlap"] == {"validation, test": 1}
    assert "in two splits" in capsys.readouterr().err
    assert "**The same patients (or records) are in two splits**" in card_of(tmp_path / "out")


@pytest.mark.parametrize("name", ["i2b2-2010-re", "i2b2-2010-ner"])
def test_no_group_is_in_two_splits_in_standard(tree: Path, tmp_path: Path, name: Any) -> None:
    task = posology.prepare(name, tree, tmp_path / "out")
    groups = [{document.group for document in task.documents(split)} for split in ("train", "validation", "test")]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert task.notes["group_overlap"] == {}
    assert task.notes["groups"] == {"train": 18, "validation": 2, "test": 4}
    assert "No patient (or record, where patients are unknown) is in two splits." in card_of(tmp_path / "out")


def test_lists_of_records_are_followed(tree: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    records = [f"{hospital}/r{number}" for hospital in ("beth", "partners") for number in range(10)]
    names = sorted({document.group for document in _all(posology.prepare("i2b2-2010-re", tree, tmp_path / "first"))})
    assert set(records) < set(names)
    (lists / "train.txt").write_text("\n".join(names[:12]))
    (lists / "dev.txt").write_text("\n".join(names[12:14]))
    (lists / "test.txt").write_text("\n".join(names[14:]))
    task = posology.prepare("i2b2-2010-re", tree, tmp_path / "out", splits=lists)
    assert task.source["options"]["splits"] == "lists"  # not where it lies
    assert {document.group for document in task.documents("validation")} == set(names[12:14])


def test_lists_that_cut_through_records_are_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    ids = [document.id for document in _all(posology.prepare("i2b2-2010-ner", tree, tmp_path / "first"))]
    for number, split in enumerate(("train", "dev", "test")):
        (tmp_path / "lists" / f"{split}.txt").write_text("\n".join(ids[number::3]))
    with pytest.raises(UserError, match="into two splits"):
        posology.prepare("i2b2-2010-ner", tree, tmp_path / "out", splits=tmp_path / "lists")
    assert not (tmp_path / "out").exists()


def test_official_sets_that_share_a_patient_are_refused(tmp_path: Path) -> None:
    text = "Seen by Kowalski today.\nLast line.\n"
    record = (text, identifier(text, "Kowalski", "NAME", "DOCTOR"))
    tree = write_2014(tmp_path / "i2b2", train={f"{n}-01": record for n in range(110, 120)}, test={"110-02": record})
    with pytest.raises(UserError, match=r"the official sets share patients .*train, test: 2 documents"):
        posology.prepare("i2b2-2014-ner", tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _all(task: posology.PreparedTask) -> list[Any]:
    return [document for split in ("train", "validation", "test") for document in task.documents(split)]


def test_defects_of_the_paper_protocol_are_on_the_card(tree: Path, tmp_path: Path) -> None:
    posology.prepare("i2b2-2010-ner", tree, tmp_path / "paper", protocol="paper")
    posology.prepare("i2b2-2010-ner", tree, tmp_path / "standard")
    assert "Partners only" in card_of(tmp_path / "paper")
    assert "Scores count word pieces" in card_of(tmp_path / "paper")
    assert "Defects" not in card_of(tmp_path / "standard")


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"task": "i2b2-2010-ner", "text": "note"}, "--text"),
        ({"task": "i2b2-2010-ner", "markers": "instead"}, "--markers"),
        ({"task": "i2b2-2010-re", "view": "documents"}, "--view"),
        ({"task": "i2b2-2010-ner", "protocol": "paper", "view": "documents"}, "--view"),
        ({"task": "i2b2-2010-ner", "protocol": "paper", "splits": Path("lists")}, "--splits"),
        ({"task": "mimic-mp", "leaks": "allow"}, "--leaks"),
        ({"task": "classification", "protocol": "paper"}, "--protocol"),
        ({"task": "i2b2-2010-ner", "metric": "accuracy"}, "--metric"),
        ({"task": "i2b2-2011-ner"}, "TASK"),
        ({"task": "i2b2-2010-ner", "protocol": "papers"}, "--protocol"),
    ],
)
def test_options_that_mean_nothing_are_refused(tree: Path, tmp_path: Path, options: dict[str, Any], flag: str) -> None:
    if options["task"] == "classification":
        (tmp_path / "notes.csv").write_text("text,label\na,x\nb,y\n")
        source = tmp_path / "notes.csv"
    else:
        source = tree
    with pytest.raises(UserError) as refusal:
        posology.prepare(options.pop("task"), source, tmp_path / "out", **options)
    assert str(refusal.value).startswith(f"{flag}:")
    assert not (tmp_path / "out").exists()


def test_places_of_problems_are_those_in_the_source(tmp_path: Path) -> None:
    wrong = RECORD._replace(concepts=RECORD.concepts + concept("oedema", 2, 0, 0, "problem"))
    records = {f"r{number}": RECORD for number in range(9)} | {"wrong": wrong}
    tree = write_2010(tmp_path / "i2b2", beth=records, test={"t": RECORD})
    task = posology.prepare("i2b2-2010-ner", tree, tmp_path / "out")
    ((place, what),) = [one for one in task.notes["problems"] if ".con" in one[0]]
    assert place == "concept_assertion_relation_training_data/beth/concept/wrong.con:3"
    assert "oedema" not in what
    content = (tmp_path / "out" / "task.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in content


def test_the_place_of_a_problem_of_the_whole_source_is_its_name(tmp_path: Path) -> None:
    tree = write_2010(tmp_path / "i2b2", beth={f"r{number}": RECORD for number in range(9)}, test={"t": RECORD})
    (tree / "concept_assertion_relation_training_data" / "beth" / "rel" / "r1.rel").unlink()
    task = posology.prepare("i2b2-2010-re", tree, tmp_path / "out")
    assert "i2b2" in [place for place, _ in task.notes["problems"]]
    assert str(tmp_path) not in (tmp_path / "out" / "task.json").read_text(encoding="utf-8")


def test_an_annotation_for_a_missing_line_stops_everything(tmp_path: Path) -> None:
    wrong = RECORD._replace(concepts=RECORD.concepts + concept("edema", 7, 0, 0, "problem"))
    tree = write_2010(tmp_path / "i2b2", beth={"a": RECORD, "b": wrong}, test={"t": RECORD})
    with pytest.raises(UserError) as refusal:
        posology.prepare("i2b2-2010-ner", tree, tmp_path / "out")
    assert "b.con:3" in str(refusal.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "i2b2"]


def test_the_source_is_recorded_without_its_path(tree: Path, tmp_path: Path) -> None:
    task = posology.prepare("i2b2-2010-re", tree, tmp_path / "out", seed=3)
    assert task.source["format"] == "i2b2-2010"
    assert task.source["options"]["seed"] == "3"
    again = posology.prepare("i2b2-2010-re", tree, tmp_path / "again", seed=3)
    assert task.fingerprint == again.fingerprint


def test_every_task_names_a_row_of_the_published_table() -> None:
    from posology.catalog import paper_table

    assert {task.published for task in TASKS.values()} == {row["dataset"] for row in paper_table("table2_datasets")}


class TestFlow:
    def test_numbers_add_up(self) -> None:
        flow = Flow("admissions", 10)
        flow.exclude("newborns", 3)
        flow.exclude("no note", 0)
        assert flow.left == 7
        assert flow.as_json()["steps"] == [
            {"reason": "newborns", "excluded": 3, "left": 7},
            {"reason": "no note", "excluded": 0, "left": 7},
        ]

    def test_nobody_can_be_left_out_twice(self) -> None:
        flow = Flow("admissions", 2)
        with pytest.raises(ValueError, match="cannot be excluded"):
            flow.exclude("newborns", 3)

    def test_the_card_shows_it(self, tree: Path, tmp_path: Path) -> None:
        posology.prepare("i2b2-2010-re", tree, tmp_path / "out")
        content = json.loads((tmp_path / "out" / "task.json").read_text(encoding="utf-8"))
        flow = Flow("admissions", 10)
        flow.exclude("newborns", 3)
        content["notes"]["flow"] = flow.as_json()
        lines = task_card(content).splitlines()
        start = lines.index("| admissions in | 10 |")
        assert lines[start + 1 : start + 3] == ["| left out: newborns | 3 |", "| admissions out | 7 |"]
