"""Evaluation documents are found in a corpus, and others are not."""

from __future__ import annotations

import random

import pytest

from posology.corpus.document import Document
from posology.pretrain.excluded import Evaluation, Words, evaluation_texts
from posology.tasks.prepared import PreparedTask


def vocabulary(number: int) -> list[str]:
    return [f"w{index:x}" for index in range(number)]


def notes(draw: random.Random, number: int, low: int = 40, high: int = 300) -> list[str]:
    """Texts of random words, with a paragraph of boilerplate in each."""
    words = vocabulary(2000)
    boilerplate = " ".join(words[:25])
    return [
        f"{' '.join(draw.choices(words, k=draw.randint(low, high)))} {boilerplate} "
        f"{' '.join(draw.choices(words, k=draw.randint(low, high)))}"
        for _ in range(number)
    ]


def changed(text: str, share: float, draw: random.Random) -> str:
    """With this share of its words replaced, dropped or doubled."""
    found = []
    for word in text.split():
        if draw.random() < share:
            found += draw.choice([["other"], [], [word, word]])
        else:
            found.append(word)
    return " ".join(found)


def test_planted_duplicates_are_found_and_nothing_else_is() -> None:
    draw = random.Random(0)
    tests, corpus = notes(draw, 60), notes(draw, 400)
    exact = [text.upper().replace(" ", ",  ") for text in tests[:20]]  # the same words, otherwise written
    near = [changed(text, 0.06, draw) for text in tests[20:40]]
    inside = [f"{draw.choice(corpus)} {text} {draw.choice(corpus)}" for text in tests[40:50]]
    fragments = [" ".join(text.split()[30:80]) for text in tests[50:]]
    evaluation = Evaluation(tests)
    verdicts = evaluation.look(Words.of([*corpus, *exact, *near, *inside, *fragments]))
    found = {None: 0, "exact": 0, "near": 0}
    for verdict in verdicts[:400]:
        found[verdict] += 1
    assert found == {None: 400, "exact": 0, "near": 0}  # no false positive, for all the boilerplate
    assert verdicts[400:420] == ["exact"] * 20
    assert verdicts[420:] == ["near"] * 40  # all edited copies, notes that hold one, and parts of one
    assert evaluation.found.all()


@pytest.mark.parametrize(("share", "least", "most"), [(0.03, 1.0, 1.0), (0.1, 0.9, 1.0), (0.3, 0.0, 0.1)])
def test_how_much_may_be_changed(share: float, least: float, most: float) -> None:
    draw = random.Random(1)
    tests = notes(draw, 50)
    verdicts = Evaluation(tests).look(Words.of([changed(text, share, draw) for text in tests]))
    assert least <= verdicts.count("near") / 50 <= most


def test_phrases_are_compared_exactly_only() -> None:
    evaluation = Evaluation(["No acute distress.", "a b c d e f g h i j k l m n o p"])
    words = Words.of(["no  ACUTE distress", "no acute distress today", "x a b c d e f g h y", "", "--"])
    assert evaluation.look(words) == ["exact", None, None, None, None]
    assert evaluation.found.tolist() == [True, False]


def test_no_evaluation_texts_and_empty_blocks() -> None:
    assert Evaluation([]).look(Words.of(["some words in a note, and some more after them"])) == [None]
    assert Evaluation(["a b c"]).look(Words.of([])) == []


def test_shingles_do_not_cross_documents() -> None:
    shingles, owners = Words.of(["a b c d e f", "g", "", "a b c d e f"]).shingles()
    assert owners.tolist() == [0, 0, 3, 3]
    assert shingles[:2].tolist() == shingles[2:].tolist() and shingles[0] != shingles[1]


def test_it_is_of_validation_and_test(classification: PreparedTask) -> None:
    texts = list(evaluation_texts([classification]))
    wanted = [document.text for split in ("validation", "test") for document in classification.documents(split)]
    assert texts == wanted
    training: list[Document] = classification.documents("train")
    assert not {document.text for document in training} & set(texts)
