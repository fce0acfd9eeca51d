"""Large CSV files in bounded memory: blocks of whole rows, quoted line breaks and all, parsed by polars.

The grammar is RFC 4180's: fields that hold a quote, a comma or a line break are quoted, quotes inside are doubled. So a
line break ends a row exactly where the quotes before it are even in number, and every quote has a place where it may
stand, which is checked before parsing.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from posology.errors import UserError

BLOCK_BYTES = 32 * 2**20
_LONGEST_ROW = 256 * 2**20
_COMMA, _QUOTE, _LF, _CR = (ord(sign) for sign in ',"\n\r')


def read_blocks(
    path: Path, columns: Sequence[str], advance: Callable[[int], None], block_bytes: int = BLOCK_BYTES
) -> Iterator[pl.DataFrame]:
    """Yields the rows of a `.csv` or `.csv.gz` file in frames of about `block_bytes`, at least one frame.

    Frames have `row` (from 1, without the header), then `columns` as text, with null for an empty field. Lines
    without any field are skipped.

    Args:
        columns: lower-case names; the header may be in either case and have more.
        advance: is told how many bytes of the file were read.

    Raises:
        UserError: the file cannot be read, a column is missing, or a row is broken (with its line).
    """
    header: list[str] | None = None
    rows = 0
    for line, block in _whole_rows(path, block_bytes, advance):
        if header is None:
            first, _, block = block.partition(b"\n")
            header = _header(first, columns, path)
            line += 1
        _check_quotes(block, line, path)  # after the header, whose fault is more likely and easier to tell
        frame = _parsed(block, header, columns, line, path).with_row_index("row", rows + 1)
        rows += frame.height
        yield frame
    if header is None:
        raise UserError("is empty", "Give the table with its header", path)


def _header(line: bytes, columns: Sequence[str], path: Path) -> list[str]:
    try:
        (fields,) = csv.reader([line.decode()], strict=True)
    except (ValueError, csv.Error) as error:  # ValueError: no UTF-8, or an empty line
        raise UserError("the first line is no CSV header", "Give the table with its header", f"{path}:1") from error
    names = [name.strip().lower() for name in fields]
    repeated = [name for name, number in Counter(names).items() if number > 1 and name in columns]
    missing = [name for name in columns if name not in names]
    # What should be a header may be a note: only what looks like a name is shown.
    shown = ", ".join(name for name in names if name.isidentifier() and len(name) <= 30)
    if missing or repeated:
        problem = f"column {missing[0].upper()} is missing" if missing else f"column {repeated[0].upper()} occurs twice"
        expected = ", ".join(columns)
        raise UserError(
            f"{problem}: found {shown or 'nothing'}; needed are {expected}", "Give the table as downloaded", f"{path}:1"
        )
    return names


def _whole_rows(path: Path, block_bytes: int, advance: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """Yields `(line, rows)`: the number of the first line, from 1, and rows up to a line break that ends one.

    Whether quotes stand where they may is for the caller to check.
    """
    pending, line = b"", 1
    for content in _contents(path, block_bytes, advance):
        pending += content
        end = _end_of_rows(pending)
        if end:
            rows, pending = pending[:end], pending[end:]
            yield line, rows
            line += rows.count(b"\n")
        elif len(pending) > _LONGEST_ROW:
            _check_quotes(pending + b"\n", line, path)
            raise UserError("the row that begins here is too long", "Check that it is a CSV file", f"{path}:{line}")
    if pending:
        yield line, pending if pending.endswith(b"\n") else pending + b"\n"


def _contents(path: Path, block_bytes: int, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The bytes of the file, unpacked, without a byte order mark."""
    try:
        with open(path, "rb") as file:
            stream = gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file
            done = 0
            yield stream.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
            while content := stream.read(block_bytes):
                yield content
                advance(file.tell() - done)
                done = file.tell()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError("is no complete gzip file", "Copy or download it again", path) from error
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", "Check its name and permissions", path) from error


def _end_of_rows(content: bytes) -> int:
    """The end of the last row, which is the last line break with an even number of quotes before it; 0 without one."""
    odd = content.count(b'"') % 2
    end = len(content)
    while (position := content.rfind(b"\n", 0, end)) >= 0:
        odd ^= content.count(b'"', position, end) % 2
        if not odd:
            return position + 1
        end = position
    return 0


def _check_quotes(rows: bytes, line: int, path: Path) -> None:
    """Raises UserError where a quote neither opens nor closes a field nor is doubled, or is never closed."""
    content = np.frombuffer(rows, dtype=np.uint8)
    quotes = np.flatnonzero(content == _QUOTE)
    # By parity, quotes open and close in turn; of a doubled quote the first "closes" and the second "opens" again.
    opening, closing = quotes[0::2], quotes[1::2]
    before, after = content[opening - 1], content[closing + 1]
    fits_before = (opening == 0) | (before == _COMMA) | (before == _LF) | (before == _QUOTE)
    line_end = (after == _LF) | (after == _CR) & (content[np.minimum(closing + 2, len(content) - 1)] == _LF)
    fits_after = (after == _COMMA) | (after == _QUOTE) | line_end
    wrong = np.concatenate([opening[~fits_before], closing[~fits_after], quotes[-1:][: len(quotes) % 2]])
    if len(wrong):
        breaks = np.flatnonzero(content[: wrong.min()] == _LF)
        ends = breaks[np.searchsorted(quotes, breaks) % 2 == 0]
        lines_before = np.searchsorted(breaks, ends[-1]) + 1 if len(ends) else 0
        raise UserError(
            "the row that begins here has a quote that is never closed, or one in the middle of a field",
            "Mend the quotes: double a quote inside a quoted field",
            f"{path}:{line + int(lines_before)}",
        )


def _parsed(rows: bytes, header: Sequence[str], columns: Sequence[str], line: int, path: Path) -> pl.DataFrame:
    # Polars fills up rows that are too short, and tells of rows that are too long only if it parses every column.
    names = ",".join(f"c{number}" for number in range(len(header)))
    try:
        frame = pl.read_csv(names.encode() + b"\n" + rows, infer_schema=False)
    except pl.exceptions.PolarsError:
        _refuse_rows(rows, len(header), line, path)
        # Its own message quotes the text.
        raise UserError(
            "cannot be parsed as CSV from here on", "Give the table as downloaded", f"{path}:{line}"
        ) from None
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))  # empty lines
    if frame[frame.columns[-1]].null_count():
        _refuse_rows(rows, len(header), line, path)
    wanted = {name: pl.col(f"c{header.index(name)}") for name in columns}
    return frame.select(pl.when(field != "").then(field).alias(name) for name, field in wanted.items())


def _refuse_rows(rows: bytes, width: int, line: int, path: Path) -> None:
    """Raises UserError for the first row that is not UTF-8 or has another number of fields than the header.

    Several times slower than polars, so it is only asked where something is wrong, or may be.
    """
    try:
        text = rows.decode()
    except UnicodeDecodeError as error:
        line += rows.count(b"\n", 0, error.start)
        raise UserError("holds bytes that are not UTF-8", "Convert the file", f"{path}:{line}") from None
    csv.field_size_limit(sys.maxsize)  # notes are longer than the module's limit of 128 kB
    reader = csv.reader(io.StringIO(text, newline="\n"))
    begins = line
    for row in reader:
        if row and len(row) != width:
            raise UserError(
                f"the row that begins here has {len(row)} fields and the header has {width}",
                "Mend the row, or give the table as downloaded",
                f"{path}:{begins}",
            )
        begins = line + reader.line_num
