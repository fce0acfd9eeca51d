"""What runs on the nodes of a cluster: the task that does jobs, and the mailbox that takes what they say."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posology import console
from posology.errors import Interrupted, UserError
from posology.study.executor import Event, Job

LOCK_SECONDS = 600.0
"""How long is waited for a worker that still trains into a folder, although its node was given up."""


@dataclass(frozen=True)
class Order:
    """What a worker is to do.

    Attributes:
        jobs: one, or several in company.
        threads: it computes with.
        gpu: whether it may use one.
        storage: URL for artifacts and checkpoints; None where the jobs' folder is shared.
        proof: a file that the driver left in that folder.
    """

    jobs: list[Job]
    threads: int
    gpu: bool
    storage: str | None
    proof: Path | None


class Mailbox:
    """Events on their way to the driver, and which runs it wants stopped."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stops: set[str] = set()

    def put(self, event: Event) -> None:
        """Keeps an event until the driver takes it."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """All events since the last time, in the order they came."""
        events, self._events = self._events, []
        return events

    def stop(self, key: str) -> None:
        """Asks for the end of a run."""
        self._stops.add(key)

    def stopped(self, key: str) -> bool:
        """Whether the end of a run was asked for."""
        return key in self._stops


def work(order: Order, mailbox: Any) -> None:
    """Does jobs in this process, a worker of Ray; every event, the last ones too, goes to the mailbox.

    Where it returns with a job undone, or dies, the driver gives the job to another.
    """
    prepare(order.threads, order.gpu)
    import ray

    from posology.study.work import carry_out_company, carry_out_job

    name = f"{ray.util.get_node_ip_address()} process {os.getpid()}"
    alone = order.threads >= (os.cpu_count() or 1)  # else there may be others on this node

    def ask(question: Any) -> Any:
        try:
            return ray.get(question)  # waits, so that nothing is lost when this process ends
        except ray.exceptions.RayError:  # the driver or this node is gone, which is no failure of the run
            raise KeyboardInterrupt from None

    def emit(event: Event) -> None:
        ask(mailbox.put.remote(event))

    def stopped(key: str) -> bool:
        return bool(ask(mailbox.stopped.remote(key)))

    try:
        check_shared(order.proof)
        with _placed(order, emit) as (jobs, emit_placed):
            for job in jobs:
                await_release(job.out)
            if len(jobs) == 1:
                emit_placed(carry_out_job(jobs[0], emit_placed, stopped, name, alone=alone))
            else:
                carry_out_company(jobs, emit_placed, stopped, name, alone=alone)
    except UserError as error:
        for job in order.jobs:
            emit(Event(job.key, "failed", problem=str(error), worker=name))
    except (KeyboardInterrupt, Interrupted):  # the driver ends, or this node does: a checkpoint is kept
        return


def prepare(threads: int, gpu: bool) -> None:
    """Gives this process its threads, and a GPU only where it may use one."""
    if not gpu:  # Ray does not hide them from those that asked for none
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(threads)
    console.QUIET = True


def await_release(out: Path, seconds: float = LOCK_SECONDS) -> None:
    """Waits until no process trains into a folder any more: a node that was given up may still be at work.

    Args:
        out: the artifact's folder.
        seconds: at most. Training says then what is the matter.
    """
    from posology.engine.checkpoint import folder_of

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            handle = os.open(folder_of(out) / "lock", os.O_RDWR)
        except OSError:  # nobody has begun, or nobody can
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.5)
        except OSError:  # a file system without locks
            return
        finally:
            os.close(handle)


@contextlib.contextmanager
def _placed(order: Order, emit: Callable[[Event], None]) -> Iterator[tuple[list[Job], Callable[[Event], None]]]:
    """The jobs with folders that this node can write, and an `emit` that brings what is done to where it belongs."""
    if order.storage is None:
        yield order.jobs, emit
        return
    from posology.engine.checkpoint import left_behind
    from posology.study.storage import Storage, scratch

    storage = Storage(order.storage)
    asked = {job.key: job for job in order.jobs}
    with scratch() as folder:
        jobs = [dataclasses.replace(job, out=folder / job.key) for job in order.jobs]
        there = {job.key for job in jobs if storage.get_artifact(job.key, job.out)}
        for job in jobs:
            if job.key not in there:
                storage.get_checkpoint(job.key, job.out)

        def deliver(event: Event) -> None:
            if event.state == "done" and event.result is not None:
                if event.key not in there:
                    try:
                        storage.put_artifact(folder / event.key, event.key)
                    except UserError as error:
                        emit(Event(event.key, "failed", problem=str(error), worker=event.worker))
                        return
                event = dataclasses.replace(event, result=event.result | {"artifact": str(asked[event.key].out)})
            elif event.state == "failed" and not left_behind(folder / event.key):  # such as one that diverged
                with contextlib.suppress(UserError):
                    storage.drop_checkpoint(event.key)
            emit(event)

        with storage.mirrored({job.key: job.out for job in jobs}):
            yield jobs, deliver


def check_shared(proof: Path | None) -> None:
    """Raises UserError where this node does not see the folder in which the driver left a file."""
    if proof is not None and not proof.exists():
        import ray

        raise UserError(
            f"node {ray.util.get_node_ip_address()} does not see this folder of the driver",
            "Keep it in a folder that all nodes share; for studies, a storage URL does as well",
            proof.parent,
        )
