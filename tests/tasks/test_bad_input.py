"""Bad input: one sentence with the place, what was found, and the mend; and nothing half-written."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posology import files
from posology.errors import UserError
from posology.tasks.generic import prepare

SECRET = "Quillfeather"  # stands in every text, and in no message


def _rows(number: int, labels: str = "ab", start: int = 0) -> str:
    return "".join(f"{SECRET} {n} came,{labels[n % len(labels)]}\n" for n in range(start, start + number))


def _table(**parts: str | bytes) -> Callable[[Path], Path]:
    """Builds a folder of CSV files, header included where the content is a string."""

    def build(folder: Path) -> Path:
        for name, content in parts.items():
            data = content if isinstance(content, bytes) else ("text,label\n" + content).encode()
            (folder / f"{name}.csv").write_bytes(data)
        return folder

    return build


def _file(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return build


def _pair(annotation: str, text: str | None = f"{SECRET} has pain.") -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        if text is not None:
            (folder / "n.txt").write_text(text)
        (folder / "n.ann").write_text(annotation)
        return folder

    return build


def _jsonl(*rows: Any) -> Callable[[Path], Path]:
    return _file("a.jsonl", "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def _lists(folder: Path) -> dict[str, Any]:
    lists = folder.parent / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("a-1\na-2\n")
    (lists / "test.txt").write_text("a-3\na-2\n")
    return {"splits": lists}


def _truncated_parquet(folder: Path) -> Path:
    import polars as pl

    path = folder / "a.parquet"
    pl.DataFrame({"text": ["x"] * 99, "label": ["y"] * 99}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-50])
    return path


@dataclass
class Case:
    """What is given, and what the message must say: its place, its problem and its mend."""

    build: Callable[[Path], Path]
    place: str
    problem: str
    mend: str
    task: str = "classification"
    options: dict[str, Any] = field(default_factory=dict)
    more: Callable[[Path], dict[str, Any]] = lambda folder: {}


SPAN = {"start": 0, "end": 5, "label": "X"}
CASES = {
    "no such path": Case(lambda folder: folder / "nowhere.csv", "nowhere.csv", "no such file", "Check the path"),
    "hub id offline": Case(lambda folder: Path("nobody/nothing"), "nobody/nothing", "no such file", "--online"),
    "empty folder": Case(lambda folder: folder, "in", "found no file", "name a file"),
    "unknown extension": Case(_file("a.docx", "x"), "a.docx", "extension", "--format"),
    "two formats": Case(
        lambda folder: _file("test.jsonl", "{}")(folder) and _table(train=_rows(3))(folder),
        "in",
        "several formats",
        "--format",
    ),
    "empty file": Case(_file("a.csv", ""), "a.csv", "is empty", "header line"),
    "one line": Case(_file("a.csv", "x\n"), "a.csv", "has no rows", "at least one document"),
    "header only": Case(_table(train=""), "train.csv", "has no rows", "at least one document"),
    "missing column": Case(_file("a.csv", "note,kind\nx,y\n"), "a.csv", "'note', 'kind'", "--label"),
    "unknown column": Case(_table(a=_rows(9)), "a.csv", "no column 'patient'", "--group", options={"group": "patient"}),
    "column named twice": Case(_file("a.csv", "text,text\nx,y\n"), "a.csv:1", "occurs twice", "Rename"),
    "too many fields": Case(_table(a=_rows(3) + f"{SECRET},b,c\n"), "a.csv:5", "3 fields", "--no-quoting"),
    "quote never closed": Case(_table(a=f'{SECRET},a\n"{SECRET},b\nz,a\n'), "a.csv:3", "never closed", "--no-quoting"),
    "empty label": Case(_table(a=f"{SECRET} x,a\n{SECRET},\n"), "a.csv:3", "'label' is empty", "--drop-empty"),
    "wrong encoding": Case(
        _table(a=b"text,label\nx,a\nM\xe9ni\xe8re,b\n"), "a.csv:3", "is not utf-8", "--encoding latin-1"
    ),
    "no such encoding": Case(
        _table(a=_rows(3)), "--encoding", "no encoding 'utf-9'", "utf-8", options={"encoding": "utf-9"}
    ),
    "broken gzip": Case(_file("a.csv.gz", b"\x1f\x8b\x08\x00oops"), "a.csv.gz", "no complete gzip", "again"),
    "truncated Parquet": Case(_truncated_parquet, "a.parquet", "no complete Parquet", "again"),
    "text in place of Parquet": Case(_file("a.parquet", "text"), "a.parquet", "no complete Parquet", "again"),
    "bad JSON line": Case(
        _jsonl({"text": SECRET, "label": "a"}, "{'text'"), "a.jsonl:2", "no valid JSON", "JSON object"
    ),
    "text is a number": Case(_jsonl({"text": 7, "label": "a"}), "a.jsonl:1", "has a int", "Mend it"),
    "half a character": Case(
        _jsonl(*({"text": f"{SECRET} {n} \ud800", "label": "ab"[n % 2]} for n in range(9))),
        "a.jsonl:",
        "surrogate",
        "Mend",
    ),
    "label column is the note": Case(
        _file("a.csv", "text,label\n" + f"x,{(SECRET + ' ') * 20}\n" * 3),
        "a.csv:2",
        "text of 260 characters",
        "another column",
    ),
    "duplicate ids": Case(
        _table(a=_rows(4) + _rows(4)), "a.csv:", "id 'a' is also at", "leave out --id", options={"id": "label"}
    ),
    "one class": Case(_table(a=_rows(30, "a")), "", "found 1 class", "another class"),
    "unknown label in test": Case(
        _table(train=_rows(6), dev=_rows(2, start=20), test=_rows(3, "abc", 30)),
        "test.csv:4",
        "split 'test' has label 'c'",
        "--unknown-labels drop",
    ),
    "leak": Case(
        _table(train=_rows(6), dev=_rows(2, start=20), test=_rows(3)),
        "in",
        "3 documents with the same text",
        "--leaks drop",
    ),
    "test alone": Case(_table(test=_rows(6)), "in", "no training split", "--train"),
    "too few documents": Case(_table(a=_rows(2)), "in", "2 groups", "more documents"),
    "ids in two lists": Case(_table(a=_rows(3)), "train.txt:2", "is also at", "Remove it", more=_lists),
    "empty split": Case(
        _table(train=_rows(6), dev=_rows(2, "c", 20), test=_rows(3, start=30)),
        "",
        "'validation' has no documents",
        "Give more",
        options={"unknown_labels": "drop"},
    ),
    "entities from CSV": Case(_file("a.csv", _rows(3)), "a.csv", "extension", "--format", task="entities"),
    "format that a task lacks": Case(
        _table(a=_rows(3)), "--format", "cannot be read from csv", "conll", task="entities", options={"format": "csv"}
    ),
    "meaningless for the task": Case(
        _table(a=_rows(3)),
        "--markers",
        "means nothing for task 'classification'",
        "Leave it out",
        options={"markers": "instead"},
    ),
    "meaningless for the format": Case(
        _jsonl({"text": "x", "label": "y"}),
        "--quoting",
        "means nothing for task 'classification' read from jsonl",
        "Leave it out",
        options={"quoting": False},
    ),
    "unknown choice": Case(_table(a=_rows(3)), "--leaks", "'ignore' is unknown", "drop", options={"leaks": "ignore"}),
    "unfitting metric": Case(
        _table(a=_rows(3)), "--metric", "'entity_f1' does not fit", "macro_f1", options={"metric": "entity_f1"}
    ),
    "I- without B-": Case(
        _file("a.tsv", f"{SECRET}\tB-X\na\tO\nb\tI-X\n"), "a.tsv:3", "no B- before it", "--repair", task="entities"
    ),
    "unknown tag": Case(
        _file("a.tsv", f"{SECRET}\tB-X\na\tNN\n"), "a.tsv:2", "is not O", "Mend the tag", task="entities"
    ),
    "unfinished BIOES": Case(
        _file("a.tsv", f"{SECRET}\tS-X\na\tB-X\n\n"), "a.tsv:2", "the end (E- or L-)", "--scheme", task="entities"
    ),
    "no tag on a line": Case(_file("a.tsv", f"a\tO\n{SECRET}\n"), "a.tsv:2", "found 1", "every line", task="entities"),
    "no such column": Case(
        _file("a.tsv", "a\tO\n"), "a.tsv:1", "has 2 columns", "--tag-column", task="entities", options={"tag_column": 5}
    ),
    "no entities": Case(_file("a.tsv", "a\tO\n\nb\tO\n\nc\tO\n"), "", "no entities", "annotations", task="entities"),
    "span out of range": Case(
        _jsonl({"text": SECRET, "spans": [SPAN | {"end": 99}]}),
        "a.jsonl:1",
        "0-99 (X)",
        "exclusive end",
        task="entities",
    ),
    "overlapping spans": Case(
        _jsonl({"text": SECRET, "spans": [SPAN, SPAN | {"end": 7}]}),
        "a.jsonl:1",
        "0-5 (X) and 0-7 (X)",
        "--overlaps longest",
        task="entities",
    ),
    "words out of order": Case(
        _jsonl(*({"text": f"{SECRET} {n}", "spans": [SPAN], "words": [[6, 9], [0, 5]]} for n in range(5))),
        "a.jsonl:",
        "word 0-5 is out of order",
        "List words in order",
        task="entities",
    ),
    "no spans": Case(_jsonl({"text": SECRET}), "a.jsonl:1", "no 'spans'", "list of spans", task="entities"),
    "no text for annotation": Case(_pair("", None), "n.ann", "no n.txt", "beside it", task="entities"),
    "offset mismatch": Case(
        _pair(f"T1\tName 1 13\t{SECRET}\n"), "n.ann:1", "is not the text", "Mend the offsets", task="entities"
    ),
    "relation argument missing": Case(
        _pair(f"T1\tName 0 12\t{SECRET}\nR1\tHas Arg1:T1 Arg2:T2\n"),
        "n.ann:2",
        "T2 is not annotated",
        "T line",
        task="relations",
    ),
    "no relations": Case(_pair(f"T1\tName 0 12\t{SECRET}\n"), "", "no relations", "entities task", task="relations"),
    "unmarked sentence": Case(_table(a=_rows(3)), "a.csv:2", "between << and >>", "--marks", task="relations"),
    "bad argument types": Case(
        _pair("T1\tA 0 12\tQuillfeather\n"),
        "--arguments",
        "no pair of types",
        "Chemical:Gene",
        task="relations",
        options={"arguments": ["Chemical"]},
    ),
}


def _refused(case: Case, source: Path, out: Path, **options: Any) -> UserError:
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(UserError) as caught:
        prepare(case.task, source, out, **case.options, **options)  # type: ignore[arg-type]
    assert sorted(path.name for path in out.parent.iterdir()) == before, "something was left behind"
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "outs").mkdir()
    source = case.build(tmp_path / "in")
    error = _refused(case, source, tmp_path / "outs" / "out", **case.more(tmp_path / "in"))
    if case.place:
        assert case.place in str(error.place)
    assert case.problem in error.problem
    assert case.mend in error.mend
    assert "\n" not in str(error)
    assert SECRET not in str(error)
    assert not error.problem.endswith(".")


FINE = Case(_table(a=_rows(30)), "", "", "")


def test_out_is_in_use(tmp_path: Path) -> None:
    source = FINE.build(tmp_path)
    out = tmp_path / "outs" / "out"
    out.mkdir(parents=True)
    (out / "mine").touch()
    error = _refused(FINE, source, out)
    assert error.place == out
    assert "--overwrite" in error.mend
    assert (out / "mine").exists()


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FINE.build(tmp_path)
    (tmp_path / "outs").mkdir()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    error = _refused(FINE, source, tmp_path / "outs" / "out")
    assert "0 MB free" in error.problem
    assert "another disk" in error.mend


def test_writing_fails_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the disk fills up, or a permission is lacking that the superuser of a test machine never lacks."""
    source = FINE.build(tmp_path)
    (tmp_path / "outs").mkdir()
    for number in (errno.ENOSPC, errno.EACCES):

        def fail(path: Path, content: bytes, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", fail)
            error = _refused(FINE, source, tmp_path / "outs" / "out")
        assert f"cannot be written ({os.strerror(number)})" in error.problem
        assert "permissions and free space" in error.mend


def test_interrupted_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FINE.build(tmp_path)
    (tmp_path / "outs").mkdir()

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare("classification", source, tmp_path / "outs" / "out")
    assert list((tmp_path / "outs").iterdir()) == []


SEEDS = {
    "classification a.csv": ("text,label\n" + _rows(12)).encode(),
    "classification a.jsonl": b'{"text": "x", "label": "a"}\n{"text": "y", "label": 3}\n',
    "classification a.csv.gz": gzip.compress(("text,label\n" + _rows(12)).encode()),
    "relations a.tsv": b"text\tlabel\n" + b"".join(b"<< a >> %d [[ b ]]\t%d\n" % (n, n % 2) for n in range(9)),
    "entities a.tsv": b"".join(b"chest\tB-P\npain%d\tI-P\n\n" % n for n in range(9)),
    "entities a.jsonl": b'{"text": "chest pain", "spans": [[0, 5, "P"]], "words": [[0, 5], [6, 10]]}\n' * 3,
    "entities n.ann": b"T1\tX 0 3\tabc\nT2\tX 4 5;6 7\td e\nR1\tY Arg1:T1 Arg2:T2\nA1\tNeg T1\n#1\tNote T1\tz\n",
    "relations n.ann": b"T1\tX 0 3\tabc\nT2\tX 4 5;6 7\td e\nR1\tY Arg1:T1 Arg2:T2\nA1\tNeg T1\n#1\tNote T1\tz\n",
}


@pytest.mark.parametrize("seed", SEEDS)
@given(data=st.data())
@hypothesis.settings(max_examples=40, deadline=None)
def test_damaged_bytes_are_prepared_or_refused_in_one_sentence(seed: str, data: st.DataObject) -> None:
    task, name = seed.split()
    content = bytearray(SEEDS[seed])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 3)))
        content[start:end] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\t", b"\n", b'"', b"0", b"-", b";", b" "])
        )
    with tempfile.TemporaryDirectory() as folder:
        source, outs = Path(folder) / "in", Path(folder) / "outs"
        source.mkdir()
        outs.mkdir()
        (source / name).write_bytes(content)
        if name == "n.ann":
            (source / "n.txt").write_text("abc d e\nf")
        try:
            prepare(task, source, outs / "out")  # type: ignore[arg-type]
        except UserError as error:
            assert list(outs.iterdir()) == []
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert [path.name for path in outs.iterdir()] == ["out"]
