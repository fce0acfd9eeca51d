"""Runs in MLflow: an experiment for each study, a run for each run, in a local database or on a server."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from posology.errors import UserError
from posology.report.tracked import Point, TrackedRun

_SCHEMES = ("sqlite", "file", "http", "https", "postgresql", "mysql", "mssql")
_STATUS = {"pending": "SCHEDULED", "running": "RUNNING", "done": "FINISHED", "failed": "FAILED"}
_TAG = "posology."
_KEY, _DIGEST = f"{_TAG}key", f"{_TAG}digest"
# What MLflow takes in one request, and the longest text it keeps.
_METRICS, _PARAMETERS, _TEXT = 1000, 100, 5000

_Item = TypeVar("_Item")


class MlflowStore:
    """A store of MLflow.

    A run is found by its key, which it bears as a tag. What is missing is added; where MLflow holds a number that the
    ledger does not have (any more), that run goes to MLflow's bin and another takes its place, since MLflow cannot
    unlearn a metric.

    Args:
        place: a folder, or a tracking URI.

    Raises:
        UserError: MLflow is not installed, or the store cannot be opened.
    """

    def __init__(self, place: str):
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when it is imported
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # stdout is for results
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # else a wrong address takes minutes to fail
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise UserError("MLflow is not installed", 'Run pip install "posology[track]"', "--mlflow") from None
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        uri, self._artifacts = _located(place)
        self.place = re.sub(r"//[^/@]*@", "//", uri)
        self._experiments: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {}
        with self._reaching():
            self._client: Any = MlflowClient(tracking_uri=uri)
            self._client.search_experiments(max_results=1)

    def put(self, run: TrackedRun) -> bool:
        """Makes it show the run as it is now; False where it did already.

        Raises:
            UserError: the store cannot be reached or written.
        """
        with self._reaching():
            experiment, known = self._experiment(run.study)
            own, digest = known.get(run.key, (None, ""))
            if digest == run.digest:
                return False
            has: dict[str, list[Any]] = {}
            if own is not None:
                has = self._has(own, run)
                if not _fits(has, run):
                    self._client.delete_run(own)
                    own, has = None, {}
            if own is None:
                tags = {_KEY: run.key}
                own = self._client.create_run(experiment, _ms(run.begun), tags, run.name).info.run_id
            self._add(own, has, run)
            known[run.key] = (own, run.digest)
            return True

    def _experiment(self, study: str) -> tuple[str, dict[str, tuple[str, str]]]:
        """The experiment of a study, and its runs: identifier and digest by key."""
        if study not in self._experiments:
            found = self._client.get_experiment_by_name(study)
            if found is not None and found.lifecycle_stage == "deleted":
                raise UserError(
                    f"its experiment {study!r} was deleted",
                    f"Run `mlflow experiments restore -x {found.experiment_id}`, or name another store",
                    self.place,
                )
            identifier = found.experiment_id if found else self._client.create_experiment(study, self._artifacts)
            self._experiments[study] = identifier, self._runs(identifier)
        return self._experiments[study]

    def _runs(self, experiment: str) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [experiment], max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
            )
            for run in page:
                tags = run.data.tags
                if tags.get(_KEY) in found:  # two followers began at once
                    self._client.delete_run(run.info.run_id)
                elif _KEY in tags:
                    found[tags[_KEY]] = (run.info.run_id, tags.get(_DIGEST, ""))
            token = page.token
            if not token:
                return found

    def _has(self, own: str, run: TrackedRun) -> dict[str, list[Any]]:
        """What MLflow knows of a run: every metric, and those that are curves with all their points."""
        data = self._client.get_run(own).data
        curves = {_named(name) for name in run.curves}
        metrics = {
            name: self._client.get_metric_history(own, name) if name in curves else [_Value(0, value)]
            for name, value in data.metrics.items()
        }
        return {**metrics, _PARAMS: list(data.params)}

    def _add(self, own: str, has: dict[str, list[Any]], run: TrackedRun) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [
            Metric(name, point.value, _ms(point.time), point.step)
            for name, points in _points(run).items()
            for point in points
            if point.step not in {known.step for known in has.get(name, ())}
        ]
        known = has.get(_PARAMS, [])  # MLflow lets nobody change a parameter, and none of a key's can
        parameters = [Param(name, str(value)[:_TEXT]) for name, value in run.parameters.items() if name not in known]
        tags = [RunTag(_TAG + name, value[:_TEXT]) for name, value in run.tags.items()]
        for some in _parts(metrics, _METRICS):
            self._client.log_batch(own, metrics=some)
        for few in _parts(parameters, _PARAMETERS):
            self._client.log_batch(own, params=few)
        self._client.log_batch(own, tags=tags)
        status = _STATUS[run.state]
        if run.ended is None:
            self._client.update_run(own, status)
        else:
            self._client.set_terminated(own, status, _ms(run.ended))
        self._client.set_tag(own, _DIGEST, run.digest)  # last: a run without it is looked at again

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turns what MLflow raises into a message without its content."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise UserError(
                f"MLflow cannot read or write it ({type(error).__name__})",
                "Check the address, or the folder's permissions and free space",
                self.place,
            ) from error


class _Value:
    """The latest value of a metric, like one of its history."""

    def __init__(self, step: int, value: float):
        self.step, self.value = step, value


_PARAMS = "\0parameters"  # no metric is called so


def _located(place: str) -> tuple[str, str | None]:
    """The tracking URI, and where artifacts would go (None: the store decides).

    MLflow 3 refuses its older store of plain files unless one insists, as one does by naming `file:`.
    """
    scheme = re.match(r"([a-z]+)(\+[a-z0-9]+)?:", place)
    if scheme is None:
        folder = Path(place).expanduser().absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(f"is no folder and cannot be made ({error.strerror})", "Name another one", place) from error
        return f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
    if scheme[1] not in _SCHEMES:
        raise UserError(f"{scheme[1]}: is not known here", f"Take one of {', '.join(_SCHEMES)}", "--mlflow")
    if scheme[1] == "file":
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    return place, None


def _points(run: TrackedRun) -> dict[str, tuple[Point, ...]]:
    """All numbers by MLflow's name for them; those that are no curve at step 0."""
    when = run.ended or run.begun
    single = {_named(name): (Point(0, when, value),) for name, value in run.metrics.items()}
    return single | {_named(name): points for name, points in run.curves.items()}


def _named(name: str) -> str:
    return name.replace("/", "_")  # a slash has to be quoted in every search


def _fits(has: dict[str, list[Any]], run: TrackedRun) -> bool:
    """Whether all numbers that MLflow knows are the ledger's."""
    wanted = {name: {point.step: point.value for point in points} for name, points in _points(run).items()}
    return all(
        math.isclose(known.value, wanted.get(name, {}).get(known.step, math.nan), rel_tol=1e-9)
        for name, values in has.items()
        if name != _PARAMS
        for known in values
    )


def _parts(items: Sequence[_Item], size: int) -> Iterator[list[_Item]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
