"""Rows of answers as files: in parts that are joined without reading them all at once."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from posology.errors import UserError

ENDINGS = (".jsonl", ".csv", ".parquet")

Row = dict[str, Any]


class Table:
    """A kind of file, and what its rows hold.

    Args:
        out: a name whose ending is one of `ENDINGS`.
        schema: types of polars by column.

    Raises:
        UserError: it has another ending.
    """

    def __init__(self, out: Path, schema: dict[str, Any]):
        if out.suffix not in ENDINGS:
            raise UserError(f"has the ending {out.suffix!r}", f"Give a name that ends in {', '.join(ENDINGS)}", out)
        self._ending, self._schema = out.suffix, schema
        self._nested = [name for name, kind in schema.items() if isinstance(kind, pl.Struct | pl.List)]
        self._flat = schema | dict.fromkeys(self._nested, pl.String)
        self._encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes a new encoder for every row

    def part(self, rows: Sequence[Row]) -> bytes:
        """Some rows."""
        if self._ending == ".jsonl":
            return "".join(f"{self._encode(row)}\n" for row in rows).encode()
        if self._ending == ".csv":  # nested columns are JSON there
            cells = [row | {name: self._encode(row[name]) for name in self._nested} for row in rows]
            return pl.DataFrame(cells, schema=self._flat).write_csv(include_header=False).encode()
        buffer = io.BytesIO()
        pl.DataFrame(rows, schema=self._schema).write_parquet(buffer)
        return buffer.getvalue()

    def join(self, parts: Sequence[Path], target: Path) -> None:
        """Writes the whole from its parts, in their order."""
        if self._ending == ".parquet":
            try:
                pl.scan_parquet(list(parts)).sink_parquet(target)
            except pl.exceptions.PolarsError as error:
                raise OSError("the parts could not be joined") from error
            return
        with open(target, "wb") as stream:
            if self._ending == ".csv":
                stream.write(pl.DataFrame(schema=self._flat).write_csv().encode())
            for part in parts:
                with open(part, "rb") as content:
                    shutil.copyfileobj(content, stream, 2**20)
