"""Expressions of time around an admission, as text marked with their values as in TIMEX3."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import date, datetime, timedelta

from posology.synthetic.lexicon import lexicon
from posology.synthetic.phrases import Filling, Slot, Term, Unfillable
from posology.synthetic.state import Admission, Event, Patient
from posology.synthetic.written import Mention, Written

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_UNITS: dict[str, tuple[str, int]] = {
    "day": ("P{}D", 1),
    "week": ("P{}W", 7),
    "month": ("P{}M", 30),
    "hour": ("PT{}H", 0),
    "year": ("P{}Y", 365),
}


class Timing:
    """What a scene needs to speak of time.

    Attributes:
        day: the day of the stay (from 0) that an undated phrase is about.
    """

    SLOTS = (
        "duration", "ago", "ago_long", "when", "when_first", "when_end", "frequency", "sig", "year", "clock", "hours",
        "dayoflife",
    )  # fmt: skip

    def __init__(self, patient: Patient, admission: Admission, rng: random.Random):
        self.patient, self.admission, self.rng = patient, admission, rng
        self.day = 0
        self.often = "daily"

    def day_of(self, argument: str) -> str:
        """The ISO date (and form) for `{DATE:argument}`: admission, discharge, birth, day, past, followup, or a date."""
        name, slash, form = argument.partition("/")
        admission, rng = self.admission, self.rng
        days: dict[str, date] = {
            "admission": admission.admitted.date(),
            "discharge": admission.discharged.date(),
            "birth": self.patient.born.date(),
            "day": self.on_day(),
        }
        if name == "past":
            day = admission.admitted.date() - timedelta(days=rng.randrange(20, 2500))
        elif name == "followup":
            day = admission.discharged.date() + timedelta(days=rng.randrange(5, 60))
        else:
            day = days[name] if name in days else date.fromisoformat(name)
        return f"{day.isoformat()}{slash}{form}"

    def on_day(self) -> date:
        """The date of the day spoken of, within the stay."""
        return min(self.admission.admitted + timedelta(days=self.day), self.admission.discharged).date()

    def fill(self, slot: Slot, event: Event | None) -> Filling:
        """The filling of one of `SLOTS`; `event` is what the phrase is about."""
        rng = self.rng
        if event is not None:
            self.day = event.day
        match slot.name:
            case "duration":
                return self._duration(rng.choice(("day", "day", "week", "month", "hour")))
            case "hours":
                return self._duration("hour")
            case "ago":
                return self._ago(rng.choice(("day", "day", "week", "hour")))
            case "ago_long":
                return self._ago(rng.choice(("month", "year")))
            case "when":
                return self._when(0.55, "", " ")
            case "when_end":
                return self._when(0.55, " ", "")
            case "when_first":
                return self._when(0.0, "", ", " if rng.random() < 0.7 else " ")
            case "frequency":
                words, value = self._frequency()
                return Term("timex", words, {"type": "FREQUENCY", "value": value})
            case "sig":
                return str(lexicon().frequencies[self.often]["sig"])
            case "year":
                return self._year()
            case "clock":
                return f"{rng.randrange(1, 13):02d}:{rng.randrange(60):02d}<PM|AM|pm|am>"
            case "dayoflife":
                return str(rng.randrange(3, 20))
            case _:
                raise Unfillable(slot.name)

    def _duration(self, unit: str) -> Term:
        number, words = self._number(unit)
        mod = self.rng.choice(("", "", "", "about ", "approximately ", "nearly "))
        attributes = {"type": "DURATION", "value": _UNITS[unit][0].format(number)}
        if mod:
            attributes["mod"] = "APPROX"
        return Term("timex", mod + words, attributes)

    def _number(self, unit: str) -> tuple[int, str]:
        number = self.rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 7, 10, 12)) if unit != "month" else self.rng.randrange(1, 9)
        counted = _NUMBERS[number - 1] if self.rng.random() < 0.55 else str(number)
        short = {"day": "d", "week": "wk", "hour": "h", "month": "mo", "year": "yr"}[unit]
        if self.rng.random() < 0.08:
            return number, f"{number}{short}"
        return number, f"{counted} {unit}{'s' if number > 1 else ''}"

    def _ago(self, unit: str) -> Term:
        rng, start = self.rng, self.admission.admitted
        if unit in ("day", "hour") and rng.random() < 0.4:
            back, words = rng.choice(
                ((1, "yesterday"), (1, "the night before [admission|occurrence]"), (0, "this morning"),
                 (0, "the day of [admission|occurrence]"), (1, "last night"), (0, "earlier today"),
                 (1, "the evening prior to [presentation|occurrence]"), (3, "over the weekend"))
            )  # fmt: skip
            return Term("timex", words, {"type": "DATE", "value": self._iso(start - timedelta(days=back))})
        number, words = self._number(unit)
        tail = rng.choice(
            (" ago", " ago", " prior to [admission|occurrence]", " before [presentation|occurrence]", " PTA", " prior",
             " before [admission|occurrence]")
        )  # fmt: skip
        then = start - timedelta(days=number * _UNITS[unit][1])
        value = {"month": self._iso(then)[:7], "year": self._iso(then)[:4]}.get(unit, self._iso(then))
        return Term("timex", words + tail, {"type": "DATE", "value": value})

    @staticmethod
    def _iso(moment: datetime | date) -> str:
        return moment.isoformat()[:10]

    def _when(self, left_out: float, before: str, after: str) -> Filling:
        """When something happened, with its preposition and what parts it from its neighbours; or nothing."""
        rng = self.rng
        if rng.random() < left_out:
            return ""
        day = self.on_day()
        number = self.day + 1
        forms: Sequence[tuple[str, str, str]] = (
            ("on ", f"hospital day {number}", "DATE"),
            ("on ", f"HD #{number}", "DATE"),
            ("on ", f"hospital day {_NUMBERS[min(number, 12) - 1]}", "DATE"),
            ("", "overnight", "TIME"),
            ("", "the following day", "DATE"),
            ("", "that evening", "TIME"),
            ("", "the next morning", "TIME"),
            ("on ", f"postoperative day {max(1, self.day)}", "DATE"),
            ("on ", f"POD #{max(1, self.day)}", "DATE"),
            ("", f"{_NUMBERS[min(number, 12) - 1]} days later", "DATE"),
            ("on ", "the day of [transfer|occurrence]", "DATE"),
            ("by ", "the time of [discharge|occurrence]", "DATE"),
            ("in ", "the first 24 hours", "DURATION"),
        )
        preposition, words, type = rng.choice(forms)
        preposition = before + preposition
        if words.startswith("the time of"):
            day = self.admission.discharged.date()
        hour = "09" if "morning" in words else "21"
        value = {"TIME": f"{day.isoformat()}T{hour}:00", "DURATION": "PT24H"}.get(type, day.isoformat())
        inner, opening, rest = words.partition("[")
        written = Written(preposition).add(inner)
        if opening:
            written.add(rest.partition("|")[0], "occurrence")
        span = Mention(len(preposition), len(written.text), "timex", {"type": type, "value": value})
        written.mentions.append(span)
        return written.add(after)

    def _frequency(self) -> tuple[str, str]:
        entry = lexicon().frequencies[self.often]
        return self.rng.choice(entry["words"]), entry["value"]

    def _year(self) -> str:
        return str(self.admission.admitted.year - self.rng.randrange(1, 25))
