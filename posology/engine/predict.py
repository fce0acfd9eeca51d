"""Artifacts at work: documents in, labels or entities with scores out, whatever the size of the input."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from posology import console
from posology.corpus import tabular
from posology.corpus.document import Document
from posology.corpus.textfile import read_text
from posology.engine.artifact import load
from posology.engine.decode import softmax
from posology.engine.model import Answers, Model
from posology.engine.shared import Readers
from posology.errors import UserError
from posology.files import check_writable, staged_file

_INPUTS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
_OUTPUTS = (".jsonl", ".csv", ".parquet")
_BLOCK_CHARACTERS, _BLOCK_DOCUMENTS = 2**21, 2**14
"""What is read, answered and written at a time: enough to sort texts by length, little beside any model."""

Row = dict[str, Any]


def predict(
    artifact: Path | str,
    input: Path | str,
    out: Path | str,
    *,
    also: list[Path] | None = None,
    text: str | None = None,
    id: str | None = None,
    text_pair: str | None = None,
    encoding: str = "utf-8",
    quoting: bool = True,
    drop_empty: bool = False,
    backbone: str | None = None,
    with_text: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Predicts for every document of a file or folder, in its order; they may be more than fit into memory.

    The output, readable by its owner only, has for each document `id` and, for a classifier, `label`, `score` and
    `probabilities` (by label); for a tagger `spans`, each with start, end, label and score, in characters of the text.
    In CSV the nested columns are JSON. Several artifacts (`also`) read each text together; then a row has, beside
    `id`, such an object for each artifact under its folder's name.

    Args:
        artifact: a folder that `train` wrote.
        input: JSON Lines, CSV, TSV or Parquet (also .gz for the text formats), or a folder of .txt files.
        out: .jsonl, .csv or .parquet.
        also: a further artifact that answers the same documents; may be given several times.
        text: column of the text; guessed where only one is called text, sentence or note.
        id: column of the id; rows are numbered without it. In a folder the file's name is the id.
        text_pair: column of a second text.
        encoding: of text files.
        quoting: whether double quotes enclose fields of CSV and TSV.
        drop_empty: leave out rows without text instead of refusing them.
        backbone: where the backbone is, if not where it was in training.
        with_text: copy the text into the output.
        overwrite: replace `out`.

    Returns:
        `out`, `documents`, `coverage` and, by label, how often it was `found`; for several artifacts the last two
        under `artifacts` by name.

    Raises:
        UserError: the input cannot be read; nothing is written.
    """
    out = Path(out)
    if out.suffix not in _OUTPUTS:
        raise UserError(f"has the ending {out.suffix!r}", f"Give a name that ends in {', '.join(_OUTPUTS)}", out)
    if out.exists() and not overwrite:
        raise UserError("exists", "Name another file or add --overwrite", out)
    source = Path(input)
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError("is the input", "Name another file for the answers", out)
    check_writable(out, 0)
    folders = [Path(artifact), *map(Path, also or [])]
    names = _names(folders)
    columns = tabular.Columns(text=text, id=id, text_pair=text_pair)
    inputs = Inputs(source, columns, encoding=encoding, quoting=quoting, drop_empty=drop_empty)
    models = [load(folder, backbone=backbone) for folder in folders]
    for folder, model in zip(folders, models, strict=True):
        _check_pairs(model, inputs.paired, folder)
    readers = Readers(models)
    tallies = [_Tally(model) for model in models]
    total = inputs.documents * len(models)
    schema = _schema(models, names, with_text)
    with _writer(out, schema) as write, console.progress("predicting", total) as advance:
        for block in inputs.blocks():
            answers = readers.answer(block, advance)
            found = [rows_of(model, own) for model, own in zip(models, answers, strict=True)]
            for tally, own, rows in zip(tallies, answers, found, strict=True):
                tally.add(own, rows)
            write(_joined(block, names, found, with_text))
    console.say(f"{inputs.documents:,} documents, {min(tally.coverage for tally in tallies):.1%} of their text read")
    result: dict[str, Any] = {"out": str(out), "documents": inputs.documents}
    if len(models) == 1:
        return result | tallies[0].record()
    return result | {"artifacts": {name: tally.record() for name, tally in zip(names, tallies, strict=True)}}


def _names(folders: Sequence[Path]) -> list[str]:
    """What the artifacts are called in the output."""
    names = [folder.resolve().name for folder in folders]
    taken = next((name for name, times in Counter([*names, "id", "text"]).items() if times > 1), None)
    if len(folders) > 1 and taken is not None:
        problem = "a column has that name" if taken in ("id", "text") else "two artifacts have that name"
        raise UserError(f"{problem}, and rows hold answers by the name of the folder", "Rename the folder", taken)
    return names


def _check_pairs(model: Model, paired: bool, folder: Path) -> None:
    if paired != model.text_pair:
        found, wanted = ("pairs", "single texts") if paired else ("single texts", "pairs")
        raise UserError(
            f"was trained on {wanted}, and the input has {found}",
            "Name, or leave out, the column with --text-pair",
            folder,
        )


class _Tally:
    """What was found so far by one model."""

    def __init__(self, model: Model):
        self._found: dict[str, int] = dict.fromkeys(model.labels, 0)
        self._read = self._all = 0.0

    @property
    def coverage(self) -> float:
        """The share of the text that was read."""
        return self._read / self._all if self._all else 1.0

    def add(self, answers: Answers, rows: Sequence[Row]) -> None:
        """Counts a block."""
        for row in rows:
            for label in [row["label"]] if "label" in row else [span["label"] for span in row["spans"]]:
                self._found[label] += 1
        size = sum(len(document.text) + len(document.text_pair or "") for document in answers.documents)
        self._read += answers.coverage * size
        self._all += size

    def record(self) -> dict[str, Any]:
        """What `predict` returns of it."""
        return {"coverage": self.coverage, "found": self._found}


def rows_of(model: Model, answers: Answers) -> list[Row]:
    """What a model says of each document: `label`, `score` and `probabilities`, or `spans`."""
    if model.kind == "sequence-classification":
        probabilities = softmax(np.stack(answers.logits))
        best = probabilities.argmax(axis=1)
        return [
            {
                "label": model.labels[top],
                "score": values[top],
                "probabilities": dict(zip(model.labels, values, strict=True)),
            }
            for top, values in zip(best.tolist(), probabilities.tolist(), strict=True)
        ]
    # Most sentences have no entity: where O is every word's most probable tag there is nothing to decode.
    some = [bool((values.argmax(axis=1) != 0).any()) for values in answers.logits]
    chosen = [position for position, any_entity in enumerate(some) if any_entity]
    decoded = model.spans(
        [answers.documents[position] for position in chosen], [answers.logits[position] for position in chosen]
    )
    rows: list[Row] = [{"spans": []} for _ in answers.logits]
    for position, (spans, scores) in zip(chosen, decoded, strict=True):
        rows[position]["spans"] = [
            {**span._asdict(), "score": score} for span, score in zip(spans, scores, strict=True)
        ]
    return rows


def _joined(
    documents: Sequence[Document], names: Sequence[str], found: Sequence[Sequence[Row]], with_text: bool
) -> list[Row]:
    """Rows of the output, from what each model says of each document."""
    rows = []
    for document, *own in zip(documents, *found, strict=True):
        row = {"id": document.id, **(own[0] if len(own) == 1 else dict(zip(names, own, strict=True)))}
        rows.append(row | {"text": document.text} if with_text else row)
    return rows


class Inputs:
    """Unlabelled documents of a table or of a folder of .txt files. All are checked beforehand, none is kept.

    Args:
        source: JSON Lines, CSV, TSV, Parquet (.gz for the text formats), or a folder.
        columns: of the table.
        encoding: of text files.
        quoting: whether double quotes enclose fields of CSV and TSV.
        drop_empty: leave out rows without text.

    Attributes:
        documents: how many there are.
        paired: whether some have a second text.

    Raises:
        UserError: something cannot be read, with its row.
    """

    def __init__(
        self,
        source: Path,
        columns: tabular.Columns,
        *,
        encoding: str = "utf-8",
        quoting: bool = True,
        drop_empty: bool = False,
    ):
        self._source, self._encoding, self._quoting, self._drop_empty = source, encoding, quoting, drop_empty
        self._paths: list[Path] | None = None
        self._columns, self._format = columns, ""
        if source.is_dir():
            self._paths = sorted(source.glob("*.txt"))
            if not self._paths:
                raise UserError("has no .txt files", "Give a folder of .txt files, or a table", source)
        else:
            self._open_table()
        self.documents, self.paired = 0, False
        for document in self:
            self.documents += 1
            self.paired |= document.text_pair is not None
        if not self.documents:
            raise UserError("has no row with text", "Give a file with at least one document", source)

    def _open_table(self) -> None:
        source = self._source
        if not source.is_file():
            raise UserError("does not exist", "Check the path", source)
        bare = self._bare()
        if bare.suffix not in _INPUTS:
            raise UserError(
                f"has the ending {bare.suffix!r}",
                f"Give one of {', '.join(_INPUTS)}, or a folder of .txt files",
                source,
            )
        self._format = _INPUTS[bare.suffix]
        records = self._records()
        first = next(records, None)
        if first is None:
            raise UserError("has no rows", "Give a file with at least one document", source)
        # Only in JSON Lines may later rows have other columns.
        known = chain([first], records if self._format == "jsonl" else ())
        self._columns = tabular.resolve(self._columns, known, needs_label=False, place=source)

    def __iter__(self) -> Iterator[Document]:
        if self._paths is not None:
            for path in self._paths:
                yield Document(id=path.stem, text=read_text(path, self._encoding), place=str(path))
        else:
            yield from tabular.documents(
                self._records(), self._columns, name=self._bare().stem, drop_empty=self._drop_empty
            )

    def blocks(self) -> Iterator[list[Document]]:
        """The documents, some at a time."""
        block: list[Document] = []
        characters = 0
        for document in self:
            block.append(document)
            characters += len(document.text) + len(document.text_pair or "")
            if characters >= _BLOCK_CHARACTERS or len(block) == _BLOCK_DOCUMENTS:
                yield block
                block, characters = [], 0
        if block:
            yield block

    def _bare(self) -> Path:
        return self._source.with_suffix("") if self._source.suffix == ".gz" else self._source

    def _records(self) -> Iterator[tabular.Record]:
        return tabular.stream_records(self._source, self._format, quoting=self._quoting, encoding=self._encoding)


def _schema(models: Sequence[Model], names: Sequence[str], with_text: bool) -> dict[str, Any]:
    """The columns of the output."""
    span = pl.Struct({"start": pl.Int64, "end": pl.Int64, "label": pl.String, "score": pl.Float64})
    columns: list[dict[str, Any]] = [
        {
            "label": pl.String,
            "score": pl.Float64,
            "probabilities": pl.Struct(dict.fromkeys(model.labels, pl.Float64)),
        }
        if model.kind == "sequence-classification"
        else {"spans": pl.List(span)}
        for model in models
    ]
    own = columns[0] if len(models) == 1 else dict(zip(names, map(pl.Struct, columns), strict=True))
    return {"id": pl.String, **own, **({"text": pl.String} if with_text else {})}


@contextlib.contextmanager
def _writer(out: Path, schema: dict[str, Any]) -> Iterator[Callable[[list[Row]], None]]:
    """Yields what writes rows, some at a time, into a file that appears as a whole and is its owner's only."""
    with staged_file(out) as staging:
        if out.suffix == ".parquet":
            with _parquet_writer(staging, schema) as write:
                yield write
        else:
            with open(staging, "w", encoding="utf-8") as stream:
                yield _jsonl_writer(stream) if out.suffix == ".jsonl" else _csv_writer(stream, schema)
        os.chmod(staging, 0o600)


def _jsonl_writer(stream: IO[str]) -> Callable[[list[Row]], None]:
    encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes a new encoder for every row
    return lambda rows: stream.writelines(f"{encode(row)}\n" for row in rows)


def _csv_writer(stream: IO[str], schema: dict[str, Any]) -> Callable[[list[Row]], None]:
    nested = [name for name, kind in schema.items() if isinstance(kind, pl.Struct | pl.List)]
    flat = schema | dict.fromkeys(nested, pl.String)
    stream.write(pl.DataFrame(schema=flat).write_csv())

    def write(rows: list[Row]) -> None:
        cells = [row | {name: json.dumps(row[name], ensure_ascii=False) for name in nested} for row in rows]
        stream.write(pl.DataFrame(cells, schema=flat).write_csv(include_header=False))

    return write


@contextlib.contextmanager
def _parquet_writer(staging: Path, schema: dict[str, Any]) -> Iterator[Callable[[list[Row]], None]]:
    """Polars cannot add to a Parquet file: parts are written beside it, and joined without reading them all at once."""
    with tempfile.TemporaryDirectory(prefix=f"{staging.name}.", dir=staging.parent) as folder:
        parts: list[Path] = []

        def write(rows: list[Row]) -> None:
            buffer = io.BytesIO()  # on a full disk polars raises an error of its own, and bytes an OSError
            pl.DataFrame(rows, schema=schema).write_parquet(buffer)
            parts.append(Path(folder, f"{len(parts)}.parquet"))
            parts[-1].write_bytes(buffer.getvalue())

        yield write
        try:
            pl.scan_parquet(parts).sink_parquet(staging)
        except pl.exceptions.PolarsError as error:
            raise OSError("the parts could not be joined") from error
