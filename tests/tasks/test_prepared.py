"""The contract on disk: written, read back, and refused when damaged."""

from __future__ import annotations

import json
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology import files
from posology.corpus.document import Document, Span
from posology.corpus.tags import snap, words_of
from posology.errors import UserError
from posology.tasks.prepared import SPLITS, PreparedTask, write_prepared


def _sentences(split: str) -> list[Document]:
    return [Document(f"{split}{n}", f"text {n} of {split}", f"patient{n}", label="ab"[n % 2]) for n in range(4)]


def _classification(folder: Path, **changes: Any) -> PreparedTask:
    settings: dict[str, Any] = {
        "name": "toy",
        "kind": "sequence-classification",
        "labels": ["a", "b"],
        "splits": {split: _sentences(split) for split in SPLITS},
    }
    return write_prepared(folder, **settings | changes)


def _entities(folder: Path, *documents: Document) -> PreparedTask:
    document = Document("x", "chest pain", words=[(0, 5), (6, 10)], spans=[Span(6, 10, "Problem")])
    splits = {
        split: [Document(split, document.text, "", words=document.words, spans=document.spans)] for split in SPLITS
    }
    splits["test"] += documents
    return write_prepared(folder, name="e", kind="token-classification", labels=["Problem"], splits=splits)


def test_classification_comes_back(tmp_path: Path) -> None:
    task = _classification(tmp_path / "out", notes={"n": 1}, source={"format": "csv"})
    assert task == PreparedTask.open(tmp_path / "out")
    assert (task.metric, task.labels, task.protocol) == ("macro_f1", ("a", "b"), "standard")
    assert task.counts == {"train": 4, "validation": 4, "test": 4}
    for split in SPLITS:
        found = task.documents(split)
        expected = _sentences(split)
        for document, wanted in zip(found, expected, strict=True):
            assert (document.id, document.text, document.group, document.label, document.text_pair, document.split) == (
                wanted.id, wanted.text, wanted.group, wanted.label, None, split,
            )  # fmt: skip
    assert task.documents("test")[2].place == f"{tmp_path / 'out' / 'test.parquet'}, row 3"
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_columns_are_those_of_the_contract(tmp_path: Path) -> None:
    _classification(tmp_path / "c")
    _entities(tmp_path / "e")
    assert pl.read_parquet_schema(tmp_path / "c" / "train.parquet") == dict.fromkeys(
        ("id", "group", "text", "label"), pl.String()
    )
    offsets = {"start": pl.Int64(), "end": pl.Int64()}
    assert pl.read_parquet_schema(tmp_path / "e" / "train.parquet") == {
        **dict.fromkeys(("id", "group", "text"), pl.String()),
        "words": pl.List(pl.Struct(offsets)),
        "spans": pl.List(pl.Struct(offsets | {"label": pl.String()})),
    }


def test_a_pair_makes_a_column_with_nulls_where_there_is_none(tmp_path: Path) -> None:
    splits = {split: _sentences(split) for split in SPLITS}
    splits["train"][1].text_pair = "second"
    task = _classification(tmp_path / "out", splits=splits)
    assert [document.text_pair for document in task.documents("train")] == [None, "second", None, None]


def test_the_fingerprint_depends_on_content_alone(tmp_path: Path) -> None:
    one = _classification(tmp_path / "a", name="one")
    two = _classification(tmp_path / "b", name="two", notes={"x": 1}, metric="auroc")
    other_order = _classification(tmp_path / "c", labels=["b", "a"])
    changed = {split: _sentences(split) for split in SPLITS}
    changed["test"][0].text += "!"
    other_text = _classification(tmp_path / "d", splits=changed)
    assert one.fingerprint == two.fingerprint
    assert len({one.fingerprint, other_order.fingerprint, other_text.fingerprint}) == 3


def _published(folder: Path, tags: list[str] | None, **changes: Any) -> PreparedTask:
    splits = {
        split: [Document(split, "chest pain", words=[(0, 5), (6, 10)], tags=tags, place=f"{split}.txt:1")]
        for split in SPLITS
    }
    known = {"name": "p", "kind": "token-classification", "labels": ["Problem"], "splits": splits, "unit": "piece"}
    return write_prepared(folder, **known | changes)


def test_published_tags_come_back(tmp_path: Path) -> None:
    task = _published(tmp_path / "out", ["O", "I-Problem"])
    assert PreparedTask.open(tmp_path / "out").unit == task.unit == "piece"
    assert task.documents("test")[0].tags == ["O", "I-Problem"]
    assert pl.read_parquet_schema(task.file("test"))["tags"] == pl.List(pl.String())
    assert _entities(tmp_path / "word").documents("test")[0].tags is None
    fingerprints = {
        _published(tmp_path / str(n), tags).fingerprint for n, tags in enumerate((["O", "O"], ["O", "I-Problem"]))
    }
    assert len(fingerprints) == 2 and task.fingerprint in fingerprints
    _set(tmp_path / "out", "unit", "word")
    assert PreparedTask.open(tmp_path / "out").fingerprint != task.fingerprint


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["O"], "train.txt:1: has 1 tags for 2 words"),
        (["O", "Problem"], "train.txt:1: tag 2 is 'Problem'"),
        (["O", "S-Problem"], "train.txt:1: tag 2 is 'S-Problem'"),
        (["B-Drug", "O"], "train.txt:1: split 'train' has label 'Drug'"),
        (["B-", "O"], "train.txt:1: the label is empty"),
    ],
)
def test_tags_that_break_the_contract_are_not_written(tmp_path: Path, tags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _published(tmp_path / "out", tags)
    assert not list(tmp_path.iterdir())


def test_tags_and_unit_go_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="if, and only if, the unit is piece"):
        _published(tmp_path / "out", None)
    with pytest.raises(ValueError, match="if, and only if, the unit is piece"):
        _published(tmp_path / "out", ["O", "O"], unit="word")
    with pytest.raises(ValueError, match="unit 'piece' does not fit"):
        _classification(tmp_path / "out", unit="piece")
    with pytest.raises(ValueError, match="unit 'line' does not fit"):
        _published(tmp_path / "out", ["O", "O"], unit="line")
    assert not list(tmp_path.iterdir())


def test_damaged_tags_are_found(tmp_path: Path) -> None:
    task = _published(tmp_path / "out", ["O", "O"])
    _rewrite(task.file("train"), lambda frame: frame.with_columns(tags=pl.Series([["O", None]])))
    with pytest.raises(UserError, match=r"row 1: column 'tags' has a null"):
        PreparedTask.open(tmp_path / "out").documents("train")
    _rewrite(task.file("train"), lambda frame: frame.drop("tags"))
    with pytest.raises(UserError, match="column 'tags' is missing"):
        PreparedTask.open(tmp_path / "out").documents("train")
    _classification(tmp_path / "c")
    _set(tmp_path / "c", "unit", "piece")
    with pytest.raises(UserError, match="field 'unit'"):
        PreparedTask.open(tmp_path / "c")


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.data())
@settings(max_examples=60, deadline=None)
def test_any_text_with_any_spans_comes_back(text: str, data: st.DataObject) -> None:
    words = words_of(text)
    if not words:
        return
    offsets = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).filter(lambda pair: pair[0] < pair[1])
    spans = snap(words, [Span(*pair, "Problem") for pair in data.draw(st.lists(offsets, max_size=4))])
    with tempfile.TemporaryDirectory() as folder:
        task = _entities(Path(folder) / "out", Document("any", text, "g", words=words, spans=spans))
        found = task.documents("test")[-1]
    assert (found.text, found.words, found.spans, found.group) == (text, words, spans, "g")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("t", "abc", words=[(0, 4)]), r"word 0-4 is out of order or outside the text of 3 characters"),
        (Document("t", "abc", words=[(1, 3), (0, 1)]), r"word 0-1 is out of order"),
        (Document("t", "abc", words=[(0, 2), (1, 3)]), r"word 1-3 is out of order"),
        (Document("t", "abc", words=[(1, 1)]), r"word 1-1 is out of order"),
        (Document("t", "abc"), r"the text has no words"),
        (
            Document("t", "abc", words=[(0, 3)], spans=[Span(0, 9, "Problem")]),
            r"span 0-9 \(Problem\) is empty or outside",
        ),
        (Document("t", "abc", words=[(0, 3)], spans=[Span(2, 2, "Problem")]), r"span 2-2 \(Problem\) is empty"),
        (
            Document("t", "abc", words=[(0, 3)], spans=[Span(-1, 2, "Problem")]),
            r"span -1-2 \(Problem\) is empty or outside",
        ),
        (
            Document("t", "abc", words=[(0, 3)], spans=[Span(1, 3, "Problem"), Span(0, 2, "Problem")]),
            r"document 't' has overlapping spans, 0-2 \(Problem\) and 1-3 \(Problem\)",
        ),
        (Document("t", "abc", words=[(0, 3)], spans=[Span(0, 3, "Drug")]), r"split 'test' has label 'Drug'"),
        (Document("train", "abc", words=[(0, 3)]), r"id 'train' is also at train, row 1"),
        (Document("", "abc", words=[(0, 3)]), r"the id is empty"),
        (Document("t", "a\ud800", words=[(0, 2)]), r"contains half of a surrogate pair"),
    ],
)
def test_documents_that_break_the_contract_are_not_written(tmp_path: Path, document: Document, message: str) -> None:
    with pytest.raises(UserError, match="^test, row 2: " + message):
        _entities(tmp_path / "out", document)
    assert list(tmp_path.iterdir()) == []


def _rewrite(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Changes a Parquet file and its sum, so that only the check of its content can notice."""
    change(pl.read_parquet(path)).write_parquet(path)
    _restate_sum(path)


def _restate_sum(path: Path) -> None:
    task = json.loads((path.parent / "task.json").read_text())
    task["sha256"][path.stem] = files.sha256(path)
    (path.parent / "task.json").write_text(json.dumps(task))


def _set(folder: Path, field: str, value: Any) -> None:
    task = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(task | {field: value}))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])
    _restate_sum(path)


def _swap_rows(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([frame[:1], frame[:1], frame[2:]])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no task.json": (lambda f: (f / "task.json").unlink(), r"out: is no prepared task \(task\.json is missing\)"),
    "garbage": (lambda f: (f / "task.json").write_bytes(b"\xff{"), r"task\.json: is not the JSON object"),
    "a list": (lambda f: (f / "task.json").write_text("[]"), r"task\.json: is not the JSON object"),
    "empty": (lambda f: (f / "task.json").write_text("{}"), r"task\.json: field 'name'"),
    "kind": (lambda f: _set(f, "kind", "regression"), r"task\.json: field 'kind'"),
    "labels": (lambda f: _set(f, "labels", ["a", "a"]), r"task\.json: field 'labels' is empty or repeats"),
    "metric": (lambda f: _set(f, "metric", "entity_f1"), r"task\.json: field 'metric'"),
    "splits": (lambda f: _set(f, "counts", {"train": 1}), r"task\.json: field 'counts' must have exactly"),
    "file missing": (lambda f: (f / "test.parquet").unlink(), r"test\.parquet: the file is missing"),
    "file changed": (
        lambda f: (f / "test.parquet").write_bytes((f / "train.parquet").read_bytes()),
        r"test\.parquet: its SHA-256",
    ),
    "truncated": (lambda f: _truncate(f / "train.parquet"), r"train\.parquet: is no readable Parquet"),
    "no column": (lambda f: _rewrite(f / "train.parquet", lambda d: d.drop("text")), r"column 'text' is missing"),
    "type": (
        lambda f: _rewrite(f / "train.parquet", lambda d: d.with_columns(label=pl.lit(1))),
        r"column 'label' has type Int32 and must have String",
    ),
    "null": (
        lambda f: _rewrite(f / "train.parquet", lambda d: d.with_columns(label=pl.Series(["a", None, "a", "b"]))),
        r"train\.parquet, row 2: column 'label' has a null",
    ),
    "label": (
        lambda f: _rewrite(f / "train.parquet", lambda d: d.with_columns(label=pl.Series(["a", "b", "c", "b"]))),
        r"train\.parquet, row 3: split 'train' has label 'c'",
    ),
    "twice": (
        lambda f: _rewrite(f / "train.parquet", _swap_rows),
        r"train\.parquet, row 2: id 'train0' is also at .* 1",
    ),
    "short": (lambda f: _rewrite(f / "train.parquet", lambda d: d[:2]), r"has 2 rows and task\.json states 4"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    _classification(tmp_path / "out").documents("train")
    change, message = DAMAGE[damage]
    change(tmp_path / "out")
    with pytest.raises(UserError, match=message) as caught:
        PreparedTask.open(tmp_path / "out").documents("train")
    assert str(caught.value).startswith(str(tmp_path / "out"))
    assert "posology prepare" in caught.value.mend or caught.value.mend.startswith(("Mend", "Make"))


def test_a_null_inside_a_list_is_found(tmp_path: Path) -> None:
    task = _entities(tmp_path / "out")
    nulls = [[{"start": None, "end": 3}]]
    _rewrite(
        task.file("train"),
        lambda frame: frame.with_columns(words=pl.Series(nulls, dtype=frame.schema["words"])),
    )
    with pytest.raises(UserError, match=r"row 1: column 'words' has a null"):
        PreparedTask.open(tmp_path / "out").documents("train")


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        PreparedTask.open(tmp_path / "nowhere")
    task = _classification(tmp_path / "out")
    with pytest.raises(UserError, match=r"there is no split 'dev'\. Name one of train, validation, test"):
        task.documents("dev")
    with pytest.raises(UserError, match=r"metric 'f1' does not fit.*Choose one of macro_f1"):
        _classification(tmp_path / "other", metric="f1")
    assert not (tmp_path / "other").exists()
