"""Dates moved by a number of days, in the form in which they are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTH = (
    r"(?P<name>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
_DAY, _YEAR = r"(?P<d>\d{1,2})(?P<ending>st|nd|rd|th)?", r"(?P<y>(?:1[89]|2\d)\d\d|'\d\d)"
_BETWEEN = r"(?:\.?\s+of\s+|\.?[-,/\s]*)"
_PATTERNS = [
    re.compile(rf"(?:{pattern})(?!\w)", re.IGNORECASE)
    for pattern in (
        r"(?P<y>\d{4})(?P<sign>[-/.])(?P<m>\d{1,2})(?P=sign)(?P<d>\d{1,2})",
        r"(?P<m>\d{1,2})(?P<sign>[-/.])(?P<d>\d{1,2})(?P=sign)(?P<y>\d{4}|\d\d)",
        r"(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d)",
        rf"{_MONTH}\.?[-\s]*{_DAY}(?:\s*,\s*|\s+|-|/){_YEAR}",
        rf"{_DAY}{_BETWEEN}{_MONTH}{_BETWEEN}{_YEAR}",
        rf"{_DAY}[-/\s]{_MONTH}[-/\s](?P<y>\d\d)",
        rf"{_MONTH}{_BETWEEN}{_YEAR}",
        rf"{_MONTH}\.?[-\s]*{_DAY}",
        rf"{_DAY}{_BETWEEN}{_MONTH}",
        _MONTH,
        r"(?P<m>\d{1,2})[-/](?P<y>\d{4})",
        r"(?P<m>\d{1,2})[-/.](?P<d>\d{1,2})",
        _YEAR,
        r"(?P<weekday>mon|tue|tues|wed|thu|thur|thurs|fri|sat|sun)",
        rf"(?P<weekday>{'|'.join(_WEEKDAYS)})(?P<plural>s)?",
    )
]
_KEPT = re.compile(
    r"\d{1,2}:\d\d(?::\d\d)?(?:\s*[ap]\.?m\b\.?)?|\d{1,2}\s*[ap]\.?m\b\.?|"  # a time of day identifies nobody
    r"(?:and|or|to|through|thru|until|till|from|between|of|on|the|in|at|early|mid|late|morning|afternoon|evening|night|noon)"
    r"(?!\w)|[^\w']",
    re.IGNORECASE,
)
_COMMON_YEAR, _LEAP_YEAR = 2001, 2000
_DAYS_OF_A_YEAR, _YEARS = 365, 8
_LEAST, _MOST = 33, 332


def draw_days(draw: Callable[[int], int]) -> int:
    """A number of days by which every date of a patient moves, so that every part of each date becomes another.

    At least a year away, so that a year alone changes; not near a whole number of years, so that a month alone does; not
    whole weeks, so that a weekday does. Backwards or forwards, by less than ten years.

    Args:
        draw: gives a number from 0 below its argument.
    """
    while True:
        days = (1 + draw(_YEARS)) * _DAYS_OF_A_YEAR + _LEAST + draw(_MOST - _LEAST)
        if days % 7:
            return days if draw(2) else -days


def shift(text: str, days: int) -> str | None:
    """Moves the dates of a text that consists of dates, times and words between them; None where it has anything else.

    Read are 2015-03-04, 03/04/2015, 3/4/15, 3/4 (the month first, unless it can only be the day), 20150304, March 4, 2015,
    4-Mar-15, the 4th of March, March 2015, 3/2015, March, 2015, '15, and weekdays, in any case. Where the year is not given
    it is taken to have 365 days; of a month the middle moves, of a year July 1.
    """
    parts: list[str] = []
    position = moved = 0
    while position < len(text):
        at_word = position > 0 and text[position].isalnum() and text[position - 1].isalnum()
        found = None if at_word else _first(text, position, days)
        if found is not None:
            match, new = found
            moved += 1
        else:
            kept = _KEPT.match(text, position)
            if kept is None:
                return None
            match, new = kept, kept[0]
        parts.append(new)
        position = match.end()
    return "".join(parts) if moved else None


def _first(text: str, position: int, days: int) -> tuple[re.Match[str], str] | None:
    """The first pattern that is a date there, and what becomes of it."""
    if re.match(r"\d{1,2}:\d\d", text[position:]):
        return None
    for pattern in _PATTERNS:
        match = pattern.match(text, position)
        if match is None:
            continue
        given = {name: value for name, value in match.groupdict().items() if value is not None}
        new = _weekday(given["weekday"], days) if "weekday" in given else None
        if new is not None:
            return match, new + given.get("plural", "")
        for names in ({}, {"m": "d", "d": "m"}, {"d": "y"}):  # as it stands, day first, month and year
            replaced = _moved(match, {names.get(name, name): value for name, value in given.items()}, names, days)
            if replaced is not None:
                return match, replaced
    return None


def _moved(match: re.Match[str], given: dict[str, str], names: dict[str, str], days: int) -> str | None:
    """What a date becomes; None where its fields make none.

    Args:
        match: the date as it is written.
        given: the fields.
        names: which groups of the match stand for other fields than they say.
        days: to move by.
    """
    if names and ("name" in given or "m" not in given or not names.keys() <= match.re.groupindex.keys()):
        return None
    if "d" in names and names["d"] == "y" and (match.groupdict().get("y") or len(given["y"]) != 2):
        return None
    day = _read(given)
    if day is None:
        return None
    try:
        day += timedelta(days=days)
    except OverflowError:
        return None
    padded = all(len(given[name]) == 2 for name in ("m", "d") if name in given) or given.get("d", "").startswith("0")
    new = {"y": _year(day.year, given.get("y", "")), "m": f"{day.month:02}" if padded else str(day.month)}
    new["d"] = f"{day.day:02}" if padded and ("m" in given or given.get("d", "").startswith("0")) else str(day.day)
    new["name"] = _month(day.month, given.get("name", ""))
    new["ending"] = _alike(_ending(day.day), given.get("ending", ""))
    pieces, read = [], match.start()
    places = [(match.start(group), match.end(group), group) for group in match.groupdict() if match[group] is not None]
    for start, end, group in sorted(places):
        if (field := names.get(group, group)) in new:
            pieces += [match.string[read:start], new[field]]
            read = end
    return "".join([*pieces, match.string[read : match.end()]])


def _read(given: dict[str, str]) -> date | None:
    """The day that the fields say, as far as they do."""
    month = int(given["m"]) if "m" in given else None
    if "name" in given:
        month = 1 + next(number for number, name in enumerate(_MONTHS) if name[:3] == given["name"][:3].lower())
    number = int(given["d"]) if "d" in given else 15
    if "y" in given:
        written = given["y"].lstrip("'")
        year = int(written) + 2000 if len(written) == 2 else int(written)
    else:
        year = _LEAP_YEAR if (month, number) == (2, 29) else _COMMON_YEAR
    try:
        return date(year, 7, 1) if month is None else date(year, month, number)
    except ValueError:
        return None


def _year(year: int, written: str) -> str:
    if len(written.lstrip("'")) == 4:
        return f"{year:04}"
    return written[: written.startswith("'")] + f"{year % 100:02}"


def _month(month: int, written: str) -> str:
    name = _MONTHS[month - 1]
    return _alike(name if written.lower() in _MONTHS else name[:3], written)


def _weekday(written: str, days: int) -> str:
    number = next(place for place, name in enumerate(_WEEKDAYS) if name.startswith(written.lower()[:3]))
    name = _WEEKDAYS[(number + days) % 7]
    return _alike(name if written.lower() in _WEEKDAYS else name[:3], written)


def _ending(number: int) -> str:
    return "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _alike(new: str, written: str) -> str:
    """In the case of what was written."""
    return new.upper() if written.isupper() else new.title() if written[:1].isupper() else new
