from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus import textfile
from posology.corpus.document import Document, Span
from posology.corpus.tabular import Columns, documents, read_records, resolve, stream_records
from posology.errors import UserError
from tests.data import corpus

ANY_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)
LABEL = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=8)
ROWS = st.lists(st.tuples(ANY_TEXT, LABEL), min_size=1, max_size=6)
FORMATS = {"csv": ",", "tsv": "\t"}


def _read(path: Path, format: str, columns: Columns | None = None, **options: Any) -> list[Document]:
    reading = {name: options.pop(name) for name in ("quoting", "encoding") if name in options}
    records = read_records(path, format, **reading)
    needs_label = not options.get("annotated")
    resolved = resolve(columns or Columns(), records, needs_label=needs_label, place=path)
    return list(documents(records, resolved, name=path.stem, **options))


def _written_and_read(content: bytes, format: str, **options: Any) -> list[tuple[str, str | None]]:
    """Texts and labels of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{format}"
        path.write_bytes(content)
        found = _read(path, format, **options)
    return [(document.text, document.label) for document in found]


@given(ROWS, st.sampled_from(sorted(FORMATS)), st.sampled_from(["\n", "\r\n"]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_quoted_round_trip(rows: list[tuple[str, str]], format: str, end: str, gz: bool) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=FORMATS[format], lineterminator=end, quoting=csv.QUOTE_ALL).writerows(
        [("text", "label"), *rows]
    )
    content = stream.getvalue().encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (f"a.{format}" + ".gz" * gz)
        path.write_bytes(gzip.compress(content) if gz else content)
        found = _read(path, format)
    assert [(document.text, document.label) for document in found] == rows


@given(ROWS)
@settings(max_examples=150, deadline=None)
def test_unquoted_round_trip(rows: list[tuple[str, str]]) -> None:
    rows = [(text.translate({9: "x", 10: "x", 13: "x"}), label) for text, label in rows]
    content = "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows])
    assert _written_and_read(content.encode(), "tsv", quoting=False) == rows


@given(ROWS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_jsonl_round_trip(rows: list[tuple[str, str]], ascii: bool) -> None:
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=ascii) for text, label in rows]
    assert _written_and_read("\n\n".join(lines).encode(), "jsonl") == rows


def test_parquet_and_scalars(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"Text": ["x", "y"], "label": [1, 0], "who": [7, None], "b": ["p", "q"]}).write_parquet(path)
    first, second = _read(path, "parquet", Columns(group="WHO", text_pair="b"))
    assert (first.label, first.group, first.text_pair, first.place) == ("1", "7", "p", f"{path}, row 1")
    assert (second.group, second.id) == ("a-2", "a-2")


def test_lines_are_where_a_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufefftext,label\r\n"one\r\n\r\ntwo",A\r\n\r\nthree,B\r\n'.encode())
    first, second = _read(path, "csv")
    assert first.text == "one\r\n\r\ntwo"
    assert [first.place, second.place] == [f"{path}:2", f"{path}:6"]


def test_a_note_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\n{'word ' * 60_000},A\n")
    assert len(_read(path, "csv")[0].text) == 300_000


def test_exact_names_go_before_other_case(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("TEXT,text,Class\nno,yes,A\n")
    assert _read(path, "csv", Columns(text="text"))[0].text == "yes"
    with pytest.raises(UserError, match=r"2 columns are named text.*'TEXT', 'text', 'Class'.*--text"):
        _read(path, "csv")
    with pytest.raises(UserError, match=r"'TEXT', 'text' differ in case only"):
        _read(path, "csv", Columns(text="Text"))


def test_spans_and_words(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"text": "no pain", "spans": [{"start": 3, "end": 7, "label": "P", "id": "x"}], "words": [[0, 2], [3, 7]]},
        {"text": "pain", "spans": [[0, 4, "P"]], "words": [{"start": 0, "end": 4}]},
        {"text": "none", "spans": []},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second, third = _read(path, "jsonl", annotated=True)
    assert (first.spans, first.words) == ([Span(3, 7, "P")], [(0, 2), (3, 7)])
    assert (second.spans, second.words) == ([Span(0, 4, "P")], [(0, 4)])
    assert (third.spans, third.words) == ([], [])


def test_empty_rows_are_refused_or_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nx,A\n,B\ny,\n  ,C\n")
    with pytest.raises(UserError, match=rf"^{path}:3: column 'text' is empty.*--drop-empty"):
        _read(path, "csv")
    counts: Counter[str] = Counter()
    (document,) = _read(path, "csv", drop_empty=True, counts=counts)
    assert (document.id, counts["dropped_empty"]) == ("a-1", 3)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nMénière,A\n".encode(encoding))
    assert _read(path, "csv", encoding=encoding)[0].text == "Ménière"


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ('text,label\nx,A\n"y,B\nz,C\n', Columns(), r":3: .*quote that is never closed.*--no-quoting"),
        ("text,label\nx,A,B\n", Columns(), r":2: has 3 fields and the header has 2"),
        ("text,text\nx,A\n", Columns(), r":1: column 'text' occurs twice"),
        ("a,b\nx,y\n", Columns(), r"no column is named text, sentence, note.*'a', 'b'.*--text"),
        ("text,b\nx,y\n", Columns(), r"no column is named label, class.*'text', 'b'.*--label"),
        ("text,label\nx,y\n", Columns(group="patient"), r"no column 'patient'; found 'text', 'label'.*--group"),
        (f"text,note_\n{'secret ' * 20},y\n", Columns(label="text", text="note_"), r":2: .*text of 140 characters"),
    ],
)
def test_bad_tables(tmp_path: Path, content: str, columns: Columns, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        _read(path, "csv", columns)
    assert str(path) in str(caught.value)


def test_a_first_line_that_is_a_note_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("the patient was seen " * 10 + "\tA\nx\tB\n")
    with pytest.raises(UserError) as caught:
        _read(path, "tsv")
    assert "patient" not in str(caught.value)
    assert "a name of 209 characters" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "is no valid JSON"),
        ("[1]", "is JSON but no object"),
        ("[" * 100_000, "is (nested too deeply|no valid JSON)"),
        ('{"text": 3, "spans": []}', "column 'text' has a int"),
        ('{"text": "x"}', "has no 'spans'"),
        ('{"text": "x", "spans": 1}', "column 'spans' has a int where a list"),
        ('{"text": "x", "spans": [{"start": 0}]}', "an item without start and end and label"),
        ('{"text": "x", "spans": [[0, 1.5, "A"]]}', "offset that is no whole number"),
        ('{"text": "x", "spans": [[0, 1, null]]}', "a span has no label"),
        ('{"text": "x", "spans": [], "words": [[0]]}', "column 'words' has an item without start and end"),
    ],
)
def test_bad_json_lines(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine", "spans": []}\n' + row + "\n")
    with pytest.raises(UserError, match=rf"^{path}:2: .*{message}"):
        _read(path, "jsonl", annotated=True)


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from("aé😀\n\r\u2028\x85\ufeff\x00"), max_size=40),
    st.integers(1, 9),
    st.sampled_from(["utf-8", "utf-16", "utf-16-le", "latin-1", "gb18030"]),
    st.booleans(),
    st.binary(max_size=2),
)
def test_lines_read_in_blocks_are_those_of_the_whole(
    text: str, block: int, encoding: str, gz: bool, stray: bytes
) -> None:
    """Whatever the blocks cut through: characters, CR and LF, a byte order mark, a wrong byte."""
    content = text.encode(encoding, errors="ignore") + stray + text.encode(encoding, errors="ignore")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(textfile, "_BLOCK_BYTES", block)
        path = Path(folder) / ("a.txt" + ".gz" * gz)
        path.write_bytes(gzip.compress(content) if gz else content)
        whole = _text_or_fault(lambda: textfile.read_text(path, encoding))
        lines, universal = (
            _text_or_fault(lambda ends=ends: list(textfile.read_lines(path, encoding, universal=ends)))  # type: ignore[misc]
            for ends in (False, True)
        )
    if isinstance(whole, UserError):
        assert str(whole) == str(lines) == str(universal)
        return
    assert lines == [f"{line}\n" for line in whole.split("\n")[:-1]] + (
        [last] if (last := whole.split("\n")[-1]) else []
    )
    assert universal == list(io.StringIO(whole, newline=""))


def _text_or_fault(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UserError as error:
        return error


def test_files_that_cannot_be_read_say_so_in_blocks_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(b'{"text": "x"}\n' * 1000)
    for content, encoding, message in (
        (packed[:-10], "utf-8", "is no complete gzip file"),
        (b"plain", "utf-8", "is no complete gzip file"),
        (packed, "hex", "there is no encoding 'hex'"),
        (packed, "klingon", "there is no encoding 'klingon'"),
    ):
        path.write_bytes(content)
        for read in (textfile.read_text, lambda *given: list(textfile.read_lines(*given))):
            with pytest.raises(UserError, match=message):
                read(path, encoding)
    with pytest.raises(UserError, match="cannot be read"):
        list(textfile.read_lines(tmp_path / "missing"))


def test_large_parquet_files_keep_their_order_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": [f"t{row}" for row in range(10_000)]}).write_parquet(path, row_group_size=700)
    places = [(record.values["text"], record.place) for record in stream_records(path, "parquet")]
    assert places == [(f"t{row}", f"{path}, row {row + 1}") for row in range(10_000)]


def test_notes_of_a_published_de_identification_sample() -> None:
    path = corpus("i2b2-format") / "published" / "obi-jsonl" / "notes.jsonl"
    found = _read(path, "jsonl", annotated=True)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [document.text for document in found] == [row["text"] for row in rows]
    assert [len(document.spans) for document in found] == [len(row["spans"]) for row in rows] == [0, 0]
