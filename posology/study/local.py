"""Runs on this machine: worker processes, one for each GPU, or one for all processors.

    driver (writes the ledger)  ──jobs, stops──>  worker 1   one run, or several in company
                                <────events─────  worker 2   ...

A worker that dies (no memory left, `kill -9`) is replaced, and its runs begin again from their checkpoints. A worker
whose driver dies ends at once.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from posology import console
from posology.errors import UserError
from posology.study.executor import ATTEMPTS, Event, Job

_STILLBORN = 5
"""As many workers in a row may die before their first run has begun."""


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    jobs: dict[str, Job] = field(default_factory=dict)  # which it has, without those that ended
    begun: set[str] = field(default_factory=set)


class LocalExecutor:
    """Carries out jobs on this machine.

    Args:
        workers: processes; by default one for each GPU, or one, which uses all processors.
        company: whether runs on the same frozen backbone train together, which is faster for small models on short
            texts. Their results are then equal but for rounding and for the random numbers of dropout, and not bit for
            bit.
    """

    def __init__(self, workers: int | None = None, *, company: bool = True):
        if workers is not None and workers < 1:
            raise UserError(f"{workers} workers are none", "Give a number from 1", "--workers")
        self._wanted, self._company = workers, company
        self._workers: list[_Worker] = []
        self._attempts: collections.Counter[str] = collections.Counter()
        self._stillborn = 0  # workers, one after the other, that died before any run of theirs had begun

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """See `Executor.run`."""
        jobs = list(jobs)
        if jobs:
            _warm()
        from posology.study.grouping import in_company

        devices = _devices(self._wanted)
        waiting = collections.deque(in_company(jobs, len(devices)) if self._company else [[job] for job in jobs])
        try:
            for device in devices[: len(waiting)]:
                self._workers.append(_start(device, len(devices)))
            while waiting or any(worker.jobs for worker in self._workers):
                for worker in self._workers:
                    if not worker.jobs and waiting:
                        _give(worker, waiting.popleft())
                yield from self._events(waiting)
        finally:
            self._end()

    def stop(self, key: str) -> None:
        """See `Executor.stop`."""
        for worker in self._workers:
            if key in worker.jobs:
                with contextlib.suppress(OSError):
                    worker.pipe.send(("stop", key))

    def _events(self, waiting: collections.deque[list[Job]]) -> Iterator[Event]:
        """What the workers say next; where one has died, its jobs wait again."""
        sources: list[Any] = []
        for worker in self._workers:
            sources += [worker.pipe, worker.process.sentinel]
        ready = wait(sources)
        for number, worker in enumerate(self._workers):
            dead = worker.process.sentinel in ready
            while worker.pipe.poll():
                try:
                    event = worker.pipe.recv()
                except (EOFError, OSError):
                    dead = True
                    break
                if event.state == "running":
                    worker.begun.add(event.key)
                    self._stillborn = 0
                if event.state in ("done", "failed"):
                    worker.jobs.pop(event.key, None)
                yield event
            if dead:
                worker.process.join()
                yield from self._replace(number, waiting)

    def _replace(self, number: int, waiting: collections.deque[list[Job]]) -> Iterator[Event]:
        worker = self._workers[number]
        code = worker.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        hint = ": often a sign that memory ran out" if code == -signal.SIGKILL else ""
        self._stillborn += bool(worker.jobs) and not worker.begun
        if self._stillborn >= _STILLBORN:
            raise UserError(
                f"{_STILLBORN} workers in a row died before a run of theirs began ({how}{hint})",
                "Look for what ends new processes here, such as a limit of memory, and give the command again",
            )
        console.say(f"worker {worker.process.pid} died ({how}{hint}); a new one takes its place")
        for job in reversed(worker.jobs.values()):
            # Each for itself from now on: one of them may be what killed the worker.
            self._attempts[job.key] += job.key in worker.begun
            if self._attempts[job.key] >= ATTEMPTS:
                yield Event(job.key, "failed", problem=f"its worker died {ATTEMPTS} times ({how}{hint})")
            else:
                waiting.appendleft([job])
        worker.pipe.close()
        self._workers[number] = _start(worker.process.device, worker.process.sharing)

    def _end(self) -> None:
        """Ends all workers; those at work write a checkpoint first."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(("end", None)) if not worker.jobs else worker.process.terminate()
        for worker in self._workers:
            worker.process.join(60)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._workers = []


def _devices(wanted: int | None) -> list[str | None]:
    """For each worker the GPU it sees; None for one that uses processors."""
    import torch

    gpus = [str(number) for number in range(torch.cuda.device_count())]
    if not gpus:
        return [None] * (wanted or 1)
    return [gpus[number % len(gpus)] for number in range(wanted or len(gpus))]


def _warm() -> None:
    """Starts the server that imports everything and forks the workers: they are there at once, also in the next study.

    It imports while this process imports what it needs itself.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["posology.study.work"])
    multiprocessing.forkserver.ensure_running()


def _start(device: str | None, sharing: int) -> _Worker:
    _warm()
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    process: Any = context.Process(target=_work, args=(there, device, sharing, console.QUIET), daemon=True)
    process.device, process.sharing = device, sharing
    process.start()
    there.close()
    return _Worker(process, here)


def _give(worker: _Worker, jobs: list[Job]) -> None:
    worker.jobs, worker.begun = {job.key: job for job in jobs}, set()
    with contextlib.suppress(OSError):  # it has died: its sentinel says so, and the jobs are with it
        worker.pipe.send(("do", jobs))


def _work(pipe: Connection, device: str | None, sharing: int, quiet: bool) -> None:
    """The main function of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver says what to do
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    _end_with_driver()
    import torch

    from posology.errors import Interrupted
    from posology.study.work import carry_out_company, carry_out_job

    if device is None and sharing > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // sharing))
    console.QUIET = True  # progress of single runs would drown that of the study
    name = str(os.getpid()) if device is None else f"{os.getpid()} on GPU {device}"
    stops: set[str] = set()
    asked: collections.deque[tuple[str, Any]] = collections.deque()

    def stopped(key: str) -> bool:
        while pipe.poll():
            what, value = pipe.recv()
            stops.add(value) if what == "stop" else asked.append((what, value))
        return key in stops

    with contextlib.suppress(EOFError, OSError, Interrupted, KeyboardInterrupt):
        while True:
            what, value = asked.popleft() if asked else pipe.recv()
            if what == "end":
                return
            if what == "stop":
                stops.add(value)
            elif len(value) == 1:
                pipe.send(carry_out_job(value[0], pipe.send, stopped, name, alone=sharing == 1))
            else:
                carry_out_company(value, pipe.send, stopped, name, alone=sharing == 1)


def _end_with_driver() -> None:
    """Ends this process when its parent dies, in the middle of whatever it does: somebody else may go on with it."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
