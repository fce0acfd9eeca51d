"""One sentence a line, and more ways to put a mention: neither loses or moves what is marked."""

from __future__ import annotations

import random
from collections.abc import Iterator

from posology.synthetic import summaries
from posology.synthetic.cast import stays
from posology.synthetic.hospital import make_hospital
from posology.synthetic.identifiers import Identifiers
from posology.synthetic.notes import discharge_summary
from posology.synthetic.phrases import CONTENT, Phrasebook, Scribe
from posology.synthetic.sections import joined
from posology.synthetic.sentences import tokenised
from posology.synthetic.variation import varied
from posology.synthetic.written import Link, Mention, Written

KINDS = ("problem", "test", "treatment")


def _lines(text: str) -> list[str]:
    return tokenised(Written(text), KINDS).text.rstrip("\n").split("\n")


def test_sentences_and_tokens() -> None:
    assert _lines("Fever (102.4), chills. He came.") == ["Fever ( 102.4 ) , chills .", "He came ."]
    assert _lines("Seen by Dr. Low. J. Hart, M.D. agreed at 3.5 cm.") == [
        "Seen by Dr. Low .", "J. Hart , M.D. agreed at 3.5 cm .",
    ]  # fmt: skip
    assert _lines("1. Aspirin 81 mg p.o. b.i.d.\n2) None") == ["1. Aspirin 81 mg p.o. b.i.d.", "2) None"]
    assert _lines("BP 120/80, 98%, on 2101-02-03 at 10:38PM in the 70s") == [
        "BP 120/80 , 98% , on 2101-02-03 at 10:38PM in the 70s"
    ]
    assert _lines("K+ 5 temp -2 x--y T-cell") == ["K + 5 temp -2 x -- y T-cell"]
    assert _lines("The patient's wife can't come? No.") == ["The patient 's wife can't come ?", "No ."]
    assert _lines("HPI:\n\n  He fell.\n") == ["HPI :", "He fell ."]


def test_mentions_are_whole_tokens_and_no_sentence_ends_in_one() -> None:
    written = Written().add("aspirin", "treatment").add("/").add("Dr. Low test", "test").add("s for ")
    written.add("pain", "problem").add(" by ").add("W. Low", "DOCTOR")
    written.links.append(Link("TrAP", 0, 2))
    note = tokenised(written, KINDS)
    assert note.text == "aspirin / Dr. Low test s for pain by W. Low\n"
    assert [note.text[one.start : one.end] for one in note.mentions] == ["aspirin", "Dr. Low test", "pain"]
    assert note.links == [Link("TrAP", 0, 2)]
    assert tokenised(written, ("problem",)).links == []
    assert tokenised(Written().add("Hct", "test").add("-34.4"), KINDS).text == "Hct - 34.4\n"


def _notes() -> Iterator[tuple[Written, Scribe, random.Random]]:
    book = Phrasebook.load(CONTENT / "grammar.yaml", summaries.FRAMES)
    for patient in make_hospital(30, 5):
        for admission in stays(patient):
            rng = random.Random(admission.id)
            identifiers = Identifiers(patient, rng)
            note = joined(discharge_summary(patient, admission, identifiers, rng))
            yield note, Scribe(book, rng, lambda slot: "", identifiers), rng


def _outside(written: Written) -> str:
    """What no problem, test or treatment covers."""
    covered = {at for one in written.mentions if one.kind in KINDS for at in range(one.start, one.end)}
    return "".join(letter for at, letter in enumerate(written.text) if at not in covered)


def test_tokenising_loses_no_character_of_real_notes_and_no_mention() -> None:
    for note, _, _ in _notes():
        made = tokenised(note, KINDS)
        assert "".join(made.text.split()) == "".join(note.text.split())
        before = ["".join(note.text[one.start : one.end].split()) for one in note.mentions if one.kind in KINDS]
        after = ["".join(made.text[one.start : one.end].split()) for one in made.mentions]
        assert before == after
        assert not any(wrong in made.text for wrong in (" \n", "\n ", "  ", "\n\n"))
        edges = [made.text[one.start - 1 : one.start] + made.text[one.end] for one in made.mentions]
        assert not "".join(edges).strip()


def test_variation_changes_nothing_outside_of_mentions() -> None:
    longer = total = 0
    for note, scribe, rng in _notes():
        made = varied(note, scribe, rng)
        assert _outside(made) == _outside(note)
        assert [(one.kind, one.attributes) for one in made.mentions] == [(m.kind, m.attributes) for m in note.mentions]
        assert made.links == note.links
        for one, other in zip(note.mentions, made.mentions, strict=True):
            words, put = note.text[one.start : one.end], made.text[other.start : other.end]
            assert put == put.strip()
            if one.kind not in KINDS:
                assert words == put or _contains(note.mentions, one)
            elif words != put:
                # The noun is still there, at the end, or at the beginning where something follows it.
                noun = words.split()[-1].lower()
                assert noun in put.lower()
                longer += 1
            total += one.kind in KINDS
    assert 0.1 < longer / total < 0.5


def _contains(mentions: list[Mention], outer: Mention) -> bool:
    return any(outer.start <= one.start and one.end <= outer.end and one.kind in KINDS for one in mentions)


def test_modifiers_stand_behind_the_determiner() -> None:
    book = Phrasebook([{"grammar": {f"{kind}_before": ["acute"] for kind in (*KINDS, "felt")}
                        | {f"{kind}_after": ["of old"] for kind in (*KINDS, "felt")}}])  # fmt: skip
    scribe = Scribe(book, random.Random(0), lambda slot: "", Identifiers(next(make_hospital(1, 1)), random.Random(0)))
    found = set()
    for words in ("a stroke", "the stroke", "His stroke", "Stroke", "CVA"):
        for seed in range(60):
            made = varied(Written("x ").add(words, "problem").add(" 5"), scribe, random.Random(seed))
            found.add(made.text[2:-2])
            assert made.text[made.mentions[0].start : made.mentions[0].end] == made.text[2:-2]
    # Nothing comes between a mention and its value, so `of old` never does.
    assert found == {
        "a stroke", "an acute stroke", "the stroke", "the acute stroke", "His stroke", "His acute stroke", "Stroke",
        "Acute stroke", "CVA", "acute CVA",
    }  # fmt: skip
