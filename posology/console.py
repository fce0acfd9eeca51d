"""Messages and progress for people, on stderr only: stdout belongs to results."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

QUIET = False
"""Set by `--quiet`: no messages, no progress."""

_SHOW_AFTER_SECONDS = 2.0
_LINE_EVERY_SECONDS = 30.0


def say(message: str) -> None:
    """Prints one line for the person at the terminal."""
    if not QUIET:
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(description: str, total: float | None, done: int = 0) -> Iterator[Callable[..., None]]:
    """Shows how far a piece of work has come, once it has taken two seconds; `done` of `total` were done before.

    Yields a function `advance(amount=1, note="")`. On a terminal this is a bar; elsewhere (a log file,
    a batch queue) it is a line every half minute.
    """
    if QUIET:
        yield lambda amount=1, note="": None
    elif sys.stderr.isatty():
        with _bar(description, total, done) as advance:
            yield advance
    else:
        with _lines(description, total, done) as advance:
            yield advance


@contextlib.contextmanager
def _bar(description: str, total: float | None, done: int) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=total, completed=done, note="")
    started, shown = time.monotonic(), False

    def advance(amount: float = 1, note: str | None = None) -> None:
        nonlocal shown
        if not shown and time.monotonic() - started > _SHOW_AFTER_SECONDS:
            bar.start()
            shown = True
        bar.advance(task, amount)
        if note is not None:
            bar.update(task, note=note)

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


@contextlib.contextmanager
def _lines(description: str, total: float | None, done: int) -> Iterator[Callable[..., None]]:
    new, last_note = 0.0, ""
    started = last = time.monotonic()

    def advance(amount: float = 1, note: str | None = None) -> None:
        nonlocal new, last, last_note
        new += amount
        last_note = note if note is not None else last_note
        now = time.monotonic()
        if now - last > _LINE_EVERY_SECONDS:
            last = now
            share = f"{done + new:,.0f}/{total:,.0f}" if total else f"{done + new:,.0f}"
            left = f", about {(total - done - new) * (now - started) / new:,.0f} s left" if total and new else ""
            say(f"{description}: {share} after {now - started:,.0f} s{left} {last_note}".rstrip())

    yield advance
