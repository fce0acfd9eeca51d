"""The markup of templates: text with slots, choices and mentions.

A template is a line of text with this markup:

    words                      as they are
    <one|two|>                 one of these, at equal chances; an empty one makes the others optional; may be nested
    {slot}                     filled by the scene (see `Scribe`); what it returns decides whether it is a mention
    {the slot}                 a determiner for the filling, which becomes a part of the mention as in i2b2: `a` (the
                               filling's own article, the default), `the`, `his` (possessive of the patient), `any`,
                               `this`, `bare` (no article: after "no", in lists and headings)
    {Slot} {The slot}          the filling begins with a capital
    {slot.tag}                 a name for its mention(s), for relations
    {slot:argument}            an argument that the scene understands, such as `{symptoms:2}`
    {slot!flag,flag}           attributes of its mention(s), see `FLAGS`; `or` and `comma` say how a list is joined
    {UPPER:which}              an identifier of that TYPE of i2b2 2014, written by `Identifiers.text(TYPE, which)`.
                               The words `{DATE:which}` are marked twice: as `DATE` and as `timex`
    {@rule}                    a phrase of the grammar rule of that name; no mention by itself
    [words|kind]               a mention written out, with markup inside, as `[the <MICU|CCU>|clinical_dept]`;
                               `[words|kind.tag!flag]` as above
    \\< \\{ \\[ \\| ...            the character itself
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

FLAGS: dict[str, dict[str, str]] = {
    "present": {},
    "absent": {"assertion": "absent", "polarity": "NEG"},
    "possible": {"assertion": "possible", "modality": "POSSIBLE"},
    "conditional": {"assertion": "conditional", "modality": "CONDITIONAL"},
    "hypothetical": {"assertion": "hypothetical", "modality": "CONDITIONAL"},
    "other": {"assertion": "associated_with_someone_else"},
    "proposed": {"modality": "PROPOSED"},
    "neg": {"polarity": "NEG"},
}
"""What a flag in a template says of a mention. Without one, a problem is present, factual and positive."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A parsed `{slot}`; the scene reads `name`, `argument` and `flags`."""

    name: str
    determiner: str
    capital: bool
    tag: str
    argument: str
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several sequences, at equal chances."""

    options: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A phrase of a grammar rule."""

    name: str


@dataclass(frozen=True, slots=True)
class Marked:
    """A mention written out."""

    parts: tuple[Any, ...]
    kind: str
    tag: str
    flags: tuple[str, ...]


Parts = tuple[Any, ...]
"""A parsed template: strings, `Slot`, `Choice`, `Rule` and `Marked`."""


_TOKEN = re.compile(r"\\(?P<escaped>.)|(?P<mark>[<>|\[\]{}])|(?P<words>[^\\<>|\[\]{}]+)")
_SLOT = re.compile(
    r"(?:(?P<determiner>[Aa]|[Tt]he|[Hh]is|[Aa]ny|[Tt]his|[Bb]are) )?(?P<name>[\w-]+)(?:\.(?P<tag>\w+))?"
    r"(?::(?P<argument>[^!]*))?(?:!(?P<flags>[\w,]+))?"
)
_KIND = re.compile(r"(?P<kind>[\w-]+)(?:\.(?P<tag>\w+))?(?:!(?P<flags>[\w,]+))?")


@cache
def parse(template: str) -> Parts:
    """Parses the markup.

    Raises:
        ValueError: the markup is broken; the message names the template, which is never patient text.
    """
    tokens = [(match.lastgroup, match[match.lastgroup]) for match in _TOKEN.finditer(template) if match.lastgroup]
    parts, end, _ = _sequence(tokens, 0, "", template)
    if end != len(tokens):
        raise ValueError(f"unbalanced markup in the template {template!r}")
    return parts


def _sequence(tokens: list[tuple[str, str]], position: int, until: str, template: str) -> tuple[Parts, int, str]:
    """Parts up to one of the characters of `until` (which is not consumed), and that character."""
    parts: list[Any] = []
    while position < len(tokens):
        kind, value = tokens[position]
        if kind != "mark":
            if parts and isinstance(parts[-1], str):
                parts[-1] += value
            else:
                parts.append(value)
            position += 1
        elif value in until:
            return tuple(parts), position, value
        elif value == "<":
            options, closing = [], "|"
            while closing == "|":
                option, position, closing = _sequence(tokens, position + 1, "|>", template)
                options.append(option)
            parts.append(Choice(tuple(options)))
            position += 1
        elif value == "[":
            inner, position, _ = _sequence(tokens, position + 1, "|", template)
            label, position, _ = _sequence(tokens, position + 1, "]", template)
            match = _KIND.fullmatch(str(label[0]) if len(label) == 1 else "")
            if match is None:
                raise ValueError(f"no kind in [...|kind] in the template {template!r}")
            parts.append(Marked(inner, match["kind"], match["tag"] or "", _flags(match["flags"], template)))
            position += 1
        elif value == "{":
            name, position, _ = _sequence(tokens, position + 1, "}", template)
            parts.append(_slot(str(name[0]) if len(name) == 1 else "", template))
            position += 1
        else:
            break
    if until:
        raise ValueError(f"unbalanced markup in the template {template!r}")
    return tuple(parts), position, ""


def _slot(inside: str, template: str) -> Slot | Rule:
    if inside.startswith("@"):
        return Rule(inside[1:])
    match = _SLOT.fullmatch(inside)
    if match is None:
        raise ValueError(f"no slot in {{{inside}}} in the template {template!r}")
    determiner, name = match["determiner"] or "", match["name"]
    identifier = name.isupper()
    capital = (determiner or name)[0].isupper() and not identifier
    return Slot(
        name if identifier else name[0].lower() + name[1:],
        determiner.lower(),
        capital,
        match["tag"] or "",
        match["argument"] or "",
        _flags(match["flags"], template),
    )


def _flags(flags: str | None, template: str) -> tuple[str, ...]:
    given = tuple(flags.split(",")) if flags else ()
    unknown = [flag for flag in given if flag not in FLAGS and flag not in ("or", "comma")]
    if unknown:
        raise ValueError(f"unknown flag {unknown[0]} in the template {template!r}")
    return given
