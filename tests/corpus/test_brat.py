from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus.brat import BratDocument, entity_document, read_brat
from posology.corpus.document import Span
from posology.corpus.tags import words_of
from posology.errors import UserError

TEXT = "Aspirin and other\nblood thinners, ibuprofen.\n"


def _pair(folder: Path, annotation: str, text: str = TEXT) -> Path:
    (folder / "n.txt").write_bytes(text.encode())
    (folder / "n.ann").write_bytes(annotation.encode())
    return folder


def _read(folder: Path) -> BratDocument:
    (document,) = read_brat(folder, name="")
    return document


@st.composite
def annotated_text(draw: st.DrawFn) -> tuple[str, list[list[tuple[int, int]]]]:
    # CR LF, lone CR and U+2028 are characters like others in offsets; only the quoted text must be one line
    text = draw(st.text(st.characters(codec="utf-8"), min_size=2, max_size=40).filter(lambda text: text[0] != "\ufeff"))
    cut = st.lists(st.integers(0, len(text)), min_size=2, max_size=6, unique=True).map(sorted)
    entities = []
    for cuts in draw(st.lists(cut, max_size=4)):
        pairs = zip(cuts[::2], cuts[1::2], strict=False)
        entities.append(list(pairs))
    return text, entities


@given(annotated_text())
@settings(max_examples=200, deadline=None)
def test_round_trip(case: tuple[str, list[list[tuple[int, int]]]]) -> None:
    text, entities = case
    lines = []
    for number, fragments in enumerate(entities, start=1):
        offsets = ";".join(f"{start} {end}" for start, end in fragments)
        quoted = " ".join(text[start:end] for start, end in fragments).replace("\n", " ")
        lines.append(f"T{number}\tType{number} {offsets}\t{quoted}\n")
    with tempfile.TemporaryDirectory() as folder:
        document = _read(_pair(Path(folder), "".join(lines), text))
    assert document.text == text
    assert len(document.entities) == len(entities)
    hulls = entity_document(document)
    assert hulls.spans == [
        Span(fragments[0][0], fragments[-1][1], f"Type{number}") for number, fragments in enumerate(entities, start=1)
    ]
    assert hulls.words == words_of(text)
    parts = entity_document(document, discontinuous="parts")
    for number, fragments in enumerate(entities, start=1):
        covered = {index for start, end in fragments for index in range(start, end) if not text[index].isspace()}
        found = [span for span in parts.spans if span.label == f"Type{number}"]
        assert {index for span in found for index in range(*span[:2]) if not text[index].isspace()} == covered


def test_everything_a_file_may_hold(tmp_path: Path) -> None:
    annotation = (
        "R1\tInteracts Arg1:T1 Arg2:T2\t\n"
        "T1\tDrug 0 7\tAspirin\n"
        "T2\tDrug 12 17;18 32\tother blood thinners\n"  # cut at the line end: one piece
        "T3\tDrug 18 23;34 43\tblood ibuprofen\n"
        "A1\tNegated T1\nA2\tCertainty T2 high\nM1\tX E1\n"
        "#1\tAnnotatorNotes T1\tsee chart\nE1\tEvent:T1 Theme:T2\n"
        "N1\tReference T1 RxNorm:1191\tAspirin\n*\tEquiv T1 T3\n"
        "R2\tCauses Arg1:E1 Arg2:T1\n\n"
    )
    document = _read(_pair(tmp_path, annotation))
    assert [entity.fragments for entity in document.entities] == [[(0, 7)], [(12, 32)], [(18, 23), (34, 43)]]
    assert document.entities[0].attributes == {"Negated": None}
    assert document.entities[1].attributes == {"Certainty": "high"}
    (relation,) = document.relations
    assert (relation.label, relation.first.id, relation.second.id) == ("Interacts", "T1", "T2")
    assert relation.place == f"{tmp_path / 'n.ann'}:1"
    assert document.ignored == {
        "notes": 1, "events": 1, "normalisations": 1, "equivalences": 1,
        "relations_of_events": 1, "attributes_of_events_and_relations": 1,
    }  # fmt: skip
    for rule, last in {
        "hull": [Span(18, 43, "Drug")],
        "parts": [Span(18, 23, "Drug"), Span(34, 43, "Drug")],
        "drop": [],
    }.items():
        counts: Counter[str] = Counter()
        made = entity_document(document, discontinuous=rule, counts=counts)  # type: ignore[arg-type]
        assert made.spans == [Span(0, 7, "Drug"), Span(12, 32, "Drug"), *last]
        assert counts[f"discontinuous_entities_{rule}"] == 1
        assert counts["ignored_notes"] == 1


def test_sub_folders_give_ids(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        _pair(tmp_path / name, "")
    assert [document.id for document in read_brat(tmp_path, name="train")] == ["train/a/n", "train/b/n"]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ("T1\tDrug 1 8\tAspirin\n", r"n\.ann:1: T1: the text at 1 8 is not the text"),
        ("\nT1\tDrug 0 700\tAspirin\n", r"n\.ann:2: T1: offsets 0 700 .* outside the text of 45 characters"),
        ("T1\tDrug 7 7\t\n", r"n\.ann:1: T1: offsets 7 7 are empty"),
        ("T1 Drug 0 7 Aspirin\n", r"n\.ann:1: is no BRAT entity"),
        ("T1\tDrug 0 7\tAspirin\nT1\tDrug 0 7\tAspirin\n", r"n\.ann:2: T1 is annotated twice"),
        ("T1\tDrug 0 7\tAspirin\nR1\tX Arg1:T1 Arg2:T9\n", r"n\.ann:2: R1: its argument T9 is not annotated"),
        ("R1\tX T1 T2\n", r"n\.ann:1: is no BRAT relation"),
        ("A1\tNegated T4\n", r"n\.ann:1: A1: its target T4 is not annotated"),
        ("A1\tNegated\n", r"n\.ann:1: is no BRAT attribute"),
        ("?\n", r"n\.ann:1: is no line of BRAT"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, annotation: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _read(_pair(tmp_path, annotation))
    assert "Aspirin" not in str(caught.value)


def test_both_files_of_a_pair_are_needed(tmp_path: Path) -> None:
    (tmp_path / "a.ann").touch()
    with pytest.raises(UserError, match=r"a\.ann: there is no a\.txt beside it"):
        list(read_brat(tmp_path, name=""))
    (tmp_path / "a.ann").rename(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt: there is no a\.ann beside it"):
        list(read_brat(tmp_path, name=""))
