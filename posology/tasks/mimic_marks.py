"""De-identification marks of MIMIC-III, such as `[**Known lastname 123**]`, as words a model can read.

Each mark becomes one lower-case English word for its type. Such a word is a single piece in the vocabularies of
cased and uncased BERT models alike, while the mark itself is cut into a dozen pieces of no meaning and a bracketed
placeholder into three: a note has so many marks that this decides how much of it fits.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

# A mark may go over one line break. Anything longer is a bracket that was never closed.
_MARK = re.compile(r"\[\*\*((?:[^\[\]\n]{0,100}\n)?[^\[\]\n]{0,100}?)\*\*\]")

# The first that fits: a `Pager number` is no number, and a `Hospital Ward Name` no name.
_TYPES = [
    (word, re.compile(pattern, re.IGNORECASE))
    for word, pattern in [
        ("phone", r"phone|fax|pager|beeper"),
        ("email", r"e-?mail"),
        ("website", r"\burl\b|web ?site"),
        ("hospital", r"hospital|ward"),
        ("age", r"\bage\b"),
        ("university", r"university|college|school"),
        ("company", r"company|employer"),
        ("location", r"location|address|street|state|zip|country|city|town|county|\bpo box\b|apartment"),
        ("number", r"number\b|identifier|record|social security|\bssn\b"),
        ("date", r"date|month|\byear|holiday|season|\bday\b"),
        ("name", r"name|initial|doctor|attending|contact|dictator|patient|wife|husband"),
        # Without any word: 2151-7-16, 7-16, 5-/2151, 12/2151, or a year. Any other number is just a number.
        ("date", r"^\s*(?:\d{1,4}\s*[-/]+\s*[\d/-]*\d|(?:1[89]|2[0-3])\d\d)\s*$"),
        ("number", r"^\W*\d[\d\W]*$"),
    ]
]
_OTHER = "unknown"

WORDS = frozenset(word for word, _ in _TYPES) | {_OTHER}
"""Every word a mark can become."""


def normalise_marks(text: str) -> tuple[str, Counter[str]]:
    """Replaces each de-identification mark by a word for its type; what is inside an unclosed one stays.

    Returns:
        The text, and how many marks there were of each type. A text without marks is returned as it is.
    """
    counts: Counter[str] = Counter()

    def word_for(match: re.Match[str]) -> str:
        word = _type_of(match.group(1))
        counts[word] += 1
        # Words must not grow together: `Dr.[**Name**]Smith` is no `nameSmith`.
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        left = " " if before.isalnum() or before in (":", ".", ",", ")", "]") else ""
        return left + word + (" " if after.isalnum() else "")

    # What is left of badly nested marks may close again: repeated until there is none.
    while "[**" in text:
        replaced = _MARK.sub(word_for, text)
        if replaced == text:
            break
        text = replaced
    return text, counts


@lru_cache(maxsize=1 << 14)
def _type_of(inside: str) -> str:
    return next((word for word, pattern in _TYPES if pattern.search(inside)), _OTHER)
