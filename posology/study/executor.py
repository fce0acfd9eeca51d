"""What drives runs: the contract between a study and the machines that carry it out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from posology.study.cell import Cell

ATTEMPTS = 3


@dataclass(frozen=True)
class Job:
    """A run that is to be done.

    Attributes:
        key: of the cell.
        cell: what is asked for.
        out: the artifact's folder. If an earlier attempt left a checkpoint there, the run goes on from it.
        measured: whether its `measures` are taken when it is done: about a second each, which a search of many short
            runs, of which one will be used, has better uses for.
    """

    key: str
    cell: Cell
    out: Path
    measured: bool = True


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    Attributes:
        key: of the job.
        state: `running` (it was begun, here or once more), `evaluated`, `done` or `failed`.
        evaluation: of `evaluated`: `epoch`, `step`, training `seconds`, `loss`, and `score` on validation.
        result: of a run that is done, what `posology.train` returns.
        problem: of a run that failed, why: one sentence without any text of a document.
        worker: who has it, for people: a process id, or a node of a cluster.
        peak_memory: bytes of the process that ran it, over what it held before; None where not measured.
    """

    key: str
    state: str
    result: dict[str, Any] | None = None
    problem: str | None = None
    worker: str | None = None
    peak_memory: int | None = None
    evaluation: dict[str, float] | None = None


class Executor(Protocol):
    """Carries out jobs in whatever order and company is fastest.

    An executor never writes the ledger. Jobs whose worker dies are begun again, up to `ATTEMPTS` times in all; what
    fails for a reason of its own (`UserError`) is not tried again.
    """

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """Yields events as they happen; ends when each job is done or failed. May be closed early: it then ends its
        workers, which leave checkpoints."""
        ...

    def stop(self, key: str) -> None:
        """Ends a run after its current or next evaluation; it is done then, with its best state so far. A hint: a run
        that is over already, or is asked in vain, is not changed."""
        ...
