"""The span algebra, with seqeval as an independent oracle."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from posology.corpus.document import Span
from posology.corpus.tags import (
    TagError,
    decode,
    detect_scheme,
    first_overlap,
    keep_longest,
    repair,
    snap,
    spans_to_tags,
    tags_to_spans,
    words_of,
)
from posology.errors import UserError

LABELS = ["Disease", "Drug", "B-cell"]


@st.composite
def words_and_spans(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[Span]]:
    gaps = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=12))
    words, position = [], 0
    for gap, length in gaps:
        words.append((position + gap, position + gap + length))
        position += gap + length
    spans = st.builds(
        lambda start, length, label: Span(start, start + length, label),
        st.integers(0, position + 1),
        st.integers(1, 8),
        st.sampled_from(LABELS),
    )
    return words, draw(st.lists(spans, max_size=6))


def _entities(tags: list[str], scheme: type) -> list[tuple[int, int, str]]:
    return [(entity.start, entity.end, entity.tag) for entity in Entities([tags], scheme).entities[0]]


def test_tags_to_spans_is_strict_iob2_as_in_seqeval() -> None:
    source = random.Random(7)
    choices = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    entities = 0
    for _ in range(3000):
        tags = source.choices(choices, k=source.randrange(12))
        words = [(3 * index, 3 * index + 2) for index in range(len(tags))]
        found = [(span.start // 3, (span.end - 2) // 3 + 1, span.label) for span in tags_to_spans(words, tags)]
        assert found == _entities(tags, IOB2), tags
        entities += len(found)
    assert entities > 3000


def test_decode_agrees_with_seqeval_on_sequences_that_a_scheme_allows() -> None:
    source = random.Random(8)
    cases = {"iob1": ("BIO", IOB1), "iob2": ("BIO", IOB2), "bioes": ("BIOES", IOBES), "bilou": ("BILOU", BILOU)}
    for scheme, (letters, oracle) in cases.items():
        choices = ["O", *(f"{letter}-{label}" for letter in letters if letter != "O" for label in "XY")]
        allowed = 0
        for _ in range(3000):
            tags = source.choices(choices, k=source.randrange(6))
            try:
                found = decode(tags, "bioes" if scheme == "bilou" else scheme)
            except TagError:
                continue
            if scheme == "iob1" and any(
                tag[0] == "B" and (not index or tags[index - 1][1:] != tag[1:]) for index, tag in enumerate(tags)
            ):
                continue  # IOB1 has no such B-, ours reads it as any B-
            assert found == _entities(tags, oracle), (scheme, tags)
            allowed += len(found) > 0
        assert allowed > 100


@given(words_and_spans())
@settings(max_examples=500, deadline=None)
def test_tags_of_spans_are_what_words_see(case: tuple[list[tuple[int, int]], list[Span]]) -> None:
    words, spans = case
    tags = spans_to_tags(words, spans)
    seen = snap(words, spans)
    assert tags_to_spans(words, tags) == seen
    assert snap(words, reversed(spans)) == seen, "the order of the input must not matter"
    assert snap(words, seen) == seen
    assert first_overlap(seen) is None
    assert decode(tags, "iob2") == [
        (words.index(next(word for word in words if word[0] == span.start)),
         words.index(next(word for word in words if word[1] == span.end)) + 1, span.label)
        for span in seen
    ]  # fmt: skip
    for span in spans:
        touched = [word for word in words if word[0] < span.end and span.start < word[1]]
        if touched and not any(other != span and other.start < touched[-1][1] and touched[0][0] < other.end
                               for other in spans):  # fmt: skip
            assert Span(touched[0][0], touched[-1][1], span.label) in seen


def test_the_longest_span_wins_then_the_earlier_and_losers_vanish_whole() -> None:
    words = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    short, long, tail = Span(0, 3, "A"), Span(2, 7, "B"), Span(6, 9, "A")
    assert spans_to_tags(words, [short, long, tail]) == ["O", "B-B", "I-B", "I-B", "O"]
    assert spans_to_tags(words, [tail, Span(4, 7, "B")]) == ["O", "O", "B-B", "I-B", "O"]
    assert keep_longest([short, long, tail]) == [long]
    assert keep_longest([short, Span(2, 5, "B"), tail]) == [short, tail]


def test_half_a_word_is_the_word_and_a_gap_is_nothing() -> None:
    words = [(0, 4), (5, 9)]
    assert snap(words, [Span(2, 6, "A")]) == [Span(0, 9, "A")]
    assert snap(words, [Span(4, 5, "A")]) == []
    assert spans_to_tags([], [Span(0, 3, "A")]) == []


@given(st.text())
@settings(max_examples=500, deadline=None)
def test_words_cover_every_character_but_white_space(text: str) -> None:
    words = words_of(text)
    assert all(last[1] <= word[0] for last, word in pairwise(words))
    covered = {index for start, end in words for index in range(start, end)}
    assert covered == {index for index, character in enumerate(text) if not character.isspace()}


def test_words_of_clinical_text() -> None:
    text = "Pt. w/ Ménière's, 2.5mg naïve e\u0301tat 糖尿病\u00a0β2"
    assert [text[start:end] for start, end in words_of(text)] == [
        "Pt", ".", "w", "/", "Ménière", "'", "s", ",", "2", ".", "5", "mg", "naïve", "e\u0301tat", "糖尿病", "β", "2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tags", "scheme", "index"),
    [
        (["O", "I-X"], "iob2", 1),
        (["B-X", "I-Y"], "iob2", 1),
        (["B-X", "E-X"], "iob2", 1),
        (["S-X"], "iob1", 0),
        (["B-X", "O"], "bioes", 1),
        (["O", "B-X"], "bioes", 1),
        (["O", "E-X"], "bioes", 1),
        (["B-X", "I-X", "S-X"], "bioes", 2),
        (["B-X", "I-Y", "E-Y"], "bioes", 1),
        (["O", "X"], "iob2", 1),
        (["O", "B-"], "iob2", 1),
        (["Q-X"], "bioes", 0),
        ([""], "iob2", 0),
    ],
)
def test_forbidden_tags_are_named_by_their_index(tags: list[str], scheme: str, index: int) -> None:
    with pytest.raises(TagError) as caught:
        decode(tags, scheme)
    assert caught.value.index == index


def test_bare_letters_and_bmewo() -> None:
    assert decode(["B", "I", "O", "B"], "iob2") == [(0, 2, "Entity"), (3, 4, "Entity")]
    assert decode(["B-X", "M-X", "E-X", "W-X", "O"], "bioes") == [(0, 3, "X"), (3, 4, "X")]


@pytest.mark.parametrize(
    ("sequences", "scheme"),
    [
        ([["O", "B-X", "I-X"], ["B-X", "B-X"]], "iob2"),
        ([["O"], []], "iob2"),
        ([["O", "I-X", "I-X", "B-X"]], "iob1"),
        ([["I-X", "I-Y"]], "iob1"),
        ([["B-X", "I-X"], ["S-X"]], "bioes"),
        ([["B-X", "L-X", "U-X"]], "bioes"),
        ([["B-X", "M-X", "E-X", "W-X"]], "bioes"),
    ],
)
def test_schemes_are_detected(sequences: list[list[str]], scheme: str) -> None:
    assert detect_scheme(sequences) == scheme


def test_neither_iob1_nor_iob2_is_refused_at_the_first_bad_tag() -> None:
    sequences = [["B-X", "I-X"], ["O", "I-X", "I-Y"]]
    with pytest.raises(UserError, match=r"^file:1\.1: this I- has no B-.*--scheme iob1.*--repair"):
        detect_scheme(sequences, lambda sequence, index: f"file:{sequence}.{index}")
    assert repair(sequences[1]) == (["O", "B-X", "B-Y"], 2)
    assert repair(sequences[0]) == (["B-X", "I-X"], 0)
