"""Evaluation documents are found in a corpus, and others are not."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from posology.corpus.document import Document
from posology.corpus.relations import Argument, Markers, mark
from posology.pretrain.excluded import Evaluation, Words, evaluation_texts
from posology.tasks.prepared import PreparedTask, write_prepared


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


# --- sentences in which a relation was marked -------------------------------------------------------------------------


def related(folder: Path, sentences: list[list[str]], markers: Markers, kind: str = "", **options: Any) -> PreparedTask:
    """A task over the relation of two of the words of each sentence; all splits have the same sentences."""
    documents = []
    for number, words in enumerate(sentences):
        text = " ".join(words)
        ends = [(len(" ".join([*words[:place], ""])), len(words[place])) for place in (4, 9)]
        first, second = (Argument(start, start + length, kind) for start, length in ends)
        documents.append(Document(str(number), mark(text, first, second, markers), label="ab"[number % 2]))
    splits = {
        split: [Document(f"{split}-{one.id}", one.text, label=one.label) for one in documents]
        for split in ("train", "validation", "test")
    }
    return write_prepared(
        folder, name="related", kind="sequence-classification", labels=("a", "b"), splits=splits, **options
    )


def sentences(number: int, length: int) -> list[list[str]]:
    draw = random.Random(2)
    return [draw.choices(vocabulary(2000), k=length) for _ in range(number)]


@pytest.mark.parametrize("kind", ["", "Chemical", "GENE-N"])
def test_a_sentence_is_found_without_the_marks_of_its_relation(kind: str, tmp_path: Path) -> None:
    found = sentences(20, 14)
    evaluation = Evaluation(evaluation_texts([related(tmp_path / "task", found, "around", kind)]))
    assert len(evaluation) == 20
    plain = [" ".join(words) for words in found]
    assert evaluation.look(Words.of(plain)) == ["exact"] * 20
    inside = [
        f"{' '.join(words)} {text} {' '.join(words)}" for words, text in zip(sentences(20, 50), plain, strict=True)
    ]
    assert evaluation.look(Words.of(inside)) == ["near"] * 20


@pytest.mark.parametrize(
    ("source", "protocol"),
    [({"format": "brat", "options": {"markers": "instead"}}, "standard"), ({"format": "i2b2-2010"}, "paper")],
)
def test_a_sentence_is_found_by_what_stands_between_its_placeholders(
    source: dict[str, Any], protocol: str, tmp_path: Path
) -> None:
    found = sentences(20, 23)
    task = related(tmp_path / "task", found, "instead", "problem", source=source, protocol=protocol)
    evaluation = Evaluation(evaluation_texts([task]))
    others = [" ".join(words) for words in sentences(60, 23)[20:]]
    # Of 19 runs of five words 9 are left: four words before the first place, four between the two, 13 behind.
    assert evaluation.look(Words.of([*(" ".join(words) for words in found), *others])) == ["near"] * 20 + [None] * 40
    for length, verdict in ((18, "near"), (17, None)):  # eight words behind, or seven
        short = related(tmp_path / str(length), sentences(20, length), "instead", source=source, protocol=protocol)
        evaluation = Evaluation(evaluation_texts([short]))
        assert evaluation.look(Words.of([" ".join(words) for words in sentences(20, length)])) == [verdict] * 20


def test_missing_words_are_part_of_no_shingle() -> None:
    shingles, owners = Words.of(["a b c \ufdd0 d e f", "a b c d e \ufdd0 a b c d e", "a b c d e"]).shingles()
    assert owners.tolist() == [1, 1, 2] and len(set(shingles.tolist())) == 1


# --- ways of writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_a_copy_in_another_unicode_form_is_found(form: str) -> None:
    text = "Ménière's disease since 2009, naïve to β-blockers, 37 °C, 5 µg of the ﬁrst Åström protein, señora très fatiguée"
    evaluation = Evaluation([text])
    assert evaluation.look(Words.of([unicodedata.normalize(form, text)])) == ["exact"]
    assert evaluation.look(Words.of([unicodedata.normalize(form, f"Seen today. {text} Home tomorrow.")])) == ["near"]


def test_without_blanks_between_words_characters_are_compared() -> None:
    text = "患者三天前无明显诱因出现发热伴咳嗽咳痰体温最高达三十九度"
    evaluation = Evaluation([text])
    assert evaluation.look(
        Words.of([f"入院记录{text}予以抗感染治疗", "今日复查胸部未见异常建议门诊随访定期复查血常规"])
    ) == ["near", None]
    assert evaluation.look(Words.of([" ".join(text)])) == ["exact"]


def test_half_a_surrogate_pair_does_no_harm() -> None:
    evaluation = Evaluation(["no pain \ud83d today", "\ud83d"])
    assert evaluation.look(Words.of(["No pain today \udc00", "\ud83d", "\ud83e"])) == ["exact", "exact", None]


# --- how many were found ----------------------------------------------------------------------------------------------


def test_every_text_that_a_document_equals_or_resembles_is_found() -> None:
    sentence = " ".join(vocabulary(20))
    evaluation = Evaluation(["No pain.", "no PAIN", "fever", sentence, f"{sentence} and more"])
    evaluation.look(Words.of(["No, pain", sentence]))
    assert evaluation.found.tolist() == [True, True, False, True, True]
