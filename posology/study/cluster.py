"""Runs on a Ray cluster.

    driver (writes the ledger) ──tasks──> node 1: worker, worker ...      a task is one run, or several in company
          │                    ──tasks──> node 2: worker ...
          └── mailbox, an actor on the driver's node <──events── workers ──asked──> is this run to be stopped?

Artifacts and checkpoints lie in a folder that all nodes share, or travel through an URL (`storage.py`). A node that is
lost, or taken away, costs what its runs did since their last checkpoints: they go on elsewhere. When the driver dies,
Ray ends its tasks, and a driver started again finds artifacts and checkpoints where they were.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from posology import console
from posology.errors import UserError
from posology.study.connection import connected
from posology.study.executor import ATTEMPTS, Event, Job
from posology.study.resources import Resources
from posology.study.worker import Mailbox, Order, work

TICK_SECONDS = 0.2
"""How often the mailbox is emptied."""
LOOK_SECONDS = 5.0
"""How often the nodes are counted."""
_END_SECONDS = 60.0


class RayExecutor:
    """Carries out jobs on a Ray cluster.

    Args:
        address: `HOST:PORT` of the cluster's head, or `auto` for the one that this machine belongs to. Without it that of
            the variable RAY_ADDRESS, or a cluster of this machine alone, for as long as the jobs take.
        cpus: of each run, which trains with so many threads; 1 by default.
        gpus: of each run; a fraction lets runs share one.
        memory: bytes that Ray sets aside for each run, so that no more of them go to a node than it holds.
        storage: an URL or folder for artifacts and checkpoints, where nodes do not share the folder of the jobs.
            Artifacts are then copied to that folder, on the driver's machine, as well.
        company: whether runs on the same frozen backbone train together in one task; see `LocalExecutor`.
    """

    def __init__(
        self,
        address: str | None = None,
        cpus: float | None = None,
        gpus: float = 0,
        memory: int | None = None,
        storage: str | None = None,
        *,
        company: bool = False,
    ):
        self._resources = Resources(cpus, gpus, memory)
        self._address, self._storage_url, self._company = address, storage, company
        self._attempts: collections.Counter[str] = collections.Counter()
        self._tasks: dict[Any, dict[str, Job]] = {}  # for each task of Ray its jobs that have not ended
        self._mailbox: Any = None
        self._ray: Any = None

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """See `Executor.run`.

        Raises:
            UserError: the cluster cannot be reached, or for a quarter of an hour no node was large enough for a run.
        """
        storage = None
        if self._storage_url is not None:
            from posology.study.storage import Storage

            storage = Storage(self._storage_url)
        with connected(self._address) as self._ray, proofs(storage is None) as proof:
            self._mailbox = self._open_mailbox()
            groups = self._groups(jobs)
            try:
                for event in self._drive(groups, functools.partial(self._order, proof)):
                    if event.state == "done" and storage is not None:
                        event = self._fetched(event, storage)
                    yield event
            finally:
                self._end()

    def stop(self, key: str) -> None:
        """See `Executor.stop`."""
        if self._mailbox is not None:
            self._mailbox.stop.remote(key)

    def _drive(self, groups: Iterator[list[Job]], order: Callable[[list[Job]], Order]) -> Iterator[Event]:
        again: collections.deque[list[Job]] = collections.deque()
        slots, looked = 0, -math.inf
        while True:
            if time.monotonic() - looked >= LOOK_SECONDS:
                slots, looked = self._resources.slots(self._ray), time.monotonic()
            # Some more than there is room for, so that no node waits, and clusters that grow by demand see one.
            while len(self._tasks) < slots + max(2, slots // 2):
                group = again.popleft() if again else next(groups, None)
                if group is None:
                    break
                self._submit(order(group))
            if not self._tasks:
                return
            ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=TICK_SECONDS)
            yield from self._events()
            for reference in ready:
                yield from self._ended(reference, again)

    def _groups(self, jobs: Iterable[Job]) -> Iterator[list[Job]]:
        """Which jobs make one task; without company they are taken one by one, when there is room."""
        if not self._company:
            return ([job] for job in jobs)
        from posology.study.grouping import in_company

        return iter(in_company(list(jobs)))

    def _order(self, proof: Callable[[Path], Path | None], jobs: list[Job]) -> Order:
        own = self._resources
        return Order(jobs, own.threads, own.gpus > 0, self._storage_url, proof(jobs[0].out.parent))

    def _submit(self, order: Order) -> None:
        # Ray itself does not try again, since it would not know what had been done, and count deaths before the start.
        remote = self._ray.remote(work).options(**self._resources.options, max_retries=0, name="posology")
        self._tasks[remote.remote(order, self._mailbox)] = {job.key: job for job in order.jobs}

    def _events(self) -> Iterator[Event]:
        """What has come since the last time, without the ends of runs that had ended (of a worker thought dead)."""
        owners = {key: left for left in self._tasks.values() for key in left}
        for event in self._ray.get(self._mailbox.take.remote()):
            if event.key not in owners:
                continue
            if event.state in ("done", "failed"):
                del owners.pop(event.key)[event.key]
            yield event

    def _ended(self, reference: Any, again: collections.deque[list[Job]]) -> Iterator[Event]:
        """What becomes of the jobs that a task leaves undone: they wait again, unless that would be in vain."""
        left = self._tasks.pop(reference)
        from ray.exceptions import RayError, RayTaskError

        why = "was stopped"
        try:
            self._ray.get(reference)
        except RayTaskError as error:  # of `work` itself or before it: the text may quote anything
            cause = type(error.cause or error).__name__
            for key in left:
                yield Event(key, "failed", problem=f"the worker failed ({cause}): is its Posology the driver's?")
            return
        except RayError as error:
            why = f"died ({type(error).__name__})"
        for job in reversed(left.values()):
            # Each for itself from now on: one of them may be what killed the worker.
            self._attempts[job.key] += 1
            if self._attempts[job.key] >= ATTEMPTS:
                yield Event(job.key, "failed", problem=f"its worker {why}, as {ATTEMPTS - 1} others had before")
            else:
                console.say(f"the worker of {job.cell.title} {why}; it is begun again")
                again.appendleft([job])

    def _fetched(self, event: Event, storage: Any) -> Event:
        assert event.result is not None
        out = Path(event.result["artifact"])
        try:
            if not storage.get_artifact(event.key, out):
                raise UserError(f"{event.key} is not there", "Check what clears this place", storage.url)
        except UserError as error:
            return Event(event.key, "failed", problem=str(error), worker=event.worker)
        return dataclasses.replace(event, result=event.result | {"artifact": str(out)})

    def _open_mailbox(self) -> Any:
        """On the driver's node, so that it lives as long as the driver does."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        return self._ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()

    def _end(self) -> None:
        """Ends what still runs, first with time for a checkpoint."""
        left = list(self._tasks)
        with contextlib.suppress(Exception):  # the cluster may be gone, and there is nothing left to end then
            for force in (False, True):
                for reference in left:
                    self._ray.cancel(reference, force=force)
                if left:
                    _, left = self._ray.wait(left, num_returns=len(left), timeout=_END_SECONDS)
            self._ray.kill(self._mailbox)
        self._tasks, self._mailbox = {}, None


@contextlib.contextmanager
def proofs(needed: bool = True) -> Iterator[Callable[[Path], Path | None]]:
    """Yields what leaves a file in a folder, for workers to find: without it they would train into a void."""
    made: dict[Path, Path] = {}
    name = f".cluster-{uuid.uuid4().hex}"

    def leave(folder: Path) -> Path | None:
        if not needed:
            return None
        if folder not in made:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            made[folder] = folder.absolute() / name
            made[folder].touch(mode=0o600)
        return made[folder]

    try:
        yield leave
    finally:
        for path in made.values():
            path.unlink(missing_ok=True)
