"""The published rules on hand-written notes: every expectation was derived by hand from the protocol."""

from __future__ import annotations

import random
import re
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.tasks import triage
from posology.tasks.mimic_paper import DEFECTS, admission_view, los_class, mortality_text, triage_text

NAMES = {
    "CHIEF COMPLAINT": "chief complaint:",
    "PRESENT ILLNESS": "present illness:",
    "MEDICAL HISTORY": "medical history:",
    "MEDICATION ON ADMISSION": "medications on admission:",
    "ALLERGIES": "allergies:",
    "PHYSICAL EXAM": "physical exam:",
    "FAMILY HISTORY": "family history:",
    "SOCIAL HISTORY": "social history:",
}


def view(**sections: str) -> str:
    """The rebuilt text with these sections, named by initials, such as `cc` and `pi`."""
    keys = ["cc", "pi", "mh", "med", "al", "pe", "fh", "sh"]
    assert set(sections) <= set(keys)
    return "\n\n".join(f"{name}: {sections.get(key, '')}" for key, name in zip(keys, NAMES, strict=True))


END = "\n\nEnd:"


# --- the admission view


def test_the_eight_sections_are_rebuilt_in_a_fixed_order_under_fixed_labels() -> None:
    note = (
        "Social History:\ntobacco\n\nFamily History:\nasthma\n\nPhysical Exam:\nwell\n\nAllergies:\nnone\n\n"
        "Medications on Admission:\naspirin\n\nPast Medical History:\ngout\n\nHistory of Present Illness:\nfell\n\n"
        "Chief Complaint:\nfall\n\nEnd:\n"
    )
    assert admission_view(note) == (
        "CHIEF COMPLAINT: fall\n\nPRESENT ILLNESS: fell\n\nMEDICAL HISTORY: gout\n\n"
        "MEDICATION ON ADMISSION: aspirin\n\nALLERGIES: none\n\nPHYSICAL EXAM: well\n\nFAMILY HISTORY: asthma\n\n"
        "SOCIAL HISTORY: tobacco"
    )


def test_empty_sections_keep_their_heading() -> None:
    assert admission_view("CHIEF COMPLAINT: pain" + END) == (
        "CHIEF COMPLAINT: pain\n\nPRESENT ILLNESS: \n\nMEDICAL HISTORY: \n\nMEDICATION ON ADMISSION: \n\n"
        "ALLERGIES: \n\nPHYSICAL EXAM: \n\nFAMILY HISTORY: \n\nSOCIAL HISTORY: "
    )


@pytest.mark.parametrize(
    "heading", ["chief complaint:", "CHIEF COMPLAINT:", "Chief ComPlaint:", "the Chief Complaint:"]
)
def test_headings_are_found_in_any_case_and_anywhere(heading: str) -> None:
    assert admission_view(f"x {heading} pain{END}") == view(cc="pain")


@pytest.mark.parametrize("heading", ["Chief Complaint", "Chief Complaints:", "Chief  Complaint:", "Chief Complaint :"])
def test_headings_need_the_very_words_and_the_colon(heading: str) -> None:
    assert admission_view(f"{heading} pain{END}") is None


def test_physical_examination_is_no_physical_exam() -> None:
    assert admission_view(f"Chief Complaint: x\n\nPhysical Examination: well{END}") == view(cc="x")


def test_past_medical_history_is_medical_history() -> None:
    assert admission_view(f"Past Medical History: gout{END}") == view(mh="gout")


def test_only_the_first_place_of_a_heading_counts_even_inside_another_section() -> None:
    # The first "allergies:" stands inside the present illness, whose end it shares.
    note = "Present Illness: came with allergies: many\n\nAllergies:\nnuts\n\nEnd:"
    assert admission_view(note) == view(pi="came with allergies: many", al="many")


def test_a_section_ends_at_the_first_blank_line_before_a_heading() -> None:
    assert admission_view("Chief Complaint: a\n\nb c\nMore:\n\nRest of it: d\n\nEnd:") == view(cc="a  b c More:")


@pytest.mark.parametrize(
    "line", ["1. HEENT:", "Vitals at 5:", "Dr. Who:", "Exam (brief):", "a|b:", "a\\b:", "no colon"]
)
def test_digits_dots_bars_round_brackets_and_backslashes_are_in_no_heading(line: str) -> None:
    assert admission_view(f"Chief Complaint: a\n\n{line}{END}") == view(cc=f"a  {line}")


@pytest.mark.parametrize("line", ["[**Known lastname**] family:", "-- what, now?!:", "x: 5", " :", "::"])
def test_anything_else_is_a_heading_square_brackets_too(line: str) -> None:
    assert admission_view(f"Chief Complaint: a\n\n{line}\n\nnothing") == view(cc="a")


def test_what_follows_the_first_colon_of_a_heading_may_be_anything() -> None:
    assert admission_view("Chief Complaint: a\n\nVitals: T 98.6 (oral)") == view(cc="a")


def test_a_colon_alone_is_no_heading() -> None:
    assert admission_view("Chief Complaint: a\n\n:\n\nx") is None


def test_a_heading_does_not_go_over_a_line_break() -> None:
    assert admission_view("Chief Complaint: a\n\nfirst\nsecond:") is None


def test_the_last_section_is_lost_without_a_heading_after_it() -> None:
    assert admission_view("Chief Complaint: a\n\nPresent Illness: b c d") == view(cc="a")


def test_a_section_goes_on_to_a_much_later_heading() -> None:
    # The numbers and the line break between words and colon are no headings, so allergies reach to the end.
    note = "Chief Complaint: a\n\nAllergies: nuts\n\n1. Labs:\n7\n\nno heading\n\nSocial History: tea\n\nx"
    assert admission_view(note) == view(cc="a", al="nuts  1. Labs: 7  no heading")


def test_an_empty_section_takes_in_the_next_heading_and_its_text() -> None:
    note = "Chief Complaint: a\n\nAllergies:\n\nAttending: X\n\nEnd:"
    assert admission_view(note) == view(cc="a", al="Attending: X")


def test_an_empty_section_with_one_more_sign_is_empty() -> None:
    # A blank, or a further line break, is the one character that a section needs.
    assert admission_view("Chief Complaint: a\n\nAllergies: \n\nAttending: X\n\nEnd:") == view(cc="a")
    assert admission_view("Chief Complaint: a\n\nAllergies:\n\n\nAttending: X\n\nEnd:") == view(cc="a")


def test_a_line_of_spaces_is_no_blank_line() -> None:
    assert admission_view("Chief Complaint: a\n \nPresent Illness: b\n\nEnd:") == view(
        cc="a   Present Illness: b", pi="b"
    )


def test_each_line_break_becomes_one_blank_and_nothing_is_collapsed() -> None:
    assert admission_view("Chief Complaint:\n  a  b\n\n\nc\td \n\nEnd:") == view(cc="a  b   c\td")


def test_a_note_without_complaint_illness_and_history_is_none() -> None:
    assert admission_view(f"Allergies: nuts\n\nSocial History: tea{END}") is None
    assert (
        admission_view("Chief Complaint: \n\nPresent Illness:  \n\nMedical History: \n\nAllergies: x\n\nEnd:") is None
    )
    assert admission_view("") is None


@pytest.mark.parametrize("name", ["Chief Complaint", "Present Illness", "Medical History"])
def test_one_of_the_three_is_enough(name: str) -> None:
    assert admission_view(f"{name}: x{END}") is not None


def test_a_heading_in_an_addendum_ends_the_last_section_of_the_report() -> None:
    report, addendum = "Chief Complaint: a\n\nSocial History: tea", "Addendum: x\n\nChief Complaint: b\n\nEnd:"
    assert admission_view(report) == view(cc="a")
    assert admission_view(f"{report}\n\n{addendum}") == view(cc="a", sh="tea")


def test_a_backslash_with_an_n_is_a_line_break() -> None:
    assert admission_view("Chief Complaint: a\\nb\\n\\nEnd:") == view(cc="a b")


def naive_view(note: str) -> str | None:
    """The rule as one regular expression for each section, line breaks written as a backslash and an n."""
    escaped = note.replace("\n", r"\n")
    texts = {}
    for name, heading in NAMES.items():
        found = re.search(heading + r"(.+?)\\n\\n[^()|\d.\\]+?:", escaped, re.IGNORECASE)
        texts[name] = found.group(1).replace(r"\n", " ").strip() if found else ""
    if not any(list(texts.values())[:3]):
        return None
    return "\n\n".join(f"{name}: {text}" for name, text in texts.items())


PIECES = [*NAMES.values(), *NAMES, "\n", "\n\n", "\n\n\n", " ", ":", "x", "7", ".", "(", ")", "|", "\\", "\\n", "[", "]",
          "a b:", "\t", "\r", "ſ", "İ", "K", "MEDİCAL HıſTORY:", "n", "²", "٣"]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_the_view_is_that_of_the_plain_regular_expressions(note: str) -> None:
    assert admission_view(note) == naive_view(note)


@settings(max_examples=100, deadline=None)
@given(st.text().filter(lambda text: "\\N" not in text))
def test_the_view_never_fails(note: str) -> None:
    assert admission_view(note) == naive_view(note)


# --- mortality


def test_in_the_examination_and_the_drugs_the_first_death_of_a_line_is_deleted() -> None:
    text = view(cc="a", med="aspirin, patient expired in OR, died", pe="cold, pt had passed away. Then deceased.")
    expected = view(cc="a", med="aspirin,  in OR, died", pe="cold, . Then deceased.")
    assert mortality_text(text) == expected


@pytest.mark.parametrize("words", ["expired", "died", "passed away", "deceased", "DIED", "had died", "has expired"])
def test_the_subject_is_optional_and_the_blank_before_a_bare_phrase_goes_too(words: str) -> None:
    assert mortality_text(view(cc="a", pe=f"cold {words} at 5")) == view(cc="a", pe="cold at 5")


def test_with_a_subject_the_blank_before_it_stays() -> None:
    assert mortality_text(view(cc="a", pe="cold patient has died at 5")) == view(cc="a", pe="cold  at 5")
    assert mortality_text(view(cc="a", pe="patient  died")) == view(cc="a", pe="")


def test_a_death_without_a_blank_before_it_stays() -> None:
    assert mortality_text(view(cc="a", pe="(expired) x/died")) == view(cc="a", pe="(expired) x/died")


def test_deletion_knows_no_words() -> None:
    assert mortality_text(view(cc="a", pe="outpatient expired")) == view(cc="a", pe="out")
    assert mortality_text(view(cc="a", pe="well diedx")) == view(cc="a", pe="wellx")


def test_other_sections_are_not_touched() -> None:
    text = view(cc="a", fh="father died at 50, mother deceased", sh="husband passed away", al="has expired")
    assert mortality_text(text) == text


def test_a_heading_inside_another_section_counts_as_well() -> None:
    text = view(cc="a", pi="seen. Physical exam: calm, died there")
    assert mortality_text(text) == view(cc="a", pi="seen. Physical exam: calm, there")


@pytest.mark.parametrize(
    "words", ["patient died", "Patient had expired", "pt deceased", "PT passed away", "pt has died"]
)
def test_a_note_is_discarded_if_the_phrase_with_a_subject_remains(words: str) -> None:
    assert mortality_text(view(cc="a", pi=f"then {words}.")) is None
    # The first of the line is deleted, the second remains.
    assert mortality_text(view(cc="a", pe=f"x {words} and {words}")) is None


def test_inpatient_died_discards() -> None:
    assert mortality_text(view(cc="a", pi="as inpatient died")) is None


@pytest.mark.parametrize("words", ["patient  died", "patient was deceased", "patient, died", "patient had  died"])
def test_two_blanks_or_other_words_between_do_not_discard(words: str) -> None:
    text = view(cc="a", pi=words)
    assert mortality_text(text) == text


@pytest.mark.parametrize(
    "words", ["he expired", "She Expired", "the expired inhaler", "pronounced expired", "Time of Death 5:00"]
)
def test_three_phrases_discard_the_expired_inhaler_too(words: str) -> None:
    assert mortality_text(view(cc="a", sh=f"x {words} y")) is None


@pytest.mark.parametrize(
    "words", ["she died", "he  expired", "expired", "pronounced dead", "expiratory", "date of death"]
)
def test_other_phrases_do_not_discard(words: str) -> None:
    text = view(cc="a", sh=f"x {words} y")
    assert mortality_text(text) == text


def test_what_is_deleted_first_does_not_discard() -> None:
    assert mortality_text(view(cc="a", pe="Then he expired.")) == view(cc="a", pe="Then he.")


def test_mortality_beyond_ascii_ignores_case_in_the_same_way() -> None:
    # A long s equals an s where case does not matter, in lower case it does not.
    assert mortality_text(view(cc="a", pi="the patient deceaſed")) is None


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(
    ["PHYSICAL EXAM:", "physical exam: x", "\n\n", "patient", "pt", " ", "had ", "died", "expired", "he", "passed away"]
)).map("".join)))  # fmt: skip
def test_mortality_never_fails_and_leaves_no_patient_dead(text: str) -> None:
    left = mortality_text(text)
    assert left is None or not re.search(r"(?i)(?:patient|pt) (?:had |has )?(?:died|expired|deceased)|he expired", left)


# --- length of stay


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (0, 0), (2.99, 0), (3.0, 0), (3.04, 0), (3.05, 0), (3.051, 1), (3.1, 1),
        (7.0, 1), (7.05, 1), (7.06, 2), (14.0, 2), (14.05, 2), (14.06, 3), (14.1, 3), (100, 3),
        (-0.5, 0), (-20, 0),
    ],
)  # fmt: skip
def test_days_are_rounded_half_to_even_before_they_are_binned(days: float, expected: int) -> None:
    start = datetime(2150, 1, 31, 23, 30)
    assert los_class(start, start + timedelta(days=days)) == expected


def test_rounding_is_numpys_for_every_second_around_the_bounds() -> None:
    start = datetime(2150, 1, 1)
    for days in (3, 7, 14):
        centre = round((days + 0.05) * 86_400)
        seconds = np.arange(centre - 300, centre + 300)
        rounded = np.round(seconds / 86_400, 1)
        expected = np.digitize(rounded, [3, 7, 14], right=True)
        assert [los_class(start, start + timedelta(seconds=int(s))) for s in seconds] == expected.tolist()


# --- triage


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ("seen by [**Known lastname 12**] today", "seen by today"),
        ("a [**Hospital1\n18**] b", "a [**Hospital **] b"),
        ("values [see chart] ok", "values ok"),
        ("Admission Date: today Discharge Date: x", ": today :"),
        ("not ambulating", "notbulating"),
        ("AM and am and pm. a\nam", "AM and and. a am"),
        ("12 x 3 tabs, 3 xanax", "tabs, anax"),
        ("chest X-ray\nX-ray", "chest-ray X-ray"),
        ("factor VIII, grade III, GCS IV", "factorII, grade, GCS"),
        ("CHIEF IDEA, ID card, RAPID", "CHIEF EA, card, RAP"),
        ("(see) note)", "(see note"),
        ("w/o pain, w/ fever", "witho pain, with fever"),
        ("a_b #3 c 4.5 mg", "ab c . mg"),
        ("  a \n\n\t b\r\n", "a b"),
        ("Primary care Secondary", "care"),
        ("primary final report", "primary final report"),
        ("JOB#: cc", ": cc"),
        ("Provider: Dr Provider", "Dr"),
        ("Jane Doe MD Phone 5, Joe M.D. Phone", "Jane Doe , Joe M.D."),
        ("Full # Code", "Full"),
        ("0.5 % Drops Sig one, 0a5 % Drops two", "Sig one, two"),
        ("Lidocaine 5 %(700 mg/patch) Adhesive Patch", "Lidocaine %( mg/patch Adhesive Patch"),
        ("Lidocaine 5 %700 mg/patch Adhesive Patch on", "on"),
        ("10,000 unit/mL Solution Sig: x", ",:"),
        ("a   Status: Inpatient DOB b", "a b"),
        ("Clopidogrel Bisulfate 75 mg Tablet Sig: one", ": one"),
        ("[**1-2**]7", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_triage_cleaning(note: str, expected: str) -> None:
    assert triage_text(note) == expected


def naive_triage(note: str) -> str:
    text = re.sub(r"\[.*?\]", "", note)
    for pattern in triage.paper_deletions():
        text = re.sub(re.escape(pattern) if pattern == ")" else pattern, "", text)
    for pattern, replacement in [("\n", " "), ("w/", "with"), ("_", ""), ("#", ""), (r"\d+", ""), (r"\s+", " ")]:
        text = re.sub(pattern, replacement, text)
    return text.strip()


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(
    [*triage.paper_deletions(), "[", "]", "\n", " ", "w", "/", "\x1c", "\u2003", "٣", "7"]
)).map("".join)))  # fmt: skip
def test_triage_cleaning_is_that_of_plain_regular_expressions(note: str) -> None:
    assert triage_text(note) == naive_triage(note)


def test_defects_are_sentences_for_each_task() -> None:
    assert set(DEFECTS) == {"mimic-mp", "mimic-los", "mimic-triage"}
    for sentences in DEFECTS.values():
        assert len(sentences) == len(set(sentences)) > 5
        assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)


def test_a_long_line_of_opening_brackets_and_colons_is_no_trap() -> None:
    rng = random.Random(1)
    for signs in ("[", ":", "\n", "a\n\n", "patient ", "physical exam: ", "allergies:\n\n1"):
        text = signs * (10_000 // len(signs)) + rng.choice(["", "]", ":"])
        assert len(admission_view(text) or "") < len(text) + 200  # the eight headings are all that is added
        assert len(mortality_text(text) or "") <= len(text)
        assert "  " not in triage_text(text)
