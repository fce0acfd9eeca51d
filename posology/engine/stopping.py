"""Ctrl-C and SIGTERM, which batch queues and containers send: both end the work with what was reached saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any]


@contextlib.contextmanager
def _handled(handler: _Handler, *signals: signal.Signals) -> Iterator[None]:
    """Sets a handler for the time of the block. Signals that are ignored (`nohup`) stay so, as do those of threads."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            # None is a handler that was not set from Python, which could not be put back.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def interruptible() -> contextlib.AbstractContextManager[None]:
    """Lets SIGTERM raise KeyboardInterrupt in the block, as Ctrl-C does."""
    return _handled(_raise, signal.SIGTERM)


class Stop:
    """Lets Ctrl-C and SIGTERM wait until the block asks for them; a second one does not wait.

    Attributes:
        asked: whether one has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False

    @classmethod
    @contextlib.contextmanager
    def deferred(cls) -> Iterator[Stop]:
        """Handles both in the block."""
        stop = cls()
        with _handled(stop._ask, signal.SIGINT, signal.SIGTERM):
            yield stop

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that may be cut off anywhere: there the first signal raises KeyboardInterrupt."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self._at_once or self.asked:
            raise KeyboardInterrupt
        self.asked = True
