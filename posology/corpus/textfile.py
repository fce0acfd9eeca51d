"""Reading text files: plain or gzip, in a stated encoding, with the line of the first wrong byte."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from posology.errors import UserError


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file (`.gz` is unpacked), line ends as they are, without a byte order mark.

    Raises:
        UserError: it cannot be read, or not in this encoding.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError("is no complete gzip file", "Copy or pack it again", path) from error
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", "Check its name and permissions", path) from error
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except LookupError as error:
        raise UserError(f"there is no encoding {encoding!r}", "Name one like utf-8 or latin-1", "--encoding") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, errors="replace").count("\n") + 1
        raise UserError(
            f"is not {encoding} (byte {error.start} cannot be decoded)",
            "Convert the file, or name its encoding, such as --encoding latin-1",
            f"{path}:{line}",
        ) from error


def entries_of(folder: Path) -> list[Path]:
    """What lies in a folder, by name.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot be listed ({error.strerror})", "Check its permissions", folder) from error


def lines_of(text: str) -> list[str]:
    """Lines without their ends. Only LF and CR LF end a line: other Unicode separators may be part of a token."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def bare_name(path: Path) -> str:
    """The file's name without its folder and extensions: `train` for `data/train.csv.gz`."""
    name = path.name.removesuffix(".gz")
    return Path(name).stem
