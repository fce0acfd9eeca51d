"""Small changes to words: determiners, capitals and slips of the pen."""

from __future__ import annotations

import random
import re

from posology.synthetic.written import Mention, Written

_ARTICLES = ("a ", "an ", "the ", "some ", "his ", "her ")
_VOWEL_LETTERS = frozenset("AEFHILMNORSX")


def determined(words: str, determiner: str, possessive: str = "his") -> str:
    """A noun phrase with another determiner, and "a" or "an" as its next word wants it."""
    article, bare = "", words
    for candidate in _ARTICLES:
        if words.startswith(candidate):
            article, bare = candidate.strip(), words[len(candidate) :]
            break
    match determiner:
        case "" | "a":
            return f"{_a(bare)} {bare}" if article in ("a", "an") else words
        case "bare":
            return bare
        case "his":
            return f"{possessive} {bare}"
        case _:
            return f"{determiner} {bare}"


def _a(following: str) -> str:
    first = following.split(maxsplit=1)[0] if following else ""
    if len(first) > 1 and first.isupper():
        return "an" if first[0] in _VOWEL_LETTERS else "a"
    if first.lower().startswith(("uni", "use", "ure", "uri", "eu", "one")):
        return "a"
    return "an" if first[:1].lower() in "aeiou" else "a"


def capitalised(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


_LETTERS_PER_LONG_WORD = 14
_LONG_WORD = re.compile(r"(?<![\w*])[A-Za-z]?[a-z]{5,}(?![\w*])")


def misspelt(written: Written, rng: random.Random, rate: float) -> Written:
    """Swaps, drops or doubles a letter in a share of the longer words; identifiers stay, mentions move along."""
    expected = rate * len(written.text) / _LETTERS_PER_LONG_WORD
    if rng.random() > expected:  # in most sentences there is none, and looking for words takes time
        return written
    matches = list(_LONG_WORD.finditer(written.text))
    chosen = sorted(rng.sample(matches, min(len(matches), max(1, round(expected)))), key=lambda match: match.start())
    if not chosen:
        return written
    fixed = [(one.start, one.end) for one in written.mentions if one.kind.isupper() or one.kind == "timex"]
    shifts: list[tuple[int, int]] = []
    pieces, position = [], 0
    for match in chosen:
        if any(start < match.end() and match.start() < end for start, end in fixed):
            continue
        place = match.start() + rng.randrange(1, len(match[0]) - 2)
        letters = written.text[place : place + 2]
        slip = rng.choice((letters[::-1], letters[1], letters[0] * 2 + letters[1]))
        pieces += [written.text[position:place], slip]
        position = place + 2
        shifts.append((position, len(slip) - 2))

    def moved(offset: int) -> int:
        return offset + sum(shift for place, shift in shifts if place <= offset)

    mentions = [Mention(moved(one.start), moved(one.end), one.kind, one.attributes) for one in written.mentions]
    return Written("".join([*pieces, written.text[position:]]), mentions, written.links)
