"""A study from its file to its results: plan, run, tune."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from posology.errors import UserError
from posology.study.cell import Cell
from posology.study.driver import carry_out
from posology.study.executor import Executor
from posology.study.grid import expand
from posology.study.ledger import TRIALS, Ledger, beside
from posology.study.spec import catalogue, check, read_study

GONE = "nobody drives it: what is running was cut off; the same command continues"


class Study:
    """A study file and its ledger.

    Args:
        file: a study file, or a name of the catalogue such as `small/table3`.
        ledger: the ledger's file; made by `run` where it is missing.
        tasks: the folder in which the prepared tasks lie; by default that of the study file. The small studies of the
            catalogue make theirs, from a synthetic hospital, beside the ledger.

    Attributes:
        file: what it says.
        cells: its runs.
        left_out: what was left out of the grid because it cannot be, such as a baseline on another kind of task.

    Raises:
        UserError: anything wrong with the file; the message names line and key.
    """

    def __init__(self, file: Path | str, *, ledger: Path | str = "ledger.db", tasks: Path | str | None = None):
        self.ledger = Path(ledger)
        # By its name in the catalogue: a user's own file in a folder `small` is about the user's own tasks.
        self._twin = str(file).startswith("small/") and str(file) in catalogue() and tasks is None
        if self._twin:
            tasks = beside(self.ledger, ".tasks")
        self.file = read_study(file, tasks)
        grid = expand(self.file)
        self.cells: list[Cell] = grid.cells
        self.left_out: list[str] = grid.left_out

    @property
    def name(self) -> str:
        """In the ledger."""
        return self.file.study

    def prepare(self) -> None:
        """Makes what a small study of the catalogue needs, and checks that everything is there.

        Raises:
            UserError: a task or a backbone is missing, or does not fit.
        """
        if self._twin:
            from posology.study.twins import prepare_twin_tasks

            prepare_twin_tasks(beside(self.ledger, ".tasks"), self.file.tasks)
        check(self.file)

    def plan(self, *, price: str = "own-server", prices: Path | str | None = None, workers: int = 1) -> dict[str, Any]:
        """What it would run, what is done, and what the rest will take. Makes no ledger, and works while the study runs.

        Args:
            price: of the machine, by its name in prices.yaml.
            prices: a file of one's own in its form.
            workers: GPUs of this machine, or nodes of the cluster that the file names, that would share the work.

        Returns:
            `runs` (of a search: all its trials), `done`, `missing` (of a search without trials that failed, since these
            are not tried again); and where the tasks and backbones are at hand `seconds`, `low`, `high`, `memory`
            (bytes, of the largest run), `money` and `currency` of what is missing; else `unknown`, which says why
            nothing is foretold. `parts` counts runs by task, backbone and method; `left_out` says what the grid lacks.
        """
        if workers < 1:
            raise UserError(f"{workers} workers are none", "Give a number from 1", "--workers")
        counts: dict[str, dict[str, int]] = {"tasks": {}, "backbones": {}, "methods": {}}
        for cell in self.cells:
            for part, value in (("tasks", cell.task), ("backbones", cell.backbone or "none"), ("methods", cell.method)):
                counts[part][value] = counts[part].get(value, 0) + 1
        searches = 1 if self.file.search is None else self.file.search.trials
        found: dict[str, Any] = {"study": self.name, "runs": len(self.cells) * searches, "parts": counts}
        found["left_out"] = self.left_out
        if searches > 1:
            found |= {"combinations": len(self.cells), "trials": searches}
        try:
            self.prepare()
        except UserError as error:
            return found | {"done": None, "missing": None, "unknown": str(error)}
        from posology.study.forecast import forecast_study

        with contextlib.ExitStack() as stack:
            ledger = stack.enter_context(Ledger(self.ledger)) if self.ledger.is_file() else None
            if self.file.search is None:
                keys = {cell.key(): cell for cell in self.cells}
                missing = [cell for key, cell in keys.items() if ledger is None or ledger.state(key) != "done"]
                found |= {"runs": len(keys), "done": len(keys) - len(missing), "missing": len(missing)}
            else:
                done, missing = self._trials_left(ledger, searches)
                found |= {"done": done, "missing": len(missing)}
            foretold = forecast_study(
                ledger,
                missing,
                price=price,
                prices=prices,
                workers=workers,
                cluster=self.file.executor == "ray",
            )
            return found | {name: value for name, value in foretold.items() if name != "runs"}

    def _trials_left(self, ledger: Ledger | None, trials: int) -> tuple[int, list[Cell]]:
        """How many trials are done, and for each that is still to be trained the cell of its search."""
        done, missing = 0, list[Cell]()
        known = trials_of(ledger, self.name) if ledger is not None else {}
        for cell in self.cells:
            keys = known.get(f"{self.name}: {cell.title}", [])
            states = [ledger.state(key) for key in keys] if ledger is not None and keys[:1] == [cell.key()] else []
            done += states.count("done")
            missing += [cell] * (trials - states.count("done") - states.count("failed"))
        return done, missing

    def run(self, executor: Executor | None = None, *, retry: bool = False) -> dict[str, Any]:
        """Does what is missing.

        Args:
            executor: who does it; by default this machine.
            retry: try runs that failed once more.

        Returns:
            What `posology study status --runs` says, and `artifact`, `seconds`, `trainable_parameters` of each run.

        Raises:
            UserError: a task, backbone or method is missing or does not fit, another process writes the ledger, or the
                study is a search.
            Interrupted: stopped; the same call continues.
        """
        if self.file.search is not None:
            raise UserError("is a search", "Use posology tune, or take out its section `search`", self.name)
        self.prepare()
        with Ledger(self.ledger, write=True) as ledger:
            carry_out(
                ledger,
                self.name,
                self.cells,
                executor,
                retry=retry,
                source=self.file.model_dump_json(),
                title=self.name,
            )
            return progress_of(ledger, self.name, runs=True)

    def tune(self, executor: Executor | None = None, *, parallel: int = 8, seed: int = 0) -> dict[str, Any]:
        """Searches for the best recipe of each of its combinations; see `posology.study.tune.tune`."""
        if self.file.search is None:
            raise UserError("has no section `search`", "Add one: docs/studies.md shows how", self.name)
        self.prepare()
        from posology.study.tune import tune

        with Ledger(self.ledger, write=True) as ledger:
            return tune(
                ledger,
                self.name,
                self.cells,
                self.file.search,
                executor,
                parallel=parallel,
                seed=seed,
                source=self.file.model_dump_json(),
                title=self.name,
            )


def progress_of(ledger: Ledger, study: str | None = None, *, runs: bool = False) -> dict[str, Any]:
    """How far a study, or all of them, have come.

    Returns:
        `done`, `running`, `failed`, `pending`; `driver`, which says so where runs are under way and the process that drove
        them is gone (else None); `seconds` of training so far; what is `under_way` (run, worker, minutes,
        last score on validation); why runs `failed_because`; and with `runs` every run's row.
    """
    rows = ledger.runs(study)
    under_way = []
    for row in rows:
        if row["state"] == "running":
            curve = ledger.run(row["key"])["evaluations"]
            begun = row["begun"]
            under_way.append(
                {
                    "run": title(row),
                    "key": row["key"][:8],
                    "worker": row["worker"],
                    "minutes": None if begun is None else round((time.time() - begun) / 60, 1),
                    "epoch": curve[-1]["epoch"] if curve else None,
                    "validation": curve[-1]["score"] if curve else None,
                }
            )
    found: dict[str, Any] = {
        "studies": [each["name"] for each in ledger.studies()] if study is None else [study],
        **ledger.status(study),
        "driver": GONE if under_way and ledger.driven is False else None,
        "seconds": sum(row["seconds"] or 0.0 for row in rows),
        "under_way": under_way,
        "failed_because": [
            {"run": title(row), "key": row["key"][:8], "problem": row["problem"]}
            for row in rows
            if row["state"] == "failed"
        ],
    }
    return found | {"runs": rows} if runs else found


def trials_of(ledger: Ledger, study: str) -> dict[str, list[str]]:
    """The keys of a search's trials so far, in order, by the name of the search."""
    found = ledger.noted(study, TRIALS)
    if found is None:  # written before there was such a note: by a search that has ended, or not at all
        ended = ledger.noted(study, "tune") or {"searches": []}
        found = {each["name"]: [trial["key"] for trial in each["trials"]] for each in ended["searches"]}
    return dict(found)


def title(row: dict[str, Any]) -> str:
    """A run's short name, from its row."""
    fields = ("task", "backbone", "method", "seed", "shots", "max_seconds", "overrides")
    return Cell.model_construct(data=Path(), **{name: row[name] for name in fields}).title
