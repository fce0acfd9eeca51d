"""Notes as i2b2 2010 and 2012 have them: one sentence on a line, tokens parted by single blanks, punctuation apart."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise

from posology.synthetic.written import Written

_TOKEN = re.compile(
    r"""
    (?:(?<=\n)|^)[ ]*\d{1,2}[.)](?=\s)                  # number of a list
    | (?:[A-Za-z]\.){2,}                                # p.o., M.D.
    | \b(?-i:[A-Z]\.(?=\s[A-Z]))                        # an initial
    | \b(?-i:Drs?|Mrs?|Ms|St|vs|Jr|Sr|Ave|Rd|Inc)\.|\bNo\.(?=\s\d)
    | \d{1,2}:\d{2}[ap]m\b
    | (?:(?<!\w)[+-])?\d++(?:[.,/:-]\d++)*+%?+(?!\w)    # 7.4, 120/80, 2031-03-04, 15:30
    | '(?:s|ll|re|ve|d|m)\b
    | \w+(?:(?:[-/&@]|\.(?=\w)|'(?!(?:s|ll|re|ve|d|m)\b))\w+)*
    | ([^\w\s])\1*
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ENDS = (".", "?", "!")


def tokenised(written: Written, kinds: Collection[str]) -> Written:
    """The text with one sentence on each line and tokens parted by single blanks.

    Args:
        written: text whose line breaks part paragraphs, headings or items of a list.
        kinds: the kinds of mentions that are kept; their edges become edges of tokens, and no sentence ends in one.

    Returns:
        The new text, which ends with a line break, with the mentions of these kinds and the links between them.
    """
    text = written.text
    kept = [index for index, one in enumerate(written.mentions) if one.kind in kinds]
    mentions = [written.mentions[index] for index in kept]
    tokens = _cut_at({offset for one in mentions for offset in (one.start, one.end)}, text)
    inside = _Inside([(one.start, one.end) for one in written.mentions])
    pieces, length = [], 0
    starts, ends = [], []  # of tokens in the new text
    for number, (start, end) in enumerate(tokens):
        starts.append(length)
        length += end - start
        ends.append(length)
        following = text[end : tokens[number + 1][0]] if number + 1 < len(tokens) else "\n"
        over = "\n" in following or _ends_sentence(text, start, end, tokens[number + 1 : number + 2])
        over = over and not inside(start, end)
        pieces += [text[start:end], "\n" if over else " "]
        length += 1
    old_starts, old_ends = [start for start, _ in tokens], [end for _, end in tokens]
    moved = []
    for one in mentions:
        first, last = bisect_right(old_ends, one.start), bisect_left(old_starts, one.end) - 1
        moved.append(replace(one, start=starts[first], end=ends[last]))
    places = {old: new for new, old in enumerate(kept)}
    links = [
        replace(link, first=places[link.first], second=places[link.second])
        for link in written.links
        if link.first in places and link.second in places
    ]
    return Written("".join(pieces).rstrip(" \n") + "\n", moved, links)


def _cut_at(edges: set[int], text: str) -> list[tuple[int, int]]:
    """The tokens, of which none goes over an edge of a mention."""
    bounds = sorted(edges | {0, len(text)})
    tokens: list[tuple[int, int]] = []
    for low, high in pairwise(bounds):
        for match in _TOKEN.finditer(text, low, high):
            blanks = len(match[0]) - len(match[0].lstrip())
            tokens.append((match.start() + blanks, match.end()))
    return tokens


def _ends_sentence(text: str, start: int, end: int, following: list[tuple[int, int]]) -> bool:
    if text[start:end] not in _ENDS or not following:
        return False
    after = text[end : following[0][0]]
    return bool(after) and (text[following[0][0]].isupper() or text[following[0][0]].isdigit())


class _Inside:
    """Whether a token is inside a mention that goes on after it."""

    def __init__(self, spans: list[tuple[int, int]]):
        self._spans = sorted(spans)
        self._starts = [start for start, _ in self._spans]
        reach, self._reaches = 0, []
        for _, end in self._spans:
            reach = max(reach, end)
            self._reaches.append(reach)

    def __call__(self, start: int, end: int) -> bool:
        before = bisect_right(self._starts, start)
        return before > 0 and self._reaches[before - 1] > end
