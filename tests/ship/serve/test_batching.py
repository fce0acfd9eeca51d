"""The queue, with engines that only note what they are given."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from posology.ship.serve.batching import Batcher, Closed, Full, Unit, Work


class Engine:
    """Notes rows; waits before each until it is let go."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.go, self.begun = threading.Semaphore(0), threading.Semaphore(0)
        self.poison: object = None

    def run(self, units: Sequence[Unit]) -> None:
        self.begun.release()
        assert self.go.acquire(timeout=20)
        self.rows.append([unit.size for unit in units])
        if any(unit.reading is self.poison for unit in units if self.poison is not None):
            raise ValueError("poison")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def batcher(engine: Engine) -> Iterator[Batcher]:
    batcher = Batcher(100, tokens=20)
    yield batcher
    for _ in range(100):
        engine.go.release()
    batcher.close()


def units(engine: Engine, *sizes: int, of: object = None) -> list[Unit]:
    return [Unit(engine, size, of) for size in sizes]


def occupied(batcher: Batcher, engine: Engine) -> Work:
    """The thread is busy with a row, so that what comes now waits."""
    work = batcher.submit(units(engine, 1))
    assert engine.begun.acquire(timeout=20)
    return work


def finish(engine: Engine, *works: Work) -> None:
    for _ in range(50):
        engine.go.release()
    for work in works:
        work.future.result(20)


def test_one_request_waits_for_nobody(batcher: Batcher, engine: Engine) -> None:
    engine.go.release()
    batcher.submit(units(engine, 3, 4)).future.result(20)
    assert engine.rows == [[3, 4]]


def test_what_waits_goes_together_up_to_the_budget(batcher: Batcher, engine: Engine) -> None:
    first = occupied(batcher, engine)
    works = [batcher.submit(units(engine, 6)) for _ in range(4)]
    finish(engine, first, *works)
    assert engine.rows == [[1], [6, 6, 6], [6]]


def test_a_sentence_overtakes_a_long_note_which_gets_on_all_the_same(batcher: Batcher, engine: Engine) -> None:
    first = occupied(batcher, engine)
    long = batcher.submit(units(engine, *[5] * 8))
    short = [batcher.submit(units(engine, 2)) for _ in range(12)]
    finish(engine, first, long, *short)
    assert engine.rows[1][:2] == [5, 5] and engine.rows[1].count(2) == 5  # half each
    assert all(5 in row for row in engine.rows[1:5])


def test_what_is_longer_than_a_row_goes_alone(batcher: Batcher, engine: Engine) -> None:
    first = occupied(batcher, engine)
    long, short = batcher.submit(units(engine, 50)), batcher.submit(units(engine, 2))
    finish(engine, first, long, short)
    assert engine.rows == [[1], [50], [2]]


def test_each_row_is_of_one_engine(batcher: Batcher, engine: Engine) -> None:
    other = Engine()
    first = occupied(batcher, engine)
    both = batcher.submit([*units(engine, 2), *units(other, 3)])
    late = batcher.submit(units(other, 4))
    for _ in range(50):
        other.go.release()
    finish(engine, first, both, late)
    assert engine.rows == [[1], [2]] and other.rows == [[3, 4]]


def test_a_full_queue_refuses_and_recovers(batcher: Batcher, engine: Engine) -> None:
    first = occupied(batcher, engine)
    waiting = batcher.submit(units(engine, *[10] * 9))
    assert batcher.waiting == 90
    with pytest.raises(Full) as full:
        batcher.submit(units(engine, 11))
    assert full.value.seconds is not None and full.value.seconds >= 1
    with pytest.raises(Full) as never:
        batcher.submit(units(engine, 101))
    assert never.value.seconds is None
    small = batcher.submit(units(engine, 10))
    finish(engine, first, waiting, small)
    assert batcher.waiting == 0
    finish(engine, batcher.submit(units(engine, 11)))


def test_one_that_fails_does_not_take_others_with_it(batcher: Batcher, engine: Engine) -> None:
    first = occupied(batcher, engine)
    engine.poison = object()
    good, bad = batcher.submit(units(engine, 2)), batcher.submit(units(engine, 3, of=engine.poison))
    after = batcher.submit(units(engine, 4))
    finish(engine, first, good, after)
    with pytest.raises(ValueError, match="poison"):
        bad.future.result(20)
    finish(engine, batcher.submit(units(engine, 5)))


def test_who_gave_up_is_not_waited_for(batcher: Batcher, engine: Engine) -> None:
    first = occupied(batcher, engine)
    gone, stays = batcher.submit(units(engine, 7, 7)), batcher.submit(units(engine, 6))
    batcher.cancel(gone)
    assert batcher.waiting == 6
    finish(engine, first, stays)
    assert engine.rows == [[1], [6]]


def test_nothing_to_do_is_done(batcher: Batcher) -> None:
    assert batcher.submit([]).future.done()


def test_closing_finishes_what_was_taken() -> None:
    engine = Engine()
    batcher = Batcher(100, tokens=20)
    first = occupied(batcher, engine)
    waiting = batcher.submit(units(engine, 5))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closing:
        pass
    with pytest.raises(Closed):
        batcher.submit(units(engine, 1))
    finish(engine, first, waiting)
    closing.join(20)
    assert not closing.is_alive() and not batcher._thread.is_alive()
