"""Text and label rules of the MIMIC-III tasks as the published code applied them, defects included.

Pure functions: which notes and admissions they are applied to is the builder's business. What they reproduce on
purpose is listed, in words, in `DEFECTS`. The rules for mortality and length of stay are those of the CORe tasks (van
Aken et al. 2021), the triage rules those of Taylor et al. 2023.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache

from posology.tasks import triage

SECTIONS = {
    "chief complaint": "CHIEF COMPLAINT",
    "present illness": "PRESENT ILLNESS",
    "medical history": "MEDICAL HISTORY",
    "medications on admission": "MEDICATION ON ADMISSION",
    "allergies": "ALLERGIES",
    "physical exam": "PHYSICAL EXAM",
    "family history": "FAMILY HISTORY",
    "social history": "SOCIAL HISTORY",
}
"""What is searched for in a note (followed by a colon), and the heading of the rebuilt text, in its order."""

MAIN_SECTIONS = ("chief complaint", "present illness", "medical history")
"""A note in which all of these are empty says nothing about the admission and is left out."""

_HEADINGS = {name: re.compile(f"{name}:", re.IGNORECASE) for name in SECTIONS}
# A section ends at the first of two line breaks, if what follows them runs up to a colon without any of the signs
# that are not allowed in a heading. The first sign may itself be a colon, since the run has at least one.
_END = re.compile(r"\n(?=\n[^()\\|\d.\n][^()\\|\d.\n:]*:)")

_DEATH = r"(?:expired|died|passed away|deceased)"
_DEATH_WORDS = ("expired", "died", "passed away", "deceased", "time of death")
_DEATH_IN_EXAM_OR_DRUGS = re.compile(
    rf"((?:PHYSICAL EXAM|MEDICATION ON ADMISSION):[^\n]*?)(?:patient|pt)?\s+(?:ha[ds]\s)?{_DEATH}", re.IGNORECASE
)
_DEATH_OF_PATIENT = re.compile(rf"(?:patient|pt)\s(?:ha[ds]\s)?{_DEATH}", re.IGNORECASE)
_OTHER_DEATH = re.compile("he expired|pronounced expired|time of death", re.IGNORECASE)

_TENTH_OF_A_DAY = timedelta(hours=2, minutes=24)

_MARK_WITHIN_LINE = re.compile(r"\[[^\]\n]*\]")
_DIGITS = re.compile(r"\d+")

_SECTION_DEFECTS = [
    "A section is found by the first place where its heading and a colon occur, be it inside another section.",
    "Headings in other words, such as `Physical Examination:`, `HPI:` or `Home Medications:`, are not found.",
    "The last section of a note is lost where no heading follows it.",
    "A section without a following heading of letters runs on to a much later one and takes in what lies between.",
    "An empty section takes in the next heading and its text.",
    "Where an addendum begins with a heading, it ends the last section of the report.",
    "A text that occurs in two admissions is kept only for the later one.",
    "An admission that has an addendum but no report is left out.",
    "A patient who is in none of the lists of patients is left out without a word.",
]

DEFECTS: dict[str, list[str]] = {
    "mimic-mp": [
        *_SECTION_DEFECTS,
        "Death is deleted without regard to words (`outpatient expired` becomes `out`), and only once for each "
        "heading of the examination and the drugs.",
        "A note is left out for `inpatient died` too, but kept for `patient was deceased`, or two blanks between.",
        "A note is left out for `he expired` inside other words, as in `the expired inhaler` of a survivor.",
    ],
    "mimic-los": [
        *_SECTION_DEFECTS,
        "Days are rounded to tenths before they are binned, so that 3.05 days count as three.",
        "A discharge before the admission counts as a stay of up to three days.",
    ],
    "mimic-triage": [
        "Administrative strings are deleted wherever they occur, and so maim words: `not ambulating` becomes "
        "`notbulating`.",
        "The order of the deletions makes some of them void and some harmful: `factor VIII` becomes `factorII`.",
        "De-identification marks that go over a line break stay, less their digits.",
        "All digits are deleted, and with them doses, values and ages; `w/o` becomes `witho`.",
        "Diagnoses with the code 0389 (septicaemia) are missing, because the published list had lost the zero.",
        "The group called Obstetrics consists of newborns.",
        "Notes of an admission are joined in the order of the file, not of their dates.",
        "Texts that are equal after cleaning are kept only for the first admission, even if their digits differed.",
        "The split is by admission, so the same patient may be in two splits.",
        "Of the three splits, the names of validation and test are exchanged.",
    ],
}
"""For each task, one plain sentence for each defect that is reproduced."""


def admission_view(note: str) -> str | None:
    """What was known at admission, as the published code cuts it out of a discharge summary.

    Args:
        note: all texts of an admission, joined.

    Returns:
        Eight headings in capitals, each with its text on the same line (nothing, for a section that was not found or
        is empty), with blank lines between them; None if all of `MAIN_SECTIONS` are empty.
    """
    # The published code wrote line breaks as a backslash and an n, so the two were the same to it.
    note = note.replace("\\n", "\n")
    starts = _heading_ends(note)
    ends = [match.start() for match in _END.finditer(note)] if starts else []
    sections = {name: "" for name in SECTIONS}
    for name, start in starts.items():
        # The text has at least one character: a blank line straight after the heading is no end.
        end = next((end for end in ends if end > start), None)
        if end is not None:
            sections[name] = note[start:end].replace("\n", " ").strip()
    if not any(sections[name] for name in MAIN_SECTIONS):
        return None
    return "\n\n".join(f"{heading}: {sections[name]}" for name, heading in SECTIONS.items())


def _heading_ends(note: str) -> dict[str, int]:
    """Where the text after the first occurrence of each heading starts."""
    if note.isascii():
        # Searching without regard to case is slow; beyond ASCII, lower case may differ from it, and in length.
        lower = note.lower()
        found = {name: lower.find(f"{name}:") for name in SECTIONS}
        return {name: place + len(name) + 1 for name, place in found.items() if place >= 0}
    matches = {name: heading.search(note) for name, heading in _HEADINGS.items()}
    return {name: match.end() for name, match in matches.items() if match}


def mortality_text(view: str) -> str | None:
    """Takes the outcome out of an admission view.

    After each heading of the examination and of the drugs, the first statement of a death on that line is deleted.

    Returns:
        The text, or None where a death remains: of `patient` or `pt`, or in one of three fixed phrases.
    """
    if view.isascii():
        lower = view.lower()
        if not any(words in lower for words in _DEATH_WORDS):
            return view
    text = _DEATH_IN_EXAM_OR_DRUGS.sub(r"\1", view)
    return None if _DEATH_OF_PATIENT.search(text) or _OTHER_DEATH.search(text) else text


def los_class(admitted: datetime, discharged: datetime) -> int:
    """The class of a stay: 0 up to 3 days, 1 up to 7, 2 up to 14, 3 above.

    Days are rounded to tenths first, halves to the even tenth; a discharge before the admission gives class 0.
    """
    tenths = round((discharged - admitted) / _TENTH_OF_A_DAY)
    return sum(tenths > 10 * days for days in (3, 7, 14))


def triage_text(note: str) -> str:
    """A note as the published triage cleaning leaves it: one line; empty if nothing remains."""
    text = _MARK_WITHIN_LINE.sub("", note)
    for delete in _deletions():
        text = delete(text)
    text = text.replace("\n", " ").replace("w/", "with").replace("_", "").replace("#", "")
    return " ".join(_DIGITS.sub("", text).split())


@cache
def _deletions() -> list[Callable[[str], str]]:
    return [_deletion(pattern) for pattern in triage.paper_deletions()]


def _deletion(pattern: str) -> Callable[[str], str]:
    # A single sign was taken literally; what has no sign of a regular expression is faster as a plain string.
    if len(pattern) == 1 or not re.search(r"[.^$*+?{}\[\]\\|()]", pattern):
        return lambda text: text.replace(pattern, "")
    expression = re.compile(pattern)
    return lambda text: expression.sub("", text)
