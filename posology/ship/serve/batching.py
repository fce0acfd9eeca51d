"""The queue before the models: windows of all requests, whichever adapters they ask for, in rows of so many tokens.

One thread runs the models. It takes what waits, up to the budget, as soon as it is free: while one row is computed the
next one gathers, so that rows grow with the load and a single request never waits for others to come.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

TOKENS = 2048
"""Pieces of a row, about; as many as `posology.engine.predictor` reads at once."""
_LONGEST_WAIT = 60
"""Seconds that a client is told to wait, at most."""


class Engine(Protocol):
    """What runs units; it puts the answers where they belong."""

    def run(self, units: Sequence[Unit]) -> None:
        """Answers units, all of them its own."""


@dataclass(eq=False, slots=True)
class Unit:
    """The least that is computed at once: a window of one text for one adapter.

    Attributes:
        engine: what runs it.
        size: its pieces.
        reading: whose it is; known to the engine.
        window: what is read; known to the engine.
    """

    engine: Engine
    size: int
    reading: Any
    window: Any = None


class Full(Exception):
    """So much waits already that no more is taken.

    Args:
        seconds: after which there is probably room; None where it is too large to be taken at any time.
    """

    def __init__(self, seconds: int | None):
        self.seconds = seconds
        super().__init__("the queue is full")


class Closed(Exception):
    """The server is ending and takes no more."""


class Work:
    """Units that somebody asked for together.

    Attributes:
        future: is done when all of them are.
        tokens: of the units that nobody has begun.
    """

    def __init__(self, units: Sequence[Unit]):
        self.future: Future[None] = Future()
        self.future.set_running_or_notify_cancel()  # a caller who gives up says so by `Batcher.cancel`
        self.tokens = sum(unit.size for unit in units)
        self._waiting: dict[int, deque[Unit]] = {}
        for unit in units:
            self._waiting.setdefault(id(unit.engine), deque()).append(unit)
        self._left = len(units)
        if not units:
            self.future.set_result(None)

    def engine(self) -> Engine | None:
        """The engine of its next unit; None where all are begun."""
        return next((units[0].engine for units in self._waiting.values()), None)

    def take(self, engine: Engine, most: int, *, some: bool) -> list[Unit]:
        """Units for an engine, of so many tokens at most; where `some`, a first one however long it is."""
        waiting = self._waiting.get(id(engine))
        taken: list[Unit] = []
        while waiting and (waiting[0].size <= most or (some and not taken)):
            taken.append(waiting.popleft())
            most -= taken[-1].size
        self.tokens -= sum(unit.size for unit in taken)
        if waiting is not None and not waiting:
            del self._waiting[id(engine)]
        return taken

    def waits_for(self, engine: Engine) -> bool:
        """Whether units for an engine are not begun."""
        return id(engine) in self._waiting

    def drop(self) -> None:
        """Leaves out what is not begun."""
        self._waiting.clear()
        self.tokens = 0

    def finish(self, count: int) -> None:
        """Notes that so many units were answered."""
        self._left -= count
        if not self._left and not self.future.done():
            self.future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Ends it with an error."""
        self.drop()
        if not self.future.done():
            self.future.set_exception(error)


class Batcher:
    """The queue, and the thread that empties it.

    Args:
        most_waiting: tokens that may wait; what would make them more is refused.
        tokens: of a row.
        prepare: is called first in the thread.
        watch: is told of each row: its tokens, how many requests it was of, and the seconds it took.
    """

    def __init__(
        self,
        most_waiting: int,
        *,
        tokens: int = TOKENS,
        prepare: Callable[[], None] = lambda: None,
        watch: Callable[[int, int, float], None] = lambda tokens, requests, seconds: None,
    ):
        self.most_waiting = most_waiting
        self._tokens, self._prepare, self._watch = tokens, prepare, watch
        self._works: list[Work] = []
        self._changed = threading.Condition()
        self._closing = False
        self._rate = 0.0  # tokens a second, lately
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Tokens that nobody has begun."""
        with self._changed:
            return self._count()

    def check(self, tokens: int = 0) -> None:
        """Raises Full or Closed where so many tokens could not be submitted."""
        with self._changed:
            self._check(tokens)

    def submit(self, units: Sequence[Unit], *, always: bool = False) -> Work:
        """Puts units into the queue.

        Args:
            units: those of one request.
            always: also where the queue is full: for what the server itself asks.

        Raises:
            Full, Closed: they are not taken.
        """
        work = Work(units)
        if work.future.done():
            return work
        with self._changed:
            if not always:
                self._check(work.tokens)
            self._works.append(work)
            self._changed.notify()
        return work

    def cancel(self, work: Work) -> None:
        """Takes back what is not begun; nobody waits for it any more."""
        with self._changed:
            work.drop()
            if work in self._works:
                self._works.remove(work)

    def close(self) -> None:
        """Takes no more, and waits until all that was taken is answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _count(self) -> int:
        return sum(work.tokens for work in self._works)

    def _check(self, tokens: int) -> None:
        if self._closing:
            raise Closed
        if tokens > self.most_waiting:
            raise Full(None)
        waiting = self._count()
        if waiting + tokens > self.most_waiting:
            over = waiting + tokens - self.most_waiting
            raise Full(min(_LONGEST_WAIT, max(1, math.ceil(over / self._rate))) if self._rate else 1)

    def _run(self) -> None:
        self._prepare()
        while True:
            with self._changed:
                while not self._works and not self._closing:
                    self._changed.wait()
                if not self._works:
                    return
                chosen = self._choose()
            begin = time.perf_counter()
            self._answer(chosen)
            seconds = time.perf_counter() - begin
            tokens = sum(unit.size for _, units in chosen for unit in units)
            self._rate = tokens / seconds if not self._rate else 0.8 * self._rate + 0.2 * tokens / seconds
            self._watch(tokens, len(chosen), seconds)

    def _choose(self) -> list[tuple[Work, list[Unit]]]:
        """What goes into the next row.

        The oldest request has half of it, so that it gets on however many small ones come; the rest goes to those that
        have least left, so that a sentence does not wait for a hundred notes that came before it.
        """
        oldest = self._works[0]
        engine = oldest.engine()
        assert engine is not None, "a work that is begun as a whole has left the queue"
        others = sorted((work for work in self._works[1:] if work.waits_for(engine)), key=lambda work: work.tokens)
        room = self._tokens
        chosen: dict[Work, list[Unit]] = {}
        for work, most in [(oldest, room // 2), *((work, room) for work in others), (oldest, room)]:
            taken = work.take(engine, min(most, room), some=not chosen)
            room -= sum(unit.size for unit in taken)
            if taken:
                chosen.setdefault(work, []).extend(taken)
            if room <= 0:
                break
        self._works = [work for work in self._works if work.engine() is not None]
        return list(chosen.items())

    def _answer(self, chosen: Sequence[tuple[Work, list[Unit]]]) -> None:
        """Runs a row; where that fails, each request alone, so that one does not take the others with it."""
        units = [unit for _, own in chosen for unit in own]
        try:
            units[0].engine.run(units)
        except Exception as error:
            if len(chosen) > 1:
                for alone in chosen:
                    self._answer([alone])
                return
            work, _ = chosen[0]
            self.cancel(work)
            work.fail(error)
            return
        for work, own in chosen:
            work.finish(len(own))
