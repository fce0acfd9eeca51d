"""What the i2b2 formats share: decoding, lines and tokens, comparing a text with what an annotation quotes."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from pathlib import Path

from posology.errors import UserError

Problems = list[tuple[str, str]]
"""What was read leniently: `(place, sentence)`, without text of notes."""

_TOKEN = re.compile(r"[^ \t]+")
_ENTITY = re.compile(r"&(?:(amp|lt|gt|quot|apos)|#(\d+)|#x([0-9a-fA-F]+));")
ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


class TokenLines:
    """The tokens of a text as i2b2 counts them: lines from 1, tokens from 0.

    Runs of blanks and tabs part tokens. A line that begins with one has an empty token 0, however many there are.
    """

    def __init__(self, text: str):
        self.lines: list[list[tuple[int, int]]] = []
        offset = 0
        for line in text.split("\n"):
            tokens = [(offset, offset)] if line[:1] in (" ", "\t") else []
            tokens += [(offset + match.start(), offset + match.end()) for match in _TOKEN.finditer(line)]
            self.lines.append(tokens)
            offset += len(line) + 1
        words = [
            (start, end, line, index)
            for line, tokens in enumerate(self.lines, start=1)
            for index, (start, end) in enumerate(tokens)
            if start < end
        ]
        self._starts = [word[0] for word in words]
        self._ends = [word[1] for word in words]
        self._positions = [word[2:] for word in words]

    def span(self, line: int, first: int, last_line: int, last: int) -> tuple[int, int] | None:
        """Characters from token `first` of `line` to token `last` (inclusive) of `last_line`; None: no such tokens.

        They begin and end with words, not with an empty token 0; without any word they are empty.
        """
        if not (1 <= line <= last_line <= len(self.lines)) or (line, first) > (last_line, last):
            return None
        if not (first < len(self.lines[line - 1]) and last < len(self.lines[last_line - 1])):
            return None
        start, end = self.lines[line - 1][first][0], self.lines[last_line - 1][last][1]
        first_word, last_word = bisect_left(self._starts, start), bisect_right(self._ends, end) - 1
        return (self._starts[first_word], self._ends[last_word]) if first_word <= last_word else (start, start)

    def position(self, start: int, end: int) -> tuple[int, int, int, int]:
        """`(line, first, last_line, last)` of the tokens that `text[start:end]` touches.

        Raises:
            ValueError: it touches none.
        """
        low, high = bisect_right(self._ends, start), bisect_left(self._starts, end) - 1
        if low > high:
            raise ValueError(f"there is no token at {start} {end}")
        return (*self._positions[low], *self._positions[high])


def same_text(text: str, quoted: str) -> bool:
    """Whether a quoted text is that text, but for case, white space, escaped characters and `&` for `and`."""
    return text == quoted or _normalised(text) == _normalised(quoted)


def _normalised(text: str) -> str:
    plain = unescape(NOT_IN_XML.sub(" ", text.casefold()))
    return " ".join(plain.casefold().replace("&", "and").split())


def decoded(path: Path, problems: Problems) -> str:
    """The text of a file with LF for every line end; UTF-8 or, reported, Windows' or ISO's Western encoding.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", "Check its name and permissions", path) from error
    if b"\0" in content:
        raise UserError("holds bytes that are no text", "Copy the file again, or convert it to UTF-8", path)
    for encoding in ("utf-8", "cp1252", "latin-1"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding != "utf-8":
            problems.append((str(path), f"is not UTF-8: read as {encoding}"))
        break
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def refuse_empty(text: str, path: Path) -> None:
    """Raises UserError for a file without any text."""
    if not text.strip():
        raise UserError("is empty", "Copy the file again", path)


def unescape(text: str) -> str:
    """Replaces XML's own entities and character references, once."""
    return _ENTITY.sub(_character, text) if "&" in text else text


def _character(entity: re.Match[str]) -> str:
    name, decimal, hexadecimal = entity.groups()
    if name:
        return ENTITIES[name]
    code = int(decimal or hexadecimal, 10 if decimal else 16)
    return chr(code) if code <= 0x10FFFF else entity[0]


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.findall(r"\d+|\D+", name)]
