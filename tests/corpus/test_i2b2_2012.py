from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus.i2b2_2012 import (
    EVENT_TYPES,
    TIME_TYPES,
    Event,
    Link,
    Record,
    SectionTime,
    Timex,
    read,
    write,
)
from posology.errors import UserError
from tests.data import corpus

TEXT = "\nSeen 1/2 .\nHe denied R&D pain .\n"
TAGS = """\
<EVENT id="E0" start="1" end="5" text="Seen" modality="FACTUAL" polarity="POS" type="OCCURRENCE" />
<EVENT id="E1" start="22" end="30" text="R&amp;D pain" modality="FACTUAL" polarity="NEG" type="PROBLEM" />
<TIMEX3 id="T0" start="6" end="9" text="1/2" type="DATE" val="2030-01-02" mod="NA" />
<SECTIME id="S0" start="6" end="9" text="1/2" type="ADMISSION" dvalue="2030-01-02" />
<TLINK id="TL0" fromID="E0" fromText="Seen" toID="T0" toText="1/2" type="OVERLAP" />
<TLINK id="SECTIME0" fromID="E1" fromText="R&amp;D pain" toID="Admission" toText="Admission" type="BEFORE" />
"""
RECORD = Record(
    "7",
    TEXT,
    None,
    [Event(1, 5, "OCCURRENCE", "FACTUAL", "POS", "E0"), Event(22, 30, "PROBLEM", "FACTUAL", "NEG", "E1")],
    [Timex(6, 9, "DATE", "2030-01-02", "NA", "T0")],
    [SectionTime(6, 9, "ADMISSION", "2030-01-02", "S0")],
    [Link("TL0", "E0", "T0", "OVERLAP"), Link("SECTIME0", "E1", "Admission", "BEFORE")],
)


def _xml(folder: Path, *, text: str = TEXT, tags: str = TAGS, name: str = "7") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    root = "ClinicalNarrativeTemporalAnnotation"
    content = f'<?xml version="1.0" encoding="UTF-8" ?>\n<{root}>\n<TEXT><![CDATA[{text}]]></TEXT>\n<TAGS>\n{tags}</TAGS>\n</{root}>\n'
    (folder / f"{name}.xml").write_bytes(content.encode())
    return folder


def _one(root: Path) -> tuple[Record, list[tuple[str, str]]]:
    problems: list[tuple[str, str]] = []
    (record,) = read(root, problems)
    record.place = ""
    return record, problems


def test_handwritten_sample(tmp_path: Path) -> None:
    folder = corpus("i2b2-format") / "handwritten" / "2012"
    problems: list[tuple[str, str]] = []
    records = list(read(folder, problems))
    assert problems == [] and [record.id for record in records] == ["1", "6"]
    for record in records:
        raw = (folder / f"{record.id}.xml").read_text(encoding="utf-8")
        counts = [len(re.findall(f"<{name} ", raw)) for name in ("EVENT", "TIMEX3", "SECTIME", "TLINK")]
        found = [record.events, record.times, record.section_times, record.links]
        assert [len(one) for one in found] == counts
        assert record.text == "\n" + (folder / f"{record.id}.xml.txt").read_text(encoding="utf-8")
    assert {event.type for record in records for event in record.events} == set(EVENT_TYPES)
    assert {time.type for record in records for time in record.times} == set(TIME_TYPES)
    first = records[0]
    assert first.events[8] == Event(295, 312, "PROBLEM", "FACTUAL", "NEG", "E8")
    assert first.text[295:312] == "nausea & vomiting"
    assert first.times[5] == Timex(445, 470, "TIME", "2032-04-13T09:00", "APPROX", "T5")
    assert first.section_times[1] == SectionTime(46, 56, "DISCHARGE", "2032-04-15", "S1")
    assert first.links[4] == Link("TL4", "E11", "E9", "AFTER")
    # All four files of each come back byte for byte.
    for record in records:
        write(record, tmp_path)
    assert len(list(folder.iterdir())) == 8
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_everything_a_file_may_hold(tmp_path: Path) -> None:
    assert _one(_xml(tmp_path)) == (RECORD, [])
    write(RECORD, tmp_path)
    assert _one(tmp_path) == (RECORD, [])
    assert (tmp_path / "7.xml.txt").read_text() == TEXT[1:]
    assert (tmp_path / "7.xml.extent").read_text().splitlines() == [
        'EVENT="Seen" 1:0 1:0||type="OCCURRENCE"||modality="FACTUAL"||polarity="POS"',
        'TIMEX3="1/2" 1:1 1:1||type="DATE"||val="2030-01-02"||mod="NA"',
        'EVENT="R&D pain" 2:2 2:3||type="PROBLEM"||modality="FACTUAL"||polarity="NEG"',
        'SECTIME="1/2" 1:1 1:1||type="ADMISSION"||dvalue="2030-01-02"',
    ]
    assert (tmp_path / "7.xml.tlink").read_text().splitlines() == [
        'EVENT="Seen" 1:0 1:0||TIMEX3="1/2" 1:1 1:1||type="OVERLAP"',
        'EVENT="R&D pain" 2:2 2:3||SECTIME="1/2" 1:1 1:1||type="BEFORE"',
    ]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("R&amp;D", "R&D", 9),
        ("R&amp;D", "R&D & &x;", None),
        ('text="1/2" type="DATE"', 'text=""1/2"" type="DATE"', None),
        ('mod="NA"', 'mod="NA & "more" <b> /> > so"', 10),
        ('val="2030-01-02"', 'val="2030\x0b"', 10),
    ],
)
def test_files_that_are_not_well_formed(tmp_path: Path, old: str, new: str, line: int | None) -> None:
    record, problems = _one(_xml(tmp_path, tags=TAGS.replace(old, new)))
    place, sentence = problems[0]
    assert place.startswith(f"{tmp_path / '7.xml'}:") and "is not well-formed XML" in sentence
    if line is None:  # mended, but then it does not quote the text
        assert len(problems) >= 2 and "is not the text that the tag quotes: dropped" in problems[1][1]
        assert len(record.events) + len(record.times) == 2
        return
    assert problems[1:] == [] and place.endswith(f":{line}")
    assert (record.events, record.links) == (RECORD.events, RECORD.links)
    assert record.times[0].start == 6


def test_every_attribute_is_mended_by_itself(tmp_path: Path) -> None:
    text = '\nhe said "no" to A & B < C "\n'
    tags = (
        '<EVENT id="E0" start="9" end="13" text=""no"" modality="FACTUAL" polarity="NEG" type="OCCURRENCE" />\n'
        '<EVENT id="E1" start="17" end="26" text="A & B < C" modality="FACTUAL" polarity="POS" type="TEST"/>\n'
        '<EVENT id="E2" start="21" end="28" text="B < C "" modality="" polarity="POS" type="TREATMENT"></EVENT>\n'
    )
    record, problems = _one(_xml(tmp_path, text=text, tags=tags))
    assert len(problems) == 1
    quoted = [text[event.start : event.end] for event in record.events]
    assert quoted == ['"no"', "A & B < C", 'B < C "']


def test_escaped_characters_count_as_they_stand(tmp_path: Path) -> None:
    # The real texts hold &apos; and &quot; in CDATA, where they are six characters each; attributes hold either form.
    text = "\npt&apos;s &quot;x&quot;\n"
    for quoted in ("pt&apos;s", "pt&amp;apos;s", "pt's"):
        tag = f'<EVENT id="E0" start="1" end="10" text="{quoted}" modality="" polarity="" type="TEST" />\n'
        record, problems = _one(_xml(tmp_path, text=text, tags=tag))
        assert problems == [] and (record.events[0].start, record.events[0].end) == (1, 10)
        assert record.text == text


def test_text_without_cdata(tmp_path: Path) -> None:
    path = _xml(tmp_path) / "7.xml"
    content = path.read_text().replace("<![CDATA[", "").replace("]]>", "")
    path.write_text(content.replace("R&D pain .", "R&amp;D pain ."))
    assert _one(tmp_path) == (RECORD, [])
    path.write_text(content)
    record, problems = _one(tmp_path)
    assert record == RECORD and [sentence[:24] for _, sentence in problems] == ["is not well-formed XML ("]


def test_empty_types_and_lost_links_are_reported(tmp_path: Path) -> None:
    tags = TAGS.replace('type="PROBLEM"', 'type=""').replace('text="1/2" type="DATE"', 'text="1/3" type="DATE"')
    record, problems = _one(_xml(tmp_path, tags=tags))
    assert [(Path(place).name, sentence) for place, sentence in problems] == [
        ("7.xml:10", "T0: the text at 6 9 is not the text that the tag quotes: dropped"),
        ("7.xml:9", f"E1: its type is empty, none of {', '.join(EVENT_TYPES)}: kept"),
        ("7.xml:12", "TL0: it links what is not annotated, or was dropped: dropped"),
    ]
    assert [event.type for event in record.events] == ["OCCURRENCE", ""]
    assert (record.times, record.links) == ([], RECORD.links[1:])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('end="30"', 'end="300"', r"7\.xml:9: E1: offsets 22 300 are beyond the text of 33 characters"),
        ('start="1"', 'start="one"', r"7\.xml:8: E0: its start and end are not two numbers in order"),
        ('start="22"', 'start="-2"', r"7\.xml:9: E1: its start and end are not two numbers in order"),
        ('start="22"', 'start="31"', r"7\.xml:9: E1: its start and end are not two numbers in order"),
        ('start="22" ', "", r"7\.xml:9: E1: has no start"),
        ('type="PROBLEM" ', "", r"7\.xml:9: E1: has no type"),
        ('toID="T0" ', "", r"7\.xml:12: TL0: has no toID"),
        ("</TAGS>", "", r"7\.xml:15: is not well-formed XML \(mismatched tag\) and could not be mended"),
        ("TAGS>", "TAG>", r"7\.xml: has no TAGS element"),
        ("TEXT>", "BODY>", r"7\.xml: has no TEXT element"),
        ("]]></TEXT>", "", r"7\.xml: its TEXT element has no end"),
        (
            "?>",
            '?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>',
            r"7\.xml: has a document type declaration",
        ),
        ("R&amp;D", "\0", r"7\.xml: holds bytes that are no text"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = _xml(tmp_path) / "7.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        _one(tmp_path)
    assert "pain" not in str(caught.value)


def test_a_document_type_is_refused_in_lenient_reading_too(tmp_path: Path) -> None:
    path = _xml(tmp_path, tags=TAGS.replace("R&amp;D", "R&D")) / "7.xml"
    path.write_text(path.read_text().replace("?>", '?><!DOCTYPE x SYSTEM "x.dtd">'))
    with pytest.raises(UserError, match="has a document type declaration"):
        _one(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\x1f\x8b\x08\0\0"])
def test_files_without_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "7.xml").write_bytes(content)
    with pytest.raises(UserError, match=r"7\.xml: (is empty|holds bytes that are no text)"):
        _one(tmp_path)


def test_the_tree_as_distributed(tmp_path: Path) -> None:
    training = _xml(tmp_path / "2012-07-15.original-annotation.release", name="10")
    _xml(training, name="2")
    test = _xml(tmp_path / "2012-08-08.test-data.event-timex-groundtruth" / "xml", name="1").parent
    (test / "i2b2").mkdir()
    (test / "i2b2" / "1.xml.extent").touch()

    def found(root: Path) -> tuple[list[tuple[str, str | None]], list[str]]:
        problems: list[tuple[str, str]] = []
        return [(record.id, record.split) for record in read(root, problems)], [sentence for _, sentence in problems]

    expected: list[tuple[str, str | None]] = [("2", "train"), ("10", "train"), ("1", "test")]
    assert found(tmp_path) == (expected, [])
    assert found(training) == (expected[:2], [])
    assert found(test) == (expected[2:], [])
    assert found(test / "xml") == ([("1", None)], [])  # the name of this folder does not tell
    # The same texts come again, with links, in another part of the distribution.
    _xml(tmp_path / "2012-08-23.test-data.groundtruth" / "merged_xml", name="1")
    assert found(tmp_path) == (expected, ["1 .xml files are in none of the folders that are looked for: not read"])
    _xml(tmp_path / "2012-07-15.original-annotation.release" / "copy", name="2")
    with pytest.raises(UserError, match=r"2\.xml: has the name of .*2\.xml"):
        found(tmp_path)
    with pytest.raises(UserError, match=r"nowhere: there are no \.xml files in it"):
        found(tmp_path / "nowhere")


@st.composite
def records(draw: st.DrawFn) -> Record:
    character = st.one_of(
        st.sampled_from("&<>\"'] \t\n\u0301\xa0"),
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"),
    )
    text = draw(st.sampled_from(["", "\n", "\n\n", " "])) + draw(st.text(character, min_size=1, max_size=40)) + "x"
    span = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).filter(
        lambda ends: bool(text[ends[0] : ends[1]].strip(" \t\n"))
    )
    spans = draw(st.lists(span, max_size=6))
    value = st.text(character, max_size=4)
    record = Record("7", text, None)
    for number, (start, end) in enumerate(spans):
        kind = draw(st.sampled_from("ETS"))
        if kind == "E":
            modality, polarity = draw(value), draw(st.sampled_from(["POS", "NEG"]))
            record.events.append(
                Event(start, end, draw(st.sampled_from(EVENT_TYPES)), modality, polarity, f"E{number}")
            )
        elif kind == "T":
            record.times.append(Timex(start, end, draw(st.sampled_from(TIME_TYPES)), draw(value), "NA", f"T{number}"))
        else:
            section = draw(st.sampled_from(["ADMISSION", "DISCHARGE"]))
            record.section_times.append(SectionTime(start, end, section, draw(value), f"S{number}"))
    ids = [one.id for one in [*record.events, *record.times, *record.section_times]]
    end = st.sampled_from([*ids, "Admission", "Discharge"])
    link_type = st.sampled_from(["BEFORE", "AFTER", "OVERLAP"])
    record.links += draw(st.lists(st.builds(Link, st.just("TL0"), end, end, link_type), max_size=3))
    return record


@given(records())
@settings(max_examples=200, deadline=None)
def test_round_trip(record: Record) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(record, Path(folder))
        again, problems = _one(Path(folder))
        bare = (Path(folder) / "7.xml.txt").read_bytes().decode()
        extent = (Path(folder) / "7.xml.extent").read_bytes().decode().split("\n")[:-1]
    assert (again, problems) == (record, [])
    assert bare == record.text.removeprefix("\n")
    # Each line of .extent, read by itself, names tokens that hold the text it quotes.
    lines = [re.findall(r"[^ \t]+", line) for line in bare.split("\n")]
    shifts = [line[:1] in (" ", "\t") for line in bare.split("\n")]
    assert len(extent) == len(record.events) + len(record.times) + len(record.section_times)
    for line in extent:
        match = re.match(r'\w+="(.*)" (\d+):(\d+) (\d+):(\d+)\|\|type=', line, re.DOTALL)
        assert match is not None
        first_line, first, last_line, last = map(int, match.groups()[1:])
        tokens = [
            token
            for number in range(first_line, last_line + 1)
            for index, token in enumerate(lines[number - 1], start=shifts[number - 1])
            if (number, index) >= (first_line, first) and (number, index) <= (last_line, last)
        ]
        assert "".join(match[1].split()) in "".join("".join(tokens).split())


def test_what_xml_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"7\.xml: control characters cannot be written to XML"):
        write(Record("7", "a\x0bb", None), tmp_path)
    assert list(tmp_path.iterdir()) == []
