from __future__ import annotations

from pathlib import Path

import pytest

from posology.errors import UserError
from posology.tasks.i2b2_relations import LABELS, build
from tests.tasks.i2b2_trees import Record2010, concept, relation, write_2010

# Line 2 holds a treatment (tokens 3-4) and a problem (6), listed problem first.
TEXT = "PLAN :\nHe was given iv morphine for pain .\nCT showed edema .\n"
MORPHINE = concept("iv morphine", 2, 3, 4, "treatment")
PAIN = concept("pain", 2, 6, 6, "problem")
CT = concept("CT", 3, 0, 0, "test")
EDEMA = concept("edema", 3, 2, 2, "problem")
RECORD = Record2010(TEXT, PAIN + MORPHINE + CT + EDEMA, relation(MORPHINE, "TrAP", PAIN) + relation(CT, "TeRP", EDEMA))
OTHER = Record2010(
    "Rash after penicillin .\n", concept("Rash", 1, 0, 0, "problem") + concept("penicillin", 1, 2, 2, "treatment")
)


def tree(tmp_path: Path, **records: dict[str, Record2010]) -> Path:
    return write_2010(tmp_path, **records)


def rows(root: Path, protocol: str, split: str = "train", **options: object) -> dict[str, tuple[str, str | None]]:
    built = build(root, protocol, **options)  # type: ignore[arg-type]
    return {document.id: (document.text, document.label) for document in built.splits[split]}


def test_a_mention_that_goes_over_the_end_of_a_line_is_marked_whole(tmp_path: Path) -> None:
    pain = 'c="chest pain" 1:2 2:0||t="problem"\n'
    record = Record2010("CT for chest\npain now .\n", concept("CT", 1, 0, 0, "test") + pain)
    root = tree(tmp_path, beth={"a": RECORD, "b": record, "c": RECORD}, test={"t": record})
    assert rows(root, "standard", "test") == {
        "t:1": ("[E1:test] CT [/E1:test] for [E2:problem] chest\npain [/E2:problem] now .", "false")
    }


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return tree(tmp_path, beth={"a": RECORD}, partners={"b": OTHER}, test={"c": RECORD, "d": OTHER, "e": RECORD})


class TestPaper:
    def test_mentions_are_replaced_and_the_first_listed_type_goes_to_the_first_mention(self, small: Path) -> None:
        # `pain` is listed first but stands second: offsets are exchanged, types are not.
        found = sorted(rows(small, "paper").values())
        assert found == [
            ("@problem$ after @treatment$ .", "false"),
            ("@test$ showed @problem$ .", "TeRP"),
            ("He was given @problem$ for @treatment$ .", "TrAP"),
        ]

    def test_touching_and_overlapping_mentions_merge_with_types_in_the_order_of_the_file(self, tmp_path: Path) -> None:
        nested = Record2010(
            "Chest tube pain persists .\n",
            concept("chest tube pain", 1, 0, 2, "problem") + concept("chest tube", 1, 0, 1, "treatment"),
        )
        root = tree(tmp_path, beth={"a": nested}, test={"b": OTHER, "c": RECORD})
        assert list(rows(root, "paper").values()) == [("@problem-treatment$ persists .", "false")]

    def test_a_relation_listed_twice_gives_two_rows_and_the_last_listed_comes_first(self, tmp_path: Path) -> None:
        twice = RECORD._replace(relations=relation(MORPHINE, "TrAP", PAIN) + relation(MORPHINE, "TrIP", PAIN))
        root = tree(tmp_path, beth={"a": twice}, test={"b": OTHER, "c": RECORD})
        labels = [label for text, label in rows(root, "paper").values() if "given" in text]
        assert labels == ["TrIP", "TrAP"]

    def test_a_relation_counts_in_either_direction(self, tmp_path: Path) -> None:
        turned = RECORD._replace(relations=relation(PAIN, "TrAP", MORPHINE))
        root = tree(tmp_path, beth={"a": turned}, test={"b": OTHER, "c": RECORD})
        assert ("He was given @problem$ for @treatment$ .", "TrAP") in rows(root, "paper").values()

    def test_a_leading_blank_stays_and_counts_as_token_zero(self, tmp_path: Path) -> None:
        blank = Record2010(
            " CT showed edema .\n", concept("CT", 1, 1, 1, "test") + concept("edema", 1, 3, 3, "problem")
        )
        root = tree(tmp_path, beth={"a": blank}, test={"b": OTHER, "c": RECORD})
        assert list(rows(root, "paper").values()) == [(" @test$ showed @problem$ .", "false")]

    def test_the_official_test_set_is_halved_and_every_hospital_trains(self, small: Path) -> None:
        built = build(small, "paper")
        assert {split: len(documents) for split, documents in built.splits.items()} == {
            "train": 3, "validation": 2, "test": 3,
        }  # fmt: skip
        assert {document.group for document in built.splits["train"]} == {"beth/a", "partners/b"}
        assert any("halved" in defect for defect in built.defects)

    def test_it_needs_the_official_test_set(self, tmp_path: Path) -> None:
        root = tree(tmp_path, beth={"a": RECORD, "b": OTHER})
        with pytest.raises(UserError, match="standard"):
            build(root, "paper")


class TestStandard:
    def test_types_stay_with_their_mentions_and_the_treatment_is_first(self, small: Path) -> None:
        test = rows(small, "standard", "test").values()
        assert set(test) == {
            ("He was given [E1:treatment] iv morphine [/E1:treatment] for [E2:problem] pain [/E2:problem] .", "TrAP"),
            ("[E1:test] CT [/E1:test] showed [E2:problem] edema [/E2:problem] .", "TeRP"),
            ("[E2:problem] Rash [/E2:problem] after [E1:treatment] penicillin [/E1:treatment] .", "false"),
        }

    def test_markers_may_stand_instead_of_the_mentions(self, small: Path) -> None:
        texts = {text for text, _ in rows(small, "standard", "test", markers="instead").values()}
        assert "He was given @treatment$ for @problem$ ." in texts

    def test_concepts_of_different_lines_make_no_pair(self, small: Path) -> None:
        assert len([one for one in rows(small, "standard", "test") if one.split(":")[0].endswith("c")]) == 2

    def test_the_first_listed_of_several_relations_counts_and_overlapping_pairs_are_left_out(
        self, tmp_path: Path
    ) -> None:
        several = RECORD._replace(relations=relation(MORPHINE, "TrAP", PAIN) + relation(MORPHINE, "TrIP", PAIN))
        nested = Record2010(
            "Chest tube pain persists .\n",
            concept("chest tube pain", 1, 0, 2, "problem") + concept("chest tube", 1, 0, 1, "treatment"),
        )
        root = tree(tmp_path, beth={"a": OTHER, "b": RECORD}, test={"c": several, "d": nested})
        built = build(root, "standard")
        assert [document.label for document in built.splits["test"]] == ["TrAP", "false"]
        assert built.counts["pairs_with_several_relations"] == 1
        assert built.counts["overlapping_pairs_left_out"] == 1

    def test_no_record_is_in_two_splits_and_validation_comes_from_training(self, tmp_path: Path) -> None:
        records = {f"r{number}": RECORD for number in range(20)}
        root = tree(tmp_path, beth=records, test={"t": RECORD})
        splits = build(root, "standard").splits
        groups = {split: {document.group for document in documents} for split, documents in splits.items()}
        assert not groups["train"] & groups["validation"]
        assert len(groups["validation"]) == 2
        assert len(groups["test"]) == 1

    def test_pairs_of_records_without_a_relation_file_are_no_negatives(self, small: Path) -> None:
        (small / "concept_assertion_relation_training_data/partners/rel/b.rel").unlink()
        built = build(small, "paper")
        assert {document.group for document in built.splits["train"]} == {"beth/a"}
        assert built.counts["records_without_relation_file_left_out"] == 1

    def test_relations_across_lines_are_counted(self, tmp_path: Path) -> None:
        across = RECORD._replace(relations=RECORD.relations + relation(MORPHINE, "TrAP", EDEMA))
        root = tree(tmp_path, beth={"a": across, "b": RECORD}, test={"c": RECORD})
        assert build(root, "standard").counts["relations_across_lines_left_out"] == 1

    def test_all_nine_labels_are_there_in_both_protocols(self, small: Path) -> None:
        assert build(small, "standard").labels == build(small, "paper").labels == LABELS
        assert len(LABELS) == 9

    def test_a_tree_without_relations_is_refused(self, tmp_path: Path) -> None:
        root = tree(tmp_path, beth={"a": OTHER}, test={"b": OTHER})
        with pytest.raises(UserError, match=r"\.rel"):
            build(root, "standard")
