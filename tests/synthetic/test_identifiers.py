"""Surrogates and marks: marked where they stand, the same thing by the same name, in many forms."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

import pytest

from posology.synthetic.identifiers import KINDS, Identifiers, Style
from posology.synthetic.naming import lists, make_surname, write_age, write_day


@dataclass
class Somebody:
    sex: Literal["F", "M"] = "F"
    identity: int = 1


def _identifiers(identity: int = 1, style: Style = "surrogate", seed: int = 0) -> Identifiers:
    return Identifiers(Somebody("F", identity), random.Random(seed), style)


def _which(kind: str) -> str:
    return {"DATE": "2151-07-16", "AGE": "93"}.get(kind, "")


@pytest.mark.parametrize("style", ["surrogate", "mimic"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_marked_as_a_whole(kind: str, style: Style) -> None:
    """But for professions in MIMIC-III, which are no identifiers there."""
    identifiers = _identifiers(style=style)
    for _ in range(30):
        written = identifiers.text(kind, _which(kind))
        assert written.text and written.text == written.text.strip()
        marked = [(one.start, one.end, one.kind) for one in written.mentions]
        assert marked == ([] if (kind, style) == ("PROFESSION", "mimic") else [(0, len(written.text), kind)])
        if style == "mimic" and marked:
            assert re.fullmatch(r"\[\*\*[^\[\]*]+\*\*\](,? \[\*\*[^\[\]*]+\*\*\])?", written.text)


def test_the_same_name_is_the_same_thing_whoever_asks() -> None:
    for kind in set(KINDS) - {"DATE", "AGE", "HOSPITAL", "STATE"}:
        form = "x/full" if kind in ("PATIENT", "DOCTOR") else "x"
        first, again = _identifiers(seed=1), _identifiers(seed=2)
        again.text("DOCTOR", "another")  # the order of asking does not matter
        got = {re.sub(r" [A-Z]\. ", " ", one.text(kind, form).text) for one in (first, again, first)}
        assert len(got) == 1, kind
        others = {_identifiers(identity).text(kind, form).text for identity in range(20)}
        assert len(others) > 1, kind


def test_the_patients_own_and_somebody_elses() -> None:
    identifiers = _identifiers()
    assert len({identifiers.text("MEDICALRECORD").text for _ in range(9)}) == 1
    assert len({identifiers.text("PATIENT", "/last").text for _ in range(9)}) == 1
    assert len({identifiers.text("DOCTOR", "/last").text for _ in range(9)}) > 1
    marks = _identifiers(style="mimic")
    assert marks.text("PATIENT", "/last").text.startswith("[**Known lastname ")
    assert "Known" not in marks.text("PATIENT", "sister/last").text
    assert len({marks.text("DOCTOR", "/last").text for _ in range(9)}) > 1


def test_forms_of_a_name() -> None:
    identifiers = _identifiers()
    last = identifiers.text("DOCTOR", "pcp/last").text
    first = identifiers.text("DOCTOR", "pcp/first").text
    assert identifiers.text("DOCTOR", "pcp/register").text == f"{last}, {first}"
    assert identifiers.text("DOCTOR", "pcp/short").text == f"{first[0]}. {last}"
    assert re.fullmatch(rf"{first}( [A-Z]\.)? {last}", identifiers.text("DOCTOR", "pcp/full").text)
    caps = identifiers.text("DOCTOR", "pcp/caps").text
    assert caps == caps.upper() and last.upper() in caps
    user = identifiers.text("USERNAME", "pcp").text
    assert re.fullmatch(r"[a-zA-Z]{2,3}\d{1,3}", user) and user[0].lower() == first[0].lower()


def test_dates_say_as_much_as_their_value() -> None:
    identifiers = _identifiers()
    seen = set()
    for _ in range(400):
        written = identifiers.text("DATE", "2084-02-07")
        (mention,) = written.mentions
        value = mention.attributes["value"]
        seen.add(re.sub(r"[A-Z][a-z]+", "Abc", written.text))
        if value == "2084":
            assert written.text in ("2084", "'84")
        elif value == "2084-02":
            assert re.search("Feb|2/84|02/2084", written.text) and not re.search(r"7", written.text)
        else:
            assert value == "2084-02-07"
    assert {"2084-02-07", "02/07/2084", "2/7", "2/7/84", "Abc 7", "Abc 7th, 2084", "'84", "Abc"} <= seen
    with_time = identifiers.text("DATE", "2084-02-07T15:30:00/iso")
    assert with_time.text.startswith("2084-02-07") and with_time.text.endswith("15:30")
    assert with_time.mentions[0].end == 10
    marks = {_identifiers(style="mimic", seed=seed).text("DATE", "2084-02-07").text for seed in range(200)}
    assert {"[**2084-2-7**]", "[**2-7**]", "[**2084**]"} <= marks


def test_days_and_ages_in_words() -> None:
    from datetime import date

    def days(form: str) -> set[str]:
        return {write_day(date(2084, 11, 22), form, random.Random(seed)) for seed in range(99)}

    assert {"November 22nd", "the 22nd of November", "22-Nov-2084"} <= days("long")
    assert days("weekday") == {"Wednesday", "Wed", "WEDNESDAY"}
    assert days("iso") == {"2084-11-22"}
    assert {write_age(67, "words", random.Random(seed)) for seed in range(9)} == {"sixty-seven", "sixty seven"}
    assert write_age(67, "decade", random.Random(0)) == "60s" and write_age(0, "", random.Random(0)) == "0"
    with pytest.raises(ValueError, match="no form"):
        write_day(date(2084, 1, 1), "roman", random.Random(0))


def test_only_the_oldest_ages_are_marked_in_mimic() -> None:
    identifiers = _identifiers(style="mimic")
    assert identifiers.text("AGE", "89/number").text == "89" and not identifiers.text("AGE", "89").mentions
    assert identifiers.text("AGE", "90").text.startswith("[**Age over 90")


def test_names_are_mostly_new_and_some_are_words() -> None:
    rng = random.Random(5)
    train, test = {make_surname(rng) for _ in range(2000)}, {make_surname(rng) for _ in range(2000)}
    assert len(test - train) / len(test) > 0.6
    words = set(lists()["persons"]["surnames_that_are_words"])
    assert words & train and words & test


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="no kind"):
        _identifiers().text("NAME")
