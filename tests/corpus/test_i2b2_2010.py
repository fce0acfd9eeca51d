from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus.i2b2 import TokenLines
from posology.corpus.i2b2_2010 import ASSERTIONS, RELATIONS, TYPES, Concept, Record, Relation, read, write
from posology.errors import UserError
from tests.data import corpus

TEXT = "He has chest pain .\n  Aspirin\t helped  the   pain .\n\nNo fever\n"
CON = (
    'c="chest pain" 1:2 1:3||t="problem"\n'
    'c="aspirin" 2:1 2:1||t="treatment"\n'
    'c="the pain" 2:3 2:4||t="problem"\n'
    'c="fever" 4:1 4:1||t="problem"\n'
)
AST = 'c="fever" 4:1 4:1||t="problem"||a="absent"\n'
REL = 'c="aspirin" 2:1 2:1||r="TrAP"||c="the pain" 2:3 2:4\n'


def _plain(root: Path, *, text: str = TEXT, con: str = CON, ast: str | None = AST, rel: str | None = REL) -> Path:
    for folder, extension, content in (
        ("txt", "txt", text),
        ("concept", "con", con),
        ("ast", "ast", ast),
        ("rel", "rel", rel),
    ):
        if content is not None:
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"n.{extension}").write_bytes(content.encode())
    return root


def _one(root: Path) -> tuple[Record, list[tuple[str, str]]]:
    problems: list[tuple[str, str]] = []
    (record,) = read(root, problems)
    return record, problems


def _folders(root: Path) -> tuple[Path, Path, Path, Path]:
    return root / "txt", root / "concept", root / "ast", root / "rel"


def test_handwritten_sample(tmp_path: Path) -> None:
    folder = corpus("i2b2-format") / "handwritten" / "2010"
    problems: list[tuple[str, str]] = []
    records = list(read(folder, problems))
    assert problems == []
    assert [record.id for record in records] == ["synth-0001", "synth-0002", "synth-0003"]
    concepts = [concept for record in records for concept in record.concepts]
    relations = [relation for record in records for relation in record.relations]
    assertions = Counter(concept.assertion for concept in concepts if concept.assertion)
    assert (len(concepts), assertions.total(), len(relations)) == (52, 33, 20)
    assert set(assertions) == set(ASSERTIONS) and {relation.label for relation in relations} == set(RELATIONS)
    assert {concept.type for concept in concepts} == set(TYPES)
    assert {(record.split, record.hospital, record.lacks) for record in records} == {(None, "", frozenset())}
    first = records[0]
    drip = next(concept for concept in first.concepts if (concept.line, concept.first) == (9, 5))
    assert first.text[drip.start : drip.end] == "a heparin drip" and drip.type == "treatment"
    assert Relation("TrAP", drip, first.concepts[9]) in first.relations
    assert first.text[slice(first.concepts[9].start, first.concepts[9].end)] == "unstable angina"
    # The files come back byte for byte.
    for record in records:
        write(record, *_folders(tmp_path))
    files = [path.relative_to(folder) for path in folder.rglob("*.*")]
    assert len(files) == 12
    assert all((tmp_path / path).read_bytes() == (folder / path).read_bytes() for path in files)


def test_a_concept_with_an_empty_token_begins_and_ends_with_a_word(tmp_path: Path) -> None:
    con = 'c="aspirin" 2:0 2:1||t="treatment"\n'
    record, problems = _one(_plain(tmp_path, con=con, ast=None, rel=None))
    (concept,) = record.concepts
    assert problems == [] and record.text[concept.start : concept.end] == "Aspirin"
    tokens = TokenLines("a b\n \n c\n ")
    assert tokens.span(1, 1, 3, 0) == tokens.span(1, 1, 1, 1) == (2, 3)
    assert tokens.span(2, 0, 3, 1) == tokens.span(3, 1, 4, 0) == (7, 8)
    assert [tokens.span(*place) for place in ((2, 0, 2, 0), (2, 0, 3, 0), (4, 0, 4, 0))] == [(4, 4), (4, 4), (9, 9)]


def test_published_sample() -> None:
    folder = corpus("i2b2-format") / "published" / "cliner-2010"
    problems: list[tuple[str, str]] = []
    records = list(read(folder, problems))
    assert problems == []
    lines = {path.stem: len(path.read_text().splitlines()) for path in folder.glob("*.con")}
    assert {record.id: len(record.concepts) for record in records} == lines == {"ex_doc": 58, "single": 1}
    assert all(record.lacks == {".ast", ".rel"} for record in records)


def test_leading_blanks_runs_of_blanks_and_tabs(tmp_path: Path) -> None:
    record, problems = _one(_plain(tmp_path))
    assert problems == []
    quoted = [record.text[concept.start : concept.end] for concept in record.concepts]
    assert quoted == ["chest pain", "Aspirin", "the   pain", "fever"]
    assert [concept.assertion for concept in record.concepts] == [None, None, None, "absent"]
    assert record.relations == [Relation("TrAP", record.concepts[1], record.concepts[2])]


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends(tmp_path: Path, line_end: str) -> None:
    before, _ = _one(_plain(tmp_path / "a"))
    files = (content.replace("\n", line_end) for content in (TEXT, CON, AST, REL))
    after, problems = _one(_plain(tmp_path / "b", **dict(zip(("text", "con", "ast", "rel"), files, strict=True))))
    assert problems == []
    assert (after.text, after.concepts, after.relations) == (before.text, before.concepts, before.relations)


def test_a_concept_over_two_lines(tmp_path: Path) -> None:
    con = 'c="pain . aspirin" 1:3 2:1||t="problem"\n'
    record, problems = _one(_plain(tmp_path, con=con, ast=None, rel=None))
    assert problems == []
    (concept,) = record.concepts
    assert record.text[concept.start : concept.end] == "pain .\n  Aspirin"
    assert concept == Concept.at(TokenLines(record.text), concept.start, concept.end, "problem")
    write(record, *_folders(tmp_path / "again"))
    assert _one(tmp_path / "again")[0].concepts == [concept]


def test_a_position_with_two_types(tmp_path: Path) -> None:
    con = CON + 'c="the pain" 2:3 2:4||t="test"\nc="aspirin" 2:1 2:1||t="problem"\n'
    rel = (
        REL
        + 'c="aspirin" 2:1 2:1||r="PIP"||c="the pain" 2:3 2:4\nc="the pain" 2:3 2:4||r="TeRP"||c="the pain" 2:3 2:4\n'
    )
    record, _ = _one(_plain(tmp_path, con=con, rel=rel))
    types = [(relation.first.type, relation.second.type) for relation in record.relations]
    assert types == [("treatment", "problem"), ("problem", "problem"), ("test", "problem")]


@pytest.mark.parametrize(
    ("changes", "places", "left"),
    [
        ({"con": CON.replace("chest pain", "chest pains")}, ["n.con:1"], (3, 1, 1)),
        ({"con": CON.replace("1:2 1:3", "1:1 1:2")}, ["n.con:1"], (3, 1, 1)),
        ({"con": CON.replace('"fever"', '"fevers"')}, ["n.con:4", "n.ast:1"], (3, 0, 1)),
        ({"con": CON + 'c="aspirin" 2:0 2:0||t="treatment"\n'}, ["n.con:5"], (4, 1, 1)),  # the blank counts as token 0
        ({"con": CON + 'c="" 2:0 2:0||t="treatment"\n'}, ["n.con:5"], (4, 1, 1)),
        ({"ast": AST.replace("fever", "fevers")}, ["n.ast:1"], (4, 0, 1)),
        ({"ast": AST.replace('"fever" 4:1', '"no fever" 4:0')}, ["n.ast:1"], (4, 0, 1)),
        ({"rel": REL.replace('c="aspirin" 2:1', 'c="aspirin helped" 2:1').replace("2:1||", "2:2||")}, ["n.rel:1"], (4, 1, 0)),
        ({"rel": REL.replace("the pain", "a pain")}, ["n.rel:1"], (4, 1, 0)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_reported_and_dropped(
    tmp_path: Path, changes: dict[str, str], places: list[str], left: tuple[int, int, int]
) -> None:
    record, problems = _one(_plain(tmp_path, **changes))
    assert [Path(place).name for place, _ in problems] == places
    assert not re.search("chest|aspirin|fever|pain", " ".join(sentence for _, sentence in problems))
    asserted = sum(concept.assertion is not None for concept in record.concepts)
    assert (len(record.concepts), asserted, len(record.relations)) == left


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"con": CON + 'c="fever" 9:1 9:1||t="problem"\n'}, r"n\.con:5: there are no tokens from 9:1 .* has 5 lines"),
        ({"con": 'c="fever" 4:7 4:7||t="problem"\n'}, r"n\.con:1: there are no tokens from 4:7"),
        ({"con": 'c="fever" 0:1 0:1||t="problem"\n'}, r"n\.con:1: there are no tokens from 0:1"),
        ({"con": 'c="fever" 4:1 3:0||t="problem"\n'}, r"n\.con:1: there are no tokens from 4:1 to 3:0"),
        ({"con": 'c="fever" 4:1 4:0||t="problem"\n'}, r"n\.con:1: there are no tokens from 4:1 to 4:0"),
        ({"con": 'c="fever" 4:1||t="problem"\n'}, r"n\.con:1: is no line of this format\. Write it as c="),
        ({"con": CON[:-20]}, r"n\.con:4: is no line of this format"),
        ({"con": CON.replace("treatment", "drug")}, r"n\.con:2: .* is none of problem, test, treatment"),
        ({"ast": AST.replace("4:1", "7:1")}, r"n\.ast:1: there are no tokens from 7:1"),
        ({"ast": AST.replace("absent", "gone")}, r"n\.ast:1: .* is none of present, absent"),
        ({"ast": CON}, r"n\.ast:1: is no line of this format"),
        ({"rel": REL.replace("2:4", "2:9")}, r"n\.rel:1: there are no tokens from 2:3 to 2:9"),
        ({"rel": REL.replace("TrAP", "TrXP")}, r"n\.rel:1: .* is none of PIP, TeCP"),
        ({"rel": AST}, r"n\.rel:1: is no line of this format"),
        ({"text": ""}, r"n\.txt: is empty"),
        ({"text": "GIF89a\0\1"}, r"n\.txt: holds bytes that are no text"),
        ({"con": "\0\0"}, r"n\.con: holds bytes that are no text"),
    ],
)
def test_impossible_lines_are_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _one(_plain(tmp_path, **changes))
    assert not re.search("fever|aspirin", str(caught.value))


def test_western_encoding_is_reported(tmp_path: Path) -> None:
    _plain(tmp_path, con='c="ménière" 1:0 1:0||t="problem"\n', ast=None, rel=None)
    (tmp_path / "txt" / "n.txt").write_bytes("Ménière’s\nx\n".encode("cp1252"))
    with_bom = 'c="ménière’s" 1:0 1:0||t="problem"\n'.encode("utf-8-sig")
    (tmp_path / "concept" / "n.con").write_bytes(with_bom)
    record, problems = _one(tmp_path)
    assert record.text == "Ménière’s\nx\n" and len(record.concepts) == 1
    assert problems == [(str(tmp_path / "txt" / "n.txt"), "is not UTF-8: read as cp1252")]


def _tree(root: Path, *, concepts: str = "concepts", test_texts: str = "test_data") -> Path:
    training, gold = root / "concept_assertion_relation_training_data", root / "reference_standard_for_test_data"
    for hospital in ("beth", "partners"):
        _plain(training / hospital)
    (training / "partners" / "unannotated").mkdir()
    (training / "partners" / "unannotated" / "more.txt").write_text(TEXT)
    _plain(root / "made")
    for kind in ("ast", "rel"):
        shutil.copytree(root / "made" / kind, gold / kind)
    shutil.copytree(root / "made" / "concept", gold / concepts)
    shutil.copytree(root / "made" / "txt", root / test_texts)
    (root / test_texts / "._n.txt").write_bytes(b"\0")  # what some packers leave
    shutil.rmtree(root / "made")
    return root


EXPECTED = [("beth/n", "beth", "train"), ("partners/n", "partners", "train"), ("n", "", "test")]


@pytest.mark.parametrize("concepts", ["concepts", "concept"])
@pytest.mark.parametrize("test_texts", ["test_data", "test_data/txt"])
def test_the_tree_as_distributed(tmp_path: Path, concepts: str, test_texts: str) -> None:
    _tree(tmp_path / "i2b2", concepts=concepts, test_texts=test_texts)
    for root in (tmp_path / "i2b2", tmp_path):  # the folder itself, and the folder above
        problems: list[tuple[str, str]] = []
        records = list(read(root, problems))
        assert [(record.id, record.hospital, record.split) for record in records] == EXPECTED
        assert problems == []
        assert all(len(record.concepts) == 4 and len(record.relations) == 1 for record in records)


def test_parts_of_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _tree(tmp_path)
    training = root / "concept_assertion_relation_training_data"

    def found(folder: Path) -> list[tuple[str, str, str | None]]:
        return [(record.id, record.hospital, record.split) for record in read(folder, [])]

    assert found(training) == EXPECTED[:2]
    assert found(training / "beth") == EXPECTED[:1]
    assert found(root / "reference_standard_for_test_data") == EXPECTED[2:]
    monkeypatch.chdir(training / "beth")
    assert found(Path(".")) == EXPECTED[:1]
    shutil.copytree(training / "beth", root / "elsewhere" / "beth")
    with pytest.raises(UserError, match=r"elsewhere/beth: beth is there twice|training_data/beth: beth is there twice"):
        found(root)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    root = _tree(tmp_path / "a")
    partners = root / "concept_assertion_relation_training_data" / "partners"
    (partners / "rel" / "n.rel").unlink()
    problems: list[tuple[str, str]] = []
    records = list(read(root, problems))
    assert problems == [(str(root), "1 of 3 records have no .rel file: nothing is known of theirs")]
    assert [record.lacks for record in records] == [frozenset(), {".rel"}, frozenset()]
    (partners / "concept" / "n.con").unlink()
    with pytest.raises(UserError, match=r"partners/txt/n\.txt: there is no n\.con for it"):
        list(read(root, []))
    shutil.rmtree(partners)
    shutil.rmtree(root / "test_data")
    with pytest.raises(UserError, match="reference_standard_for_test_data: there is no test_data"):
        list(read(root, []))
    root = _tree(tmp_path / "b")
    shutil.rmtree(root / "reference_standard_for_test_data")
    with pytest.raises(UserError, match="test_data: there is no reference_standard_for_test_data"):
        list(read(root, []))
    plain = _plain(tmp_path / "c")
    (plain / "txt" / "n.txt").rename(plain / "txt" / "m.txt")
    with pytest.raises(UserError, match=r"n\.con: there is no n\.txt in"):
        list(read(plain, []))
    with pytest.raises(UserError, match=r"nowhere: holds no \.con files: expected the tree as distributed"):
        list(read(tmp_path / "nowhere", []))


def test_a_flat_folder(tmp_path: Path) -> None:
    _plain(tmp_path / "plain")
    (tmp_path / "flat").mkdir()
    for path in (tmp_path / "plain").rglob("n.*"):
        shutil.copy(path, tmp_path / "flat")
    record, problems = _one(tmp_path / "flat")
    assert problems == [] and len(record.relations) == 1 and record.split is None


def test_only_whole_tokens_can_be_annotated() -> None:
    tokens = TokenLines(TEXT)
    assert Concept.at(tokens, 7, 17, "problem") == Concept(7, 17, "problem", 1, 2, 3)
    with pytest.raises(ValueError, match="8 17 are not whole tokens"):
        Concept.at(tokens, 8, 17, "problem")
    with pytest.raises(ValueError, match="no token at 6 7"):
        Concept.at(tokens, 6, 7, "problem")


@st.composite
def records(draw: st.DrawFn) -> Record:
    character = st.one_of(
        st.sampled_from("&<>\"'|:=cİßςΣ\u0301\xa0\u2028"),
        st.characters(codec="utf-8", exclude_characters=" \t\n\r\0\ufeff"),
    )
    token = st.text(character, min_size=1, max_size=5)
    blanks = st.sampled_from([" ", "  ", "\t", " \t "])
    text = "x\n"  # a file of blanks would be refused as empty
    for _ in range(draw(st.integers(1, 4))):
        text += draw(st.sampled_from(["", " ", "   ", "\t"]))
        for word in draw(st.lists(token, max_size=6)):
            text += word + draw(blanks)
        text += draw(st.sampled_from(["\n", "\n\n"]))
    tokens = TokenLines(text)
    words = [span for line in tokens.lines for span in line if span[0] < span[1]]
    assert [text[start:end] for start, end in words] == re.split("[ \t\n]+", text.strip(" \t\n"))
    record = Record("n", text, "", None)
    pairs = st.tuples(st.integers(0, len(words) - 1), st.integers(0, len(words) - 1))
    for ends in draw(st.lists(pairs, max_size=5, unique=True)):
        first, last = min(ends), max(ends)
        assertion = draw(st.sampled_from([None, *ASSERTIONS]))
        kind = "problem" if assertion else draw(st.sampled_from(TYPES))
        concept = Concept.at(tokens, words[first][0], words[last][1], kind, assertion)
        if concept.position not in [one.position for one in record.concepts]:
            record.concepts.append(concept)
    if record.concepts:
        concept_ = st.sampled_from(record.concepts)
        record.relations += draw(
            st.lists(st.builds(Relation, st.sampled_from(RELATIONS), concept_, concept_), max_size=3)
        )
    return record


@given(records())
@settings(max_examples=200, deadline=None)
def test_round_trip(record: Record) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(record, *_folders(Path(folder)))
        again, problems = _one(Path(folder))
    assert problems == []
    assert (again.text, again.concepts, again.relations) == (record.text, record.concepts, record.relations)


def test_the_hospital_is_not_in_the_file_name(tmp_path: Path) -> None:
    record, _ = _one(_plain(tmp_path / "partners"))
    assert record.id == "partners/n"
    write(record, tmp_path / "texts", tmp_path / "texts")
    assert sorted(path.name for path in (tmp_path / "texts").iterdir()) == ["n.con", "n.txt"]
