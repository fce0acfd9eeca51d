"""Texts with the same words, however they are written."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus.wording import encodable, folded, wording


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("No  fever,\nNO pain.", "no fever no pain"),
        ("Ménière, Caf\u0065\u0301, ΟΔΟΣ, Straße", "ménière café οδοσ strasse"),
        ("ＡＢＣ １２ ﬁbrosis 5\u00b5g", "abc 12 fibrosis 5μg"),
        ("\u0399\u0308\u0301 \u0390", "\u0390 \u0390"),  # of which folding alone makes one letter and three
        ("soft\u00adhyphen, zero\u200bwidth", "softhyphen zerowidth"),
        ("don\u00b4t", "don t"),  # an accent that stands alone is no word
        ("CT检查 未见异常", "ct 检 查 未 见 异 常"),
        ("コーヒー", "コ ー ヒ ー"),
        ("발열 없음", "발열 없음"),
        ("fine \ud83d now", "fine now"),
        ("-- !", ""),
    ],
)
def test_words(text: str, words: str) -> None:
    assert wording(text) == words


@given(st.text(st.characters(exclude_categories=()), max_size=30))
@settings(deadline=None)
def test_the_form_makes_no_difference_and_everything_can_be_encoded(text: str) -> None:
    words = wording(text)
    assert {wording(unicodedata.normalize(form, text)) for form in ("NFC", "NFD", "NFKC", "NFKD")} == {words}
    assert wording(words) == words
    for each in (encodable(text), folded(text), words):
        each.encode()


@given(st.text(st.characters(codec="ascii"), max_size=30))
@settings(deadline=None)
def test_of_english_it_is_what_it_always_was(text: str) -> None:
    plain = "".join(character if character.isalnum() else " " for character in text.lower())
    assert wording(text) == " ".join(plain.split())
