"""Realistic replacements for identifiers, which follow from a secret key, the patient and the identifier alone.

Nothing is kept from one document to the next, so that documents can come in any order, in any number, from several
processes, and a name is still called the same throughout a patient's notes. Names are replaced word by word ("Harlan Roe",
"ROE, HARLAN" and "Mr. Roe" agree), and a patient's initials go through one exchange of letters, which the first letters of
names follow ("H. Roe" and "HR" agree too).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from string import ascii_lowercase, ascii_uppercase

from posology.ship.dates import draw_days, shift
from posology.synthetic import naming

_ATTEMPTS = 20
_OLDEST = 89
"""The oldest age that is no identifier under HIPAA's safe harbour (45 CFR 164.514(b)(2)(i)(C))."""
_PATIENTS = 1024
"""How many patients' letters and days are kept at hand."""
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+")
_TITLES = {"dr", "mr", "mrs", "ms", "miss", "md", "phd", "jr", "sr", "ii", "iii", "iv"}
_PARTICLES = {"al", "bin", "da", "das", "de", "del", "den", "der", "des", "di", "do", "dos", "du", "el",
              "la", "le", "los", "st", "te", "ten", "ter", "van", "von", "zu"}  # fmt: skip
"""Small words within names. In capitals they are initials."""
_OF_NUMBERS = {"x", "ext", "p", "pager", "beeper", "tel", "fax", "phone", "cell", "home", "work", "office", "no"}
_AGE_WORDS = (
    "year years yr yrs y o old yo of age aged early mid late the month months mo mos week weeks wk wks day days"
)
_YOUNG = {"month", "months", "mo", "mos", "week", "weeks", "wk", "wks", "day", "days"}
_UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


class Surrogates:
    """Replaces identifiers.

    Args:
        key: the secret. Whoever has it can test a guess of what an identifier was.
    """

    def __init__(self, key: bytes):
        self._key = key
        self._days = lru_cache(_PATIENTS)(lambda group: draw_days(self._random(group, "days").randrange))
        self._letters = lru_cache(_PATIENTS)(self._exchange)

    def replace(self, label: str, text: str, group: str) -> str | None:
        """What stands for an identifier.

        Ages up to 89, and a title alone ("Dr."), are no identifiers and stay as they are; everything else becomes something
        else.

        Args:
            label: its type, in i2b2 2014 or like it (NAME, PERSON, LOCATION, CONTACT, ID).
            text: the identifier as it is written.
            group: whose notes it stands in; what is equal in one is replaced by what is equal.

        Returns:
            The surrogate in the same form and case; None for a type that is not known, and where no surrogate can be made,
            as for a date that cannot be read.
        """
        kind = label.upper()
        if kind == "AGE":
            return _age(text)
        if kind == "DATE":
            new = shift(text, self._days(group))
            return new if new is not None and _key_of(new) != _key_of(text) else None
        make = _MAKERS.get(kind)
        if make is None or not _key_of(text):
            return None
        if make is Surrogates.name and not _are_initials(text) and _titles_only(text):
            return text
        for attempt in range(_ATTEMPTS):
            new = make(self, text, group, attempt)
            if new is not None and not _shares(new, text):
                return new
        return None

    def _random(self, *what: object) -> random.Random:
        message = json.dumps(what, ensure_ascii=False).encode("utf-8", "surrogatepass")
        return random.Random(int.from_bytes(hmac.digest(self._key, message, hashlib.sha256), "big"))

    def _exchange(self, group: str) -> dict[str, str]:
        """For each letter another one, each once: a random cycle through all (Sattolo's algorithm)."""
        draw, letters = self._random(group, "letters"), list(ascii_lowercase)
        for place in range(len(letters) - 1, 0, -1):
            other = draw.randrange(place)
            letters[place], letters[other] = letters[other], letters[place]
        return dict(zip(ascii_lowercase, letters, strict=True))

    # Persons

    def name(self, text: str, group: str, attempt: int) -> str:
        """A person's name: each word by itself; initials letter by letter."""
        if _are_initials(text):
            return _WORD.sub(lambda match: self._initials(match[0], group), text)
        return _WORD.sub(lambda match: self._part(match[0], group, attempt), text)

    def _initials(self, letters: str, group: str) -> str:
        return "".join(self._letter(letter, group) for letter in letters)

    def _letter(self, letter: str, group: str) -> str:
        new = self._letters(group).get(_plain(letter)) or self._random(group, letter).choice(ascii_lowercase)
        return new.upper() if letter.isupper() else new

    def _part(self, word: str, group: str, attempt: int) -> str:
        """One word of a name."""
        if word.casefold() in _TITLES:
            return word
        if word[0].isdigit():
            return self._scrambled(word, (group, "number", word, attempt))
        if len(word) == 1:
            return self._letter(word, group)
        bare = re.sub(r"['’]s$", "", word, flags=re.IGNORECASE)
        name = bare.casefold()
        name = _known_names().get(name, name)  # a nickname stands for the name
        draw = self._random(group, "name", name, attempt)
        initial = self._letters(group).get(_plain(name[0])) or draw.choice(ascii_lowercase)
        new = next(
            candidate for candidate in iter(lambda: _draw_name(name, initial, draw), "") if candidate.casefold() != name
        )
        return _alike(new, bare) + word[len(bare) :]

    # Numbers

    def number(self, text: str, group: str, attempt: int) -> str | None:
        """A phone or fax number: digits by digits, whatever stands between them."""
        digits = "".join(character for character in text if character.isdigit())
        if not digits:
            return None
        keep = {match.span() for match in re.finditer(r"[^\W\d_]+", text) if match[0].casefold() in _OF_NUMBERS}
        return self._scrambled(text, (group, "number", digits, attempt), keep)

    def code(self, text: str, group: str, attempt: int) -> str:
        """A number of any kind: digits by digits, letters by letters."""
        return self._scrambled(text, (group, "code", _key_of(text), attempt))

    def room(self, text: str, group: str, attempt: int) -> str | None:
        """A room: its words stay, numbers and single letters do not."""
        keep = {match.span() for match in re.finditer(r"[^\W\d_]{2,}", text)}
        return self._scrambled(text, (group, "room", _key_of(text), attempt), keep)

    def username(self, text: str, group: str, attempt: int) -> str:
        """A user's name: letters, which are mostly initials, as initials are; digits by digits."""
        exchanged = "".join(self._letter(letter, group) if letter.isalpha() else letter for letter in text)
        return self._scrambled(
            exchanged,
            (group, "user", _key_of(text), attempt),
            {match.span() for match in re.finditer(r"[^\W\d_]+", exchanged)},
        )

    def address(self, text: str, group: str, attempt: int) -> str | None:
        """Numbers of an internet address, each of as many digits."""
        return self._scrambled(text, (group, "ip", text, attempt), below=255) if re.search(r"\d", text) else None

    def _scrambled(
        self, text: str, seed: tuple[object, ...], keep: set[tuple[int, int]] | None = None, below: int | None = None
    ) -> str:
        """Other digits and letters in place of each; `keep` are stretches that stay."""
        draw = self._random(*seed)
        kept = {place for start, end in keep or () for place in range(start, end)}
        if below is not None:
            return re.sub(r"\d+", lambda match: str(draw.randrange(min(below, 10 ** len(match[0])))), text)
        new, first = [], True
        for place, character in enumerate(text):
            if place in kept:
                new.append(character)
            elif character.isdigit():
                new.append(draw.choice("123456789" if first and character != "0" else "0123456789"))
                first = False
            elif character.isalpha():
                new.append(draw.choice(ascii_uppercase if character.isupper() else ascii_lowercase))
            else:
                new.append(character)
        return "".join(new)

    # Everything else

    def listed(self, kind: str) -> Callable[[str, str, int], str]:
        """What draws places, organisations and professions; letters in capitals become such letters."""

        def make(text: str, group: str, attempt: int) -> str:
            if text.isupper() and text.isalpha() and len(text) <= 5:
                return self._scrambled(text, (group, kind, text, attempt))
            draw = self._random(group, kind, _key_of(text), attempt)
            return _alike(_LISTS[kind](draw), text)

        return make

    def state(self, text: str, group: str, attempt: int) -> str:
        """A state, written out or as two letters."""
        states = naming.lists()["places"]["states"]
        short = {letters: name for name, (letters,) in states.items()}
        bare = text.strip(" .,").upper()
        name = short.get(bare, bare.title())
        draw = self._random(group, "state", name.casefold(), attempt)
        new = draw.choice([other for other in sorted(states) if other.casefold() != name.casefold()])
        return states[new][0] if len(bare) == 2 else _alike(new, text)

    def mail(self, text: str, group: str, attempt: int) -> str:
        """An address of electronic mail."""
        local, _, _ = text.partition("@")
        draw = self._random(group, "mail", _key_of(text), attempt)
        return f"{self._scrambled(local, (group, 'local', local, attempt))}@{_domain(draw)}"

    def site(self, text: str, group: str, attempt: int) -> str:
        """An address in the web."""
        scheme = re.match(r"(?:https?://)?(?:www\.)?", text, re.IGNORECASE)
        draw = self._random(group, "site", _key_of(text), attempt)
        return (scheme[0] if scheme else "") + _domain(draw)

    def place(self, text: str, group: str, attempt: int) -> str | None:
        """Any place, where types are not told apart."""
        words = {word.casefold() for word in _WORD.findall(text)}
        streets = {word.strip(".").casefold() for word in naming.lists()["places"]["street_types"]}
        states = naming.lists()["places"]["states"]
        if not any(character.isalpha() for character in text):
            return self.code(text, group, attempt)
        if text.strip(" .,").upper() in {letters for (letters,) in states.values()} or text.title() in states:
            return self.state(text, group, attempt)
        if words & {"hospital", "clinic", "center", "infirmary"}:
            return self.listed("HOSPITAL")(text, group, attempt)
        if text[0].isdigit() and words & streets:
            return self.listed("STREET")(text, group, attempt)
        return self.listed("CITY")(text, group, attempt)

    def contact(self, text: str, group: str, attempt: int) -> str | None:
        """Any way to reach somebody, where types are not told apart."""
        if "@" in text:
            return self.mail(text, group, attempt)
        if re.match(r"https?:|www\.", text, re.IGNORECASE):
            return self.site(text, group, attempt)
        return self.number(text, group, attempt)


_LISTS: dict[str, Callable[[random.Random], str]] = {"HOSPITAL": naming.make_hospital_name, **naming.MAKERS}

_Maker = Callable[[Surrogates, str, str, int], str | None]


def _listed(kind: str) -> _Maker:
    return lambda own, text, group, attempt: own.listed(kind)(text, group, attempt)


_MAKERS: dict[str, _Maker] = {
    **dict.fromkeys(("PATIENT", "DOCTOR", "NAME", "PERSON", "PER", "STAFF"), Surrogates.name),
    **dict.fromkeys(("PHONE", "FAX", "PAGER"), Surrogates.number),
    **dict.fromkeys(
        (
            "SSN",
            "MEDICALRECORD",
            "HEALTHPLAN",
            "ACCOUNT",
            "LICENSE",
            "VEHICLE",
            "DEVICE",
            "BIOID",
            "IDNUM",
            "ID",
            "ZIP",
        ),
        Surrogates.code,
    ),
    **{kind: _listed(kind) for kind in ("HOSPITAL", "DEPARTMENT", "ORGANIZATION", "STREET", "CITY", "COUNTRY")},
    **{kind: _listed(kind) for kind in ("LOCATION-OTHER", "PROFESSION")},
    "ROOM": Surrogates.room,
    "USERNAME": Surrogates.username,
    "STATE": Surrogates.state,
    "EMAIL": Surrogates.mail,
    "URL": Surrogates.site,
    "IPADDR": Surrogates.address,
    **dict.fromkeys(("LOCATION", "LOC", "ADDRESS"), Surrogates.place),
    "CONTACT": Surrogates.contact,
}
KINDS = ("AGE", "DATE", *_MAKERS)
"""Labels that there are surrogates for."""


def _age(text: str) -> str | None:
    """Ages up to 89 as they are, higher ones as 90+; None for what is no age."""
    match = re.fullmatch(r"(\D*?)(\d{1,3})(?:'?s\b)?(\D*)", text)
    if match is not None:
        words = set(re.findall(r"[^\W\d_]+", f"{match[1]} {match[3]}".casefold()))
        if not words <= set(_AGE_WORDS.split()):
            return None
        return text if int(match[2]) <= _OLDEST or words & _YOUNG else f"{match[1]}90+{match[3]}"
    words_only = re.fullmatch(r"([a-z]+)(?:[-\s]+([a-z]+))?(?:[-\s]+(.*))?", text.strip().casefold(), re.DOTALL)
    if words_only is None:
        return None
    first, second, rest = words_only.groups()
    numbers, further = {*_UNITS, *_TEENS, *_TENS}, set(_AGE_WORDS.split())
    if not set(re.findall(r"[^\W\d_]+", rest or "")) <= further | numbers | {"and"}:
        return None
    if first == "hundred" or second == "hundred":
        return "90+"
    if second is not None and second not in (*_UNITS, *further):
        return None
    if first in ("ninety", "nineties"):
        return "90+"
    return text if first in numbers else None


def _titles_only(text: str) -> bool:
    return all(word.casefold() in _TITLES for word in _WORD.findall(text))


def _are_initials(text: str) -> bool:
    """Whether a name is one word of two or three letters, in capitals or small, and no such name or part of names."""
    words = _WORD.findall(text)
    if len(words) != 1 or not 2 <= len(words[0]) <= 3 or words[0] not in (words[0].upper(), words[0].lower()):
        return False
    return words[0].casefold() not in _known_names() and words[0] not in _PARTICLES


@cache
def _known_names() -> dict[str, str]:
    """Names that are in a list, which stand for themselves, and nicknames with what they are short for."""
    persons, nicknames = naming.lists()["persons"], naming.lists()["nicknames"]
    lists = ("men", "women", "surnames", "surnames_that_are_words")
    known = {name.casefold(): name.casefold() for kind in lists for name in persons[kind]}
    return {short.casefold(): name.casefold() for name, (short,) in nicknames.items()} | known


@cache
def _starting(kind: str) -> dict[str, list[str]]:
    """The names of a list by their first letter."""
    found: dict[str, list[str]] = {letter: [] for letter in ascii_lowercase}
    for name in [*naming.lists()["persons"][kind], *(("Xan", "Xav", "Xer") if kind == "openings" else ())]:
        found[name[0].lower()].append(name)
    return found


def _draw_name(name: str, initial: str, draw: random.Random) -> str:
    """A first name for a first name, else a surname; with a given first letter."""
    persons = naming.lists()["persons"]
    sex = next((kind for kind in ("women", "men") if name.title() in persons[kind]), None)
    if sex is not None and draw.random() < 0.8 and _starting(sex)[initial]:
        return draw.choice(_starting(sex)[initial])
    if sex is not None:
        return draw.choice(_starting("openings")[initial]) + draw.choice(persons[f"first_endings_{sex}"])
    middle = draw.choice(persons["middles"]) if draw.random() < 0.45 else ""
    return draw.choice(_starting("openings")[initial]) + middle + draw.choice(persons["surname_endings"])


@cache
def _generic() -> set[str]:
    """Words that names of places share."""
    lists = naming.lists()
    patterns = [
        *lists["hospitals"]["full"], *lists["hospitals"]["departments"], *lists["hospitals"]["rooms"],
        *lists["organizations"]["forms"], *lists["places"]["other"], *lists["places"]["street_types"],
        *lists["places"]["city_prefixes"], *lists["professions"]["fields"], *lists["professions"]["roles"],
    ]  # fmt: skip
    words = {word.casefold() for pattern in patterns for word in _WORD.findall(re.sub(r"\{\w+\}", "", pattern))}
    return words | _TITLES | _OF_NUMBERS | {"www", "http", "https", "com", "org", "net", "example"}


def _shares(new: str, text: str) -> bool:
    """Whether a surrogate is what it stands for, or has one of its telling words."""
    if _key_of(new) == _key_of(text):
        return True
    mine, theirs = ({word.casefold() for word in _WORD.findall(one) if len(word) > 3} for one in (new, text))
    return bool(mine & theirs - _generic())


def _domain(draw: random.Random) -> str:
    domain: str = draw.choice(naming.lists()["numbers"]["domains"])
    return domain


def _plain(letter: str) -> str:
    """A letter without accents, small."""
    return unicodedata.normalize("NFD", letter)[0].lower()


def _key_of(text: str) -> str:
    """What is left of an identifier however it is written: letters and digits, small."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def _alike(new: str, text: str) -> str:
    """In capitals or small where the original is."""
    letters = "".join(character for character in text if character.isalpha())
    if len(letters) > 1 and letters.isupper():
        return new.upper()
    return new.lower() if letters.islower() else new
