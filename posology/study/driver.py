"""Drives runs: from the ledger to an executor, and what happens back into the ledger."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from posology import console
from posology.engine.stopping import interruptible
from posology.errors import Interrupted
from posology.study.cell import Cell
from posology.study.executor import Event, Executor, Job
from posology.study.ledger import Ledger


def carry_out(
    ledger: Ledger,
    study: str,
    cells: Sequence[Cell],
    executor: Executor | None = None,
    *,
    watch: Callable[[Event], bool] | None = None,
    keep: Collection[str] | None = None,
    retry: bool = False,
    source: str = "",
    title: str = "",
    measured: bool = True,
) -> list[dict[str, Any]]:
    """Does those runs of a study that nobody has done yet, and records them.

    Artifacts lie in the folder `Ledger.artifacts`, each under its key.

    Args:
        ledger: opened for writing.
        study: its name in the ledger.
        cells: its runs.
        executor: who does them; by default this machine.
        watch: is told every event. Where it returns True for an evaluation, that run ends, with its best state so far.
        keep: keys of runs that somebody ended early and that are good as they are; by default all where there is a
            `watch`, and none where there is none. The others are done anew, as a whole.
        retry: try runs that failed once more.
        source, title: of the study, as `Ledger.add` takes them.
        measured: whether speed of prediction, operations and size of each run are measured.

    Returns:
        For each cell, in order, what `Ledger.run` gives.

    Raises:
        UserError: a run cannot be: its task, backbone or recipe is wrong. Nothing is done then.
        Interrupted: stopped by the user or by SIGTERM; the same call continues.
    """
    if executor is None:
        from posology.study.local import LocalExecutor

        executor = LocalExecutor()
    keys = ledger.add(study, cells, source=source, title=title)
    folder = ledger.artifacts
    pruned = ledger.pruned(study)
    if keep is None:  # who does not end runs early wants those whole that somebody else did
        keep = pruned if watch is not None else ()
    _forget(ledger, [key for key in pruned if key not in keep])
    known = {key: ledger.state(key) for key in keys}
    missing = [key for key, state in known.items() if state != "done" and (retry or state != "failed")]
    ledger.open_again(missing)
    by_key = dict(zip(reversed(keys), reversed(cells), strict=True))
    folder.mkdir(mode=0o700, exist_ok=True)
    jobs = [Job(key, by_key[key], Path(folder / key), measured) for key in missing]
    if len(jobs) < len(known):
        failed = sum(state == "failed" for state in known.values()) if not retry else 0
        console.say(
            f"{study}: {len(known) - len(jobs) - failed} of {len(known)} runs are done already"
            + (f", {failed} failed before (--retry tries them again)" if failed else "")
        )
    _drive(ledger, study, jobs, executor, watch, len(known))
    return [ledger.run(key) for key in keys]


def _forget(ledger: Ledger, keys: Sequence[str]) -> None:
    for key in keys:
        shutil.rmtree(ledger.artifacts / key, ignore_errors=True)
    ledger.forget(keys)


def _drive(
    ledger: Ledger,
    study: str,
    jobs: list[Job],
    executor: Executor,
    watch: Callable[[Event], bool] | None,
    total: int,
) -> None:
    titles = {job.key: job.cell.title for job in jobs}
    ended = total - len(jobs)
    # Closed whatever happens, so that workers write their checkpoints and end.
    with interruptible(), console.progress(study, total, ended) as advance:
        try:
            with contextlib.closing(executor.run(jobs)) as events:  # type: ignore[type-var]
                for event in events:
                    _record(ledger, event)
                    if event.state in ("done", "failed"):
                        ended += 1
                        console.say(f"{ended}/{total} {titles[event.key]}: {_outcome(event)}")
                        advance()
                    if watch is not None and watch(event) and event.state == "evaluated":
                        executor.stop(event.key)
        except KeyboardInterrupt:
            raise Interrupted(
                f"{ended} of {total} runs of {study} are in {ledger.path}; the same command continues"
            ) from None


def _record(ledger: Ledger, event: Event) -> None:
    if event.state == "running":
        ledger.begin(event.key, event.worker)
    elif event.state == "evaluated":
        assert event.evaluation is not None
        ledger.evaluated(event.key, event.evaluation)
    elif event.state == "done":
        assert event.result is not None
        ledger.finish(event.key, event.result, peak_memory=event.peak_memory)
    else:
        ledger.fail(event.key, event.problem or "no reason was given")


def _outcome(event: Event) -> str:
    if event.result is None:
        return f"failed: {event.problem}"
    metric = event.result["metric"]
    score = event.result["metrics"].get(metric) or {}
    value = score.get("value")
    return f"{metric} {'undefined' if value is None else f'{value:.3f}'}, {event.result['seconds']:.1f} s"
