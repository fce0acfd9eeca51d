"""Pools of templates and wordings, and their writing out as text with marked mentions.

The markup of a template is that of `markup.py`. In YAML a template is a string, or a mapping `{text: ..., relations: [TrAP a b, ...], weight: 0.5}`; relations name tags,
and each pair of mentions with these tags is linked. The labels are those of i2b2 2010 and BEFORE, AFTER, OVERLAP.

A file of templates has the keys `grammar` (rule: [phrases]) and `phrases` (pool: [templates]); files are merged.
In each rule and wording list about one entry in five is `rare`: chosen by a hash of its text, so that it is the same
everywhere. A scribe with `seen_only` never uses those, so that texts for testing hold words that training never saw.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from posology.synthetic.markup import FLAGS, Choice, Parts, Rule, Slot, parse
from posology.synthetic.words import capitalised, determined, misspelt
from posology.synthetic.written import Link, Mention, Written

CONTENT = Path(__file__).parent / "content"

_RARE = 5


class Identifiers(Protocol):
    """Writes what identifies people and places: see `posology.synthetic.identifiers`."""

    def text(self, kind: str, which: str = "") -> str | Written:
        """The words for an identifier of TYPE `kind`.

        Args:
            kind: as in i2b2 2014, such as `DOCTOR`.
            which: the same `which` names the same thing throughout a patient's notes, such as `attending`. A DATE has
                an ISO date (or an ISO date and time) here; an AGE, a number of years.
        """
        ...


@dataclass(frozen=True, slots=True)
class Term:
    """What fills a slot as a mention: words (with markup, if it likes), kind, and attributes."""

    kind: str
    words: str
    attributes: Mapping[str, str] = field(default_factory=dict)


Filling = str | Term | Written | Sequence["Term | str"]


@dataclass(frozen=True, slots=True)
class Template:
    parts: Parts
    relations: tuple[tuple[str, str, str], ...]


class Pool:
    """Things to choose from, with weights; the rare ones are left out on request."""

    __slots__ = ("_all", "_seen")

    def __init__(self, items: Sequence[Any], weights: Sequence[float], rare: Sequence[bool]):
        everything = list(zip(items, weights, rare, strict=True))
        common = [entry for entry in everything if not entry[2]] or everything
        self._all = self._cumulated(everything)
        self._seen = self._cumulated(common)

    @staticmethod
    def _cumulated(entries: Iterable[tuple[Any, float, bool]]) -> tuple[list[Any], list[float], float]:
        items, sums, total = [], [], 0.0
        for item, weight, _ in entries:
            total += weight
            items.append(item)
            sums.append(total)
        return items, sums, total

    def draw(self, rng: random.Random, seen_only: bool = False) -> Any:
        items, sums, total = self._seen if seen_only else self._all
        return items[bisect(sums, rng.random() * total)] if len(items) > 1 else items[0]

    @property
    def items(self) -> list[Any]:
        """All of them, in the order given."""
        return self._all[0]


def is_rare(words: str) -> bool:
    """Whether a wording is kept for texts that may hold unseen words."""
    return hashlib.md5(words.encode(), usedforsecurity=False).digest()[0] % _RARE == 0


def wordings(words: Sequence[str], skew: float = 0.35) -> Pool:
    """A pool of wordings of one thing, the first ones more frequent."""
    weights = [1 / (rank + 1) ** skew for rank in range(len(words))]
    return Pool(words, weights, [rank > 0 and is_rare(word) for rank, word in enumerate(words)])


# Writing


class Phrasebook:
    """The grammar rules and pools of templates of some YAML files."""

    def __init__(self, contents: Iterable[Mapping[str, Any]]):
        self.grammar: dict[str, Pool] = {}
        self.pools: dict[str, Pool] = {}
        for content in contents:
            for name, phrases in (content.get("grammar") or {}).items():
                phrases = [str(phrase) for phrase in phrases]
                rare = [rank > 1 and is_rare(phrase) for rank, phrase in enumerate(phrases)]
                self.grammar[name] = Pool([parse(phrase) for phrase in phrases], [1.0] * len(phrases), rare)
            for name, entries in (content.get("phrases") or {}).items():
                self.pools[name] = self._pool(entries)

    @classmethod
    @cache
    def load(cls, *paths: Path) -> Phrasebook:
        """Reads YAML files; the same paths give the same object."""
        return cls([read_yaml(path) for path in paths])

    @staticmethod
    def _pool(entries: Sequence[str | Mapping[str, Any]]) -> Pool:
        templates, weights, rare = [], [], []
        for rank, entry in enumerate(entries):
            given: Mapping[str, Any] = {"text": entry} if isinstance(entry, str) else entry
            relations = tuple(tuple(str(relation).split()) for relation in given.get("relations", ()))
            templates.append(Template(parse(given["text"]), relations))  # type: ignore[arg-type]
            weights.append(float(given.get("weight", 1.0)))
            rare.append(rank > 1 and is_rare(given["text"]))
        return Pool(templates, weights, rare)


def read_yaml(path: Path) -> Any:
    """Reads one of the program's own YAML files."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with open(path, encoding="utf-8") as stream:
        return yaml.load(stream, Loader=loader)


class Unfillable(LookupError):
    """A scene has nothing for a slot; another template is tried."""


class Scribe:
    """Writes phrases of a book about one scene.

    Args:
        fill: gives the filling of a slot that is neither an identifier nor bound by the caller of `write`: a string,
            a `Term`, a list of these (joined by commas and "and"), or a `Written`. Raises `Unfillable`.
        identifiers: writes the slots in upper case.
        possessive: `his` or `her`, for the determiner `his`.
        misspelling: share of the longer words with a slip.
        seen_only: whether rare wordings are left out.
    """

    def __init__(
        self,
        book: Phrasebook,
        rng: random.Random,
        fill: Callable[[Slot], Filling],
        identifiers: Identifiers,
        *,
        possessive: str = "his",
        misspelling: float = 0.0,
        seen_only: bool = False,
    ):
        self.book, self.rng, self.fill, self.identifiers = book, rng, fill, identifiers
        self.possessive, self.misspelling, self.seen_only = possessive, misspelling, seen_only
        self._bound: Mapping[str, Filling] = {}

    def write(self, pool: str, *, capital: bool = True, **bound: Filling) -> Written:
        """Writes one template of a pool; empty where eight of them in a row cannot be filled.

        Args:
            pool: its name in the book.
            capital: whether the text begins with a capital.
            bound: fillings of slots by name, before those of the scene.
        """
        templates = self.book.pools[pool]
        for _ in range(8):
            try:
                return self.write_out(templates.draw(self.rng, self.seen_only), capital=capital, **bound)
            except Unfillable:
                continue
        return Written()

    def write_out(self, template: Template | str, *, capital: bool = True, **bound: Filling) -> Written:
        """Writes a template.

        Raises:
            Unfillable: the scene has nothing for one of its slots.
        """
        if isinstance(template, str):
            template = Template(parse(template), ())
        sheet = _Sheet()
        self._bound, outer = bound, self._bound
        try:
            self._put(template.parts, sheet)
        finally:
            self._bound = outer
        written = sheet.written(template.relations)
        if capital:
            written.text = capitalised(written.text)
        return misspelt(written, self.rng, self.misspelling) if self.misspelling else written

    def plain(self, words: str) -> str:
        """The text of a wording with markup; what was left empty leaves no blanks."""
        if "<" not in words and "{" not in words and "[" not in words:
            return words
        sheet = _Sheet()
        self._put(parse(words), sheet)
        return " ".join("".join(sheet.pieces).split())

    def _put(self, parts: Parts, sheet: _Sheet) -> None:
        for part in parts:
            kind = part.__class__
            if kind is str:
                sheet.pieces.append(part)
                sheet.length += len(part)
            elif kind is Slot:
                self._put_slot(part, sheet)
            elif kind is Choice:
                options = part.options
                self._put(options[int(self.rng.random() * len(options))], sheet)
            elif kind is Rule:
                self._put(self.book.grammar[part.name].draw(self.rng, self.seen_only), sheet)
            else:
                start = sheet.length
                self._put(part.parts, sheet)
                sheet.mark(start, part.kind, _attributes(part.kind, {}, part.flags), part.tag)

    def _put_slot(self, slot: Slot, sheet: _Sheet) -> None:
        if slot.name.isupper():
            sheet.add_identifier(slot, self._identifier(slot))
            return
        filling = self._bound[slot.name] if slot.name in self._bound else self.fill(slot)
        if isinstance(filling, (str, Term, Written)):  # a union would take twice as long
            self._put_filling(slot, filling, sheet, slot.capital)
            return
        if not filling:
            raise Unfillable(slot.name)
        last = len(filling) - 1
        conjunction = "or" if "or" in slot.flags else "and"
        for number, one in enumerate(filling):
            if number:
                sheet.add(", " if number < last or "comma" in slot.flags else f" {conjunction} ")
            self._put_filling(slot, one, sheet, slot.capital and number == 0)

    def _put_filling(self, slot: Slot, filling: str | Term | Written, sheet: _Sheet, capital: bool) -> None:
        if isinstance(filling, Written):
            sheet.add_written(filling, slot.tag)
            return
        if isinstance(filling, str):
            text = self.plain(filling)
            sheet.add(capitalised(text) if capital else text)
            return
        words = filling.words
        if "[" in words:  # mentions inside a mention: its text cannot be changed after writing
            start = sheet.length
            self._put(parse(words), sheet)
        else:
            text = determined(self.plain(words), slot.determiner, self.possessive)
            start = sheet.length
            sheet.add(capitalised(text) if capital else text)
        sheet.mark(start, filling.kind, _attributes(filling.kind, filling.attributes, slot.flags), slot.tag)

    def _identifier(self, slot: Slot) -> str | Written:
        which = slot.argument
        if slot.name in ("DATE", "AGE"):
            name, slash, form = which.partition("/")
            bound = self._bound[name] if name in self._bound else self.fill(slot)
            if not isinstance(bound, str):
                raise TypeError(f"{slot.name}:{which} is filled by text")
            which = bound if "/" in bound else f"{bound}{slash}{form}"
        words = self.identifiers.text(slot.name, which)
        if slot.name != "DATE":
            return words
        moment = which.partition("/")[0]
        marked = words if isinstance(words, Written) else Written().add(words, "DATE")
        return Written().add(marked, "timex", type="TIME" if "T" in moment else "DATE", value=moment)


class _Sheet:
    """A text in the making: pieces, and the mentions in them."""

    __slots__ = ("length", "links", "mentions", "pieces", "tags")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.length = 0
        self.mentions: list[Mention] = []
        self.links: list[Link] = []
        self.tags: dict[str, list[int]] = {}

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)

    def mark(self, start: int, kind: str, attributes: dict[str, str], tag: str) -> None:
        if tag:
            self.tags.setdefault(tag, []).append(len(self.mentions))
        self.mentions.append(Mention(start, self.length, kind, attributes))

    def add_written(self, other: Written, tag: str) -> None:
        before = len(self.mentions)
        for one in other.mentions:
            self.mentions.append(Mention(one.start + self.length, one.end + self.length, one.kind, one.attributes))
        self.links += [Link(link.label, link.first + before, link.second + before) for link in other.links]
        if tag:
            self.tags.setdefault(tag, []).extend(range(before, len(self.mentions)))
        self.add(other.text)

    def add_identifier(self, slot: Slot, words: str | Written) -> None:
        if isinstance(words, Written):
            self.add_written(words, slot.tag)
        else:
            start = self.length
            self.add(words)
            self.mark(start, slot.name, {}, slot.tag)

    def written(self, relations: Sequence[tuple[str, str, str]]) -> Written:
        links = self.links
        for label, first, second in relations:
            for one in self.tags.get(first, ()):
                links += [Link(label, one, other) for other in self.tags.get(second, ()) if other != one]
        return Written("".join(self.pieces), self.mentions, links)


def _attributes(kind: str, given: Mapping[str, str], flags: Sequence[str]) -> dict[str, str]:
    attributes = {"assertion": "present"} if kind == "problem" else {}
    attributes.update(given)
    for flag in flags:
        for key, value in FLAGS.get(flag, {}).items():
            if key != "assertion" or kind == "problem":
                attributes[key] = value
    return attributes
