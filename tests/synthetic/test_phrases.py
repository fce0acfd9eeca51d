from __future__ import annotations

import random

import pytest

from posology.synthetic.markup import parse
from posology.synthetic.phrases import Filling, Phrasebook, Scribe, Slot, Term, Unfillable, is_rare, wordings
from posology.synthetic.words import determined, misspelt
from posology.synthetic.written import Written


class Names:
    def text(self, kind: str, which: str = "") -> str:
        return f"({kind} {which})"


FILLINGS: dict[str, Filling] = {
    "he": "she",
    "problem": Term("problem", "a <pleural> effusion"),
    "list": [Term("problem", "an MI"), Term("problem", "a rash"), Term("problem", "cough")],
    "DATE": "2131-05-02",
}


def fill(slot: Slot) -> Filling:
    if slot.name not in FILLINGS:
        raise Unfillable(slot.name)
    return FILLINGS[slot.name]


def written(template: str | dict[str, object], seed: int = 1, **settings: object) -> Written:
    book = Phrasebook([{"grammar": {"size": ["small"]}, "phrases": {"pool": [template]}}])
    scribe = Scribe(book, random.Random(seed), fill, Names(), **settings)  # type: ignore[arg-type]
    return scribe.write("pool", treatment=Term("treatment", "heparin"), admitted="2131-04-01")


def marked(one: Written) -> list[tuple[str, str]]:
    return [(one.text[mention.start : mention.end], mention.kind) for mention in one.mentions]


def test_slots_mentions_and_relations():
    one = written({"text": "{he} got {treatment.a} for {the problem.b}.", "relations": ["TrAP a b"]})
    assert one.text == "She got heparin for the pleural effusion."
    assert marked(one) == [("heparin", "treatment"), ("the pleural effusion", "problem")]
    assert [(link.label, link.first, link.second) for link in one.links] == [("TrAP", 0, 1)]


def test_lists_flags_and_written_out_mentions():
    one = written("no {bare list!absent,or} [was seen|occurrence!neg]")
    assert one.text == "No an MI, a rash or cough was seen".replace("an MI, a rash", "MI, rash")
    assert [mention.attributes.get("assertion") for mention in one.mentions] == ["absent"] * 3 + [None]
    assert [mention.attributes.get("polarity") for mention in one.mentions] == ["NEG"] * 4


def test_identifiers_dates_and_rules():
    one = written("{DOCTOR:attending/last} {@size} {DATE:admitted/iso} {DATE:other}")
    assert one.text == "(DOCTOR attending/last) small (DATE 2131-04-01/iso) (DATE 2131-05-02)"
    kinds = [(kind, text) for text, kind in marked(one)]
    assert kinds[1:3] == [("DATE", "(DATE 2131-04-01/iso)"), ("timex", "(DATE 2131-04-01/iso)")]
    assert one.mentions[2].attributes == {"type": "DATE", "value": "2131-04-01"}


def test_choices_escapes_and_nesting():
    assert {written("a<b|c<d|e>|>", seed).text for seed in range(60)} == {"Ab", "Acd", "Ace", "A"}
    assert written(r"A1c \< 7 \[x\] \{y\}").text == "A1c < 7 [x] {y}"


def test_what_cannot_be_filled_is_left_out():
    assert written("{nothing}").text == ""


@pytest.mark.parametrize("template", ["<a|b", "{a", "[a|b", "a>", "[a]", "{a!never}", "{}"])
def test_broken_markup(template: str):
    with pytest.raises(ValueError, match="template"):
        parse(template)


@pytest.mark.parametrize(
    ("words", "determiner", "expected"),
    [
        ("a MI", "", "an MI"), ("an UTI", "", "a UTI"), ("a unit", "", "a unit"), ("a ulcer", "", "an ulcer"),
        ("an ulcer", "bare", "ulcer"), ("an ulcer", "the", "the ulcer"), ("her ulcer", "his", "his ulcer"),
        ("fever", "any", "any fever"),
    ],
)  # fmt: skip
def test_determiners(words: str, determiner: str, expected: str):
    assert determined(words, determiner) == expected


def test_misspelling_moves_mentions_and_spares_identifiers():
    for seed in range(50):
        one = (
            Written("Reported ").add("pneumonia", "problem").add(" to ").add("Wotherspoon", "DOCTOR").add(" yesterday ")
        )
        one.add("heparin", "treatment")
        slipped = misspelt(one, random.Random(seed), 1.0)
        words = dict((kind, text) for text, kind in marked(slipped))
        assert words["DOCTOR"] == "Wotherspoon"
        assert slipped.text != one.text
        for kind, right in (("problem", "pneumonia"), ("treatment", "heparin")):
            assert abs(len(words[kind]) - len(right)) <= 1
            assert words[kind][0] == right[0] and words[kind][-1] == right[-1] and " " not in words[kind]


def test_rare_wordings_are_for_tests_only():
    words = [f"wording {number}" for number in range(200)]
    rare = {word for word in words[1:] if is_rare(word)}
    assert 20 < len(rare) < 70
    pool, rng = wordings(words), random.Random(1)
    assert rare.isdisjoint(pool.draw(rng, seen_only=True) for _ in range(3000))
    assert rare & {pool.draw(rng) for _ in range(3000)}
