"""A prepared task on disk: `task.json` and a card beside `train/validation/test.parquet`, the only input of training."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from posology import __version__, files
from posology.corpus.document import Document, Span
from posology.corpus.tags import first_overlap
from posology.errors import UserError
from posology.tasks.card import task_card

if TYPE_CHECKING:
    import polars as pl

SPLITS = ("train", "validation", "test")
KINDS = ("sequence-classification", "token-classification")
METRICS = {
    "sequence-classification": ("macro_f1", "micro_f1", "weighted_f1", "accuracy", "auroc", "average_precision"),
    "token-classification": ("entity_f1",),
}
"""The metrics that may choose a checkpoint, by kind; the first is the default."""

UNITS = ("word", "piece")

TASK_FILE = "task.json"


@dataclass(frozen=True)
class PreparedTask:
    """What is known about a prepared task; its documents stay on disk until asked for.

    Attributes:
        folder: where it lies.
        name: what people call it.
        kind: one of `KINDS`.
        labels: classes, or entity types without B- and I-, in the order of the model's outputs.
        metric: the metric that chooses a checkpoint.
        protocol: `standard` or `paper`.
        source: format, options, names and SHA-256 of the files it was made from, without absolute paths.
        counts: documents of each split.
        sha256: SHA-256 of each split's Parquet file.
        notes: leak report, how splits were made, and counts of what was dropped or repaired.
        version: version of the program that prepared it.
        unit: what entities are learnt and scored by: whole words, strictly; or the pieces that a tokenizer cuts words
            into, each with the published tag of its word, as the paper's code has it.
    """

    folder: Path
    name: str
    kind: Literal["sequence-classification", "token-classification"]
    labels: tuple[str, ...]
    metric: str
    protocol: Literal["standard", "paper"]
    counts: dict[str, int]
    sha256: dict[str, str]
    source: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    unit: Literal["word", "piece"] = "word"

    @classmethod
    def open(cls, folder: Path | str) -> PreparedTask:
        """Reads `task.json` and checks that the three Parquet files are those it was written with.

        Raises:
            UserError: anything is missing, unreadable or changed.
        """
        folder = Path(folder)
        path = folder / TASK_FILE
        if not folder.is_dir():
            raise UserError("there is no such folder", "Name a folder that `posology prepare` has written", folder)
        if not path.is_file():
            raise UserError(
                f"is no prepared task ({TASK_FILE} is missing)",
                "Name a folder that `posology prepare` has written",
                folder,
            )
        task = _parse(path, folder)
        for split in SPLITS:
            parquet = task.file(split)
            if not parquet.is_file():
                raise UserError("the file is missing", "Run `posology prepare` again", parquet)
            if files.sha256(parquet) != task.sha256[split]:
                raise UserError(
                    f"its SHA-256 is not the one that {TASK_FILE} states, so it was changed or damaged",
                    "Run `posology prepare` again",
                    parquet,
                )
        return task

    @property
    def fingerprint(self) -> str:
        """SHA-256 over kind, labels, unit and the sums of the splits: equal for equal tasks, whatever they are called."""
        content: list[Any] = [self.kind, self.labels, [self.sha256[split] for split in SPLITS]]
        if self.unit != "word":
            content.append(self.unit)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def file(self, split: str) -> Path:
        """The Parquet file of a split."""
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}", f"Name one of {', '.join(SPLITS)}")
        return self.folder / f"{split}.parquet"

    def documents(self, split: str) -> list[Document]:
        """Reads and checks one split.

        Raises:
            UserError: the file or a row of it breaks the contract.
        """
        path = self.file(split)
        frame = _read_parquet(path, self.kind, self.unit)
        seen: dict[str, str] = {}
        documents = []
        for number, row in enumerate(frame.iter_rows(named=True), start=1):
            place = f"{path}, row {number}"
            _check_nulls(row, place)
            document = Document(
                id=row["id"],
                group=row["group"],
                text=row["text"],
                label=row.get("label"),
                text_pair=row.get("text_pair"),
                words=[(word["start"], word["end"]) for word in row.get("words", ())],
                spans=[Span(span["start"], span["end"], span["label"]) for span in row.get("spans", ())],
                tags=row["tags"] if self.unit == "piece" else None,
                split=split,
                place=place,
            )
            _check_document(document, place, split, self.kind, self.labels, self.unit, seen)
            documents.append(document)
        if len(documents) != self.counts[split]:
            raise UserError(
                f"has {len(documents)} rows and {TASK_FILE} states {self.counts[split]}",
                "Run `posology prepare` again",
                path,
            )
        return documents


def write_prepared(
    folder: Path,
    *,
    name: str,
    kind: str,
    labels: Sequence[str],
    splits: Mapping[str, Sequence[Document]],
    metric: str | None = None,
    protocol: str = "standard",
    source: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    unit: str = "word",
    overwrite: bool = False,
) -> PreparedTask:
    """Checks everything, then writes a prepared task in one stroke.

    Args:
        folder: must be new or empty, unless `overwrite`.
        labels: in the order that the model's outputs will have.
        splits: the documents of train, validation and test; ids are unique over all three.
        metric: one of `METRICS[kind]`, by default the first.
        unit: one of `UNITS`; documents have `tags` if it is `piece`, and only then.

    Raises:
        UserError: a document breaks the contract, or the folder cannot be written.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {KINDS}")
    if unit not in UNITS or (unit == "piece" and kind != "token-classification"):
        raise ValueError(f"unit {unit!r} does not fit a {kind} task")
    metric = metric or METRICS[kind][0]
    check_metric(metric, kind)
    _check_splits(kind, labels, unit, splits)
    needs_bytes = 2**20 + sum(_estimated_bytes(document) for split in SPLITS for document in splits[split])
    with files.staged_folder(Path(folder), marker=TASK_FILE, needs_bytes=needs_bytes, overwrite=overwrite) as staging:
        for split in SPLITS:
            _write_parquet(staging / f"{split}.parquet", kind, unit, splits[split])
        content = {
            "name": name,
            "kind": kind,
            "labels": list(labels),
            "metric": metric,
            "protocol": protocol,
            "counts": {split: len(splits[split]) for split in SPLITS},
            "sha256": {split: files.sha256(staging / f"{split}.parquet") for split in SPLITS},
            "source": dict(source or {}),
            "notes": dict(notes or {}),
            "version": __version__,
            "unit": unit,
        }
        files.write_json(staging / TASK_FILE, content)
        (staging / "README.md").write_text(task_card(content), encoding="utf-8")
    return PreparedTask.open(folder)


def check_metric(metric: str, kind: str) -> None:
    """Raises UserError if `metric` cannot choose a checkpoint of such a task."""
    if metric not in METRICS[kind]:
        raise UserError(
            f"metric {metric!r} does not fit a {kind} task", f"Choose one of {', '.join(METRICS[kind])}", "--metric"
        )


def _parse(path: Path, folder: Path) -> PreparedTask:
    import pydantic

    again = "Run `posology prepare` again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", "Check its permissions", path) from error
    except ValueError as error:  # JSON and UTF-8 errors are both ValueErrors
        raise UserError("is not the JSON object that `posology prepare` writes", again, path) from error
    try:
        task = pydantic.TypeAdapter(PreparedTask).validate_python(content | {"folder": folder})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise UserError(f"field {where!r}: {first['msg']}", again, path) from error
    for name, value in (("counts", task.counts), ("sha256", task.sha256)):
        if set(value) != set(SPLITS):
            raise UserError(f"field {name!r} must have exactly the keys {', '.join(SPLITS)}", again, path)
    if not task.labels or len(set(task.labels)) != len(task.labels):
        raise UserError("field 'labels' is empty or repeats a label", again, path)
    if task.metric not in METRICS[task.kind]:
        raise UserError(f"field 'metric': {task.metric!r} does not fit a {task.kind} task", again, path)
    if task.unit == "piece" and task.kind != "token-classification":
        raise UserError(f"field 'unit': {task.unit!r} does not fit a {task.kind} task", again, path)
    return task


def _check_splits(kind: str, labels: Sequence[str], unit: str, splits: Mapping[str, Sequence[Document]]) -> None:
    if set(splits) != set(SPLITS):
        raise ValueError(f"splits must be exactly {SPLITS}, not {tuple(splits)}")
    for split in SPLITS:
        if not splits[split]:
            raise UserError(f"split {split!r} has no documents", "Give more documents or other splits")
    if len(set(labels)) != len(labels) or not all(labels):
        raise ValueError("labels must be unique and not empty")
    if kind == "sequence-classification" and len(labels) < 2:
        raise UserError(
            f"found {len(labels)} class, and at least 2 are needed to learn something",
            "Check that --label names the right column, and add documents of another class",
        )
    if kind == "token-classification" and not labels:
        raise UserError("the training split has no entities", "Check the annotations or the splits")
    seen: dict[str, str] = {}
    for split in SPLITS:
        for number, document in enumerate(splits[split], start=1):
            _check_document(document, document.place or f"{split}, row {number}", split, kind, labels, unit, seen)


def _check_document(
    document: Document, place: str, split: str, kind: str, labels: Sequence[str], unit: str, seen: dict[str, str]
) -> None:
    """Raises UserError for the first thing that breaks the contract; `seen` maps the ids met so far to their places."""
    if not document.id:
        raise UserError("the id is empty", "Give every document an id", place)
    check_unique(document, place, seen)
    strings = (document.id, document.group, document.text, document.text_pair, document.label)
    if not all(_encodable(value or "") for value in (*strings, *(span.label for span in document.spans))):
        raise UserError("contains half of a surrogate pair, which is no character", "Mend the encoding", place)
    if kind == "sequence-classification":
        if not document.text.strip():
            raise UserError("the text is empty", "Remove the document or add --drop-empty", place)
        _check_label(document.label, labels, split, place)
        return
    _check_offsets(document, place)
    for span in document.spans:
        _check_label(span.label, labels, split, place)
    if (document.tags is None) == (unit == "piece"):
        raise ValueError(f"{place}: a document has tags if, and only if, the unit is piece")
    if document.tags is not None:
        _check_tags(document.tags, len(document.words), labels, split, place)


def _check_tags(tags: Sequence[str], words: int, labels: Sequence[str], split: str, place: str) -> None:
    if len(tags) != words:
        raise UserError(f"has {len(tags)} tags for {words} words", "Give every word one tag", place)
    for number, tag in enumerate(tags, start=1):
        if tag == "O":
            continue
        if tag[:2] not in ("B-", "I-"):
            raise UserError(f"tag {number} is {tag!r}", "Give O, or B- or I- and a label", place)
        _check_label(tag[2:], labels, split, place)


def _check_nulls(row: Mapping[str, Any], place: str) -> None:
    for name, value in row.items():
        items = value if isinstance(value, list) else []
        null_inside = any(item is None or (isinstance(item, dict) and None in item.values()) for item in items)
        if null_inside or (value is None and name != "text_pair"):
            raise UserError(f"column {name!r} has a null", "Run `posology prepare` again", place)


def _check_label(label: str | None, labels: Sequence[str], split: str, place: str) -> None:
    if label is None or label == "":
        raise UserError("the label is empty", "Remove the document or add --drop-empty", place)
    if label not in labels:
        raise UserError(
            f"split {split!r} has label {label!r}, which the training split lacks",
            "Mend the label, choose other splits, or add --unknown-labels drop",
            place,
        )


def _check_offsets(document: Document, place: str) -> None:
    length = len(document.text)
    if not document.words:
        raise UserError("the text has no words", "Remove the document or add --drop-empty", place)
    last = 0
    for start, end in document.words:
        if not last <= start < end <= length:
            raise UserError(
                f"word {start}-{end} is out of order or outside the text of {length} characters",
                "List words in order, without overlaps, with offsets in characters from 0 and an exclusive end",
                place,
            )
        last = end
    for span in document.spans:
        check_span(span, length, place)
    overlap = first_overlap(document.spans)
    if overlap:
        raise overlap_error(document.id, *overlap, place)


def check_unique(document: Document, place: str, seen: dict[str, str]) -> None:
    """Raises UserError if the document's id is in `seen`, which maps ids to places; adds it otherwise."""
    if document.id in seen:
        raise UserError(
            f"id {document.id!r} is also at {seen[document.id]}",
            "Make ids unique, or leave out --id to number the documents",
            place,
        )
    seen[document.id] = place


def check_span(span: Span, length: int, place: object) -> None:
    """Raises UserError if the span is empty or reaches outside a text of `length` characters."""
    if not 0 <= span.start < span.end <= length:
        raise UserError(
            f"span {span.start}-{span.end} ({span.label}) is empty or outside the text of {length} characters",
            "Give offsets in characters from 0 with an exclusive end",
            place,
        )


def overlap_error(id: str, first: Span, second: Span, place: object) -> UserError:
    """The message for two spans that share a character."""
    return UserError(
        f"document {id!r} has overlapping spans, {first.start}-{first.end} ({first.label}) and "
        f"{second.start}-{second.end} ({second.label})",
        "Mend the annotation, or add --overlaps longest to keep the longer one",
        place,
    )


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _estimated_bytes(document: Document) -> int:
    text = len(document.text) + len(document.text_pair or "")
    return 3 * text + 24 * len(document.words) + 64 * len(document.spans) + 64


def _schema(kind: str, unit: str, with_pair: bool) -> dict[str, pl.DataType]:
    import polars as pl

    schema: dict[str, Any] = {"id": pl.String(), "group": pl.String(), "text": pl.String()}
    if kind == "sequence-classification":
        if with_pair:
            schema["text_pair"] = pl.String()
        return schema | {"label": pl.String()}
    offsets: dict[str, Any] = {"start": pl.Int64(), "end": pl.Int64()}
    labelled = offsets | {"label": pl.String()}
    schema |= {"words": pl.List(pl.Struct(offsets)), "spans": pl.List(pl.Struct(labelled))}
    return schema | {"tags": pl.List(pl.String())} if unit == "piece" else schema


def _write_parquet(path: Path, kind: str, unit: str, documents: Sequence[Document]) -> None:
    import polars as pl

    schema = _schema(kind, unit, any(document.text_pair is not None for document in documents))
    rows = list(_rows(kind, documents, schema))
    buffer = io.BytesIO()  # on a full disk polars itself raises an error of its own, and bytes an OSError
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(buffer, compression="zstd")
    path.write_bytes(buffer.getvalue())


def _rows(kind: str, documents: Sequence[Document], schema: Mapping[str, pl.DataType]) -> Iterator[tuple[Any, ...]]:
    for document in documents:
        values: dict[str, Any] = {}
        if kind == "token-classification":
            values["words"] = [{"start": start, "end": end} for start, end in document.words]
            values["spans"] = [span._asdict() for span in sorted(document.spans)]
        yield tuple(values[name] if name in values else getattr(document, name) for name in schema)


def _read_parquet(path: Path, kind: str, unit: str) -> pl.DataFrame:
    import polars as pl

    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError("is no readable Parquet file", "Run `posology prepare` again", path) from error
    for name, dtype in _schema(kind, unit, "text_pair" in frame.columns).items():
        if name not in frame.columns:
            raise UserError(f"column {name!r} is missing", "Run `posology prepare` again", path)
        if frame.schema[name] != dtype:
            raise UserError(
                f"column {name!r} has type {frame.schema[name]} and must have {dtype}",
                "Run `posology prepare` again",
                path,
            )
    return frame
