"""Words of which patients become part of a vocabulary, and how they are written."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from posology.corpus.tabular import Columns
from posology.errors import UserError
from posology.pretrain.corpus import Corpus
from posology.pretrain.store import Reading, count_words
from posology.pretrain.vocabulary import FEWEST_GROUPS, WordCounts, new_words
from tests.engine.tiny import tokenizer


def read(tmp_path: Path, rows: list[tuple[str, str]], group: str | None) -> WordCounts:
    """The words of a corpus of which each row has a patient and a text."""
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps({"who": who, "text": text}) + "\n" for who, text in rows), encoding="utf-8")
    return count_words(Corpus([path], Columns(group=group)), tokenizer(), Reading(30, 1e-9), None)


def test_the_notes_of_one_patient_count_once(tmp_path: Path) -> None:
    """A surname in twelve notes of a patient is no word for everybody; without a column of patients nobody can tell."""
    rows = [("p0", "Abernathy was seen")] * 12 + [(f"p{number}", "metformin was given") for number in range(10)]
    found = new_words(read(tmp_path, rows, "who"), tokenizer(), 9)
    assert "metformin" in found and "was" in found and not {"abernathy", "seen"} & set(found)
    assert "abernathy" in new_words(read(tmp_path, rows, None), tokenizer(), 9)
    with pytest.raises(UserError, match="of as many patients, where they are known"):
        new_words(read(tmp_path, rows[:12], "who"), tokenizer(), 9)


def test_patients_are_remembered_from_block_to_block_and_documents_without_one_are_their_own() -> None:
    counts = WordCounts(lower=True)
    for block in range(3):
        counts.add(["seldom", "seldom often"] * 3, [f"p{number % 3}" for number in range(6)])
        counts.add([f"often block{block}"] * 3, ["", "", ""])
    assert counts.counts["seldom"].occurrences == 18 and len(counts.counts["seldom"].groups or ()) == 3
    assert counts.counts["often"].groups is None  # three patients and nine documents
    assert len(counts.counts["block1"].groups or ()) == 3


def test_memory_of_a_word_does_not_grow() -> None:
    counts = WordCounts(lower=True)
    sizes = set()
    for block in range(40):
        counts.add(["fever"] * 50, [f"p{block}-{number}" for number in range(50)])
        counts.add([f"pain{block % 7}"], [f"q{block}"])
        sizes |= {len(count.groups or ()) for count in counts.counts.values()}
    assert counts.counts["fever"].groups is None and max(sizes) < FEWEST_GROUPS


def test_a_letter_may_be_composed_or_not() -> None:
    counts = WordCounts(lower=True)
    counts.add(["Ménière"] * 5)
    counts.add([unicodedata.normalize("NFD", "ménière")] * 5)
    assert counts.counts.keys() == {"ménière"} and counts.counts["ménière"].groups is None
    assert new_words(counts, tokenizer(), 5) == ["ménière"]


def test_half_a_surrogate_pair_does_no_harm() -> None:
    counts = WordCounts(lower=False)
    counts.add(["fine\ud83dtoday"], ["\ud83d"])
    assert counts.counts.keys() == {"fine", "today"}
