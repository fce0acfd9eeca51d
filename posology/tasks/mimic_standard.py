"""Text and label rules of the MIMIC-III tasks, done right: the default.

Pure functions, applied by the builder in this order to mortality and length of stay: `sections`, `admission_text`,
`normalise_marks`, `remove_leaks`; to triage: `triage_text`. What differs from the published rules:

- Headings are recognised in all their usual wordings, an empty section is empty and the last one is kept.
- De-identification marks become words for what they stand for; nothing else loses digits or letters.
- Statements of the outcome are taken out by sentence and counted, so that no note is left out because of them.
- Days are not rounded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

from posology.tasks.mimic_marks import normalise_marks
from posology.tasks.mimic_outcome import remove_leaks
from posology.tasks.mimic_paper import MAIN_SECTIONS, SECTIONS
from posology.tasks.mimic_sections import sections, tidy

__all__ = ["admission_text", "los_class", "normalise_marks", "remove_leaks", "sections", "triage_text"]

# The lines at the head of a summary that say nothing about the illness. The service alone gives the group of some
# diagnoses away, which is the label; its value may stand on the next line.
_ADMINISTRATIVE = re.compile(
    r"^[ \t]*(?:admission date|discharge date|date of birth|sex|name|unit no|attending)[ \t]*:.*\n?",
    re.IGNORECASE | re.MULTILINE,
)
_SERVICE = re.compile(
    r"^[ \t]*service[ \t]*:(?:[ \t]*\n(?!.*:)[^\n]{1,40}(?=\n|\Z)|.*)\n?", re.IGNORECASE | re.MULTILINE
)


def admission_text(sections: Mapping[str, str]) -> str | None:
    """What was known at admission, as one text.

    Args:
        sections: as the function of this name gives them.

    Returns:
        The sections that have any text, each after its heading in capitals (the same as the published ones), with
        blank lines between them; None if chief complaint, present illness and medical history are all empty.
    """
    if not any(sections.get(name) for name in MAIN_SECTIONS):
        return None
    return "\n\n".join(f"{heading}: {sections[name]}" for name, heading in SECTIONS.items() if sections.get(name))


def los_class(admitted: datetime, discharged: datetime) -> int:
    """The class of a stay by its exact length: 0 up to 3 days, 1 up to 7, 2 up to 14, 3 above.

    Raises:
        ValueError: the discharge is before the admission, so there is no length of stay.
    """
    stay = discharged - admitted
    if stay < timedelta(0):
        raise ValueError("discharged before admitted")
    return sum(stay > timedelta(days=days) for days in (3, 7, 14))


def triage_text(note: str) -> tuple[str, Counter[str]]:
    """A discharge summary without administrative lines, its marks normalised and its whitespace tidied.

    Returns:
        The text, one line for each paragraph, and what was taken out or replaced: marks by type, `service line` and
        `administrative line`.
    """
    text, services = _SERVICE.subn("", note)
    text, lines = _ADMINISTRATIVE.subn("", text)
    text, counts = normalise_marks(text)
    counts.update({"service line": services, "administrative line": lines})
    return tidy(text), +counts
