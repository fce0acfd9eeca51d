"""Unlabelled documents of any number, read some at a time."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from posology.corpus import tabular
from posology.corpus.document import Document
from posology.corpus.textfile import read_text
from posology.errors import UserError

_INPUTS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
_BLOCK_CHARACTERS, _BLOCK_DOCUMENTS = 2**21, 2**14
"""What is read, answered and written at a time: enough to sort texts by length, little beside any model."""
_ID = "id"
_ROWS_AHEAD = 1000
"""Rows that tell the columns of JSON Lines."""
_BYTES_AT_ONCE = 2**20


class Rejected(NamedTuple):
    """A row that cannot be read.

    Attributes:
        row: its number, from 1.
        id: where it has one.
        place: the file's name and, where it has lines, the line.
        reason: never quotes text.
    """

    row: int
    id: str | None
    place: str
    reason: str


@dataclass
class Block:
    """Rows that are read, answered and written together.

    Attributes:
        documents: in order.
        rejected: the other rows.
        rows: how many rows of the input end with this block, empty ones that are left out included.
    """

    documents: list[Document] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    rows: int = 0


class Inputs:
    """The documents of a table or of a folder of .txt files. None is kept.

    Args:
        source: JSON Lines, CSV, TSV, Parquet (.gz for the text formats), or a folder.
        columns: of the table.
        encoding: of text files.
        quoting: whether double quotes enclose fields of CSV and TSV.
        drop_empty: leave out rows without text.
        strict: read everything beforehand, and refuse all where a row cannot be read; else such rows are rejected one by
            one.
        guess_id: where no column of the id is named, take the one that is called id; rows that have none are numbered.

    Attributes:
        documents: how many there are; None where that is not known beforehand.
        paired: whether they have a second text.

    Raises:
        UserError: the file cannot be read; where strict, a row cannot.
    """

    def __init__(
        self,
        source: Path,
        columns: tabular.Columns,
        *,
        encoding: str = "utf-8",
        quoting: bool = True,
        drop_empty: bool = False,
        strict: bool = False,
        guess_id: bool = False,
    ):
        self.source, self._encoding, self._quoting, self._drop_empty = source, encoding, quoting, drop_empty
        self._strict, self._guess_id = strict, guess_id
        self.paths: list[Path] | None = None
        self._columns, self._format = columns, ""
        self.documents: int | None = None
        if source.is_dir():
            self.paths = sorted(source.glob("*.txt"))
            if not self.paths:
                raise UserError("has no .txt files", "Give a folder of .txt files, or a table", source)
        else:
            self._open_table()
        self.paired = self._columns.text_pair is not None
        if strict:
            self._check()

    def _open_table(self) -> None:
        source = self.source
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
        ahead = None if self._strict else _ROWS_AHEAD
        known = [first] if self._format != "jsonl" else islice(chain([first], records), ahead)
        self._columns = tabular.resolve(self._columns, known, needs_label=False, place=source)

    def _check(self) -> None:
        """Reads everything once."""
        self.documents, paired = 0, False
        for _, found in self._rows():
            if isinstance(found, Document):
                self.documents += 1
                paired |= found.text_pair is not None
        self.paired = paired
        if not self.documents:
            raise UserError("has no row with text", "Give a file with at least one document", self.source)

    def blocks(self, skip: int = 0) -> Iterator[Block]:
        """The rows after the first `skip`, some at a time."""
        block = Block()
        characters = 0
        for row, found in self._rows(skip):
            block.rows = row
            if isinstance(found, Rejected):
                block.rejected.append(found)
            elif found is not None:
                block.documents.append(found)
                characters += len(found.text) + len(found.text_pair or "")
            held = len(block.documents) + len(block.rejected)
            if characters >= _BLOCK_CHARACTERS or held >= _BLOCK_DOCUMENTS:
                yield block
                block, characters = Block(), 0
        if block.rows:
            yield block

    def fingerprint(self) -> tuple[dict[str, Any], int | None]:
        """What the input is, and about how many rows it has; None where that would take long to find out.

        For a file, the SHA-256 of its bytes; for a folder, of the names, sizes and times of its files.
        """
        if self.paths is not None:
            digest = hashlib.sha256()
            for path in self.paths:
                known = path.stat()
                digest.update(f"{path.name}\0{known.st_size}\0{known.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
            return {"files": len(self.paths), "sha256": digest.hexdigest()}, len(self.paths)
        try:
            return self._fingerprint()
        except (OSError, EOFError, zlib.error) as error:
            problem = error.strerror if isinstance(error, OSError) and error.strerror else "is it complete?"
            raise UserError(
                f"cannot be read ({problem})", "Check its permissions, or copy it again", self.source
            ) from error

    def _fingerprint(self) -> tuple[dict[str, Any], int | None]:
        digest, ends, inside = hashlib.sha256(), 0, False
        quoted = self._quoting and self._format in ("csv", "tsv")
        packed = self.source.suffix == ".gz"
        unpack = zlib.decompressobj(16 + zlib.MAX_WBITS) if packed else None
        with open(self.source, "rb") as stream:
            while content := stream.read(_BYTES_AT_ONCE):
                digest.update(content)
                if self._format == "parquet" or unpack is not None:
                    continue
                if not quoted:
                    ends += content.count(b"\n")
                    continue
                for part in content.split(b'"'):  # line ends between quotes end no row
                    ends += 0 if inside else part.count(b"\n")
                    inside = not inside
                inside = not inside  # the last part goes on in what follows
        identity = {"bytes": self.source.stat().st_size, "sha256": digest.hexdigest()}
        if self._format == "parquet":
            import polars as pl

            return identity, int(pl.scan_parquet(self.source).select(pl.len()).collect().item())
        if packed:
            with gzip.open(self.source) as unpacked:
                while content := unpacked.read(_BYTES_AT_ONCE):
                    ends += content.count(b"\n")
        return identity, max(1, ends - quoted)

    def _rows(self, skip: int = 0) -> Iterator[tuple[int, Document | Rejected | None]]:
        """Number and document of each row after the first `skip`; None for one that is left out."""
        if self.paths is not None:
            for number, path in islice(enumerate(self.paths, start=1), skip, None):
                yield number, self._read_file(number, path)
            return
        name = self._bare().stem
        for number, record in islice(enumerate(self._records(), start=1), skip, None):
            try:
                found = tabular.document(record, number, self._columns, name=name, drop_empty=self._drop_empty)
                if found is not None:
                    found.id = self._id(record) or found.id
                    _check_characters(found, self._encoding)
            except UserError as error:
                if self._strict:
                    raise
                yield number, Rejected(number, self._id(record), Path(record.place).name, error.problem)
                continue
            yield number, found

    def _read_file(self, number: int, path: Path) -> Document | Rejected:
        try:
            return Document(id=path.stem, text=read_text(path, self._encoding), place=str(path))
        except UserError as error:
            if self._strict:
                raise
            return Rejected(number, path.stem, path.name, error.problem)

    def _id(self, record: tabular.Record) -> str | None:
        column = self._columns.id or (_ID if self._guess_id else None)
        value = record.values.get(column) if column else None
        if isinstance(value, float) and value.is_integer():  # whole numbers in a column that has gaps
            value = int(value)
        readable = isinstance(value, str | int) and not isinstance(value, bool)
        return str(value) if readable and len(str(value)) <= tabular.LONGEST_NAME else None

    def _bare(self) -> Path:
        return self.source.with_suffix("") if self.source.suffix == ".gz" else self.source

    def _records(self) -> Iterator[tabular.Record]:
        return tabular.stream_records(
            self.source, self._format, quoting=self._quoting, encoding=self._encoding, lenient=not self._strict
        )


def _check_characters(document: Document, encoding: str) -> None:
    """Raises UserError where a text has lone surrogates: bytes that could not be decoded, or half a character."""
    for text in (document.text, document.text_pair, document.id, document.group):
        if text is None or text.isascii():
            continue
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"has what is no character of {encoding} (character {error.start} of a column)",
                "Convert the file, or name its encoding, such as --encoding latin-1",
                document.place,
            ) from error
