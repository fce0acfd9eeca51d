"""What a worker does with its jobs: trains them, one by one or in company, and says how it goes."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posology import console
from posology.engine import artifact as artifacts
from posology.engine.checkpoint import left_behind, untouched_generators
from posology.engine.many import train_many
from posology.engine.record import summary
from posology.engine.train import train
from posology.errors import Interrupted, UserError
from posology.measure.energy import Energy
from posology.measure.memory import Watermark
from posology.measure.run import measures
from posology.study.executor import Event, Job
from posology.study.grouping import NOT_IN_COMPANY

Emit = Callable[[Event], None]


def finished(job: Job) -> dict[str, Any] | None:
    """What `posology.train` returned for a job whose artifact is complete, and its `measures`; None where it is not.

    A run may be done without anybody having recorded it: whoever drove it was killed in between.
    """
    if not (job.out / artifacts.RECORD).is_file():
        return None
    try:
        record = artifacts.read_record(job.out)
    except UserError:
        return None
    if record["test"] is None:
        return None
    return summary(job.out, record) | ({"measures": record["measures"]} if "measures" in record else {})


def carry_out_job(
    job: Job,
    emit: Emit,
    stopped: Callable[[str], bool] = lambda key: False,
    worker: str | None = None,
    *,
    alone: bool = True,
) -> Event:
    """Does one job in this process.

    Args:
        job: the run; continued where an earlier attempt left a checkpoint.
        emit: is told that it began, and each evaluation.
        stopped: whether a run is to end early, by its key; asked after each evaluation.
        worker: the name of this worker in events.
        alone: no other worker is on this machine, so that the energy it takes is that of the run.

    Returns:
        The event that ends it: `done` or `failed`.

    Raises:
        Interrupted: SIGTERM came; a checkpoint is kept.
    """
    if (result := finished(job)) is not None:
        return Event(job.key, "done", result=_measured(job, result), worker=worker)
    emit(Event(job.key, "running", worker=worker))
    if problem := _changed(job):
        return Event(job.key, "failed", problem=problem, worker=worker)

    def watch(evaluation: dict[str, float]) -> bool:
        emit(Event(job.key, "evaluated", worker=worker, evaluation=evaluation))
        return stopped(job.key)

    _clear(job.out)
    memory = Watermark()
    try:
        with Energy() as energy:
            # with other versions or threads it starts over: the key says that the run is the same
            result = train(**job.cell.arguments(), out=job.out, watch=watch, fresh="if-other")
    except (KeyboardInterrupt, Interrupted):
        raise
    except Exception as error:
        return Event(job.key, "failed", problem=_problem(error), worker=worker)
    if problem := _changed(job):
        shutil.rmtree(job.out, ignore_errors=True)
        return Event(job.key, "failed", problem=problem, worker=worker)
    peak = memory.peak()
    whole = alone and not result["training"].get("resumed")  # what went before an interruption was not counted
    result = _measured(job, result, energy.joules if whole else None)
    return Event(job.key, "done", result=result, worker=worker, peak_memory=peak)


def _measured(job: Job, result: dict[str, Any], energy: float | None = None) -> dict[str, Any]:
    """The result with its `measures`, if they are wanted: its artifact keeps them, and there are none where that fails."""
    if "measures" in result or not job.measured:
        return result
    try:
        with untouched_generators():
            found = measures(job.out, job.cell.data, energy=energy)
        artifacts.update(job.out, artifacts.read_record(job.out) | {"measures": found})
    except (KeyboardInterrupt, Interrupted):
        raise
    except Exception as error:  # the run is good without them
        console.say(f"{job.cell.title}: not measured ({_problem(error)})")
        found = {}
    return result | {"measures": found}


def carry_out_company(
    jobs: Sequence[Job],
    emit: Emit,
    stopped: Callable[[str], bool] = lambda key: False,
    worker: str | None = None,
    *,
    alone: bool = True,
) -> None:
    """Does jobs that can share a frozen backbone in company; all events go to `emit`, the last ones too.

    Arguments as in `carry_out_job`. Energy is measured of those only that train by themselves in the end.

    Raises:
        Interrupted: SIGTERM came; checkpoints are kept.
    """
    waiting = []
    for job in jobs:
        if (result := finished(job)) is not None:
            emit(Event(job.key, "done", result=_measured(job, result), worker=worker))
        elif problem := _changed(job):
            emit(Event(job.key, "failed", problem=problem, worker=worker))
        else:
            waiting.append(job)
    if len(waiting) < 2:
        for job in waiting:
            emit(carry_out_job(job, emit, stopped, worker, alone=alone))
        return
    for job in waiting:
        emit(Event(job.key, "running", worker=worker))
        _clear(job.out)
    ended: set[int] = set()
    memory = Watermark()

    def watch(number: int, evaluation: dict[str, float]) -> bool:
        emit(Event(waiting[number].key, "evaluated", worker=worker, evaluation=evaluation))
        return stopped(waiting[number].key)

    def done(number: int, result: dict[str, Any]) -> None:
        ended.add(number)
        key = waiting[number].key
        if "failed" in result:
            emit(Event(key, "failed", problem=result["failed"], worker=worker))
        elif problem := _changed(waiting[number]):
            shutil.rmtree(waiting[number].out, ignore_errors=True)
            emit(Event(key, "failed", problem=problem, worker=worker))
        else:  # of the company as a whole: what one of its runs holds cannot be told apart
            peak = memory.peak()
            if waiting[number].measured:
                with memory.set_aside():
                    result = _measured(waiting[number], result)
            emit(Event(key, "done", result=result, worker=worker, peak_memory=peak))

    try:
        train_many(
            [{**job.cell.model_dump(exclude=NOT_IN_COMPANY), "out": job.out} for job in waiting],
            overwrite=True,
            watch=watch,
            done=done,
        )
    except (KeyboardInterrupt, Interrupted):
        raise
    except Exception as error:
        console.say(f"a company of {len(waiting)} runs failed ({_problem(error)}): those left train one by one")
    for number, job in enumerate(waiting):
        if number not in ended:
            emit(carry_out_job(job, emit, stopped, worker, alone=alone))


def _changed(job: Job) -> str | None:
    """Why a job is no longer the run that its key names: somebody wrote its task, backbone or teacher meanwhile.

    Asked before training, and after it, since the test split is read at its end.
    """
    try:
        if job.cell.key() == job.key:
            return None
    except (UserError, OSError) as error:
        return _problem(error)
    return str(
        UserError(
            "its task, backbone or teacher was changed since the study began, so that the run would be another one",
            "Give the command again when nobody writes them any more",
            job.cell.title,
        )
    )


def _clear(out: Path) -> None:
    """Removes what an attempt left that did not come to its test, unless `train` can go on from it."""
    if out.is_dir() and (out / artifacts.RECORD).is_file() and not left_behind(out):
        shutil.rmtree(out)


def _problem(error: Exception) -> str:
    """One sentence; of errors that are no user's, only the kind and the place, since their text may quote anything."""
    if isinstance(error, UserError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {os.path.basename(frame.filename)}, line {frame.lineno}"
