"""Hugging Face `datasets`: folders written by `save_to_disk`, and, if asked for, ids on the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from posology.corpus.conll import Sentence
from posology.corpus.tabular import Record
from posology.errors import UserError

if TYPE_CHECKING:
    import datasets

TOKEN_NAMES = ("tokens", "words")
TAG_NAMES = ("ner_tags", "tags", "labels")


def is_dataset(folder: Path) -> bool:
    """Whether a folder looks like what `save_to_disk` writes."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def load(source: Path | str, *, online: bool = False) -> dict[str, datasets.Dataset]:
    """The splits of a dataset by the names they have there; one without splits is called `all`.

    Args:
        source: a folder, or, with `online`, a hub id.

    Raises:
        UserError: `datasets` is not installed, or the dataset cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "reading a Hugging Face dataset needs the package `datasets`", "Run pip install 'posology[hub]'", source
        ) from error
    try:
        loaded = datasets.load_dataset(str(source)) if online else datasets.load_from_disk(str(source))
    except Exception as error:  # the library raises errors of many kinds, from Arrow's to the network's
        mend = "Check the id and the network" if online else "Write it again with save_to_disk"
        raise UserError(f"the dataset cannot be loaded ({type(error).__name__})", mend, source) from error
    return dict(loaded) if isinstance(loaded, Mapping) else {"all": loaded}


def records(dataset: datasets.Dataset, place: str) -> list[Record]:
    """Rows as a table has them, with the names of classes instead of their numbers."""
    names = {column: feature.names for column, feature in dataset.features.items() if hasattr(feature, "names")}
    found = []
    for number, row in enumerate(dataset, start=1):
        values = dict(row)
        for column, classes in names.items():
            values[column] = _class_name(row[column], classes)
        found.append(Record(f"{place}, row {number}", values))
    return found


def sentences(
    dataset: datasets.Dataset,
    *,
    name: str,
    place: str,
    tokens: str | None = None,
    tags: str | None = None,
    group: str | None = None,
    id: str | None = None,
) -> list[Sentence]:
    """Rows with a list of tokens and a list of tags, which may be class numbers.

    Args:
        tokens: its column; None looks for one of `TOKEN_NAMES`.
        tags: likewise with `TAG_NAMES`.
        group: column of the group.
        id: column of the id; None numbers the rows.

    Raises:
        UserError: there are no such columns, or a row does not fit.
    """
    token_column = _column(dataset, tokens, TOKEN_NAMES, "text", place)
    tag_column = _column(dataset, tags, TAG_NAMES, "label", place)
    group_column = _column(dataset, group, (), "group", place) if group else None
    id_column = _column(dataset, id, (), "id", place) if id else None
    classes = getattr(getattr(dataset.features[tag_column], "feature", None), "names", None)
    found = []
    for number, row in enumerate(dataset, start=1):
        where = f"{place}, row {number}"
        words, values = row[token_column], row[tag_column]
        if not isinstance(words, list) or not isinstance(values, list) or len(words) != len(values):
            raise UserError(
                f"columns {token_column!r} and {tag_column!r} are not two lists of the same length",
                "Mend the row, or name other columns with --text and --label",
                where,
            )
        if not words:
            continue
        labels = [str(_class_name(value, classes)) if classes else str(value) for value in values]
        row_id = str(row[id_column]) if id_column else f"{name}-{number}"
        row_group = str(row[group_column]) if group_column else ""
        found.append(Sentence(row_id, row_group, [str(word) for word in words], labels, [where] * len(words)))
    return found


def _class_name(value: int | None, classes: Sequence[str]) -> str | None:
    """-1 is how `datasets` writes a class that is not known."""
    return classes[value] if value is not None and 0 <= value < len(classes) else None


def _column(dataset: datasets.Dataset, wanted: str | None, names: Sequence[str], role: str, place: str) -> str:
    found = [name for name in dataset.column_names if name == wanted or (wanted is None and name in names)]
    if len(found) != 1:
        raise UserError(
            f"the column for --{role} is not clear; found columns {', '.join(map(repr, dataset.column_names))}",
            f"Name it with --{role}",
            place,
        )
    return found[0]
