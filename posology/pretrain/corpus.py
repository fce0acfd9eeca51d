"""Unlabelled text, one document at a time: a corpus may be larger than memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from posology.corpus import csvblocks, tabular
from posology.corpus.document import Document
from posology.corpus.textfile import entries_of, read_text
from posology.errors import UserError

_TABLES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
_NOTEEVENTS = "noteevents"
_UNPACKED = 3
_FORMS = f"{', '.join(_TABLES)} (.gz for the text formats), a folder of .txt files, or NOTEEVENTS.csv(.gz) of MIMIC-III"


class Corpus:
    """The documents of files and folders, in the order in which these are named.

    Rows without text, and notes that MIMIC-III says were filed by mistake, are left out and counted. The group of a
    document is its patient, and empty where its file does not say who that is.

    Args:
        sources: tables, folders of .txt files, NOTEEVENTS tables or folders that hold one.
        columns: of tables: text, and optionally group and id; guessed as `posology prepare` guesses them.
        encoding: of text files.
        quoting: whether double quotes enclose fields of CSV and TSV.

    Attributes:
        counts: of the last pass: `dropped_empty`, `dropped_error`.

    Raises:
        UserError: nothing is there, or it is of no form that can be read; of a row only when it is reached.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        columns: tabular.Columns | None = None,
        *,
        encoding: str = "utf-8",
        quoting: bool = True,
    ):
        self._encoding, self._quoting = encoding, quoting
        self.counts: Counter[str] = Counter()
        self._parts: list[tuple[str, Path, tabular.Columns]] = []
        for source in sources:
            self._parts += self._open(source, columns or tabular.Columns())

    def stamp(self) -> list[list[object]]:
        """Name, bytes and time of change of each file, and how it is read: the corpus changes only with this list."""
        found: list[list[object]] = [[self._encoding, self._quoting]]
        for _, path, columns in self._parts:
            state = path.stat()
            found.append([str(path.absolute()), state.st_size, state.st_mtime_ns, columns.text, columns.group])
        return found

    @property
    def bytes(self) -> int:
        """Of all files, unpacked: notes become about a third by gzip."""
        return sum((_UNPACKED if path.suffix == ".gz" else 1) * path.stat().st_size for _, path, _ in self._parts)

    def __iter__(self) -> Iterator[Document]:
        self.counts.clear()
        for kind, path, columns in self._parts:
            for document in self._read(kind, path, columns):
                _check_characters(document)
                if kind != _NOTEEVENTS and columns.group is None:
                    document.group = ""
                yield document

    def _read(self, kind: str, path: Path, columns: tabular.Columns) -> Iterator[Document]:
        if kind == "text":
            text = read_text(path, self._encoding)
            if text.strip():
                yield Document(id=path.stem, text=text, place=str(path))
            else:
                self.counts["dropped_empty"] += 1
        elif kind == _NOTEEVENTS:
            yield from _notes(path, self.counts)
        else:
            records = tabular.stream_records(path, kind, quoting=self._quoting, encoding=self._encoding)
            yield from tabular.documents(records, columns, name=_bare(path).stem, drop_empty=True, counts=self.counts)

    def _open(self, source: Path, columns: tabular.Columns) -> list[tuple[str, Path, tabular.Columns]]:
        if source.is_dir():
            entries = entries_of(source)
            tables = [path for path in entries if _is_noteevents(path)]
            texts = [path for path in entries if _bare(path).suffix == ".txt"]
            if tables:
                return [(_NOTEEVENTS, tables[0], tabular.Columns(text="text", group="subject_id"))]
            if not texts:
                raise UserError("has no .txt files and no NOTEEVENTS table", f"Give {_FORMS}", source)
            return [("text", path, tabular.Columns()) for path in texts]
        if not source.is_file():
            raise UserError("does not exist", "Check the path", source)
        if _is_noteevents(source):
            return [(_NOTEEVENTS, source, tabular.Columns(text="text", group="subject_id"))]
        ending = _bare(source).suffix
        if ending == ".txt":
            raise UserError("is one text file, which would be one document", f"Give {_FORMS}", source)
        if ending not in _TABLES:
            raise UserError(f"has the ending {ending!r}", f"Give {_FORMS}", source)
        records = tabular.stream_records(source, _TABLES[ending], quoting=self._quoting, encoding=self._encoding)
        first = next(records, None)
        if first is None:
            raise UserError("has no rows", "Give a file with at least one document", source)
        wanted = tabular.Columns(text=columns.text, group=columns.group, id=columns.id)
        return [(_TABLES[ending], source, tabular.resolve(wanted, [first], needs_label=False, place=source))]


def documents(
    source: Path | str,
    columns: tabular.Columns | None = None,
    *,
    encoding: str = "utf-8",
    quoting: bool = True,
) -> Iterator[Document]:
    """The documents of one file or folder; see `Corpus`."""
    return iter(Corpus([Path(source)], columns, encoding=encoding, quoting=quoting))


def blocks(
    documents: Iterator[Document], characters: int, advance: Callable[[int], None] = lambda _: None
) -> Iterator[list[Document]]:
    """Documents some at a time.

    Args:
        documents: in any number.
        characters: of a block, but for the last document that is added.
        advance: is told the characters of each block.
    """
    block: list[Document] = []
    held = 0
    for document in documents:
        block.append(document)
        held += len(document.text)
        if held >= characters:
            yield block
            advance(held)
            block, held = [], 0
    if block:
        yield block
        advance(held)


def _notes(path: Path, counts: Counter[str]) -> Iterator[Document]:
    """The notes of a NOTEEVENTS table, of every category."""
    for frame in csvblocks.read_blocks(path, ("subject_id", "iserror", "text"), lambda _: None, 2**23):
        for row, subject, error, text in frame.iter_rows():
            if (error or "").strip() in ("1", "1.0"):
                counts["dropped_error"] += 1
            elif not (text or "").strip():
                counts["dropped_empty"] += 1
            else:
                text = text.replace("\r\n", "\n")
                yield Document(id=f"row-{row}", group=(subject or "").strip(), text=text, place=f"{path}, row {row}")


def _check_characters(document: Document) -> None:
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the character at {error.start:,} of the text is half of one (a lone surrogate), which no encoding has",
            "Write the file anew with whole characters, or leave the row out",
            document.place,
        ) from None


def _is_noteevents(path: Path) -> bool:
    return path.is_file() and path.name.lower().removesuffix(".gz") == f"{_NOTEEVENTS}.csv"


def _bare(path: Path) -> Path:
    """The path without `.gz`."""
    return path.with_suffix("") if path.suffix == ".gz" else path
