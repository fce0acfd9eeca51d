from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus.brat import BratDocument, read_brat
from posology.corpus.document import Document
from posology.corpus.relations import Argument, from_brat, from_marked, mark, unmarked, without_placeholders
from posology.errors import UserError

TEXT = "Aspirin blocks COX1. Ibuprofen too.\nNaproxen blocks COX2 and COX1."
ANNOTATION = (
    "T1\tDrug 0 7\tAspirin\nT2\tGene 15 19\tCOX1\nT3\tDrug 21 30\tIbuprofen\n"
    "T4\tDrug 36 44\tNaproxen\nT5\tGene 52 56\tCOX2\nT6\tGene 61 65\tCOX1\n"
    "R1\tInhibits Arg1:T1 Arg2:T2\nR2\tInhibits Arg1:T4 Arg2:T6\nR3\tBinds Arg1:T4 Arg2:T6\n"
    "R4\tInhibits Arg1:T3 Arg2:T2\n"
)


def _corpus(folder: Path, annotation: str = ANNOTATION, text: str = TEXT) -> list[BratDocument]:
    (folder / "n.txt").write_text(text)
    (folder / "n.ann").write_text(annotation)
    return list(read_brat(folder, name=""))


def test_markers() -> None:
    first, second = Argument(12, 14, "Gene"), Argument(0, 3, "Drug")
    assert (
        mark("abc blocks: xy.", first, second, "around") == "[E2:Drug] abc [/E2:Drug] blocks: [E1:Gene] xy [/E1:Gene]."
    )
    assert mark("abc blocks: xy.", first, second, "instead") == "@Drug$ blocks: @Gene$."
    assert mark("ab", Argument(0, 1, ""), Argument(1, 2, ""), "instead") == "@E1$@E2$"


@given(
    st.text(max_size=40),
    st.lists(st.integers(0, 40), min_size=4, max_size=4).map(sorted),
    st.sampled_from(["", "Chemical", "GENE-N", "problem"]),
    st.booleans(),
)
@settings(deadline=None)
def test_markers_can_be_taken_off(text: str, ends: list[int], kind: str, turned: bool) -> None:
    ends = [min(end, len(text)) for end in ends]
    first, second = Argument(ends[0], ends[1], kind), Argument(ends[2], ends[3], kind)
    if "[E" in text or ends[0] == ends[2]:
        return
    if turned:
        first, second = second, first
    assert unmarked(mark(text, first, second, "around")) == text == unmarked(text)
    if "@" not in text and "$" not in text:
        left = without_placeholders(mark(text, first, second, "instead"))
        assert left == [text[: ends[0]], text[ends[1] : ends[2]], text[ends[3] :]]


def test_what_looks_like_a_marker_stays() -> None:
    for text in ("[E1] alone", "[E1:a] x [/E1:b]", "plates [E1] [/E1] and [E2].", "[E3] x [/E3]"):
        assert unmarked(text) == text
    assert without_placeholders("seen @problem-test$ today") == ["seen ", " today"]
    assert without_placeholders("mail a@b for 5 $, or @ $") == ["mail a@b for 5 $, or @ $"]


def test_pairs_of_a_sentence(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    found = list(from_brat(_corpus(tmp_path), markers="instead", counts=counts))
    assert [(document.id, document.text, document.label) for document in found] == [
        ("n/T1-T2", "@Drug$ blocks @Gene$.", "Inhibits"),
        ("n/T4-T5", "@Drug$ blocks @Gene$ and COX1.", "false"),
        ("n/T4-T6", "@Drug$ blocks COX2 and @Gene$.", "Inhibits"),
        ("n/T4-T6-2", "@Drug$ blocks COX2 and @Gene$.", "Binds"),
    ]
    assert {document.group for document in found} == {"n"}
    assert (counts["relations_left_out"], counts["pairs_with_several_relations"]) == (1, 1)


def test_lines_hold_more_pairs_than_sentences(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    found = {document.id: document for document in from_brat(_corpus(tmp_path), sentences="line", counts=counts)}
    assert found["n/T3-T2"].label == "Inhibits"
    assert found["n/T3-T2"].text == "Aspirin blocks [E2:Gene] COX1 [/E2:Gene]. [E1:Drug] Ibuprofen [/E1:Drug] too."
    assert counts["relations_left_out"] == 0


def test_arguments_of_the_same_type_are_paired_in_both_orders(tmp_path: Path) -> None:
    found = list(from_brat(_corpus(tmp_path), arguments=[("Gene", "Gene")], negative="none"))
    assert [(document.id, document.label) for document in found] == [("n/T5-T6", "none"), ("n/T6-T5", "none")]


def test_no_cut_inside_an_entity_and_no_overlapping_pair(tmp_path: Path) -> None:
    annotation = "T1\tA 0 11\tSt. Johns W\nT2\tB 4 9\tJohns\nT3\tB 12 14\tis\nR1\tX Arg1:T1 Arg2:T3\n"
    counts: Counter[str] = Counter()
    (found,) = from_brat(_corpus(tmp_path, annotation, "St. Johns W is."), markers="instead", counts=counts)
    assert (found.text, found.label) == ("@A$ @B$.", "X")
    assert counts["overlapping_pairs_left_out"] == 1


def test_relations_are_needed_and_may_not_be_called_as_their_absence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no relations"):
        list(from_brat(_corpus(tmp_path, "T1\tDrug 0 7\tAspirin\n")))
    with pytest.raises(UserError, match=r"n\.ann:7: a relation has the type 'Inhibits'.*--negative"):
        list(from_brat(_corpus(tmp_path), negative="Inhibits"))


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("<< AChE >> and [[ tacrine ]].", "[E1] AChE [/E1] and [E2] tacrine [/E2]."),
        ("[[ a ]]>b>><< c d >>", "[E2] a [/E2]>b>>[E1] c d [/E1]"),
        ("2-[[3-x (<< y >>, [[ z ]]", "2-[[3-x ([E1] y [/E1], [E2] z [/E2]"),
        ("<<y>>[[z]]", "[E1] y [/E1][E2] z [/E2]"),
        ("<< y >> p >> q [[ z ]]", "[E1] y [/E1] p >> q [E2] z [/E2]"),
    ],
)
def test_marked_sentences(text: str, marked: str) -> None:
    (document,) = from_marked([Document("1", text, label="x")])
    assert (document.text, document.label) == (marked, "x")


def test_other_marks_and_instead() -> None:
    (document,) = from_marked(
        [Document("1", "the <e1>pump</e1> of a <e2>heart</e2>")], marks="<e1> </e1> <e2> </e2>", markers="instead"
    )
    assert document.text == "the @E1$ of a @E2$"


@pytest.mark.parametrize(
    "text", ["<< a >> b", "<< a >> << c >> [[ b ]]", "<< a [[ b ]]", "<< a [[ b ]] >>", "<< >> [[ b ]]"]
)
def test_bad_marks(text: str) -> None:
    with pytest.raises(UserError, match=r"^a\.csv:3: (expected one argument|the marked arguments overlap)"):
        list(from_marked([Document("1", text, place="a.csv:3")]))
