"""Sections of notes, how authors head and lay them out, and joining them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from posology.synthetic.written import Written

ADMISSION_SECTIONS = (
    "chief complaint", "present illness", "medical history", "medications on admission", "allergies", "physical exam",
    "family history", "social history",
)  # fmt: skip
"""Canonical names of the sections that tell what was known on admission."""

HEADINGS: dict[str, tuple[str, ...]] = {
    "allergies": ("Allergies", "ALLERGIES", "Allergies"),
    "chief complaint": ("Chief Complaint", "CHIEF COMPLAINT", "CC"),
    "procedure": ("Major Surgical or Invasive Procedure", "PROCEDURES", "Procedures"),
    "present illness": ("History of Present Illness", "HISTORY OF PRESENT ILLNESS", "HPI"),
    "medical history": ("Past Medical History", "PAST MEDICAL HISTORY", "PMH"),
    "social history": ("Social History", "SOCIAL HISTORY", "SH"),
    "family history": ("Family History", "FAMILY HISTORY", "FH"),
    "physical exam": ("Physical Exam", "PHYSICAL EXAMINATION", "Physical Exam on Admission"),
    "results": ("Pertinent Results", "LABORATORY DATA", "Labs and Studies"),
    "hospital course": ("Brief Hospital Course", "HOSPITAL COURSE", "Hospital Course by Problem"),
    "medications on admission": ("Medications on Admission", "MEDICATIONS ON ADMISSION", "Home Medications"),
    "discharge medications": ("Discharge Medications", "DISCHARGE MEDICATIONS", "Medications on Discharge"),
    "disposition": ("Discharge Disposition", "DISPOSITION", "Dispo"),
    "discharge diagnosis": ("Discharge Diagnosis", "DISCHARGE DIAGNOSES", "Final Diagnoses"),
    "discharge condition": ("Discharge Condition", "CONDITION ON DISCHARGE", "Condition"),
    "instructions": ("Discharge Instructions", "DISCHARGE INSTRUCTIONS", "Patient Instructions"),
    "followup": ("Followup Instructions", "FOLLOW-UP", "Follow up"),
}


@dataclass(frozen=True)
class Author:
    """How somebody writes.

    Attributes:
        variant: of the headings: 0 the usual ones, 1 and 2 others.
        brief: whether in lists and fragments.
        misspelling: share of longer words with a slip.
        bullet: before the items of lists: `1.`, `-`, `*` or nothing.
        width: of lines, in characters; 0 does not break them.
    """

    variant: int
    brief: bool
    misspelling: float
    bullet: str
    width: int

    @classmethod
    def drawn(cls, rng: random.Random) -> Author:
        return cls(
            variant=rng.choices((0, 1, 2), (80, 12, 8))[0],
            brief=rng.random() < 0.4,
            misspelling=rng.choice((0.0, 0.0, 0.002, 0.005, 0.015)),
            bullet=rng.choice(("1.", "1.", "-", "*", "")),
            width=rng.choice((68, 72, 78)),
        )


@dataclass
class Section:
    """A part of a note.

    Attributes:
        name: canonical, such as `present illness`.
        heading: as written, without a colon.
        lines: sentences, or items.
        prose: whether the lines are sentences that flow; else each has a line of its own.
    """

    name: str
    heading: str
    lines: list[Written] = field(default_factory=list)
    prose: bool = False

    def text(self) -> Written:
        """The lines as one text: sentences parted by blanks, items by line breaks."""
        written = Written()
        for number, line in enumerate(self.lines):
            written.add((" " if self.prose else "\n") if number else "").add(line)
        return written


def joined(sections: Iterable[Section]) -> Written:
    """The note: each heading with a colon on a line of its own, a blank line between sections."""
    written = Written()
    for section in sections:
        written.add("\n\n" if written.text else "").add(f"{section.heading}:\n").add(section.text())
    return written
