from __future__ import annotations

from pathlib import Path

import pytest

from posology.corpus.document import Document
from posology.errors import UserError
from posology.tasks.built import Built
from posology.tasks.i2b2_entities import build
from tests.tasks.i2b2_trees import (
    Record2010,
    concept,
    event,
    identifier,
    write_2010,
    write_2012,
    write_2014,
)

PLAIN = Record2010("He has fever .\nLast .\n", concept("fever", 1, 2, 2, "problem"))


def tagged(document: Document) -> list[tuple[str, str]]:
    assert document.tags is not None
    return [(document.text[start:end], tag) for (start, end), tag in zip(document.words, document.tags, strict=True)]


def mentions(documents: list[Document]) -> list[tuple[str, str]]:
    return [(document.text[span.start : span.end], span.label) for document in documents for span in document.spans]


def built_2010(tmp_path: Path, test: Record2010, protocol: str) -> Built:
    records = {f"p{number}": PLAIN for number in range(3)}
    root = write_2010(tmp_path, beth={"b": PLAIN}, partners=records, test={"t": test})
    return build("i2b2-2010-ner", root, protocol)  # type: ignore[arg-type]


class TestPaper2010:
    def test_lines_are_sentences_of_tokens_with_their_tags(self, tmp_path: Path) -> None:
        record = Record2010(
            "No chest pain or fever .\nPlan :\n",
            concept("chest pain", 1, 1, 2, "problem") + concept("fever", 1, 4, 4, "problem"),
        )
        (line,) = built_2010(tmp_path, record, "paper").splits["test"]  # the last sentence of a split is lost
        assert tagged(line) == [
            ("No", "O"), ("chest", "B-problem"), ("pain", "I-problem"), ("or", "O"), ("fever", "B-problem"), (".", "O"),
        ]  # fmt: skip

    def test_a_later_concept_overwrites_and_leaves_an_i_alone(self, tmp_path: Path) -> None:
        record = Record2010(
            "A chest tube site pain .\nLast .\n",
            concept("chest tube site pain", 1, 1, 4, "problem") + concept("chest tube", 1, 1, 2, "treatment"),
        )
        (line,) = built_2010(tmp_path, record, "paper").splits["test"]
        assert [tag for _, tag in tagged(line)] == [
            "O", "B-treatment", "I-treatment", "I-problem", "I-problem", "O",
        ]  # fmt: skip

    def test_a_concept_that_begins_with_the_empty_token_of_a_leading_blank(self, tmp_path: Path) -> None:
        record = Record2010(" Fever now\nLast .\n", concept("fever", 1, 0, 1, "problem"))
        (line,) = built_2010(tmp_path, record, "paper").splits["test"]
        assert tagged(line) == [("Fever", "B-problem"), ("now", "O")]

    def test_leading_and_inner_blanks(self, tmp_path: Path) -> None:
        record = Record2010("  Mild  fever .\nLast .\n", concept("fever", 1, 2, 2, "problem"))
        (line,) = built_2010(tmp_path, record, "paper").splits["test"]
        assert tagged(line) == [("Mild", "O"), ("fever", "B-problem"), (".", "O")]

    def test_only_partners_trains(self, tmp_path: Path) -> None:
        built = built_2010(tmp_path, PLAIN, "paper")
        groups = {document.group for split in ("train", "validation") for document in built.splits[split]}
        assert groups == {"partners/p0", "partners/p1", "partners/p2"}
        assert built.unit == "piece"
        assert any("Partners only" in defect for defect in built.defects)

    def test_a_blank_line_counts_as_two_empty_sentences(self, tmp_path: Path) -> None:
        record = Record2010("One fever .\n\nLast .\n", concept("fever", 1, 1, 1, "problem"))
        assert built_2010(tmp_path, record, "paper").counts["empty_sentences"] == 2

    def test_tags_seen(self, tmp_path: Path) -> None:
        assert built_2010(tmp_path, PLAIN, "paper").counts["tags_seen"] == 2  # O and B-problem


class TestStandard2010:
    def test_both_hospitals_train_and_no_record_is_in_two_splits(self, tmp_path: Path) -> None:
        built = built_2010(tmp_path, PLAIN, "standard")
        groups = {split: {document.group for document in documents} for split, documents in built.splits.items()}
        assert len(groups["train"] | groups["validation"]) == 4
        assert not groups["train"] & groups["validation"]
        assert len(built.splits["test"]) == 2  # no line is lost
        assert built.unit == "word"

    def test_of_overlapping_concepts_the_longest_stays(self, tmp_path: Path) -> None:
        record = Record2010(
            "A chest tube site pain .\n",
            concept("chest tube", 1, 1, 2, "treatment") + concept("chest tube site pain", 1, 1, 4, "problem"),
        )
        built = built_2010(tmp_path, record, "standard")
        assert mentions(built.splits["test"]) == [("chest tube site pain", "problem")]
        assert built.counts["overlapping_entities_left_out"] == 1

    def test_words_are_the_corpus_tokens(self, tmp_path: Path) -> None:
        record = Record2010("A 90% stenosis .\n", concept("a 90% stenosis", 1, 0, 2, "problem"))
        (line,) = built_2010(tmp_path, record, "standard").splits["test"]
        assert [line.text[start:end] for start, end in line.words] == ["A", "90%", "stenosis", "."]


HEAD = "\nSeen in clinic .\nLast\n"
HEAD_TAGS = event(HEAD, "clinic", "CLINICAL_DEPT")
OTHERS_2012 = {str(number): (HEAD, HEAD_TAGS) for number in range(2, 5)}


def built_2012(tmp_path: Path, text: str, tags: str, protocol: str, **options: str) -> Built:
    root = write_2012(tmp_path, train=OTHERS_2012, test={"9": (text, tags)})
    return build("i2b2-2012-ner", root, protocol, **options)  # type: ignore[arg-type]


class TestPaper2012:
    def test_after_a_nested_event_the_outer_one_resumes_with_i(self, tmp_path: Path) -> None:
        text = "\nthe chest CT scan report\nLast\n"
        tags = event(text, "the chest CT scan report", "EVIDENTIAL") + event(text, "CT", "TEST", 1)
        (line,) = built_2012(tmp_path, text, tags, "paper").splits["test"]
        assert [tag for _, tag in tagged(line)] == [
            "B-EVIDENTIAL", "I-EVIDENTIAL", "B-TEST", "I-EVIDENTIAL", "I-EVIDENTIAL",
        ]  # fmt: skip

    def test_an_event_over_a_line_end_goes_on_with_i(self, tmp_path: Path) -> None:
        text = "\nsevere chest\npain today\nLast\n"
        start, end = text.index("severe"), text.index(" today")
        tag = (
            f'<EVENT id="E0" start="{start}" end="{end}" text="severe chest pain" modality="FACTUAL" polarity="POS" '
            'type="PROBLEM" />\n'
        )
        first, second = built_2012(tmp_path, text, tag, "paper").splits["test"]
        assert tagged(first) == [("severe", "B-PROBLEM"), ("chest", "I-PROBLEM")]
        assert tagged(second) == [("pain", "I-PROBLEM"), ("today", "O")]

    def test_touching_events_of_one_type_merge_and_of_two_types_do_not(self, tmp_path: Path) -> None:
        text = "\nCT/MRI and CT/pain\nLast\n"
        tags = (
            event(text, "CT/", "TEST")
            + event(text, "MRI", "TEST", 1)
            + event(text, "CT/", "TEST", 2, nth=1)
            + event(text, "pain", "PROBLEM", 3)
        )
        (line,) = built_2012(tmp_path, text, tags, "paper").splits["test"]
        assert tagged(line) == [
            ("CT/MRI", "B-TEST"), ("and", "O"), ("CT/", "B-TEST"), ("pain", "B-PROBLEM"),
        ]  # fmt: skip

    def test_blank_lines_are_no_sentences(self, tmp_path: Path) -> None:
        built = built_2012(tmp_path, HEAD.replace("\nLast", "\n\n  \nLast"), HEAD_TAGS, "paper")
        assert [document.text for document in built.splits["test"]] == ["Seen in clinic ."]
        assert built.counts["empty_sentences"] == 0


class TestStandard2012:
    TEXT = "\nHe had severe chest\npain today\nand left\n"

    def tags(self) -> str:
        start, end = self.TEXT.index("severe"), self.TEXT.index(" today")
        return (
            f'<EVENT id="E0" start="{start}" end="{end}" text="severe chest pain" modality="FACTUAL" polarity="POS" '
            'type="PROBLEM" />\n' + event(self.TEXT, "left", "OCCURRENCE", 1)
        )

    def test_lines_that_share_an_event_stay_together(self, tmp_path: Path) -> None:
        built = built_2012(tmp_path, self.TEXT, self.tags(), "standard")
        assert [document.text for document in built.splits["test"]] == ["He had severe chest\npain today", "and left"]
        assert mentions(built.splits["test"]) == [("severe chest\npain", "PROBLEM"), ("left", "OCCURRENCE")]

    @pytest.mark.parametrize("view", ["lines", "documents"])
    def test_line_breaks_at_the_ends_of_an_event_are_no_part_of_it(self, tmp_path: Path, view: str) -> None:
        text = "\nSeen\nfever \nLast\n"
        built = built_2012(tmp_path, text, event(text, "\nfever \n", "PROBLEM"), "standard", view=view)
        assert mentions(built.splits["test"]) == [("fever", "PROBLEM")]
        if view == "lines":
            assert [document.text for document in built.splits["test"]] == ["Seen", "fever ", "Last"]

    def test_whole_documents(self, tmp_path: Path) -> None:
        (document,) = built_2012(tmp_path, self.TEXT, self.tags(), "standard", view="documents").splits["test"]
        assert document.text == self.TEXT
        assert mentions([document]) == [("severe chest\npain", "PROBLEM"), ("left", "OCCURRENCE")]

    def test_events_without_a_type_are_counted(self, tmp_path: Path) -> None:
        built = built_2012(tmp_path, HEAD, HEAD_TAGS + event(HEAD, "Seen", "", 1), "standard")
        assert mentions(built.splits["test"]) == [("clinic", "CLINICAL_DEPT")]
        assert built.counts["events_without_type_left_out"] == 1


LETTER = "\nA 52yo man, Dr. Ng\nLast\n"
LETTER_TAGS = identifier(LETTER, "52", "AGE", "AGE") + identifier(LETTER, "Ng", "NAME", "DOCTOR", 1)


def built_2014(tmp_path: Path, protocol: str, tags: str = LETTER_TAGS) -> Built:
    train = {f"{patient}-0{number}": (LETTER, LETTER_TAGS) for patient in range(100, 106) for number in (1, 2)}
    root = write_2014(tmp_path, train=train, test={"900-01": (LETTER, tags)})
    return build("i2b2-2014-ner", root, protocol)  # type: ignore[arg-type]


class TestIdentifiers:
    def test_paper_splits_a_word_where_a_tag_covers_part_of_it(self, tmp_path: Path) -> None:
        (line,) = built_2014(tmp_path, "paper").splits["test"]
        assert tagged(line) == [
            ("A", "O"), ("52", "B-AGE"), ("yo", "O"), ("man,", "O"), ("Dr.", "O"), ("Ng", "B-DOCTOR"),
        ]  # fmt: skip

    def test_standard_keeps_the_characters(self, tmp_path: Path) -> None:
        built = built_2014(tmp_path, "standard")
        assert built.splits["test"][0].text == "A 52yo man, Dr. Ng"
        assert mentions(built.splits["test"]) == [("52", "AGE"), ("Ng", "DOCTOR")]

    @pytest.mark.parametrize("protocol", ["paper", "standard"])
    def test_identifiers_without_a_type_are_counted(self, tmp_path: Path, protocol: str) -> None:
        built = built_2014(tmp_path, protocol, LETTER_TAGS.replace('"DOCTOR"', '""'))
        assert mentions(built.splits["test"]) == [("52", "AGE")]
        assert "" not in built.labels and built.counts["identifiers_without_type_left_out"] == 1

    @pytest.mark.parametrize("protocol", ["paper", "standard"])
    def test_patients_stay_together(self, tmp_path: Path, protocol: str) -> None:
        splits = built_2014(tmp_path, protocol).splits
        groups = {split: {document.group for document in documents} for split, documents in splits.items()}
        assert not groups["train"] & groups["validation"]
        assert groups["test"] == {"900"}
        assert len(groups["train"] | groups["validation"]) == 6


def test_paper_needs_the_official_sets(tmp_path: Path) -> None:
    root = write_2010(tmp_path, beth={"a": PLAIN}, test={"t": PLAIN})
    with pytest.raises(UserError, match="Partners"):
        build("i2b2-2010-ner", root, "paper")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    for task in ("i2b2-2010-ner", "i2b2-2012-ner", "i2b2-2014-ner"):
        with pytest.raises(UserError):
            build(task, tmp_path, "standard")


def test_types_that_training_lacks_are_told(tmp_path: Path) -> None:
    text = "\nPlan: CT scan\nLast\n"
    root = write_2012(tmp_path, train=OTHERS_2012, test={"9": (text, event(text, "CT scan", "TEST"))})
    built = build("i2b2-2012-ner", root, "standard")
    assert built.labels == ["CLINICAL_DEPT", "TEST"]
    assert any("no example of TEST" in remark for remark in built.remarks)
