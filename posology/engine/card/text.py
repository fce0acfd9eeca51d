"""Numbers and names as a card shows them. Everything that comes from data goes through here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

UNKNOWN = "not known to the program: fill in"


def plain(value: Any) -> str:
    """One line of text that Markdown does not take for anything else."""
    text = " ".join(str(value).split())
    for sign in "\\`*_<>[]|":
        text = text.replace(sign, f"\\{sign}")
    return text


def code(value: Any) -> str:
    """A name as code. In a table cell it may not hold a bar, which is shown as another sign."""
    return f"`{' '.join(str(value).split()).replace('`', chr(39)).replace('|', '¦')}`"


def number(value: float | None, digits: int = 3) -> str:
    """A share or a score; "undefined" where it is None."""
    return "undefined" if value is None else f"{value:.{digits}f}"


def interval(entry: Mapping[str, Any], digits: int = 3) -> str:
    """`0.712 (0.650 to 0.768)`."""
    value = number(entry.get("value"), digits)
    if entry.get("low") is None:
        return value
    return f"{value} ({number(entry['low'], digits)} to {number(entry['high'], digits)})"


def share(value: float) -> str:
    """A percentage that says 100 only where nothing is missing."""
    return "100 %" if value == 1 else f"{min(100 * value, 99.9):.1f} %"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown; empty without rows."""
    body = [f"| {' | '.join(row)} |" for row in rows]
    names = list(header)
    return "\n".join([f"| {' | '.join(names)} |", "|" + "---|" * len(names), *body]) if body else ""


def sentences(lines: Iterable[str]) -> str:
    """A list of Markdown."""
    return "\n".join(f"- {line}" for line in lines)
