"""Reading text files: plain or gzip, in a stated encoding, with the line of the first wrong byte."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from posology.errors import UserError

_BLOCK_BYTES = 2**20


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file (`.gz` is unpacked), line ends as they are, without a byte order mark.

    Raises:
        UserError: it cannot be read, or not in this encoding.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(path, error) from error
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except LookupError as error:
        raise _no_encoding(encoding) from error
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, errors="replace").count("\n") + 1
        raise _wrong_byte(path, encoding, error.start, line) from error


def read_lines(
    path: Path, encoding: str = "utf-8", *, universal: bool = False, errors: str = "strict"
) -> Iterator[str]:
    """The lines of what `read_text` gives, with their ends; only one at a time is held.

    Args:
        path: the file.
        encoding: of it.
        universal: CR ends a line as well as LF and CR LF; else only LF does.
        errors: what happens to wrong bytes, as for `bytes.decode`.

    Raises:
        UserError: as `read_text`, once the fault is reached.
    """
    ends = ("\n", "\r") if universal else ("\n",)
    pending: list[str] = []
    held = ""
    for text in _blocks(path, encoding, errors):
        text = held + text
        held = "\r" if universal and text.endswith("\r") else ""  # an LF may follow, and both are one end
        for part in io.StringIO(text.removesuffix(held), newline="" if universal else "\n"):
            pending.append(part)
            if part.endswith(ends):
                yield "".join(pending)
                pending.clear()
    if pending or held:
        yield "".join(pending) + held


def _blocks(path: Path, encoding: str, errors: str = "strict") -> Iterator[str]:
    """What `read_text` gives, in parts."""
    try:
        b" ".decode(encoding, errors="ignore")  # refuses encodings that are none of text
        decoder = codecs.getincrementaldecoder(encoding)(errors)
    except LookupError as error:
        raise _no_encoding(encoding) from error
    done, line, first = 0, 1, True
    for content in _contents(path):
        state = decoder.getstate()
        try:
            text = decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            start = done + len(content) - len(error.object) + error.start  # it counts from the bytes still pending
            before = codecs.getincrementaldecoder(encoding)(errors="replace")
            before.setstate(state)
            line += before.decode(content[: max(0, start - done)]).count("\n")
            raise _wrong_byte(path, encoding, start, line) from error
        done += len(content)
        line += text.count("\n")
        if text:
            yield text.removeprefix("\ufeff") if first else text
            first = False


def _contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked, in blocks; the last one is empty."""
    try:
        with open(path, "rb") as file:
            stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            while content := stream.read(_BLOCK_BYTES):
                yield content
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(path, error) from error
    yield b""


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return UserError(f"cannot be read ({error.strerror})", "Check its name and permissions", path)
    return UserError("is no complete gzip file", "Copy or pack it again", path)


def _no_encoding(encoding: str) -> UserError:
    return UserError(f"there is no encoding {encoding!r}", "Name one like utf-8 or latin-1", "--encoding")


def _wrong_byte(path: Path, encoding: str, byte: int, line: int) -> UserError:
    return UserError(
        f"is not {encoding} (byte {byte} cannot be decoded)",
        "Convert the file, or name its encoding, such as --encoding latin-1",
        f"{path}:{line}",
    )


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
