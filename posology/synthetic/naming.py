"""How the people, places, days and numbers of the synthetic hospital are called and written.

What they are made of is in `identifiers.yaml`. Names are composed from parts, so that most of them occur with one
patient only, and some are ordinary words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

_UNITS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True, slots=True)
class Name:
    """A person's name as a register has it."""

    first: str
    middle: str
    last: str


@cache
def lists() -> dict[str, Any]:
    """`identifiers.yaml`, every list between commas as a list."""
    import yaml

    def read(value: Any) -> Any:
        if isinstance(value, str):
            return [one.strip() for one in value.split(",")]
        return {key: read(one) for key, one in value.items()}

    content = yaml.safe_load((Path(__file__).parent / "identifiers.yaml").read_text(encoding="utf-8"))
    return {key: read(value) for key, value in content.items()}


# Persons


def make_name(rng: random.Random, female: bool | None = None) -> Name:
    """A person's name; of either sex if `female` is None."""
    persons = lists()["persons"]
    female = rng.random() < 0.5 if female is None else female
    if rng.random() < 0.6:
        first = rng.choice(persons["women" if female else "men"])
    else:
        endings = persons["first_endings_women" if female else "first_endings_men"]
        first = rng.choice(persons["openings"]) + rng.choice(endings)
    return Name(first, rng.choice("ABCDEFGHJKLMNPRSTW"), make_surname(rng))


def make_surname(rng: random.Random) -> str:
    """A surname: two in three are composed, the others are common ones, of which some are ordinary words."""
    persons = lists()["persons"]
    kind = rng.random()
    if kind < 0.14:
        return rng.choice(persons["surnames_that_are_words"])
    if kind < 0.32:
        return rng.choice(persons["surnames"])
    composed = rng.choice(persons["openings"])
    if rng.random() < 0.45:
        composed += rng.choice(persons["middles"])
    composed += rng.choice(persons["surname_endings"])
    if kind > 0.96:
        return f"{composed}-{rng.choice(persons['surnames'])}"
    if kind > 0.92:
        particle = rng.choice(persons["particles"])
        return particle + ("" if particle[-1] in "c'-" else " ") + composed
    return composed


def initials(name: Name) -> str:
    return name.first[0] + name.middle + name.last[0].upper()


def username(name: Name, rng: random.Random) -> str:
    letters = (name.first[0] + name.last[0]).lower() if rng.random() < 0.7 else initials(name)
    return f"{letters}{rng.randrange(1, 1000)}"


def email(name: Name, rng: random.Random) -> str:
    domain = rng.choice(lists()["numbers"]["domains"])
    return re.sub(r"[^a-z.@]", "", f"{name.first[0]}{name.last}@".lower()) + domain


# Days and ages


def write_day(day: date, form: str, rng: random.Random) -> str:
    """A day as a clinician writes it.

    Args:
        form: `iso`, `numeric` (02/17/2084, 2/17/84), `short` (2/17), `long` (February 17th, 2084), `month`, `year`,
            `weekday` or `holiday`.
    """
    month, year = _MONTHS[day.month - 1], day.year
    if form == "iso":
        return day.isoformat()
    if form == "numeric":
        sign = rng.choice("////-.")
        numbers = f"{day.month:02}", f"{day.day:02}", str(year)
        plain = str(day.month), str(day.day), f"{year % 100:02}"
        return sign.join(rng.choice((numbers, numbers, plain, (*numbers[:2], plain[2]))))
    if form == "short":
        return rng.choice((f"{day.month}/{day.day}", f"{day.month}/{day.day}", f"{day.month:02}/{day.day:02}"))
    if form == "long":
        ordinal = f"{day.day}{_ending(day.day)}"
        few = (f"{month} {day.day}", f"{month} {ordinal}", f"{month[:3]} {day.day}", f"the {ordinal} of {month}")
        many = (f"{month} {day.day}, {year}", f"{month} {ordinal}, {year}", f"{day.day}-{month[:3]}-{year}")
        return rng.choice((*few, *many, f"{month[:3]}. {day.day}, {year}"))
    if form == "month":
        numeric = f"{day.month}/{year % 100:02}", f"{day.month:02}/{year}"
        return rng.choice((f"{month} {year}", f"{month} of {year}", f"{month[:3]} {year}", month, *numeric))
    if form == "year":
        return rng.choice((str(year), str(year), f"'{year % 100:02}"))
    if form == "holiday":
        return rng.choice(lists()["days"]["holidays"])
    if form == "weekday":
        weekday = _WEEKDAYS[day.weekday()]
        return rng.choice((weekday, weekday, weekday[:3], weekday.upper()))
    raise ValueError(f"{form} is no form of a date")


def mark_day(day: date, form: str, rng: random.Random) -> str:
    """A day as MIMIC-III has it after de-identification; forms as in `write_day`."""
    marks = lists()["marks"]
    whole, part = f"[**{day.year}-{day.month}-{day.day}**]", f"[**{day.month}-{day.day}**]"
    if form in ("iso", "numeric"):
        return whole
    if form in ("holiday", "weekday"):
        return rng.choice(marks[form]).replace("#", str(rng.randrange(1, 9999)))
    if form == "month":
        only = rng.choice(marks["month"]).replace("#", str(rng.randrange(1, 999)))
        return rng.choice(
            (f"[**{day.year}-{day.month}-{day.day}**]", f"{only} [**{day.year}**]", f"[**{day.month}-/{day.year}**]")
        )
    if form == "year":
        return f"[**{day.year}**]"
    return part if form == "short" else rng.choice((whole, part))


def _ending(number: int) -> str:
    return "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def write_age(years: int, form: str, rng: random.Random) -> str:
    """An age: `number`, `decade` (60s), or `words` (sixty-seven); the number nine times in ten if there is no form."""
    form = form or rng.choices(("number", "words"), (95, 5))[0]
    if form == "decade":
        return f"{years // 10 * 10 or 1}s"
    if form == "words" and 20 <= years < 100:
        units = _UNITS[years % 10]
        return _TENS[years // 10] + (rng.choice("- ") + units if units else "")
    return str(years)


# Places and organisations


def make_city(rng: random.Random) -> str:
    """A city: two in three are invented."""
    places = lists()["places"]
    if rng.random() < 0.33:
        return rng.choice(places["cities"])
    city = rng.choice(places["city_openings"]) + rng.choice(places["city_endings"])
    return f"{rng.choice(places['city_prefixes'])} {city}" if rng.random() < 0.15 else city


def make_hospital_name(rng: random.Random) -> str:
    """The full name of a hospital, clinic or nursing home."""
    hospitals = lists()["hospitals"]
    return _fill(rng.choice(hospitals["full"]), rng, saint=lambda: rng.choice(hospitals["saints"]))


def hospital_form(full: str, form: str) -> str:
    initials = "".join(word[0] for word in full.split()).upper()
    if form == "short":
        # Two letters would be read as anything; people then leave the last word away instead.
        return initials if len(initials) > 2 else full.split()[0]
    return full.upper() if form == "caps" else full


def make_profession(rng: random.Random) -> str:
    """An occupation, in one to three words."""
    professions = lists()["professions"]
    if rng.random() < 0.5:
        return rng.choice(professions["whole"])
    return f"{rng.choice(professions['fields'])} {rng.choice(professions['roles'])}"


def street(rng: random.Random) -> str:
    name = rng.choice((make_surname, make_city))(rng)
    return f"{rng.randrange(1, 2500)} {name} {rng.choice(lists()['places']['street_types'])}"


def _fill(pattern: str, rng: random.Random, **more: Callable[[], str]) -> str:
    parts: Mapping[str, Callable[[], str]] = {
        "city": lambda: make_city(rng),
        "surname": lambda: make_surname(rng),
        "number": lambda: str(rng.randrange(1, 99)),
        **more,
    }
    return re.sub(r"\{(\w+)\}", lambda match: parts[match[1]](), pattern)


def digits(pattern: str, rng: random.Random) -> str:
    pattern = re.sub("#", lambda match: str(rng.randrange(10)), pattern)
    return re.sub(r"\?", lambda match: rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ"), pattern)


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "CITY": make_city,
    "STREET": street,
    "PROFESSION": make_profession,
    "COUNTRY": lambda rng: rng.choice(lists()["places"]["countries"]),
    "LOCATION-OTHER": lambda rng: _fill(rng.choice(lists()["places"]["other"]), rng),
    "DEPARTMENT": lambda rng: _fill(rng.choice(lists()["hospitals"]["departments"]), rng),
    "ROOM": lambda rng: digits(rng.choice(lists()["hospitals"]["rooms"]), rng),
    "ORGANIZATION": lambda rng: _fill(rng.choice(lists()["organizations"]["forms"]), rng),
    "URL": lambda rng: f"http://www.{rng.choice(lists()['numbers']['domains'])}",
}
