from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from posology.synthetic.hospital import Admission, Patient, make_hospital
from posology.synthetic.identifiers import Identifiers
from posology.synthetic.lexicon import lexicon, phrasebook
from posology.synthetic.markup import Choice, Marked, Rule, Slot, parse
from posology.synthetic.notes import ADMISSION_SECTIONS, Author, discharge_summary, joined, short_note
from posology.synthetic.phrases import FLAGS, Pool, is_rare
from posology.synthetic.scene import _makers
from posology.synthetic.written import Written

LABELS = {"TrIP", "TrWP", "TrCP", "TrAP", "TrNAP", "TeRP", "TeCP", "PIP"}
KINDS = {"problem", "test", "treatment", "clinical_dept", "evidential", "occurrence", "timex"}
PLAIN = Author(variant=0, brief=False, misspelling=0.0, bullet="-", width=72)


def stays(number: int, seed: int = 3) -> Iterator[tuple[Patient, Admission]]:
    return ((patient, one) for patient in make_hospital(number, seed) for one in patient.admissions)


def summary(patient: Patient, admission: Admission, **settings: object) -> Written:
    rng = random.Random(admission.id)
    return joined(discharge_summary(patient, admission, Identifiers(patient, rng), rng, **settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def notes() -> list[tuple[Admission, Written]]:
    return [(one, summary(patient, one)) for patient, one in stays(150)]


def test_every_mention_is_a_stretch_of_the_text(notes: list[tuple[Admission, Written]]):
    kinds: Counter[str] = Counter()
    for _, note in notes:
        for one in note.mentions:
            words = note.text[one.start : one.end]
            assert words and words == words.strip() and "\n" not in words
            kinds[one.kind] += 1
            if one.kind == "problem":
                assert one.attributes["assertion"] in {"present", "other"} | {
                    flag["assertion"] for flag in FLAGS.values() if "assertion" in flag
                }
            if one.kind == "timex":
                assert one.attributes["type"] in ("DATE", "TIME", "DURATION", "FREQUENCY")
    assert set(kinds) >= KINDS | {"DATE", "DOCTOR", "PATIENT", "AGE", "HOSPITAL"}


def test_relations_join_what_they_may(notes: list[tuple[Admission, Written]]):
    first = {"Tr": "treatment", "Te": "test", "PI": "problem"}
    labels: Counter[str] = Counter()
    for _, note in notes:
        for link in note.links:
            labels[link.label] += 1
            one, other = note.mentions[link.first], note.mentions[link.second]
            assert (one.kind, other.kind) == (first[link.label[:2]], "problem")
            assert "\n" not in note.text[min(one.start, other.start) : max(one.end, other.end)]
    assert set(labels) == LABELS and min(labels.values()) > 20


def test_no_markup_is_left(notes: list[tuple[Admission, Written]]):
    found = Counter(
        note.text[match.start() - 25 : match.end() + 10]
        for _, note in notes
        for match in re.finditer(r"[{}@|<>]|  | [.,;](?!\d)|\[", note.text)
    )
    assert not found


def test_sections_and_length(notes: list[tuple[Admission, Written]]):
    patient, admission = next((patient, one) for patient, one in stays(20) if one.kind != "NEWBORN" and not one.died)
    text = summary(patient, admission, author=PLAIN).text
    for heading in (
        "Allergies", "Chief Complaint", "History of Present Illness", "Past Medical History", "Social History",
        "Family History", "Physical Exam", "Pertinent Results", "Brief Hospital Course", "Medications on Admission",
        "Discharge Medications", "Discharge Diagnosis", "Discharge Condition",
    ):  # fmt: skip
        assert text.startswith(f"{heading}:\n") or f"\n\n{heading}:\n" in text
    words = [len(note.text.split()) for one, note in notes if one.kind != "NEWBORN"]
    assert 450 < sum(words) / len(words) < 700


def test_the_same_state_and_stream_give_the_same_note(notes: list[tuple[Admission, Written]]):
    patient, admission = next(stays(1))
    assert summary(patient, admission) == notes[0][1]


def test_notes_for_training_lack_rare_wordings():
    pools = [condition.names for condition in lexicon().conditions.values()]
    pools += [drug.names for drug in lexicon().drugs.values()] + list(lexicon().tests.values())
    rare = {name for pool in pools for name in pool.items[1:] if is_rare(name) and name.isalpha() and len(name) > 5}
    assert len(rare) > 5

    def used(seen_only: bool) -> set[str]:
        text = " ".join(
            summary(patient, one, seen_only=seen_only, author=PLAIN).text.lower() for patient, one in stays(120)
        )
        return {name for name in rare if re.search(rf"\b{name.lower()}\b", text)}

    assert len(used(False)) > len(used(True))


def test_admission_sections_give_no_death_away():
    """Words of death are as frequent among survivors once leaks are off."""
    words = re.compile(r"expired|deceased|pronounced|time of death", re.IGNORECASE)
    told: Counter[tuple[bool, bool]] = Counter()
    for patient, one in stays(600, seed=4):
        rng = random.Random(one.id)
        for leaks in (False, True):
            sections = discharge_summary(patient, one, Identifiers(patient, rng, "mimic"), rng, leaks=leaks)
            early = " ".join(section.text().text for section in sections if section.name in ADMISSION_SECTIONS)
            if one.kind != "NEWBORN" and not re.search("expired (in|pre)", early) and words.search(early):
                told[one.died, leaks] += 1
    assert told[True, False] == told[False, False] == told[False, True] == 0
    assert told[True, True] > 3


def test_an_earlier_history_is_copied():
    patient, one = next((patient, one) for patient, one in stays(400) if one.number == 1 and one.kind != "NEWBORN")
    rng = random.Random(1)
    names = Identifiers(patient, rng)
    earlier = discharge_summary(patient, patient.admissions[0], names, rng)
    later = discharge_summary(patient, one, names, rng, earlier=earlier)
    present = {section.name: section for section in later}["present illness"].lines
    before = {section.name: section for section in earlier}["present illness"].lines
    assert before[0] in present


@pytest.mark.parametrize("kind", ["nursing", "physician", "radiology", "ecg", "echo", "outpatient", "addendum"])
def test_short_notes(kind: str):
    patient, one = next((patient, one) for patient, one in stays(30) if patient.chronic)
    rng = random.Random(2)
    note = short_note(kind, patient, one, Identifiers(patient, rng, "mimic"), rng)
    assert 3 < len(note.text.split()) < 200


def test_all_templates_can_be_filled():
    """Every rule exists and every slot is known or bound by the writer, also in wordings that are seldom drawn."""
    book, words = phrasebook(), lexicon()
    pools: list[Pool] = [*words.symptoms.values(), *words.tests.values(), *words.general.values()]
    pools += [one.names for one in words.conditions.values()] + [one.names for one in words.drugs.values()]
    pools += [one.findings for one in words.conditions.values() if one.findings]
    templates = [parse(wording) for pool in pools for wording in pool.items]
    templates += [template.parts for pool in book.pools.values() for template in pool.items]
    templates += [parts for pool in book.grammar.values() for parts in pool.items]
    slots, rules = set(), set()

    def visit(parts: tuple[object, ...]) -> None:
        for part in parts:
            if isinstance(part, Slot):
                slots.add(part.name)
            elif isinstance(part, Rule):
                rules.add(part.name)
            elif isinstance(part, Marked):
                visit(part.parts)
            elif isinstance(part, Choice):
                for option in part.options:
                    visit(option)

    for parts in templates:
        visit(parts)
    assert rules <= set(book.grammar)
    bound = {"amount", "route", "form", "general", "allergen", "reaction", "disposition"}
    pronouns = {"he", "him", "his", "mr", "boy", "sex"}
    assert {slot for slot in slots if not slot.isupper()} <= set(_makers()) | bound | pronouns
