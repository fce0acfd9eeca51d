from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus.i2b2_2014 import CATEGORY, TYPES, Record, Tag, read, write
from posology.errors import UserError
from tests.data import corpus

TEXT = "\n\nRecord of Ann Lee\nage 52yo,\nseen by Lee at\nLee & Sons Hospital\n"


def _tags(*tags: tuple[int, int, str, str]) -> str:
    lines = [
        f'<{CATEGORY[type]} id="P{number}" start="{start}" end="{end}" text="{quoted}" TYPE="{type}" comment="" />\n'
        for number, (start, end, quoted, type) in enumerate(tags)
    ]
    return "".join(lines)


MARKED = [
    (12, 19, "Ann Lee", "PATIENT"),
    (16, 19, "Lee", "DOCTOR"),
    (24, 26, "52", "AGE"),
    (38, 41, "Lee", "DOCTOR"),
    (45, 64, "Lee &amp; Sons Hospital", "HOSPITAL"),
]


def _xml(folder: Path, *, text: str = TEXT, tags: str | None = None, name: str = "180-03") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    marked = _tags(*MARKED) if tags is None else tags
    content = f"<deIdi2b2>\n<TEXT><![CDATA[{text}]]></TEXT>\n<TAGS>\n{marked}</TAGS>\n</deIdi2b2>\n"
    (folder / f"{name}.xml").write_bytes(content.encode())
    return folder


def _one(root: Path) -> tuple[Record, list[tuple[str, str]]]:
    problems: list[tuple[str, str]] = []
    (record,) = read(root, problems)
    return record, problems


def _quoted(record: Record) -> list[str]:
    return [record.text[tag.start : tag.end] for tag in record.tags]


ALL = ["Ann Lee", "Lee", "52", "Lee", "Lee & Sons Hospital"]


def test_handwritten_sample(tmp_path: Path) -> None:
    folder = corpus("i2b2-format") / "handwritten" / "2014"
    problems: list[tuple[str, str]] = []
    records = list(read(folder, problems))
    assert problems == []
    assert [(record.id, record.patient) for record in records] == [
        ("900-01", "900"),
        ("900-02", "900"),
        ("901-01", "901"),
    ]
    for record in records:
        raw = (folder / f"{record.id}.xml").read_text(encoding="utf-8")
        assert len(record.tags) == len(re.findall(r' id="P\d+" ', raw)) > 0
        assert record.text == raw.partition("<![CDATA[")[2].partition("]]></TEXT>")[0]
    last = records[2]
    assert last.tags[1] == Tag(37, 39, "AGE", "AGE", "", "P1") and last.text[37:40] == "89F"
    assert _quoted(last)[3] == '"Bee" O\'Malley-Ruiz'
    for record in records:
        write(record, tmp_path)
        assert (tmp_path / f"{record.id}.xml").read_bytes() == (folder / f"{record.id}.xml").read_bytes()


def test_the_misaligned_sample(tmp_path: Path) -> None:
    folder = corpus("i2b2-format") / "published" / "clideid-2016-xml"
    record, problems = _one(folder)
    sentence = (
        "4 of 6 tags do not match the text they quote unless a line break counts as two characters (CR LF); "
        "read so, 0 do not"
    )
    assert problems == [(str(folder / "example.xml"), sentence)]
    assert _quoted(record) == ["50", "10/21/2077", "Ramirez", "ABCD", "mechanic", "Smith"]
    # Written, its offsets count a line break as one character. (Its root element differs, so bytes do not come back.)
    write(record, tmp_path)
    again, problems = _one(tmp_path)
    assert problems == [] and (again.text, again.tags) == (record.text, record.tags)


def test_overlapping_and_part_of_word_tags_are_kept(tmp_path: Path) -> None:
    record, problems = _one(_xml(tmp_path))
    assert problems == [] and _quoted(record) == ALL
    assert record.patient == "180"


@pytest.mark.parametrize("counted", [True, False])
def test_carriage_returns_in_the_file(tmp_path: Path, counted: bool) -> None:
    """A file with CR LF, whose offsets may count them or not: the spans are those of the text with LF."""
    expected, _ = _one(_xml(tmp_path / "a"))
    marked = MARKED
    if counted:
        breaks = [TEXT[:start].count("\n") for start, *_ in MARKED]
        marked = [
            (start + more, end + more, *rest) for (start, end, *rest), more in zip(MARKED, breaks, strict=True)
        ]  # fmt: skip
    path = _xml(tmp_path / "b", tags=_tags(*marked)) / "180-03.xml"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    record, problems = _one(tmp_path / "b")
    assert (record.text, record.tags) == (expected.text, expected.tags)
    assert [sentence[:30] for _, sentence in problems] == (["5 of 5 tags do not match the te"[:30]] if counted else [])


def test_carriage_returns_and_a_wrong_quote(tmp_path: Path) -> None:
    marked = [(2 + start, 2 + end, *rest) for start, end, *rest in MARKED[:2]] + [(27, 29, "53", "AGE")]
    record, problems = _one(_xml(tmp_path, tags=_tags(*marked)))
    assert _quoted(record) == ALL[:2]
    assert [sentence for _, sentence in problems] == [
        "3 of 3 tags do not match the text they quote unless a line break counts as two characters (CR LF); "
        "read so, 1 do not",
        "P2: the text at 24 26 is not the text that the tag quotes: dropped",
    ]


@pytest.mark.parametrize("shift", [-4, 3])
def test_characters_missing_or_added_in_the_text(tmp_path: Path, shift: int) -> None:
    """One real file lacks four blanks within a line: every later tag stands four characters too far on."""
    marked = MARKED[:3] + [(start - shift, end - shift, *rest) for start, end, *rest in MARKED[3:]]
    record, problems = _one(_xml(tmp_path, tags=_tags(*marked)))
    assert _quoted(record) == ALL
    expected = f"the last 2 tags stand {shift:+d} characters from where their offsets say: read there"
    assert problems == [(str(tmp_path / "180-03.xml"), expected)]


def test_the_tag_across_the_place_of_missing_characters_is_dropped(tmp_path: Path) -> None:
    marked = [
        *MARKED[:2],
        (24, 30, "52    yo", "AGE"),
        *((start + 4, end + 4, *rest) for start, end, *rest in MARKED[3:]),
    ]
    record, problems = _one(_xml(tmp_path, tags=_tags(*marked)))
    assert _quoted(record) == [*ALL[:2], *ALL[3:]]
    assert [sentence.partition(":")[0] for _, sentence in problems] == [
        "the last 2 tags stand -4 characters from where their offsets say",
        "P2",
    ]


def test_single_misplaced_tags_are_dropped_not_searched_for(tmp_path: Path) -> None:
    for wrong in (0, 3):  # tags between others that are right, or a last one alone
        marked = list(MARKED[:4])
        start, end, *rest = marked[wrong]
        marked[wrong] = (start - 1, end - 1, *rest)
        record, problems = _one(_xml(tmp_path, tags=_tags(*marked)))
        assert len(record.tags) == 3
        assert [(Path(place).name, sentence) for place, sentence in problems] == [
            (
                f"180-03.xml:{10 + wrong}",
                f"P{wrong}: the text at {start - 1} {end - 1} is not the text that the tag quotes: dropped",
            )
        ]


def test_and_for_an_ampersand(tmp_path: Path) -> None:
    """One real file quotes its text with `and` where that has an ampersand; a bare ampersand is not well-formed."""
    for quoted, reported in (
        ("Lee and Sons Hospital", 0),
        ("Lee & Sons Hospital", 1),
        ("Lee &amp;  Sons&#10;Hospital", 0),
    ):
        record, problems = _one(_xml(tmp_path, tags=_tags((45, 64, quoted, "HOSPITAL"))))
        assert _quoted(record) == ALL[4:] and len(problems) == reported


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ('<NAME id="P0" start="12" end="12" text="" TYPE="PATIENT" />', "P0: the text at 12 12 is not the text"),
        ('<NAME id="P0" start="12" end="19" TYPE="PATIENT" />', "P0: the text at 12 19 is not the text"),
        ('<NAME start="12" end="18" text="Ann Lee" TYPE="PATIENT" />', "NAME: the text at 12 18 is not the text"),
    ],
)
def test_tags_that_cannot_be_checked_are_dropped(tmp_path: Path, tags: str, sentence: str) -> None:
    record, problems = _one(_xml(tmp_path, tags=tags))
    assert record.tags == [] and [one[: len(sentence)] for _, one in problems] == [sentence]


def test_unknown_types_are_reported_and_kept(tmp_path: Path) -> None:
    tags = '<PHI id="P0" start="12" end="19" text="Ann Lee" TYPE="PATIENT" comment="a &lt; b" />'
    record, problems = _one(_xml(tmp_path, tags=tags))
    assert record.tags == [Tag(12, 19, "PHI", "PATIENT", "a < b", "P0")]
    assert [sentence for _, sentence in problems] == ["P0: its TYPE is none of its category's: kept"]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (_tags((45, 400, "Lee", "DOCTOR")), r"180-03\.xml:10: P0: offsets 45 400 are beyond the text of 65 characters"),
        (_tags((19, 12, "Lee", "DOCTOR")), r"180-03\.xml:10: P0: its start and end are not two numbers in order"),
        ('<NAME id="P0" start="1" text="x" TYPE="DOCTOR" />', r"180-03\.xml:10: P0: has no end"),
        ('<NAME id="P0" start="12" end="19" text="Ann Lee" />', r"180-03\.xml:10: P0: has no TYPE"),
        ('<NAME id="P0" start="12" end="19" text="Ann Lee" TYPE="PATI', r"and could not be mended"),
    ],
)
def test_damaged_tags_are_named(tmp_path: Path, tags: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _one(_xml(tmp_path, tags=tags))
    assert "Lee" not in str(caught.value)


def test_the_tree_as_distributed(tmp_path: Path) -> None:
    _xml(tmp_path / "i2b2" / "training-PHI-Gold-Set1", name="220-01")
    second = _xml(tmp_path / "i2b2" / "training-PHI-Gold-Set2" / "training-PHI-Gold-Set2", name="110-01")
    test = _xml(tmp_path / "i2b2" / "testing-PHI-Gold-fixed", name="110-02")
    (test / "._110-02.xml").write_bytes(b"\0")

    def found(root: Path) -> tuple[list[tuple[str, str | None]], int]:
        problems: list[tuple[str, str]] = []
        return [(record.id, record.split) for record in read(root, problems)], len(problems)

    everything: list[tuple[str, str | None]] = [("110-01", "train"), ("220-01", "train"), ("110-02", "test")]
    assert found(tmp_path) == found(tmp_path / "i2b2") == (everything, 0)
    assert found(second.parent) == (everything[:1], 0)
    assert found(test) == (everything[2:], 0)
    _xml(tmp_path / "i2b2" / "testing-RiskFactors-Complete", name="110-02")
    assert found(tmp_path) == (everything, 1)
    _xml(tmp_path / "flat", name="330-01")
    assert found(tmp_path / "flat") == ([("330-01", None)], 0)


@st.composite
def records(draw: st.DrawFn) -> Record:
    character = st.one_of(
        st.sampled_from("&<>\"'] \t\n\u0301\xa0"),
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"),
    )
    text = draw(st.sampled_from(["", "\n\n\n", " ", "]]>"])) + draw(st.text(character, min_size=1, max_size=40))
    ends = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).filter(lambda pair: pair[0] < pair[1])
    record = Record("1-01", "1", text, None)
    for number, (start, end) in enumerate(draw(st.lists(ends, max_size=6))):
        type = draw(st.sampled_from(list(CATEGORY)))
        record.tags.append(Tag(start, end, CATEGORY[type], type, draw(st.text(character, max_size=4)), f"P{number}"))
    return record


@given(records())
@settings(max_examples=200, deadline=None)
def test_round_trip(record: Record) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(record, Path(folder))
        again, problems = _one(Path(folder))
    assert problems == []
    assert (again.id, again.patient, again.text, again.tags) == (record.id, record.patient, record.text, record.tags)


def test_categories_and_types() -> None:
    assert len(CATEGORY) == sum(len(types) for types in TYPES.values()) == 30
