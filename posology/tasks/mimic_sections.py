"""Finds the sections of a discharge summary that were known at admission.

A note is read line by line. A heading stands at the start of a line, before a colon or alone in capitals. Known
headings are in `mimic_headings.yaml`; one that is not there ends a section too if it looks like a heading and stands
after a blank line. A section is what lies between its heading and the next, so an empty one is empty and the last
one of a note is kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import yaml

from posology.tasks.mimic_paper import SECTIONS

Kind = Literal["admission", "early", "course", "other", "studies", "within", "unknown"]

_LONGEST_HEADING = 80
_BEFORE_COLON = re.compile(rf"\s{{0,8}}([A-Za-z][^:]{{0,{_LONGEST_HEADING}}}):")
_IN_BRACKETS = re.compile(r"\([^()]*\)")
_NO_WORD = re.compile(r"[^a-z0-9]+")
_RULE = re.compile(r"^[ \t]*[-=_*~.]{3,}[ \t\r]*$", re.MULTILINE)
_SMALL_WORDS = frozenset(
    {"a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "per", "the", "to", "with"}
)


@dataclass(frozen=True)
class _Heading:
    kind: Kind
    name: str = ""
    """The section, for admission and early headings."""


_UNKNOWN = _Heading("unknown")


def sections(note: str) -> dict[str, str]:
    """The admission's sections of a note.

    A section that occurs more than once is joined, but of physical examinations the first with any text is the
    admission's.

    Returns:
        For each of the eight names of `SECTIONS` whose heading was found, in that order, its text: paragraphs on a
        line of their own, whitespace within them single blanks. Empty where nothing follows the heading.
    """
    found: dict[str, list[list[str]]] = {}
    current: list[str] | None = None
    late, after_blank = False, True
    for line in note.split("\n"):
        heading, rest = _heading_of(line, late, after_blank)
        if heading:
            late |= heading.kind == "course"
            current = None
            if heading.name:
                current = [rest]
                found.setdefault(heading.name, []).append(current)
        elif current is not None:
            current.append(line)
        after_blank = not line.strip()
    return {name: _joined(name, found[name]) for name in SECTIONS if name in found}


def tidy(text: str) -> str:
    """Paragraphs as lines: blank lines become line breaks, other whitespace single blanks; a ruled line counts as blank."""
    paragraphs = re.split(r"\n\s*\n", _RULE.sub("", text))
    return "\n".join(words for words in (" ".join(paragraph.split()) for paragraph in paragraphs) if words)


def _joined(name: str, blocks: list[list[str]]) -> str:
    texts = [text for text in (tidy("\n".join(lines)) for lines in blocks) if text]
    if name == "physical exam":
        texts = texts[:1]
    return "\n".join(dict.fromkeys(texts))


def _heading_of(line: str, late: bool, after_blank: bool) -> tuple[_Heading | None, str]:
    """The heading at the start of a line that ends the section before it, and what follows it on the line."""
    match = _BEFORE_COLON.match(line) if ":" in line else None
    if match:
        words, rest = match.group(1), line[match.end() :]
    else:
        words, rest = line.strip(), ""
        if not 2 <= len(words) <= _LONGEST_HEADING or not words[0].isupper():
            return None, ""
    heading = _known(words)
    if not match and not (words.isupper() or (heading.kind == "course" and "discharge" in words.lower())):
        return None, ""
    # Two capitals alone on a line are as often a value or an abbreviation of the text as a heading.
    if not match and heading.kind == "early" and len(words) <= 3:
        return None, ""
    if heading.kind == "early" and late:
        return _Heading("other"), rest
    if heading.kind in ("within", "unknown", "studies"):
        ends = after_blank and heading.kind != "within" and (heading.kind == "studies" or _looks_like(words, rest))
        return (_Heading("other") if ends and match else None), rest
    return heading, rest


def _looks_like(words: str, rest: str) -> bool:
    """Whether unknown words before a colon look like a heading: in capitals, or capitalised and alone on the line."""
    parts = words.split()
    if not words[0].isupper() or len(parts) > 6 or any(sign.isdigit() for sign in words):
        return False
    if words.isupper() and len(parts) > 1:
        return True
    return not rest.strip() and all(part in _SMALL_WORDS or not part[0].islower() for part in parts)


@lru_cache(maxsize=1 << 14)
def _known(words: str) -> _Heading:
    normal = _NO_WORD.sub(" ", _IN_BRACKETS.sub(" ", words.lower().replace("&", " and "))).strip()
    return next((heading for heading, pattern in _patterns() if pattern.fullmatch(normal)), _UNKNOWN)


@cache
def _patterns() -> list[tuple[_Heading, re.Pattern[str]]]:
    """In the order of precedence: `vitals on discharge` ends a section, though `vitals` do not."""
    file = yaml.safe_load(Path(__file__).with_name("mimic_headings.yaml").read_text(encoding="utf-8"))
    named: tuple[Kind, ...] = ("admission", "early")
    nameless: tuple[Kind, ...] = ("course", "within", "studies", "other")
    listed = [(_Heading(kind, name), patterns) for kind in named for name, patterns in file[kind].items()]
    listed += [(_Heading(kind), file[kind]) for kind in nameless]
    return [(heading, re.compile("|".join(f"(?:{pattern})" for pattern in patterns))) for heading, patterns in listed]
