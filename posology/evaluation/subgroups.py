"""Results apart by what is known of documents or patients: sex, ward, year, kind of note."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posology.corpus.tabular import stream_records
from posology.errors import UserError
from posology.evaluation.metrics import ClassificationScores, EntityScores
from posology.evaluation.statistics import intervals

SMALL = 30
"""Results on fewer groups (patients) than this are flagged: a convention, see docs/statistics.md."""

MOST_VALUES = 50
NOT_GIVEN = "(not given)"
_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}


def by_column(
    scores: ClassificationScores | EntityScores,
    values: Sequence[str | None],
    groups: Sequence[str],
    *,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Every metric, with its interval, of the documents that have the same value.

    Each subset is scored as if it were all there is: macro averages are over the classes found in it, so they compare
    only between subsets that have the same classes.

    Args:
        scores: of n documents.
        values: (n,), None where it is not known.
        groups: (n,) the group of each document.
        seed, level: as in `intervals`.

    Returns:
        By value, in order, those not known last as `NOT_GIVEN`: `{"value", "low", "high"}` by metric, `documents`,
        `groups`, and `small`: there are fewer than `SMALL` groups.

    Raises:
        UserError: there are more than `MOST_VALUES` values.
        ValueError: lengths differ.
    """
    if not len(values) == len(groups) == len(scores):
        raise ValueError(f"{len(values)} values and {len(groups)} groups were given for {len(scores)} documents")
    labels = np.array([NOT_GIVEN if value is None else str(value) for value in values])
    found = sorted(set(labels.tolist()), key=lambda label: (label == NOT_GIVEN, label))
    if len(found) > MOST_VALUES:
        raise UserError(
            f"{len(found)} values are too many to be scored one by one",
            f"Give a column of at most {MOST_VALUES} values, numbers as ranges",
            "--by",
        )
    names = np.asarray(groups)
    result: dict[str, dict[str, Any]] = {}
    for label in found:
        rows = np.flatnonzero(labels == label)
        inside = names[rows].tolist()
        patients = len(set(inside))
        result[label] = {
            **intervals(scores.part(rows), inside, seed=seed, level=level),
            "documents": len(rows),
            "groups": patients,
            "small": patients < SMALL,
        }
    return result


def read_column(table: Path | str, column: str, ids: Sequence[str], groups: Sequence[str]) -> list[str | None]:
    """What a table says of each document: joined by its column `id`, or, if it has none, by its column `group`.

    Args:
        table: CSV, TSV, JSON Lines or Parquet.
        column: which of its columns.
        ids, groups: (n,) of the documents.

    Returns:
        (n,), None where the table does not name the document or has no value.

    Raises:
        UserError: the table cannot be read, has no such columns, contradicts itself, or names none of the documents.
    """
    path = Path(table)
    if path.suffix.lower() not in _FORMATS:
        raise UserError("is no table", f"Give a file that ends in {', '.join(_FORMATS)}", path)
    if not path.is_file():
        raise UserError("there is no such file", "Check its path", path)
    key, known = "", dict[str, str | None]()
    for place, record, _ in stream_records(path, _FORMATS[path.suffix.lower()]):
        key = key or next((name for name in ("id", "group") if name in record), "")
        if not key:
            raise UserError(
                f"has neither of the columns id and group, by which documents are found (but {', '.join(record)})",
                "Name one of its columns so",
                path,
            )
        if column not in record:
            raise UserError(
                f"has no column {column!r} (but {', '.join(record)})", "Name one of them, or another --table", path
            )
        name, value = str(record[key]), record[column]
        said = None if value is None or value == "" else str(value)
        if known.setdefault(name, said) != said:
            raise UserError(f"says something else of the same {key} as an earlier row", "Give each one value", place)
    values = [known.get(name) for name in (ids if key == "id" else groups)]
    if all(value is None for value in values):
        raise UserError(
            f"names none of the {len(ids)} documents in its column {key!r}", "Give a table of these documents", path
        )
    return values
