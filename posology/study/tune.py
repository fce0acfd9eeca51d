"""Searches for hyper-parameters: Optuna proposes trials, an executor does them, each is a normal run of the ledger.

    optuna.ask  ──recipe──>  cells  ──carry_out──>  runs in the ledger  ──validation score──>  optuna.tell
                                          └──evaluations──> halving: whether a trial goes on

Optuna's state lies beside the ledger (`LEDGER.optuna.db`, which `optuna-dashboard sqlite:///LEDGER.optuna.db` shows). A
search that was killed continues: what it had asked for is known there, what came of it is known to the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from posology.errors import UserError
from posology.seed import check_seed
from posology.study.cell import Cell
from posology.study.driver import carry_out
from posology.study.executor import Event, Executor
from posology.study.grid import RATIO, fields_of
from posology.study.ledger import TRIALS, Ledger, beside
from posology.study.spec import Search
from posology.study.trials import Trial, Tuning, open_storage

PARALLEL = 8
"""Trials that are asked for at once: enough for good company, few enough for a sampler to learn from 20."""

_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def tune(
    ledger: Ledger,
    study: str,
    base: Sequence[Cell],
    search: Search,
    executor: Executor | None = None,
    *,
    seed: int = 0,
    parallel: int = PARALLEL,
    source: str = "",
    title: str = "",
) -> dict[str, Any]:
    """Searches the best recipe for each of some runs, by their scores on validation.

    Trial 0 is the run as it is given, so that there is something to compare with; it counts, and is never ended early.
    What was begun before, by the same search in the same ledger, is continued: trials that were under way when it was
    killed are done, none is done twice. The same seed proposes the same trials, as long as their scores are the same.

    With pruner `halving` (Optuna's asynchronous successive halving: Li et al. 2020), trials are compared after 1, 3,
    9 ... epochs by the metric that chooses their checkpoints, and those not in the upper third end.

    Args:
        ledger: opened for writing.
        study: its name in the ledger.
        base: one run for each search.
        search: how many trials, of what, and what they are for.
        executor: who does the trials; by default this machine, in company where that is possible.
        seed: of the sampler.
        parallel: trials of each search that are asked for at once.
        source, title: of the study, as `Ledger.add` takes them.

    Returns:
        `study`, `ledger`, `storage` (files) and for each search, in `searches`: `name`, `task`, `backbone`, `method`,
        `seed`, `shots`, `given` (overrides of the base), `metric`, `objective`; `best` and `default`: `number`, `key`,
        `overrides`, `validation`, `seconds` (of training; a run in company counts its share) and `test` with its
        interval; `importance` of each field (fANOVA; shares of the score's variance), None where it cannot be told;
        `front`, with two objectives the trials that no other beats in both; `states`; and `trials`, all of them.
        `best` is None where no trial was completed.

    Raises:
        UserError: the space does not fit a method, or another search has this name.
        Interrupted: stopped by the user or by SIGTERM; the same call continues.
    """
    check_seed(seed)
    _check(study, base, search, parallel)
    if executor is None:
        from posology.study.local import LocalExecutor

        executor = LocalExecutor()
    path = beside(ledger.path, ".optuna.db")
    with open_storage(path) as storage:
        searches = [Tuning(f"{study}: {cell.title}", cell, search, seed, storage, path) for cell in base]
        while True:
            for each in searches:
                each.ask(parallel)
            trials = [trial for each in searches for trial in each.trials]
            # All trials so far, since a study in the ledger consists of what it was last declared with.
            cells = [trial.cell for trial in trials]
            ledger.note(study, TRIALS, {each.name: [trial.key for trial in each.trials] for each in searches})
            runs = carry_out(
                ledger,
                study,
                cells,
                executor,
                watch=_Watch(trials),
                keep={trial.key for trial in trials if trial.behind},  # not what another search ended early
                source=source,
                title=title,
                measured=False,
            )
            for trial, run in zip(trials, runs, strict=True):
                trial.tell(run["result"], run["problem"])  # of runs that were done already there are no events
            if all(each.finished for each in searches):
                break
        result = {
            "study": study,
            "ledger": str(ledger.path),
            "storage": str(path),
            "searches": [_result(each, ledger) for each in searches],
        }
    ledger.note(study, "tune", result)
    return result


class _Watch:
    """Passes on what happens to runs; one run may be several trials."""

    def __init__(self, trials: Sequence[Trial]):
        self._trials: dict[str, list[Trial]] = {}
        for trial in trials:
            self._trials.setdefault(trial.key, []).append(trial)

    def __call__(self, event: Event) -> bool:
        own = self._trials[event.key]
        if event.state == "evaluated" and event.evaluation is not None:
            return all([trial.evaluated(event.evaluation) for trial in own])
        if event.state in ("done", "failed"):
            for trial in own:
                trial.tell(event.result, event.problem)
        return False


def _check(study: str, base: Sequence[Cell], search: Search, parallel: int) -> None:
    if search.trials < 1:
        raise UserError(f"{search.trials} trials are none", "Give a number from 1", "search.trials")
    if parallel < 1:
        raise UserError(f"{parallel} trials at once are none", "Give a number from 1", "parallel")
    if search.pruner == "halving" and len(search.objective) > 1:
        raise UserError(
            "halving compares one score, and there are two objectives", "Choose pruner: none", "search.pruner"
        )
    methods = list(dict.fromkeys(cell.method for cell in base))
    for name in search.space:
        if not any(name in fields_of(method) for method in methods):
            raise UserError(
                f"is no field that {' or '.join(methods)} uses", "Take it out of the space", f"search.space.{name}"
            )
    for method in methods:
        if not fields_of(method) & set(search.space):
            raise UserError(f"{method} has nothing of the space", "Take it out, or add learning_rate", "search.space")
    if {"alpha", RATIO} <= set(search.space):
        raise UserError(f"is given by {RATIO} too", "Take one of them out", "search.space.alpha")
    titles = [cell.title for cell in base]
    if twice := next((title for number, title in enumerate(titles) if title in titles[:number]), None):
        raise UserError(f"two searches are called {twice}", "Let them differ in more than limits", study)


def _result(search: Tuning, ledger: Ledger) -> dict[str, Any]:
    """The entry of `searches` that `tune` returns."""
    found = search.study.get_trials(deepcopy=False)
    rows = [_row(search, own, frozen, ledger) for own, frozen in zip(search.trials, found, strict=True)]
    complete = [row for row in rows if row["state"] == "complete"]
    best = max(complete, key=lambda row: row["validation"], default=None)
    front = None
    if len(search.search.objective) > 1:
        front = [_tested(search, rows[trial.number], ledger) for trial in search.study.best_trials]
    return {
        "name": search.name,
        **search.base.model_dump(include={"task", "backbone", "method", "seed", "shots"}),
        "given": search.base.overrides,
        "metric": search.metric,
        "objective": list(search.search.objective),
        "best": None if best is None else _tested(search, best, ledger),
        "default": _tested(search, rows[0], ledger),
        "importance": _importance(search),
        "front": front,
        "states": {state: sum(row["state"] == state for row in rows) for state in _STATES.values()},
        "trials": rows,
    }


def _row(search: Tuning, own: Trial, frozen: FrozenTrial, ledger: Ledger) -> dict[str, Any]:
    run = ledger.run(own.key)
    result = run["result"] or {}
    return {
        "number": own.number,
        "key": own.key,
        "overrides": own.cell.overrides,
        "state": _STATES[frozen.state],
        "validation": result.get("validation", {}).get(search.metric),
        "seconds": result.get("seconds"),
        "epochs": max((each["epoch"] for each in run["evaluations"]), default=None),
        "problem": frozen.user_attrs.get("problem"),
    }


def _tested(search: Tuning, row: dict[str, Any], ledger: Ledger) -> dict[str, Any]:
    """A row with its score on test, by which nothing was chosen."""
    result = ledger.run(row["key"])["result"] or {}
    return row | {"test": result.get("metrics", {}).get(search.metric), "artifact": result.get("artifact")}


def _importance(search: Tuning) -> dict[str, float] | None:
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=search.seed)
    names = [axis.name for axis in search.axes]
    try:
        found = optuna.importance.get_param_importances(
            search.study, evaluator=evaluator, params=names, target=lambda trial: trial.values[0]
        )
    except (ValueError, RuntimeError):  # too few trials, or all with the same score
        return None
    return {name: float(share) for name, share in found.items() if math.isfinite(share)} or None
