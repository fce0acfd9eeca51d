"""Tables of documents: CSV and TSV with or without quoting, JSON Lines, Parquet."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from posology.corpus.document import Document, Span
from posology.corpus.textfile import read_lines
from posology.errors import UserError

TEXT_NAMES = ("text", "sentence", "note")
LABEL_NAMES = ("label", "class", "category", "target")
_LONGEST_HEADER, _WORDS_OF_A_HEADER = 40, 3
LONGEST_NAME = 100
"""Characters that a column's name, a label, a group or an id may have."""
_LONGEST_FIELD = 2**28
"""Characters of a field in CSV and TSV: with a quote that is never closed, the rest of a file would be one."""
_ROWS_AT_ONCE = 4096
_NEVER_CLOSED = "unexpected end of data"
"""What `csv` says of a quote that is open where the file ends."""


class Record(NamedTuple):
    """One row: where it was read, and its values by column; an empty field of CSV or TSV is None.

    Where rows are read leniently, one that cannot be read has no values, but its problem.
    """

    place: str
    values: Mapping[str, Any]
    problem: UserError | None = None


@dataclass(frozen=True)
class Columns:
    """Which column holds what. None means: guess it (text, label) or do without.

    Names are matched exactly, then without regard to case.
    """

    text: str | None = None
    label: str | None = None
    group: str | None = None
    id: str | None = None
    text_pair: str | None = None


def read_records(path: Path, format: str, *, quoting: bool = True, encoding: str = "utf-8") -> list[Record]:
    """The rows of a table, all at once; see `stream_records`.

    Raises:
        UserError: the file cannot be parsed, or has no rows.
    """
    records = list(stream_records(path, format, quoting=quoting, encoding=encoding))
    if not records:
        raise UserError("has no rows", "Give a file with at least one document", path)
    return records


def stream_records(
    path: Path, format: str, *, quoting: bool = True, encoding: str = "utf-8", lenient: bool = False
) -> Iterator[Record]:
    """The rows of a table, one by one: a file may be larger than memory.

    Args:
        format: `csv`, `tsv`, `jsonl` or `parquet`.
        quoting: in CSV and TSV, whether double quotes enclose fields; without, they are ordinary characters.
        lenient: a row that cannot be read is yielded with its problem, and the others follow; bytes that cannot be decoded
            are lone surrogates ("surrogateescape").

    Raises:
        UserError: the file cannot be parsed, once the fault is reached.
    """
    if format == "parquet":
        return _parquet(path)
    if format == "jsonl":
        return _jsonl(path, encoding, lenient)
    return _delimited(path, encoding, "," if format == "csv" else "\t", quoting, lenient)


def resolve(columns: Columns, records: Iterable[Record], *, needs_label: bool, place: object) -> Columns:
    """The true column names behind the given or guessable ones.

    Raises:
        UserError: a named column is missing or ambiguous, or text or label is not named and cannot be guessed.
    """
    names: dict[str, None] = {}
    for record in records:
        names.update(dict.fromkeys(record.values))
    found = list(names)
    text = _find("text", columns.text, found, place) or _guess("text", TEXT_NAMES, found, place)
    label = _find("label", columns.label, found, place)
    if needs_label and label is None:
        label = _guess("label", LABEL_NAMES, found, place)
    return Columns(
        text=text,
        label=label,
        group=_find("group", columns.group, found, place),
        id=_find("id", columns.id, found, place),
        text_pair=_find("text-pair", columns.text_pair, found, place),
    )


def documents(
    records: Iterable[Record],
    columns: Columns,
    *,
    name: str,
    annotated: bool = False,
    drop_empty: bool = False,
    counts: Counter[str] | None = None,
) -> Iterator[Document]:
    """Turns rows into documents.

    Args:
        columns: as `resolve` gives them.
        name: what made-up ids begin with, before the number of the row.
        annotated: read `spans` (objects with start, end, label, or such triples) and optional `words` (start, end)
            instead of a label.
        drop_empty: leave out rows without text or label, counted in `counts` as `dropped_empty`.

    Raises:
        UserError: a value is missing or of the wrong type.
    """
    counts = counts if counts is not None else Counter()
    for number, record in enumerate(records, start=1):
        found = document(record, number, columns, name=name, annotated=annotated, drop_empty=drop_empty)
        if found is None:
            counts["dropped_empty"] += 1
        else:
            yield found


def document(
    record: Record, number: int, columns: Columns, *, name: str, annotated: bool = False, drop_empty: bool = False
) -> Document | None:
    """Turns row `number`, from 1, into a document; None where it is empty and to be left out. See `documents`."""
    place, values, problem = record
    if problem is not None:
        raise problem
    text = _text(values, columns.text, place)
    label = _scalar(values, columns.label, place)
    missing = columns.text if not (text or "").strip() else columns.label if columns.label and not label else None
    if missing is not None:
        if drop_empty:
            return None
        raise UserError(f"column {missing!r} is empty", "Fill it, or add --drop-empty to leave such rows out", place)
    if columns.id and not _scalar(values, columns.id, place):
        raise UserError(f"column {columns.id!r} is empty", "Fill it, or leave out --id to number the rows", place)
    return Document(
        id=_scalar(values, columns.id, place) or f"{name}-{number}",
        group=_scalar(values, columns.group, place) or "",
        text=text or "",
        label=label,
        text_pair=_text(values, columns.text_pair, place),
        words=_words(values, place) if annotated else [],
        spans=_spans(values, place) if annotated else [],
        place=place,
    )


def _delimited(path: Path, encoding: str, delimiter: str, quoting: bool, lenient: bool) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_FIELD)  # notes are longer than the module's limit of 128 kB
    reader = csv.reader(
        read_lines(path, encoding, universal=True, errors="surrogateescape" if lenient else "strict"),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )
    header: list[str] | None = None
    while True:
        place = f"{path}:{reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            problem = UserError(
                "the row that begins here has a quote that is never closed, or one in the middle of a field",
                "Mend the quotes (double a quote inside a quoted field), or add --no-quoting",
                place,
            )
            # A quote that is never closed has taken the rest of the file with it, which is more than a row.
            if not lenient or header is None or str(error) == _NEVER_CLOSED:
                raise problem from error
            yield Record(place, {}, problem)
            continue
        if row is None:
            break
        if not row:
            continue
        if header is None:
            header = [name.strip() for name in row]
            repeated = next((name for name, times in Counter(header).items() if times > 1), None)
            if repeated is not None:
                raise UserError(f"column {_shown(repeated)} occurs twice", "Rename one of them", place)
            continue
        if len(row) != len(header):
            problem = UserError(
                f"has {len(row)} fields and the header has {len(header)}",
                "Quote fields with separators or line breaks in them, or add --no-quoting if quotes are just signs",
                place,
            )
            if not lenient:
                raise problem
            yield Record(place, {}, problem)
            continue
        yield Record(place, {name: value or None for name, value in zip(header, row, strict=True)})
    if header is None:
        raise UserError("is empty", "Give a file with a header line and one row for each document", path)


def _jsonl(path: Path, encoding: str, lenient: bool) -> Iterator[Record]:
    errors = "surrogateescape" if lenient else "strict"
    for number, line in enumerate(read_lines(path, encoding, errors=errors), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = Record(place, _object(line, place))
        except UserError as problem:
            if not lenient:
                raise
            record = Record(place, {}, problem)
        yield record


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise UserError("is no valid JSON", "Write one JSON object on each line", place) from error
    except RecursionError as error:
        raise UserError("is nested too deeply", "Write one flat JSON object on each line", place) from error
    if not isinstance(values, dict):
        raise UserError("is JSON but no object", "Write one JSON object on each line", place)
    return values


def _parquet(path: Path) -> Iterator[Record]:
    import polars as pl

    number = 0
    try:
        for frame in pl.scan_parquet(path).collect_batches(chunk_size=_ROWS_AT_ONCE):
            for row in frame.iter_rows(named=True):
                number += 1
                yield Record(f"{path}, row {number}", row)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError("is no complete Parquet file", "Write or copy it again", path) from error


def _find(role: str, wanted: str | None, found: Sequence[str], place: object) -> str | None:
    if wanted is None:
        return None
    if wanted in found:
        return wanted
    alike = [name for name in found if name.casefold() == wanted.casefold()]
    if len(alike) != 1:
        problem = f"there is no column {wanted!r}" if not alike else f"columns {_listed(alike)} differ in case only"
        raise UserError(f"{problem}; found {_listed(found)}", f"Mend --{role}", place)
    return alike[0]


def _guess(role: str, names: Sequence[str], found: Sequence[str], place: object) -> str:
    likely = [name for name in found if name.casefold() in names]
    if len(likely) != 1:
        problem = "no column is" if not likely else f"{len(likely)} columns are"
        raise UserError(
            f"{problem} named {', '.join(names)}, so the {role} is not clear; found columns {_listed(found)}",
            f"Name the column with --{role}",
            place,
        )
    return likely[0]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(_shown(name) for name in names[:30])
    return shown + (f" and {len(names) - 30} more" if len(names) > 30 else "")


def _shown(name: str) -> str:
    """A column's name; where a table has no header, its first line may be a note, which no message shows."""
    short = len(name) <= _LONGEST_HEADER and len(name.split()) <= _WORDS_OF_A_HEADER
    return repr(name) if short else f"(a name of {len(name)} characters)"


def _text(values: Mapping[str, Any], column: str | None, place: str) -> str | None:
    value = values.get(column) if column else None
    if value is not None and not isinstance(value, str):
        raise UserError(f"column {column!r} has a {type(value).__name__} where a text was expected", "Mend it", place)
    return value


def _scalar(values: Mapping[str, Any], column: str | None, place: str) -> str | None:
    """A label, group or id as a string: numbers and truth values are accepted as JSON would write them."""
    value = values.get(column) if column else None
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if value is not None and not isinstance(value, str):
        found = f"a {type(value).__name__}"
    elif value is not None and len(value) > LONGEST_NAME:  # a note: it must not turn up in messages as a label
        found = f"a text of {len(value)} characters"
    else:
        return value
    raise UserError(
        f"column {column!r} has {found} where a label, group or id was expected", "Name another column", place
    )


def _words(values: Mapping[str, Any], place: str) -> list[tuple[int, int]]:
    items = _items(values, "words", 2, place)
    return [(_offset(start, "words", place), _offset(end, "words", place)) for start, end in items]


def _spans(values: Mapping[str, Any], place: str) -> list[Span]:
    if values.get("spans") is None:
        raise UserError(
            "has no 'spans'", "Give every row a list of spans (start, end, label), empty where there is none", place
        )
    spans = []
    for start, end, label in _items(values, "spans", 3, place):
        if not isinstance(label, str) or not label:
            raise UserError("a span has no label", "Give every span start, end and label", place)
        spans.append(Span(_offset(start, "spans", place), _offset(end, "spans", place), label))
    return spans


def _items(values: Mapping[str, Any], column: str, size: int, place: str) -> Iterator[list[Any]]:
    """The items of a list column, each an object or a list, as lists of `size` values."""
    fields = ("start", "end", "label")[:size]
    items = values.get(column) or []
    if not isinstance(items, list):
        raise UserError(f"column {column!r} has a {type(items).__name__} where a list was expected", "Mend it", place)
    for item in items:
        if isinstance(item, Mapping) and all(name in item for name in fields):
            yield [item[name] for name in fields]
        elif isinstance(item, list) and len(item) == size:
            yield item
        else:
            raise UserError(f"column {column!r} has an item without {' and '.join(fields)}", "Mend it", place)


def _offset(value: Any, column: str, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(
            f"column {column!r} has an offset that is no whole number", "Give offsets in characters from 0", place
        )
    return value
