"""The i2b2 trees of the synthetic hospital, as the readers of the real ones see them."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from posology.corpus import i2b2_2010, i2b2_2012, i2b2_2014
from posology.corpus.tags import words_of
from posology.synthetic.cast import Sizes, cast, sizes_2010, sizes_2012, sizes_2014, visits
from posology.synthetic.hospital import make_hospital
from posology.synthetic.i2b2 import write_2010, write_2012, write_2014
from posology.synthetic.i2b2_2010 import as_record as record_2010
from posology.synthetic.i2b2_2012 import as_record as record_2012
from posology.synthetic.i2b2_2014 import as_record as record_2014
from posology.synthetic.written import Link, Written

PATIENTS = 1000


@dataclass
class Trees:
    concepts: list[i2b2_2010.Record]
    events: list[i2b2_2012.Record]
    tags: list[i2b2_2014.Record]
    counts: dict[str, dict[str, int]]
    problems: list[tuple[str, str]]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Trees:
    folder = tmp_path_factory.mktemp("trees")
    counts = {}
    for year, write, sizes in (
        ("2010", write_2010, sizes_2010(PATIENTS)),
        ("2012", write_2012, sizes_2012(PATIENTS)),
        ("2014", write_2014, sizes_2014(PATIENTS)),
    ):
        counts[year] = write(make_hospital(PATIENTS, 7), folder / year, sizes, 7, lambda: None)
    problems: list[tuple[str, str]] = []
    return Trees(
        list(i2b2_2010.read(folder / "2010", problems)),
        list(i2b2_2012.read(folder / "2012", problems)),
        list(i2b2_2014.read(folder / "2014", problems)),
        counts,
        problems,
    )


def test_everything_written_is_read_without_a_problem(trees: Trees) -> None:
    assert trees.problems == []
    assert trees.counts["2010"] == {
        "documents": len(trees.concepts),
        "concepts": sum(len(record.concepts) for record in trees.concepts),
        "relations": sum(len(record.relations) for record in trees.concepts),
    }
    assert trees.counts["2012"] == {
        "documents": len(trees.events),
        "events": sum(len(record.events) for record in trees.events),
        "times": sum(len(record.times) for record in trees.events),
        "links": sum(len(record.links) for record in trees.events),
    }
    assert trees.counts["2014"] == {
        "patients": len({record.patient for record in trees.tags}),
        "documents": len(trees.tags),
        "tags": sum(len(record.tags) for record in trees.tags),
    }


def test_sizes_and_splits(trees: Trees) -> None:
    found = Counter((record.split, record.hospital) for record in trees.concepts)
    assert found == {("train", "beth"): 43, ("train", "partners"): 57, ("test", ""): 150}
    assert Counter(record.split for record in trees.events) == {"train": 123, "test": 77}
    assert Counter(record.split for record in trees.tags) == {"train": 404, "test": 263}
    folders = Counter(Path(record.place).parent.name for record in trees.tags)
    assert folders == {"training-PHI-Gold-Set1": 267, "training-PHI-Gold-Set2": 137, "testing-PHI-Gold-fixed": 263}


def test_every_label_occurs(trees: Trees) -> None:
    for split in ("train", "test"):
        records = [record for record in trees.concepts if record.split == split]
        types = Counter(one.type for record in records for one in record.concepts)
        assert set(types) == set(i2b2_2010.TYPES) and types.most_common(1)[0][0] == "problem"
        relations = Counter(one.label for record in records for one in record.relations)
        assert set(relations) == set(i2b2_2010.RELATIONS)
        frequent = {"TeRP", "TrAP", "PIP"}
        assert set(dict(relations.most_common(3))) == frequent
        assert set(dict(relations.most_common()[-3:])) == {"TrWP", "TrIP", "TrNAP"}
        assertions = Counter(one.assertion for record in records for one in record.concepts if one.type == "problem")
        assert set(assertions) == set(i2b2_2010.ASSERTIONS)
        assert [one for one, _ in assertions.most_common(3)] == ["present", "absent", "possible"]
        events = [one for record in trees.events if record.split == split for one in record.events]
        assert {one.type for one in events} == set(i2b2_2012.EVENT_TYPES)
        assert {one.modality for one in events} == {"FACTUAL", "CONDITIONAL", "POSSIBLE", "PROPOSED"}
        assert {one.polarity for one in events} == {"POS", "NEG"}
        times = [one for record in trees.events if record.split == split for one in record.times]
        assert {one.type for one in times} == set(i2b2_2012.TIME_TYPES)
        tags = Counter(one.type for record in trees.tags if record.split == split for one in record.tags)
        assert len(tags) >= 20 and {one for one, _ in tags.most_common(5)} == {
            "DATE", "DOCTOR", "HOSPITAL", "AGE", "PATIENT",
        }  # fmt: skip


def test_2014_has_the_42_labels_of_the_real_set(trees: Trees) -> None:
    """Outside, 23 types, and the 18 of them that are ever longer than a word, as the paper's tags count."""
    tags = [(record.text[one.start : one.end], one.type) for record in trees.tags for one in record.tags]
    assert len({type for _, type in tags}) == 23
    assert len({type for text, type in tags if len(text.split()) > 1}) == 18


def test_relations_stand_on_one_line_and_most_pairs_have_none(trees: Trees) -> None:
    first = {"Tr": "treatment", "Te": "test", "PI": "problem"}
    pairs = related = 0
    for record in trees.concepts:
        for one in record.relations:
            assert one.first.line == one.second.line
            assert (one.first.type, one.second.type) == (first[one.label[:2]], "problem")
        lines = Counter(one.line for one in record.concepts)
        pairs += sum(number * (number - 1) // 2 for number in lines.values())
        related += len(record.relations)
    assert 0.1 < related / pairs < 0.55


def test_dates_say_what_they_mean(trees: Trees) -> None:
    for record in trees.events:
        admitted, discharged = record.section_times
        assert (admitted.type, discharged.type) == ("ADMISSION", "DISCHARGE") and admitted.value <= discharged.value
        assert len(admitted.value) == 10
        ids = {one.id for one in [*record.events, *record.times]} | set(i2b2_2012.SECTION_TIMES)
        assert all({one.first_id, one.second_id} <= ids for one in record.links)
        assert len({one.id for one in record.links}) == len(record.links)


def test_2014_is_untidy(trees: Trees) -> None:
    inside_a_word = over_a_line = 0
    for record in trees.tags:
        assert record.text.startswith("\n\n\nRecord date: ")
        for one in record.tags:
            before, after = record.text[one.start - 1], record.text[one.end]
            inside_a_word += after.isalnum() or before.isalnum()
            over_a_line += "\n" in record.text[one.start : one.end]
        spans = sorted((one.start, one.end) for one in record.tags)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert inside_a_word > 100 and over_a_line > 10
    text = "".join(record.text for record in trees.tags)
    assert "&" in text and "<" in text and ">" in text
    # Words that are a name in one place and none in another.
    names = {record.text[one.start : one.end] for record in trees.tags for one in record.tags if one.category == "NAME"}
    assert {"Foley", "Murphy"} & names and "Foley" in text and "Murphy's sign" in text


@pytest.mark.parametrize("corpus", ["concepts", "events", "tags"])
def test_the_test_set_is_about_others_and_new_to_a_dictionary(trees: Trees, corpus: str) -> None:
    mentions: dict[str | None, list[tuple[str, str]]] = {"train": [], "test": []}
    texts: dict[str | None, set[str]] = {"train": set(), "test": set()}
    for record in getattr(trees, corpus):
        annotations = {"concepts": "concepts", "events": "events", "tags": "tags"}[corpus]
        for one in getattr(record, annotations):
            words = record.text[one.start : one.end].lower()
            mentions[record.split].append((" ".join(words[a:b] for a, b in words_of(words)), one.type))
        texts[record.split].add(record.text)
    known = set(mentions["train"])
    unseen = sum(one not in known for one in mentions["test"]) / len(mentions["test"])
    assert unseen > 0.3
    assert not texts["train"] & texts["test"]
    if corpus == "tags":
        numbers = {
            split: {words for words, type in found if type == "MEDICALRECORD"} for split, found in mentions.items()
        }
        assert not numbers["train"] & numbers["test"]
        patients = {split: {one.patient for one in trees.tags if one.split == split} for split in ("train", "test")}
        assert not patients["train"] & patients["test"]


@pytest.mark.parametrize("patients", [20, 37, 100])
@pytest.mark.parametrize("sizes", [sizes_2010, sizes_2012, sizes_2014])
def test_patients_are_in_one_split(patients: int, sizes: Callable[[int], Sizes]) -> None:
    people = cast(make_hospital(patients, 3), sizes(patients), random.Random(1))
    train, test = ({one.number for one in part} for part in (people.train, people.test))
    assert train and test and not train & test


def test_visits_add_up_and_go_on_in_time() -> None:
    people = cast(make_hospital(60, 3), Sizes(20, 10), random.Random(1)).train
    for records in (1, 2, 3, 20, 41, 69, 100):
        found = list(visits(people, records, random.Random(records)))
        assert sum(len(occasions) for _, occasions in found) == records
        for _, occasions in found:
            assert len(occasions) <= 5 and (len(occasions) >= 2 or records < 4)
            days = [one.admitted for one in occasions]
            assert days == sorted(days) and len(set(days)) == len(days)


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    def write(name: str, seed: int) -> dict[str, str]:
        for year, write in (("2010", write_2010), ("2012", write_2012), ("2014", write_2014)):
            write(make_hospital(40, seed), tmp_path / name / year, Sizes(8, 12), seed, lambda: None)
        return _digests((tmp_path / name).rglob("*.*"), tmp_path / name)

    first = write("first", 1)
    assert write("again", 1) == first
    assert write("other", 2) != first


def _digests(files: Iterable[Path], root: Path) -> dict[str, str]:
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.is_file()
    }


# Records by hand


def test_record_of_2010() -> None:
    written = Written("He took ").add("aspirin", "treatment").add(" for ").add("chest pain", "problem")
    written.add(". No ").add("fever", "problem", assertion="absent").add(".\nEKG ok")
    written.links += [Link("TrAP", 0, 1), Link("TrAP", 0, 1), Link("TrAP", 0, 2), Link("PIP", 0, 1)]
    record = record_2010(written, "beth/one", "beth", "train")
    assert record.text == "He took aspirin for chest pain .\nNo fever .\nEKG ok\n"
    assert [(one.line, one.first, one.last, one.type, one.assertion) for one in record.concepts] == [
        (1, 2, 2, "treatment", None),
        (1, 4, 5, "problem", "present"),
        (2, 1, 1, "problem", "absent"),
    ]
    # Once, on one line, and of types that fit.
    assert [(one.label, one.first, one.second) for one in record.relations] == [("TrAP", *record.concepts[:2])]


def test_of_concepts_inside_one_another_the_outer_counts() -> None:
    inner = Written("drainage of ").add("an abscess", "problem")
    record = record_2010(Written("s/p ").add(inner, "treatment"), "one", "", "test")
    assert [(one.type, record.text[one.start : one.end]) for one in record.concepts] == [
        ("treatment", "drainage of an abscess")
    ]


def test_record_of_2012() -> None:
    history = Written().add("Admission", "occurrence").add(": ")
    history.add(Written().add("2/3", "DATE", value="2101-02-03"), "timex", type="DATE", value="2101-02-03")
    history.add("\n").add("Discharge", "occurrence").add(": ")
    history.add(Written().add("Feb 2101", "DATE", value="2101-02"), "timex", type="DATE", value="2101-02-09")
    history.links += [Link("OVERLAP", 0, 2), Link("OVERLAP", 3, 5)]
    course = (
        Written("He had ").add("fever", "problem").add(" ").add("on day 2", "timex", type="DATE", value="2101-02-04")
    )
    course.add(" and will need ").add("CT", "test", modality="PROPOSED").add(".")
    record = record_2012(history, course, "7", "train")
    assert record.text == "\nAdmission : 2/3\nDischarge : Feb 2101\nHe had fever on day 2 and will need CT .\n"
    assert [(one.type, record.text[one.start : one.end]) for one in record.events] == [
        ("OCCURRENCE", "Admission"), ("OCCURRENCE", "Discharge"), ("PROBLEM", "fever"), ("TEST", "CT"),
    ]  # fmt: skip
    # A date that says less than was meant has the value that it says.
    assert [one.value for one in record.times] == ["2101-02-03", "2101-02", "2101-02-04"]
    assert [(one.type, one.value) for one in record.section_times] == [
        ("ADMISSION", "2101-02-03"), ("DISCHARGE", "2101-02"),
    ]  # fmt: skip
    links = {(one.first_id, one.second_id): one.type for one in record.links}
    assert links[record.events[2].id, record.times[2].id] == "OVERLAP"
    assert links[record.events[2].id, "Discharge"] == "BEFORE" and links[record.events[3].id, "Discharge"] == "AFTER"
    assert links[record.events[0].id, "Admission"] == "BEFORE"


def test_record_of_2014_breaks_lines_without_moving_anything() -> None:
    line = (
        Written("word " * 14)
        .add("Jane Q. Public", "PATIENT")
        .add(" is a ")
        .add("67", "AGE")
        .add("yo & " + "well " * 20)
    )
    texts = set()
    for seed in range(12):
        record = record_2014(line, "100-01", "train", random.Random(seed))
        texts.add(record.text)
        assert [(record.text[one.start : one.end].replace("\n", " "), one.type, one.id) for one in record.tags] == [
            ("Jane Q. Public", "PATIENT", "P0"), ("67", "AGE", "P1"),
        ]  # fmt: skip
    assert (
        len(texts) == 2 and max(len(line) for line in max(texts, key=lambda text: text.count("\n")).split("\n")) <= 78
    )
    with pytest.raises(ValueError, match="overlap"):
        record_2014(Written().add(Written().add("Jane", "PATIENT"), "DOCTOR"), "100-01", "train", random.Random(0))
