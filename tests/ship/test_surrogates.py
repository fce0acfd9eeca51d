"""Surrogates: consistent within a patient, other than what they stand for, in its form."""

from __future__ import annotations

import random
import re
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus.i2b2_2014 import CATEGORY
from posology.ship.dates import draw_days, shift
from posology.ship.surrogates import KINDS, Surrogates
from posology.synthetic import naming

KEY = b"0123456789abcdef"


@pytest.fixture(scope="module")
def surrogates() -> Surrogates:
    return Surrogates(KEY)


def test_every_type_of_the_corpus_has_surrogates() -> None:
    assert set(CATEGORY) <= set(KINDS)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("03/04/2015", "07/16/2016"),
        ("3/4/15", "7/16/16"),
        ("3/4", "7/17"),  # without its year, it has 365 days
        ("March 4, 2015", "July 16, 2016"),
        ("MARCH 4TH, 2015", "JULY 16TH, 2016"),
        ("4-Mar-15", "16-Jul-16"),
        ("the 4th of March", "the 17th of July"),
        ("2015-03-04", "2016-07-16"),
        ("20150304", "20160716"),
        ("Mar. 4", "Jul. 17"),
        ("February of 2084", "June of 2085"),
        ("3/2015", "7/2016"),
        ("11/84", "03/86"),
        ("25/12/2014", "08/05/2016"),
        ("2015", "2016"),
        ("'15", "'16"),
        ("Monday", "Thursday"),
        ("MON", "THU"),
        ("Mondays", "Thursdays"),
        ("Monday, March 4, 2015 at 10:30 am", "Thursday, July 16, 2016 at 10:30 am"),
        ("3/4 - 3/7", "7/17 - 7/20"),
        ("early March", "early July"),
        ("2/29", "7/13"),
    ],
)
def test_dates_move_in_the_form_they_are_written_in(written: str, expected: str) -> None:
    assert shift(written, 500) == expected


@pytest.mark.parametrize("text", ["Christmas", "1990s", "March 3-5", "31/31", "the winter", "100", "", "10:30"])
def test_what_is_no_date_is_not_guessed_at(text: str) -> None:
    assert shift(text, 500) is None


@settings(deadline=None, max_examples=150)
@given(
    st.dates(date(1900, 1, 1), date(2090, 12, 31)),
    st.sampled_from(["iso", "numeric", "short", "long", "month", "year", "weekday"]),
    st.integers(0, 10**6),
)
def test_generated_dates_move_to_another_day_of_the_same_form(day: date, form: str, seed: int) -> None:
    days = draw_days(random.Random(seed).randrange)
    written = naming.write_day(day, form, random.Random(seed))
    moved = shift(written, days)
    assert moved is not None and moved != written
    assert re.sub(r"[A-Za-z]+", "a", re.sub(r"\d+", "0", moved)) == re.sub(
        r"[A-Za-z]+", "a", re.sub(r"\d+", "0", written)
    )
    if form == "iso":
        assert date.fromisoformat(moved) == day + timedelta(days=days)
    back = shift(moved, -days)
    if form in ("iso", "weekday"):
        assert back == written


@given(st.integers(0, 10**9))
def test_no_part_of_a_date_stays_as_it_was(seed: int) -> None:
    days = draw_days(random.Random(seed).randrange)
    assert days % 7 and 365 < abs(days) < 3650
    for month in range(1, 13):
        middle = date(2001, month, 15)
        assert (middle + timedelta(days=days)).month != month
    assert (date(2015, 7, 1) + timedelta(days=days)).year != 2015


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**9), st.sampled_from(["p1", "p2"]))
def test_all_forms_of_a_name_agree(seed: int, group: str) -> None:
    surrogates, person = Surrogates(KEY), naming.make_name(random.Random(seed))

    def new(text: str) -> str:
        found = surrogates.replace("PATIENT", text, group)
        assert found is not None and found.casefold() != text.casefold()
        return found

    first, last = new(person.first), new(person.last)
    assert new(f"{person.first} {person.last}") == f"{first} {last}"
    assert new(f"{person.last}, {person.first}") == f"{last}, {first}"
    assert new(f"{person.first} {person.last}".upper()) == f"{first} {last}".upper()
    assert new(f"Dr. {person.last}") == f"Dr. {last}"
    short = new(f"{person.first[0]}. {person.last}")
    assert short == f"{first[0]}. {last}"


def test_initials_and_nicknames_agree_with_the_name(surrogates: Surrogates) -> None:
    first, last = str(surrogates.replace("PATIENT", "William Quillmore", "p")).split()
    assert surrogates.replace("PATIENT", "WQ", "p") == first[0] + last[0]
    assert surrogates.replace("DOCTOR", "wq", "p") == (first[0] + last[0]).lower()
    assert surrogates.replace("NAME", "Bill Quillmore", "p") == f"{first} {last}"
    assert str(surrogates.replace("USERNAME", "wq84", "p")).startswith((first[0] + last[0]).lower())
    assert str(surrogates.replace("PATIENT", "Quillmore's", "p")) == f"{last}'s"


def test_a_title_alone_stays_and_a_particle_alone_is_called_as_in_the_name(surrogates: Surrogates) -> None:
    assert surrogates.replace("DOCTOR", "Dr.", "p") == "Dr." and surrogates.replace("NAME", "Mrs", "p") == "Mrs"
    assert surrogates.replace("DOCTOR", "MD", "p") not in (None, "MD")  # initials of somebody, perhaps
    _, particle, last = str(surrogates.replace("PATIENT", "Rebecca van Inford", "p")).split()
    assert surrogates.replace("DOCTOR", "van", "p") == particle
    assert surrogates.replace("DOCTOR", "van Inford", "p") == f"{particle} {last}"


def test_surrogates_follow_from_key_and_patient(surrogates: Surrogates) -> None:
    texts = [("PATIENT", "Harlan Quillmore"), ("PHONE", "617-555-1234"), ("CITY", "Boston"), ("DATE", "3/4/2015")]
    for label, text in texts:
        same = surrogates.replace(label, text, "p")
        assert Surrogates(KEY).replace(label, text, "p") == same
        others = [Surrogates(KEY[::-1]).replace(label, text, "p"), *(surrogates.replace(label, text, g) for g in "qrs")]
        assert any(other != same for other in others)


@pytest.mark.parametrize(
    ("label", "text", "form"),
    [
        ("PHONE", "(617) 555-1234", r"\(\d{3}\) \d{3}-\d{4}"),
        ("PHONE", "pager 12345", r"pager \d{5}"),
        ("ZIP", "02115", r"\d{5}"),
        ("MEDICALRECORD", "123-45-67-8", r"\d{3}-\d\d-\d\d-\d"),
        ("IDNUM", "AB123/4567", r"[A-Z]{2}\d{3}/\d{4}"),
        ("EMAIL", "jroe@clinic.org", r"[a-z]{4}@[a-z.]*example\.(org|com|net)"),
        ("URL", "http://www.clinic.org", r"http://www\.[a-z.]*example\.(org|com|net)"),
        ("IPADDR", "10.1.2.3", r"\d+\.\d+\.\d+\.\d+"),
        ("STATE", "MA", r"[A-Z]{2}"),
        ("STATE", "Massachusetts", r"[A-Z][a-z]+( [A-Z][a-z]+)?"),
        ("ROOM", "Bed 12", r"Bed \d\d"),
        ("HOSPITAL", "MGH", r"[A-Z]{3}"),
        ("CITY", "BOSTON", r"[A-Z. ]+"),
        ("LOCATION", "MA", r"[A-Z]{2}"),
        ("CONTACT", "555-1234", r"\d{3}-\d{4}"),
    ],
)
def test_forms_are_kept(label: str, text: str, form: str, surrogates: Surrogates) -> None:
    for group in map(str, range(20)):
        new = surrogates.replace(label, text, group)
        assert new is not None and new != text and re.fullmatch(form, new), new


def test_a_number_is_the_same_however_it_is_punctuated(surrogates: Surrogates) -> None:
    one, other = (str(surrogates.replace("PHONE", text, "p")) for text in ("(617) 555-1234", "617.555.1234"))
    assert re.sub(r"\D", "", one) == re.sub(r"\D", "", other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("67", "67"), ("89", "89"), ("90", "90+"), ("104", "90+"), ("92-year-old", "90+-year-old"), ("60s", "60s"),
        ("90s", "90+"), ("sixty-seven", "sixty-seven"), ("ninety-two", "90+"), ("one hundred", "90+"),
        ("96 months", "96 months"), ("02/17/2084", None), ("elderly", None), ("1234", None), ("67 Roe", None),
    ],
)  # fmt: skip
def test_ages_are_capped_as_hipaa_has_it(text: str, expected: str | None, surrogates: Surrogates) -> None:
    assert surrogates.replace("AGE", text, "p") == expected


def test_there_is_no_surrogate_for_what_is_unknown(surrogates: Surrogates) -> None:
    assert surrogates.replace("GENE", "BRCA1", "p") is None
    assert surrogates.replace("PATIENT", "--", "p") is None
    assert surrogates.replace("PHONE", "none", "p") is None


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([kind for kind in KINDS if kind != "AGE"]), st.text(min_size=1, max_size=30), st.text(max_size=5)
)
def test_nothing_is_its_own_surrogate_and_nothing_fails(label: str, text: str, group: str) -> None:
    new = Surrogates(KEY).replace(label, text, group)
    assert new is None or new.casefold().strip() != text.casefold().strip()
