"""The standard rules on hand-written, fictional notes with results derived by hand."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.tasks.mimic_marks import WORDS
from posology.tasks.mimic_paper import SECTIONS, admission_view
from posology.tasks.mimic_standard import (
    admission_text,
    los_class,
    normalise_marks,
    remove_leaks,
    sections,
    triage_text,
)

NOTE = """Admission Date:  [**2151-7-16**]              Discharge Date:   [**2151-8-4**]

Date of Birth:  [**2090-1-2**]             Sex:   F

Service: MEDICINE

Allergies:
Penicillins

Attending:[**First Name3 (LF) 2969**]
Chief Complaint:
fever

Major Surgical or Invasive Procedure:
None

History of Present Illness:
Ms. [**Known lastname 123**] is a 61 year old woman who came to
[**Hospital1 18**] with fever.

In the ED, initial vitals were:
T 39

Past Medical History:
1. Cardiac risk factors: diabetes

2. Gout
Social History:
Tobacco: none

Family History:
Father: died at 60

Physical Exam:
ADMISSION PHYSICAL EXAM:
General: ill
HEENT: dry

Lungs: clear

DISCHARGE PHYSICAL EXAM:
General: better

Pertinent Results:
[**2151-7-16**] WBC-15

Brief Hospital Course:
She got well. Exam: unremarkable.

Medications on Admission:
1. Aspirin 81 mg
2. Insulin

Discharge Medications:
1. Aspirin 81 mg

Physical Exam:
on the last day
"""


# --- sections


def test_the_sections_of_a_note() -> None:
    assert sections(NOTE) == {
        "chief complaint": "fever",
        "present illness": "Ms. [**Known lastname 123**] is a 61 year old woman who came to [**Hospital1 18**] with "
        "fever.\nIn the ED, initial vitals were: T 39",
        "medical history": "1. Cardiac risk factors: diabetes\n2. Gout",
        "medications on admission": "1. Aspirin 81 mg 2. Insulin",
        "allergies": "Penicillins",
        "physical exam": "General: ill HEENT: dry\nLungs: clear",
        "family history": "Father: died at 60",
        "social history": "Tobacco: none",
    }
    assert list(sections(NOTE)) == list(SECTIONS)


WORDINGS = {
    "chief complaint": ["Chief Complaint", "CC", "C.C.", "Reason for Admission", "REASON FOR THIS ADMISSION",
                        "Presenting Complaint", "Presenting Symptoms", "Chief complaints"],
    "present illness": ["HPI", "H.P.I.", "History of Present Illness", "HISTORY OF THE PRESENT ILLNESS",
                        "Present Illness", "Hx of present illness", "History of Presenting Illness",
                        "Brief HPI", "HPI (per admission note)", "HPI on admission", "CC/HPI", "HISTORY"],
    "medical history": ["PMH", "PMHx", "Past Medical History", "Medical History", "PAST MEDICAL & SURGICAL HISTORY",
                        "Past Medical/Surgical History", "PMH/PSH", "Past Surgical History", "Past History",
                        "Past Psychiatric History", "Oncologic History", "Past Medical Hx (per OMR)", "PMHX/PSHX",
                        "PAST MEDICAL HISTORY/PAST SURGICAL HISTORY", "Comorbidities"],
    "medications on admission": ["Medications on Admission", "Medication on Admission", "MEDS ON ADMISSION",
                                 "Home Medications", "Home meds", "Admission Medications", "Outpatient Medications",
                                 "Medications at Home", "Meds at home", "Medications prior to admission",
                                 "Current Medications", "MEDICATIONS", "Preadmission medications"],
    "allergies": ["Allergies", "ALLERGY", "Drug Allergies", "Allergies/Adverse Reactions", "Allergies to medications"],
    "physical exam": ["Physical Exam", "Physical Examination", "PHYSICAL EXAMINATION ON ADMISSION", "PE", "P.E.",
                      "Exam on Admission", "Admission Physical Exam", "Admission exam", "Exam", "PE on admission"],
    "family history": ["Family History", "FH", "FHx", "Family Hx", "FAMILY MEDICAL HISTORY"],
    "social history": ["Social History", "SH", "SHx", "Social Hx", "SOCIAL HISTORY",
                       "Personal and Social History"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "wording"), [(name, wording) for name in WORDINGS for wording in WORDINGS[name]])
def test_wordings_of_headings(name: str, wording: str) -> None:
    other = "allergies" if name != "allergies" else "family history"
    assert sections(f"{other}: x\n{wording}: some text\nmore\n\nHospital Course:\nz") == {
        key: {other: "x", name: "some text more"}[key] for key in SECTIONS if key in (other, name)
    }


@pytest.mark.parametrize("name", list(WORDINGS))
def test_headings_alone_on_a_line_in_capitals_need_no_colon(name: str) -> None:
    assert sections(f"  {name.upper()}\ntext\n") == {name: "text"}
    assert sections(f"{name}\ntext\n") == {}
    assert sections(f"see {name}: text\n") == {}


ENDS = ["Brief Hospital Course:", "HOSPITAL COURSE BY SYSTEM:", "ICU COURSE", "Pertinent Results:", "Labs:",
        "LABORATORY DATA ON ADMISSION: Na 140", "Admission Labs:", "Discharge Medications:", "Discharge Diagnosis:",
        "DISCHARGE DIAGNOSES", "Condition on Discharge: stable", "Discharge Instructions:", "Followup Instructions:",
        "FOLLOW-UP: clinic", "Discharge exam", "Exam on discharge:", "PHYSICAL EXAM ON DISCHARGE: fine",
        "Vitals on discharge: T 36", "On discharge:", "Assessment and Plan:", "Impression:", "ASSESSMENT/PLAN: x", "RECOMMENDATIONS: x", "Addendum:",
        "Review of systems:", "Major Surgical or Invasive Procedure:", "Facility:", "Primary diagnosis:",
        "Medications on transfer:", "Attending: Dr X", "Service: NEUROLOGY", "Code status: full", "Imaging:",
        "Physical exam on transfer to the floor:"]  # fmt: skip


@pytest.mark.parametrize("heading", ENDS)
def test_other_headings_end_a_section(heading: str) -> None:
    assert sections(f"Physical Exam:\nwell\n{heading}\nsecret\n") == {"physical exam": "well"}


@pytest.mark.parametrize(
    "line",
    ["HEENT: dry", "Vitals: T 37", "On admission: ill", "Cranial Nerves:", "Skin:", "Mental Status:", "Neuro:",
     "Extremities:", "at 10:30 well", "Noted then:", "no allergies: none", "Says she: fine", "In the ED:"],
)  # fmt: skip
def test_what_is_within_a_section_does_not_end_it(line: str) -> None:
    assert sections(f"Physical Exam: well\n\n{line}\nrest") == {"physical exam": f"well\n{line} rest"}


@pytest.mark.parametrize("line", ["Wound Care Plan:", "TUBES AND THINGS: out", "Goals of Care:", "[x] Other Matters:"])
def test_unknown_lines_that_look_like_headings_end_after_a_blank_line_only(line: str) -> None:
    ends = not line.startswith("[")
    after_blank = sections(f"Physical Exam: well\n\n{line}\nrest")["physical exam"]
    assert after_blank == ("well" if ends else f"well\n{line} rest")
    assert sections(f"Physical Exam: well\n{line}\nrest") == {"physical exam": f"well {line} rest"}


def test_studies_end_after_a_blank_line_only() -> None:
    assert sections("HPI: pain.\nEKG: normal") == {"present illness": "pain. EKG: normal"}
    assert sections("Exam: well\n\nEKG: normal") == {"physical exam": "well"}


def test_an_empty_section_is_empty_and_swallows_nothing() -> None:
    note = "Chief Complaint:\n\nAllergies:\n\nFamily History:\nnone\n"
    assert sections(note) == {"chief complaint": "", "allergies": "", "family history": "none"}


def test_the_last_section_is_kept() -> None:
    assert sections("Chief Complaint: a\n\nSocial History: last words") == {
        "chief complaint": "a",
        "social history": "last words",
    }


def test_repeated_headings_are_joined_without_repeating_their_text() -> None:
    note = "Past Medical History: gout\n\nPast Surgical History: hip\n\nPMH: gout\n"
    assert sections(note) == {"medical history": "gout\nhip"}


def test_the_first_examination_with_text_is_the_admissions() -> None:
    assert sections("Physical Exam:\nADMISSION EXAM: ill\n\nPhysical Exam: better\n") == {"physical exam": "ill"}


def test_abbreviations_and_bare_words_count_until_the_hospital_course_only() -> None:
    note = (
        "HPI: a\n\nHospital Course:\nb\nPE: clot\nMedications:\nnew drug\nCC: Dr. X\nExam: last\nHome Medications: old"
    )
    assert sections(note) == {"present illness": "a", "medications on admission": "old"}


def test_in_the_emergency_department_belongs_to_the_story() -> None:
    text = sections("HPI: fell.\n\nED course:\ngot fluids\n\nHospital course:\ndied")["present illness"]
    assert text == "fell.\nED course: got fluids"


def test_line_ends_of_windows_and_ruled_lines_do_not_matter() -> None:
    assert sections("HPI:\r\na\r\n-----\r\nb\r\n\r\nPMH:\r\nc") == {
        "present illness": "a\nb",
        "medical history": "c",
    }


def test_where_the_published_rules_fail() -> None:
    note = "HPI: a\n\nAllergies:\n\nPhysical Examination: well"
    assert admission_view(note) is None
    assert sections(note) == {"present illness": "a", "allergies": "", "physical exam": "well"}


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(
    ["\n", "\n\n", ":", " ", "HPI:", "Exam", "PHYSICAL EXAM", "Hospital Course:", "x", "(", ")", "Labs", "[**a**]", "é"]
)).map("".join)))  # fmt: skip
def test_sections_never_fail_and_hold_only_text_of_the_note(note: str) -> None:
    found = sections(note)
    assert list(found) == [name for name in SECTIONS if name in found]
    words = Counter("".join(note.split()))
    assert not Counter("".join("".join(found.values()).split())) - words


# --- the admission text


def test_the_admission_text_has_the_published_headings_and_no_empty_section() -> None:
    found = {"present illness": "a", "medications on admission": "b\nc", "allergies": "", "social history": "d"}
    assert admission_text(found) == ("PRESENT ILLNESS: a\n\nMEDICATION ON ADMISSION: b\nc\n\nSOCIAL HISTORY: d")


def test_without_complaint_illness_and_history_there_is_no_admission_text() -> None:
    assert admission_text({"chief complaint": "", "allergies": "x", "physical exam": "y"}) is None
    assert admission_text({}) is None
    for name in ("chief complaint", "present illness", "medical history"):
        assert admission_text({name: "x"}) is not None


# --- de-identification marks


@pytest.mark.parametrize(
    ("inside", "word"),
    [
        ("Known lastname 123", "name"), ("Known firstname", "name"), ("First Name3 (LF) 2969", "name"),
        ("Last Name (NamePattern1) 12", "name"), ("Name10 (NameIs) ", "name"), ("Initials (NamePattern4) ", "name"),
        ("Doctor Last Name ", "name"), ("Female First Name (un) ", "name"), ("Attending Info ", "name"),
        ("CC Contact Info 12", "name"), ("Dictator Info ", "name"), ("Name Prefix (Prefixes) ", "name"),
        ("2151-7-16", "date"), ("7-16", "date"), ("12/2151", "date"), ("5-/2151", "date"), ("2151", "date"),
        ("Date range (1) 123", "date"), ("Month (only) 2", "date"), ("Month/Day 2", "date"), ("Year (4 digits) 3", "date"),
        ("Month/Day/Year 1", "date"), ("Day Month 12", "date"), ("Holiday 1234", "date"), ("7-\n16", "date"),
        ("Hospital1 18", "hospital"), ("Hospital Ward Name 12", "hospital"), ("Hospital Unit Name 3", "hospital"),
        ("Wardname 5", "hospital"), ("Age over 90 ", "age"), ("Age over 90 102", "age"),
        ("Telephone/Fax (1) 123", "phone"), ("Pager number 12", "phone"),
        ("Numeric Identifier 12", "number"), ("Medical Record Number 1", "number"), ("Unit Number 9", "number"),
        ("Social Security Number 1", "number"), ("Job Number 1", "number"), ("Serial Number 3", "number"),
        ("Clip Number (Radiology) 12", "number"), ("MD Number(1) 5", "number"), ("Provider Number 1", "number"), ("3", "number"),
        ("Location (un) 86", "location"), ("Street Address 1", "location"), ("State/Zipcode 3", "location"),
        ("Country 12", "location"), ("State 1", "location"), ("PO Box 5", "location"), ("Apartment Address(1) 1", "location"),
        ("Company 12", "company"), ("University/College 3", "university"),
        ("E-mail address 5", "email"), ("URL 12", "website"), (" ", "unknown"), ("", "unknown"), ("Other 2", "unknown"),
    ],
)  # fmt: skip
def test_marks_become_words_by_type(inside: str, word: str) -> None:
    assert normalise_marks(f"a [**{inside}**] b") == (f"a {word} b", Counter({word: 1}))


def test_marks_may_go_over_a_line_break_and_are_counted() -> None:
    text = "Dr. [**First Name8 (NamePattern2) **] [**Last Name\n   (un) 1**] called [**Telephone/Fax (1) 2**] on [**7-1**]."
    assert normalise_marks(text) == ("Dr. name name called phone on date.", Counter(name=2, phone=1, date=1))


def test_words_do_not_grow_together() -> None:
    assert normalise_marks("Attending:[**First Name**][**Last Name**]2")[0] == "Attending: name name 2"
    assert normalise_marks("Dr.[**Last Name**]'s ([**Hospital1**])")[0] == "Dr. name's (hospital)"


def test_other_brackets_and_unclosed_marks_stay() -> None:
    for text in ("[x] [*y*] **", "[**never closed", "[**two\nline\nbreaks**]", f"[**{'long' * 60}**]", "", "plain"):
        assert normalise_marks(text) == (text, Counter())


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(
    ["[**", "**]", "[", "]", "**", "*", " ", "\n", "Name", "7-16", "2151", "x", ":", "(un)"]
)).map("".join)))  # fmt: skip
def test_normalising_again_changes_nothing(text: str) -> None:
    once, counts = normalise_marks(text)
    assert normalise_marks(once) == (once, Counter())
    assert set(counts) <= WORDS


# --- leaks of death


def leak_free(body: str, task: str = "mimic-mp", heading: str = "PRESENT ILLNESS") -> str:
    text, counts = remove_leaks(f"{heading}: {body}", task)
    assert bool(counts) == (text != f"{heading}: {body}")
    return text.removeprefix(f"{heading}: ")


@pytest.mark.parametrize(
    "sentence",
    [
        "The patient expired on date.", "Pt died.", "pt. passed away at 5 pm.", "Patient was pronounced dead at 05:30.",
        "The patient, unfortunately, died.", "She subsequently expired.", "He passed away peacefully with family.",
        "Despite pressors, the patient expired.", "Mr. name expired.", "Mrs. Smith then died in the ICU.",
        "name was declared brain dead.", "Ms. [**Known lastname 5**] has died.", "Time of death was 05:30.",
        "Autopsy was declined.", "The medical examiner was called.", "This was shortly before the patient's death.",
        "Disposition: expired.", "Deceased.", "Expired on date at 5.", "Death was pronounced at 6.",
        "The death of the patient was expected.", "EXPIRED.", "His death was expected.", "The patient is deceased.",
        "PATIENT DIED IN THE HOSPITAL.", "Cause of death: sepsis.", "Patient who was found deceased.",
    ],
)  # fmt: skip
def test_a_sentence_that_tells_the_death_goes_altogether(sentence: str) -> None:
    assert leak_free(f"Came with fever. {sentence} Had a cough.") == "Came with fever. Had a cough."


@pytest.mark.parametrize(
    "sentence",
    [
        "Her mother died at 52.", "Father deceased, brother died of MI.", "His husband passed away last year.",
        "The patient's mother died of cancer.", "Wife was ill; she died in March.", "Her sister had a stroke. She died.",
        "The driver was pronounced dead at the scene.", "Patient has two sisters who died young.",
        "Expired inhaler found.", "The expired inhaler was thrown away.", "Prolonged expiratory phase.",
        "Prescription expired last week and he stopped.", "He ran out of drugs and expired inhalers were found.",
        "He passed out and was taken here.", "The patient passed a stone.", "Her battery died.", "Studied in the ICU.",
        "DNR/DNI, comfort measures only.", "He nearly died in 2140.", "Dead tissue was debrided.",
        "Father had an autopsy.", "She is afraid of death.", "The patient expressed a wish to die at home.",
        "Friend died and he is grieving.", "Dyed hair.", "The father of the patient died at 69.", "Her twin had fever and died.",
    ],
)  # fmt: skip
def test_the_death_of_others_and_other_meanings_stay(sentence: str) -> None:
    assert leak_free(f"Came with fever. {sentence} Had a cough.") == f"Came with fever. {sentence} Had a cough."


def test_after_a_conjunction_only_the_last_part_goes() -> None:
    assert leak_free("He was admitted with sepsis, and he expired on date. So.") == "He was admitted with sepsis. So."
    assert leak_free("She was admitted with sepsis and then died on day 2.") == "She was admitted with sepsis."
    assert (
        leak_free("The patient was given fluids but unfortunately the patient died.") == "The patient was given fluids."
    )
    assert leak_free("She improved; then she died; so it was.") == "She improved; so it was."


def test_a_relative_of_the_other_sex_does_not_excuse_a_pronoun() -> None:
    assert leak_free("Wife at bedside. He expired. x") == "Wife at bedside. x"
    assert leak_free("Wife at bedside. She expired. x") == "Wife at bedside. She expired. x"


def test_titles_do_not_end_sentences() -> None:
    assert leak_free("Seen by us. Mr. Jones expired. Fin.") == "Seen by us. Fin."
    assert leak_free("Seen by us. He, J. Jones, is ill. Mrs. Jones died at 5 p.m. today. Fin.") == (
        "Seen by us. He, J. Jones, is ill. Fin."
    )


@pytest.mark.parametrize("heading", ["FAMILY HISTORY", "SOCIAL HISTORY"])
def test_in_the_histories_of_others_only_the_patient_by_that_word_counts(heading: str) -> None:
    body = "Deceased. He died at 50. Cause of death unknown. Autopsy done. Widow; pronounced dead."
    assert leak_free(body, heading=heading) == body
    assert leak_free(f"{body} The patient died.", heading=heading) == body


def test_a_paragraph_that_says_nothing_else_goes_with_its_heading() -> None:
    text = "CHIEF COMPLAINT: fever\n\nPHYSICAL EXAM: Patient expired.\n\nFAMILY HISTORY: Father deceased."
    assert remove_leaks(text, "mimic-mp") == (
        "CHIEF COMPLAINT: fever\n\nFAMILY HISTORY: Father deceased.",
        Counter({"death of the patient": 1}),
    )


def test_findings_are_counted_by_kind() -> None:
    text = "PRESENT ILLNESS: Ill. The patient expired. Time of death 5:30. He died.\nPt deceased."
    left, counts = remove_leaks(text, "mimic-mp")
    assert left == "PRESENT ILLNESS: Ill."
    assert counts == {"death of the patient": 2, "time of death": 1, "death of the patient, by pronoun": 1}


# --- leaks of the length of stay


@pytest.mark.parametrize(
    "sentence",
    ["Length of stay was 5 days.", "LOS: 4 days.", "On hospital day 3 he ate.", "HD#5 fever.", "Discharge date: date.",
     "A 12-day hospital stay followed.", "He had a 3 week hospitalization.", "Was sent home on hospital day #7."],
)  # fmt: skip
def test_sentences_that_tell_the_length_of_the_stay_go(sentence: str) -> None:
    assert leak_free(f"Came with fever. {sentence} Had a cough.", "mimic-los") == "Came with fever. Had a cough."


@pytest.mark.parametrize(
    "sentence",
    ["A 10 day course of levofloxacin.", "Recent 5 day hospital stay at OSH.", "HD 3 times a week.", "Fever for 3 days.",
     "Ill 3 weeks before admission.", "Previous length of stay 9 days.", "Discharged from OSH on date.",
     "Two days prior to admission he fell.", "The patient expired.", "Lost 5 kg."],
)  # fmt: skip
def test_earlier_stays_and_durations_of_illness_stay(sentence: str) -> None:
    assert leak_free(f"Came with fever. {sentence} Had a cough.", "mimic-los") == (
        f"Came with fever. {sentence} Had a cough."
    )


def test_triage_keeps_everything_and_other_tasks_are_none() -> None:
    text = "The patient expired. LOS: 5"
    assert remove_leaks(text, "mimic-triage") == (text, Counter())
    with pytest.raises(KeyError):
        remove_leaks(text, "mimic")


LEAK_PIECES = ["PRESENT ILLNESS: ", "FAMILY HISTORY: ", "\n\n", "\n", " ", ". ", "; ", ", and ", "and then ", "the patient",
               "pt. ", "he ", "she ", "mother ", "wife ", "Mr. name ", "died", "expired", "was ", "pronounced dead",
               "time of death", "autopsy", "deceased", " on date", "LOS: 5", "hospital day 3", "x y z"]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(LEAK_PIECES)).map("".join)), st.sampled_from(["mp", "los"]))
def test_after_removal_nothing_more_is_found(text: str, task: str) -> None:
    left, counts = remove_leaks(text, f"mimic-{task}")
    assert remove_leaks(left, f"mimic-{task}") == (left, Counter())
    assert len(left) <= len(text)
    assert bool(counts) == (left != text)


# --- labels


@pytest.mark.parametrize(
    ("days", "seconds", "expected"),
    [(0, 0, 0), (3, 0, 0), (3, 1, 1), (7, 0, 1), (7, 1, 2), (14, 0, 2), (14, 1, 3), (200, 0, 3)],
)
def test_stays_are_binned_by_their_exact_length(days: int, seconds: int, expected: int) -> None:
    start = datetime(2150, 2, 27, 22, 15)
    assert los_class(start, start + timedelta(days=days, seconds=seconds)) == expected


def test_a_discharge_before_the_admission_has_no_class() -> None:
    with pytest.raises(ValueError, match="before"):
        los_class(datetime(2150, 1, 2), datetime(2150, 1, 1))


# --- triage


def test_triage_text_drops_administrative_lines_and_normalises_marks() -> None:
    text, counts = triage_text(NOTE)
    assert text.startswith("Allergies: Penicillins\nChief Complaint: fever\nMajor Surgical")
    assert "Ms. name is a 61 year old woman who came to hospital with fever." in text
    assert "date WBC-15" in text
    assert "MEDICINE" not in text
    assert counts == {"service line": 1, "administrative line": 3, "name": 1, "hospital": 1, "date": 1}


@pytest.mark.parametrize(
    ("note", "expected", "services"),
    [
        ("Service: CARDIOTHORACIC\nHPI: x", "HPI: x", 1),
        ("SERVICE:\nNEUROLOGY\n\nHPI: x", "HPI: x", 1),
        ("Service:\n\nHPI: x", "HPI: x", 1),
        ("Service:\nHPI: x", "HPI: x", 1),
        ("HPI: served.\nCivil service: yes", "HPI: served. Civil service: yes", 0),
        ("Sex:  F   Service: OBSTETRICS\nw/o 12 mg", "w/o 12 mg", 0),
        ("", "", 0),
    ],
)
def test_the_service_goes_wherever_its_value_stands(note: str, expected: str, services: int) -> None:
    text, counts = triage_text(note)
    assert text == expected
    assert counts["service line"] == services


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(
    ["Service:", "Sex: F", "\n", "\n\n", " ", "MEDICINE", "[**7-16**]", "x", "Name:", "-----"]
)).map("".join)))  # fmt: skip
def test_triage_text_never_fails_and_keeps_no_mark(note: str) -> None:
    text, counts = triage_text(note)
    assert "[**7-16**]" not in text
    assert min(counts.values(), default=1) > 0


def test_long_runs_of_one_sign_are_no_trap() -> None:
    for signs in ("[**", " ", "\n", "patient ", "patient, was ", "(", "a:", "Service:\n", "mr ", "and then "):
        text = signs * (10_000 // len(signs))
        found = sections(text)
        assert admission_text(found) is None
        normalise_marks(text)
        triage_text(text)
        remove_leaks(f"{text}died", "mimic-mp")
        remove_leaks(f"{text}day 3", "mimic-los")
