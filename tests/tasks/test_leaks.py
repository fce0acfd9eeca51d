"""Texts that differ in their writing alone are one text."""

from __future__ import annotations

import unicodedata

import pytest

from posology.corpus.document import Document
from posology.tasks.leaks import find_leaks, text_key

TEXT = "Ménière's disease; 37 °C, naïve to β-blockers, 5 \u00b5g"


@pytest.mark.parametrize("form", ["NFD", "NFKC", "NFKD"])
def test_a_copy_in_another_unicode_form_is_a_leak(form: str) -> None:
    copy = unicodedata.normalize(form, TEXT)
    assert copy != TEXT
    splits = {"train": [Document("a", TEXT)], "validation": [Document("b", "another")], "test": [Document("c", copy)]}
    assert find_leaks(splits) == {"train, test": {"texts": 1, "groups": 0}}


def test_half_a_surrogate_pair_does_no_harm() -> None:
    assert text_key(Document("a", "fine \ud83d today")) == text_key(Document("b", "fine today"))
    assert text_key(Document("a", "\ud83d")) != text_key(Document("b", "\ud83e"))


def test_second_texts_are_no_part_of_the_first() -> None:
    one, other = Document("a", "x y", text_pair="z"), Document("b", "x", text_pair="y z")
    assert text_key(one) != text_key(other) != text_key(Document("c", "x y z"))
