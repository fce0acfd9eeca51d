"""The trials of a search, as Optuna knows them and as runs: what is asked for, and what is told of it."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from posology import console
from posology.errors import UserError
from posology.study.cell import Cell
from posology.study.grid import RATIO, field_value, fields_of
from posology.study.spec import Range, Search

_STARTUP = 5
"""Trials drawn at random before TPE begins. Optuna's own 10 would leave it little of the usual 20."""

_KEEP_ONE_OF = 3
_DEFINITION = {"cell": "task, backbone or recipe", "seed": "seed of the sampler"}


@contextlib.contextmanager
def open_storage(path: Path) -> Iterator[RDBStorage]:
    """Optuna's own database, made where it is missing, with nothing said that is not ours to say.

    Raises:
        UserError: the file is something else.
    """
    import sqlalchemy

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=60, check_same_thread=False)  # a dashboard may be reading: wait
        # Optuna commits dozens of times a trial. What a power cut takes is asked and told again, from the ledger.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.touch(mode=0o600)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                storage = RDBStorage(
                    "sqlite://", engine_kwargs={"creator": connect, "poolclass": sqlalchemy.pool.StaticPool}
                )
            except (sqlalchemy.exc.DatabaseError, sqlite3.DatabaseError, RuntimeError) as error:
                what = str(error).splitlines()[0]
                raise UserError(f"cannot be read as Optuna's storage ({what})", "Move it away", path) from error
            try:
                yield storage
            finally:
                storage.engine.dispose()
    finally:
        optuna.logging.set_verbosity(verbosity)


class Axis:
    """One field of the search space.

    Optuna keeps numbers, strings, booleans and None; lists (of targets) are choices by their JSON.
    """

    def __init__(self, name: str, space: Any, method: str):
        self.name = name
        self.range = space if isinstance(space, Range) else None
        ends = [space.low, space.high] if isinstance(space, Range) else list(space)
        try:
            values = [field_value(method, name, value) for value in ends]
        except ValueError as error:
            raise UserError(str(error), "Correct the value", f"search.space.{name}") from None
        if self.range and any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
            raise UserError("a range needs a field that is a number", "Give a list of values", f"search.space.{name}")
        self._ends = values[:2]
        self._whole = name != RATIO and all(isinstance(value, int) for value in values)
        plain = [list(value) if isinstance(value, tuple) else value for value in values]
        self.choices = {_label(value): value for value in plain} if self.range is None else {}

    def suggest(self, trial: optuna.Trial) -> None:
        """Draws a value, unless the trial has one."""
        if self.range is None:
            trial.suggest_categorical(self.name, list(self.choices))
        elif self._whole:
            trial.suggest_int(self.name, *self._ends, log=self.range.log)
        else:
            trial.suggest_float(self.name, *self._ends, log=self.range.log)

    def find(self, value: Any) -> list[Any]:
        """What Optuna calls a value; nothing where it is not in the space."""
        if self.range is not None:
            inside = isinstance(value, (int, float)) and self._ends[0] <= value <= self._ends[1]
            return [value] if inside else []
        label = _label(value)
        return [own for own in self.choices if own == label and isinstance(own, bool) == isinstance(label, bool)]


class Trial:
    """A trial: what Optuna knows of it, and its run.

    Attributes:
        told: whether Optuna knows how it ended.
    """

    def __init__(
        self, tuning: Tuning, cell: Cell, key: str, found: optuna.Trial | FrozenTrial, reported: Iterable[int]
    ):
        self.cell, self.key, self.number, self.told = cell, key, found.number, isinstance(found, FrozenTrial)
        self._tuning, self._trial = tuning, found if isinstance(found, optuna.Trial) else None
        self._reported = set(reported)
        self._behind: int | None = found.user_attrs.get("behind")  # since which epoch
        self._pruned = isinstance(found, FrozenTrial) and found.state == TrialState.PRUNED

    @property
    def behind(self) -> bool:
        """Whether this search has ended it early, or is about to."""
        return self._behind is not None or self._pruned

    def evaluated(self, evaluation: Mapping[str, float]) -> bool:
        """Notes an intermediate score; whether the trial is to end."""
        if self._trial is None or self.told:
            return False
        if self._report(evaluation) and self._trial.should_prune() and self.number > 0:
            self._behind = round(evaluation["epoch"])
            self._trial.set_user_attr("behind", self._behind)
        return self._behind is not None and evaluation["epoch"] >= self._behind

    def _report(self, evaluation: Mapping[str, float]) -> bool:
        """Tells Optuna a score that it does not know yet; whether there was anything to tell.

        Trials are compared after whole epochs (batches differ, so that steps say little), and by one score only.
        """
        epoch = round(evaluation["epoch"])
        whole = math.isclose(epoch, evaluation["epoch"])
        if self._trial is None or not whole or epoch in self._reported or len(self._tuning.search.objective) > 1:
            return False
        self._reported.add(epoch)
        self._trial.report(evaluation["score"], epoch)
        return True

    def tell(self, result: Mapping[str, Any] | None, problem: str | None) -> None:
        """Says how it ended, once."""
        if self._trial is None or self.told:
            return
        tuning, self.told = self._tuning, True
        score = None if result is None else result["validation"].get(tuning.metric)
        if result is None or score is None:
            problem = problem or f"{tuning.metric} is undefined on validation"
            self._trial.set_user_attr("problem", problem)
            tuning.study.tell(self.number, state=TrialState.FAIL)
            console.say(f"{tuning.name}: trial {self.number} failed: {problem}")
            return
        for evaluation in result["training"].get("evaluations", []):
            if "epoch" in evaluation:
                self._report(evaluation)
        pruned = result["training"].get("stopped") == "pruned"
        if pruned:
            tuning.study.tell(self.number, state=TrialState.PRUNED)
        else:
            tuning.study.tell(self.number, [score, result["seconds"]][: len(tuning.search.objective)])
        tuning.say(self.number, score, pruned)


class Tuning:
    """One search: an Optuna study and its trials.

    Attributes:
        study: Optuna's.
        trials: in the order of their numbers.
        metric: on validation, to be maximised.
        axes: of the space, in the order in which they are drawn.
    """

    def __init__(self, name: str, base: Cell, search: Search, seed: int, storage: RDBStorage, path: Path):
        from posology.tasks.prepared import METRICS, PreparedTask

        task = PreparedTask.open(base.data)
        self.name, self.base, self.search, self.seed = name, base, search, seed
        self.metric = search.metric or task.metric
        if self.metric not in METRICS[task.kind]:
            raise UserError(
                f"{self.metric} is no metric of {base.task}, which is {task.kind}",
                f"Choose one of {', '.join(METRICS[task.kind])}",
                "search.metric",
            )
        own = fields_of(base.method)
        self.axes = [Axis(field, search.space[field], base.method) for field in sorted(search.space) if field in own]
        self._recipe: dict[str, Any] = base.identity()["recipe"]
        self.study = self._open(storage, path)
        self.trials: list[Trial] = []
        found = self.study.get_trials(deepcopy=False)
        if len(found) > search.trials:
            raise UserError(
                f"{name} has {len(found)} trials already, and {search.trials} are asked for",
                f"Ask for {len(found)} or more, or give the study another name",
                path,
            )
        if not found:
            self.study.enqueue_trial(self._default(), user_attrs={"default": True})
        complete = [(trial.values[0], trial.number) for trial in found if trial.state == TrialState.COMPLETE]
        self._best: tuple[float, int] | None = max(complete, default=None)
        for trial in found:
            if trial.state != TrialState.WAITING:
                self._take(trial)
        if self.trials:
            ended = sum(trial.told for trial in self.trials)
            console.say(f"{name}: {ended} of {search.trials} trials have ended, {len(self.trials) - ended} were begun")

    @property
    def finished(self) -> bool:
        """Whether all trials have ended."""
        return len(self.trials) >= self.search.trials and all(trial.told for trial in self.trials)

    def ask(self, parallel: int) -> None:
        """Fills up the current batch if something of it is left to do, or begins the next one.

        Batches end at the same trials however often a search is killed, so that it proposes the same.
        """
        count = len(self.trials)
        if all(trial.told for trial in self.trials):
            end = (count // parallel + 1) * parallel
        else:
            end = math.ceil(count / parallel) * parallel
        for number in range(count, min(end, self.search.trials)):
            self.study.sampler = self._sampler(number)
            self._take(self.study.ask())

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Of one trial, since a sampler that goes on after a kill would draw the first trials once more."""
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        if self.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP, constant_liar=True)

    def _open(self, storage: RDBStorage, path: Path) -> optuna.Study:
        """The study of this name, new or as it was left."""
        search = self.search
        wanted = {
            "cell": self.base.key(),
            "space": {axis.name: search.model_dump(mode="json")["space"][axis.name] for axis in self.axes},
            **search.model_dump(mode="json", include={"sampler", "pruner", "objective"}),
            "metric": self.metric,
            "seed": self.seed,
        }
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if search.pruner == "halving":
            pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=_KEEP_ONE_OF)
        directions: list[Literal["maximize", "minimize"]] = ["maximize", "minimize"]
        if self.name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=self.name, storage=storage, pruner=pruner)
            found = study.user_attrs.get("search")
            if found == wanted:
                return study
            if found is not None or study.get_trials(deepcopy=False):
                differs = [_DEFINITION.get(what, what) for what in wanted if (found or {}).get(what) != wanted[what]]
                raise UserError(
                    f"holds a search called {self.name} with another {', '.join(differs)}",
                    "Give the study another name, or search as before",
                    path,
                )
            optuna.delete_study(study_name=self.name, storage=storage)  # killed before it was declared
        study = optuna.create_study(
            study_name=self.name, storage=storage, pruner=pruner, directions=directions[: len(search.objective)]
        )
        study.set_user_attr("search", wanted)
        return study

    def _default(self) -> dict[str, Any]:
        """The base's recipe in terms of the space: those fields whose values lie in it."""
        recipe = dict(self._recipe)
        if "alpha" in recipe:
            recipe[RATIO] = recipe["alpha"] / recipe["rank"]
        return {axis.name: value for axis in self.axes for value in axis.find(recipe[axis.name])}

    def _take(self, trial: optuna.Trial | FrozenTrial) -> None:
        """Makes a trial's run known, here and to Optuna."""
        known: FrozenTrial | None = None
        if isinstance(trial, FrozenTrial) and not trial.state.is_finished():
            known = trial
            self.study.sampler = self._sampler(trial.number)
            trial = optuna.Trial(self.study, trial._trial_id)
        if isinstance(trial, optuna.Trial):
            # Trial 0 has what of its recipe lies in the space, and nothing is drawn for the rest.
            default = self._default() if trial.number == 0 else {}
            for axis in self.axes:
                if trial.number > 0 or axis.name in default:
                    axis.suggest(trial)
        cell = self.base
        if trial.number > 0:
            cell = cell.model_copy(update={"overrides": cell.overrides | self._overrides(trial.params)})
        key = cell.key()
        if isinstance(trial, optuna.Trial):
            trial.set_user_attr("key", key)
            trial.set_user_attr("overrides", cell.overrides)
        self.trials.append(Trial(self, cell, key, trial, known.intermediate_values if known else ()))

    def _overrides(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Recipe fields from what Optuna proposes."""
        values = {axis.name: axis.choices.get(params[axis.name], params[axis.name]) for axis in self.axes}
        if RATIO in values:
            values["alpha"] = values.pop(RATIO) * values.get("rank", self._recipe["rank"])
        return values

    def say(self, number: int, score: float, pruned: bool) -> None:
        """One line for people: a trial has ended."""
        if not pruned and (self._best is None or score > self._best[0]):
            self._best = score, number
        so_far = "" if self._best is None else f"; best {self._best[0]:.4f}, trial {self._best[1]}"
        what = "ended early at" if pruned else "has"
        console.say(f"{self.name}: trial {number} {what} {self.metric} {score:.4f} on validation{so_far}")


def _label(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)
