"""Takes out of an admission text what gives the outcome away: that the patient died, or how long the stay was.

A finding is the sentence that says it, or the last part of a sentence where `and`, `but` or `until` introduces it.
What was known at admission stays: the death of others (of relatives, of the driver), an expired prescription,
expiratory wheezes, wishes about resuscitation, earlier stays. The price is a leak here and there where a pronoun may
mean somebody else just mentioned.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_HEADING = re.compile(r"(?P<heading>[A-Z][A-Z ]+): ?")
_OTHERS_HISTORY = ("FAMILY HISTORY", "SOCIAL HISTORY")

# A full stop ends a sentence unless it belongs to an abbreviation or an initial.
_SENTENCE_END = re.compile(
    r"(?:[.!?](?<!\b[A-Za-z]\.)(?<!\b(?:Mr|Ms|Dr|Pt|pt|St|vs|No|no|Sr|Jr)\.)(?<!\bMrs\.)[\"')]*|;)\s+"
)

_FEMALE = r"mother|mom|wife|sister|daughter|aunt|grandmother|granddaughter|girlfriend|niece|mgm|pgm"
_MALE = r"father|dad|husband|brother|son|uncle|grandfather|grandson|boyfriend|nephew|mgf|pgf"
_ANYONE = (
    r"parent|sibling|child|children|bab(?:y|ies)|infant|fetus|newborn|twin|cousin|friend|spouse|partner|relative|"
    r"roommate|neighbou?r|grandparent|grandchild|grandchildren|widow(?:ed|er)?|fianc[eé]e?|driver|passenger|occupant|"
    r"pedestrian|assailant|victim|donor|dog|cat|family member"
)
_WOMEN, _MEN, _PEOPLE = (
    re.compile(rf"\b(?:{words}|{_ANYONE})s?\b", re.IGNORECASE) for words in (_FEMALE, _MALE, f"{_FEMALE}|{_MALE}")
)
_EARLIER_STAY = re.compile(
    r"\b(?:prior|previous(?:ly)?|recent(?:ly)?|last|outside|osh|earlier|ago|another|rehab(?:ilitation)?|readmi\w+)\b",
    re.IGNORECASE,
)

_ADVERB = (
    r"(?:then|later|subsequently|unfortunately|eventually|ultimately|finally|also|soon|shortly|thereafter|peacefully|"
    r"quietly|comfortably|sadly|now|promptly|suddenly|afterwards?)"
)
_FILLER = rf"(?:(?:\s*,)?\s+(?:{_ADVERB}|ha[ds]|have|is|was|being|been|who|to be|found)\b,?){{0,5}}"
_DIED = (
    r"\s+(?:expired|died|passed\s+away|deceased|perished|succumbed|demised|"
    r"(?:pronounced|declared)\s+(?:brain\s+)?(?:dead|deceased|expired))\b"
)
# Not "the father of the patient".
_PATIENT = r"(?<!\bof\s)(?<!\bof\sthe\s)(?<!\bof\sthis\s)\b(?:patient|pt\b\.?)"
_NAMED = r"(?:\bm(?:r|s|rs|iss)\b\.?\s*(?:\[\*\*[^\]]*\*\*\]|[\w'-]+)|\bname|\[\*\*[^\]]*name[^\]]*\*\*\])"


@dataclass(frozen=True)
class _Rule:
    """One way in which an outcome is told.

    Attributes:
        kind: under which findings are counted.
        pattern: searched for in a sentence.
        unless: what makes it about something else; None if it can only be the patient and this stay.
        where: that is searched for: in the sentence `before` the finding, in the sentence before it `too`, or
            `anywhere` in the sentence.
    """

    kind: str
    pattern: re.Pattern[str]
    unless: re.Pattern[str] | None
    where: Literal["before", "too", "anywhere"]

    def is_about_other(self, sentence: str, start: int, previous: str) -> bool:
        if self.unless is None:
            return False
        if self.unless.search(sentence, 0, len(sentence) if self.where == "anywhere" else start):
            return True
        return self.where == "too" and bool(self.unless.search(previous))


def _rule(
    kind: str,
    pattern: str,
    unless: re.Pattern[str] | None = _PEOPLE,
    where: Literal["before", "too", "anywhere"] = "too",
) -> _Rule:
    return _Rule(kind, re.compile(pattern, re.IGNORECASE), unless, where)


_DEATH_RULES = [
    _rule("death of the patient", rf"{_PATIENT}{_FILLER}{_DIED}", None),
    _rule("death of the patient", rf"{_PATIENT}['’]s\s+(?:death|demise|passing|expiration)\b", None),
    _rule("death of the patient", r"\b(?:death|demise)\s+of\s+(?:the|this)\s+(?:patient|pt)\b", None),
    _rule("death of the patient, by name", rf"{_NAMED}{_FILLER}{_DIED}", where="before"),
    _rule("death of the patient, by pronoun", rf"\bshe{_FILLER}{_DIED}", _WOMEN),
    _rule("death of the patient, by pronoun", rf"\bhe{_FILLER}{_DIED}", _MEN),
    _rule("death of the patient, by pronoun", r"\bher\s+(?:death|demise)\b", _WOMEN),
    _rule("death of the patient, by pronoun", r"\bhis\s+(?:death|demise)\b", _MEN),
    _rule("death pronounced", r"\b(?:pronounced|declared)\s+(?:\w+\s+)?(?:dead|deceased|expired)\b"),
    _rule("death pronounced", r"\bpronounced\s+(?:death\b|at\s+\d)|\bdeath\s+(?:was\s+)?(?:pronounced|declared)\b"),
    _rule("time of death", r"\b(?:time|date|cause|hour)\s+of\s+(?:\w+\s+)?death\b"),
    _rule("autopsy", r"\b(?:autopsy|post-?\s?mortem|medical\s+examiner)\b"),
    _rule(
        "death in hospital",
        r"\b(?:died|expired)\s+(?:in|during)\s+(?:the\s+|this\s+)?"
        r"(?:hospital|hospitali[sz]ation|admission|[ms]?icu|ccu|ed|or)\b",
    ),
    _rule("death in hospital", r"\b(?:disposition|condition|status)\s*:?\s*(?:expired|deceased|dead)\b"),
    # Without an object or the noun it describes: "and expired on date", not "and expired inhalers".
    _rule(
        "death in hospital",
        rf"(?:(?<=\band\s)|(?<=\bbut\s)|(?<=\buntil\s))(?:{_ADVERB},?\s+){{0,3}}(?:expired|died|passed\s+away)"
        r"(?=\W*$|\s*[,;:(]|\s+(?:on|at|in|from|due|after|before|while|with|this|that|later|during|despite|soon|"
        r"shortly|prior|as|because|overnight|secondary|date|\d+|of|within|peacefully|quietly)\b)",
    ),
    # A sentence of one statement, as in an examination that says nothing but "Deceased."
    _rule(
        "death in hospital",
        rf"^\W*(?:{_ADVERB}\s+)?(?:expired|deceased|died|passed\s+away)(?:\s+(?:on|at|in|during|from)\b[^,]{{0,60}})?\W*$",
    ),
]
_STAY_RULES = [
    _rule(kind, pattern, _EARLIER_STAY, "anywhere")
    for kind, pattern in [
        ("length of stay", r"\b(?:length|duration)\s+of\s+(?:\w+\s+)?(?:stay|hospitali[sz]ation)\b"),
        ("length of stay", r"\blos\b\s*(?:[:=]|was|is|of)?\s*\d"),
        (
            "length of stay",
            # Not a "10-day course" of a drug, nor "days before admission".
            r"\b\d+\s*-?\s*(?:days?|weeks?)\s+(?:(?:hospital|inpatient|[ms]?icu|ccu)\s+(?:stay|course|admission)|"
            r"stay|hospitali[sz]ation)\b",
        ),
        # HD without a number sign is haemodialysis.
        ("day in hospital", r"\b(?:hospital|hosp|icu)\s+day\s*(?:#|number|no\.?)?\s*\d+|\bhd\s*#\s*\d+"),
        ("date of discharge", r"\b(?:date\s+of\s+discharge|discharge\s+date)\b"),
    ]
]
# No rule can apply where none of these is found: most texts and sentences need no further look.
_DEATH_HINTS = ("expired", "died", "passed", "deceased", "perished", "succumb", "demise", "dead", "death", "autopsy",
                "mortem", "examiner", "expiration", "passing", "pronounced")  # fmt: skip
_STAY_HINTS = ("stay", "hospitali", "los", "day", "week", "hd", "discharge")

_RULES = {"mimic-mp": (_DEATH_HINTS, _DEATH_RULES), "mimic-los": (_STAY_HINTS, _STAY_RULES)}

_JOINT = re.compile(
    rf"(?:,|\s)\s*\b(?:and|but|then|until|however)\b,?\s*(?:{_ADVERB},?\s*)*(?:the\s+)?$", re.IGNORECASE
)
_FEWEST_WORDS = 3
"""A part of a sentence with fewer words goes with the rest of it."""


def remove_leaks(text: str, task: str) -> tuple[str, Counter[str]]:
    """Removes what gives the label of a task away from an admission text.

    For `mimic-mp` statements that the patient died, for `mimic-los` statements of the length of the stay. In
    `mimic-triage` the whole discharge summary, diagnoses included, is the input by definition of the task: nothing is
    removed.

    Args:
        text: as `admission_text` makes it, before or after `normalise_marks`. A paragraph whose text is removed
            altogether goes with its heading.
        task: one of the three names.

    Returns:
        The text, in which nothing more would be found, and how many statements of each kind were removed.
    """
    counts: Counter[str] = Counter()
    if task == "mimic-triage":
        return text, counts
    hints, rules = _RULES[task]
    # Taking a sentence out makes neighbours of others: repeated until nothing is found.
    while True:
        before = counts.total()
        paragraphs = [
            _cleaned_paragraph(paragraph, hints, rules, counts) if _has(paragraph, hints) else paragraph
            for paragraph in text.split("\n\n")
        ]
        if counts.total() == before:
            return text, counts
        text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _has(text: str, hints: tuple[str, ...]) -> bool:
    lower = text.lower()
    return any(hint in lower for hint in hints)


def _cleaned_paragraph(paragraph: str, hints: tuple[str, ...], rules: list[_Rule], counts: Counter[str]) -> str:
    match = _HEADING.match(paragraph)
    body_start = match.end() if match else 0
    if match and match.group("heading") in _OTHERS_HISTORY:
        # There only the patient's own death is a leak, and only where it says so: `he died` is about the father.
        rules = [rule for rule in rules if rule.unless is None]
    before = counts.total()
    lines = [_cleaned_line(line, hints, rules, counts) for line in paragraph[body_start:].split("\n")]
    if counts.total() == before:
        return paragraph
    body = "\n".join(line for line in lines if line)
    return paragraph[:body_start] + body if body else ""


def _cleaned_line(line: str, hints: tuple[str, ...], rules: list[_Rule], counts: Counter[str]) -> str:
    if not _has(line, hints):
        return line
    kept: list[str] = []
    previous = ""
    changed = False
    for sentence in _sentences(line):
        left = sentence
        while _has(left, hints) and (found := _first_leak(left, previous, rules)) is not None:
            rule, start = found
            counts[rule.kind] += 1
            left = _before_joint(left[:start])
            changed = True
        if left:
            kept.append(left)
        previous = sentence
    return "".join(kept).strip() if changed else line


def _sentences(line: str) -> Iterator[str]:
    """The sentences of a line, each with the blanks that follow it."""
    start = 0
    for end in _SENTENCE_END.finditer(line):
        yield line[start : end.end()]
        start = end.end()
    if start < len(line):
        yield line[start:]


def _first_leak(sentence: str, previous: str, rules: list[_Rule]) -> tuple[_Rule, int] | None:
    for rule in rules:
        for match in rule.pattern.finditer(sentence):
            if not rule.is_about_other(sentence, match.start(), previous):
                return rule, match.start()
    return None


def _before_joint(head: str) -> str:
    """What stays of a sentence before a finding: nothing, unless a conjunction divides the two."""
    joint = _JOINT.search(head)
    rest = head[: joint.start()].rstrip(" ,;:-") if joint else ""
    return rest + ". " if len(rest.split()) >= _FEWEST_WORDS else ""
