"""More ways to put what a note mentions: modifiers that belong to the mention, as annotators mark them.

"chest pain" becomes "intermittent chest pain" or "chest pain to the jaw". So the test holds many mentions that
training never had, of which the head is known and the extent is not.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from dataclasses import replace

from posology.synthetic.phrases import Scribe
from posology.synthetic.words import determined
from posology.synthetic.written import Written

_BEFORE = {"problem": 0.3, "test": 0.22, "treatment": 0.18}
_AFTER = {"problem": 0.1, "test": 0.07, "treatment": 0.05}
_DETERMINERS = ("a ", "an ", "the ", "his ", "her ", "any ", "this ", "some ")
_ARTICLES = ("a ", "another ", "her ", "his ", "several ")
_FELT = re.compile(
    r"\b(?:pains?|aches?|discomfort|weakness|numbness|tingling|swelling|edema|tenderness|cramps?|ulcers?|rash|bruising"
    r"|hematomas?|cellulitis|paresthesias|spasms?|stiffness|erythema|lesions?|pressure)$"
)
_VALUE = re.compile(r"[-: ]*\d")  # "HR 80" stays together
_LONGEST = 4
"""Mentions of more words are long enough."""


def varied(written: Written, scribe: Scribe, rng: random.Random) -> Written:
    """The text with modifiers in some of its problems, tests and treatments; everything else moves along.

    Args:
        scribe: its grammar has the rules `KIND_before` and `KIND_after`, and `felt_before` and `felt_after` for
            problems that are felt or seen somewhere on the body.
    """
    edges = sorted({offset for one in written.mentions for offset in (one.start, one.end)})
    changes: list[tuple[int, int, str]] = []
    for one in sorted(written.mentions, key=lambda one: (one.start, one.end)):
        inside = any(one.start < edge < one.end for edge in edges)
        if one.kind not in _BEFORE or inside or (changes and one.start < changes[-1][1]):
            continue
        words = written.text[one.start : one.end]
        if len(words.split()) <= _LONGEST and "\n" not in words:
            place, rule = rng.random(), "felt" if one.kind == "problem" and _FELT.search(words) else one.kind
            if place < _BEFORE[one.kind]:
                changes.append((one.start, one.end, _with_before(words, scribe.plain(f"{{@{rule}_before}}"))))
            elif place < _BEFORE[one.kind] + _AFTER[one.kind] and not _VALUE.match(written.text, one.end):
                changes.append((one.start, one.end, f"{words} {scribe.plain(f'{{@{rule}_after}}')}"))
    return _changed(written, changes)


def _with_before(words: str, modifier: str) -> str:
    length = next((len(one) for one in _DETERMINERS if words.lower().startswith(one)), 0)
    determiner, noun = words[:length], words[length:]
    if noun[:1].isupper() and noun[1:2].islower() and not determiner:  # at the beginning of a sentence
        noun, modifier = noun[0].lower() + noun[1:], modifier[0].upper() + modifier[1:]
    if determiner and modifier.startswith(_ARTICLES):
        return words
    if determiner.lower() in ("a ", "an "):
        put = determined(f"a {modifier} {noun}", "a")
        return put[0].upper() + put[1:] if determiner[0].isupper() else put
    return f"{determiner}{modifier} {noun}"


def _changed(written: Written, changes: list[tuple[int, int, str]]) -> Written:
    """The text with stretches replaced; a mention that ends or begins with one still does."""
    pieces, position, grown = [], 0, 0
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    places, shifts = [0], [0]
    for start, end, words in changes:
        pieces += [written.text[position:start], words]
        starts[start] = start + grown
        grown += len(words) - (end - start)
        ends[end] = end + grown
        places.append(end)
        shifts.append(grown)
        position = end
    pieces.append(written.text[position:])

    def moved(offset: int) -> int:
        return offset + shifts[bisect_right(places, offset) - 1]

    mentions = [
        replace(one, start=starts.get(one.start, moved(one.start)), end=ends.get(one.end, moved(one.end)))
        for one in written.mentions
    ]
    return Written("".join(pieces), mentions, written.links)
