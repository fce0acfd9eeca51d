"""`posology track`: MLflow and TensorBoard as followers of a ledger.

They read the ledger and are written to; nothing in a study depends on them, and what they hold can be thrown away and
made again at any time. A run is found again by its key, so that following twice changes nothing. Artifacts are not
uploaded, and there is no text of documents in what is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from posology import console
from posology.errors import Interrupted, UserError
from posology.report.tracked import TrackedRun, tracked
from posology.study.ledger import Ledger

POLL_SECONDS = 5.0


class Tracker(Protocol):
    """Where runs are shown."""

    @property
    def place(self) -> str:
        """What its own program is told to open, without passwords."""

    def put(self, run: TrackedRun) -> bool:
        """Makes it show the run as it is now; False where it did already."""


def track(
    ledger: Path,
    *,
    mlflow: str | None = None,
    tensorboard: Path | None = None,
    study: str | None = None,
    follow: bool = False,
) -> dict[str, Any]:
    """Show the runs of a ledger in MLflow or TensorBoard. Runs that have not begun are left out.

    Args:
        ledger: the file.
        mlflow: a folder, in which mlflow.db is made (`mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db` shows
            it), or a tracking URI: sqlite:///FILE, file:FOLDER, http://SERVER. Only such a server uses the network.
        tensorboard: the folder for event files (`tensorboard --logdir FOLDER` shows them).
        study: one study of the ledger; all of them without it.
        follow: go on until no run is pending or running; Ctrl-C ends it.
    """
    places = {"mlflow": mlflow, "tensorboard": tensorboard}
    if not any(places.values()):
        raise UserError("no tracker is named", "Add --mlflow or --tensorboard", "track")
    with Ledger(ledger) as opened:
        if study is not None:
            opened.status(study)  # refuses an unknown name before a store is made
        trackers = _trackers(mlflow, tensorboard)
        following = _Following(opened, study, trackers)
        try:
            waiting = following.once()
            while follow and waiting:
                time.sleep(POLL_SECONDS)
                waiting = following.once()
        except KeyboardInterrupt:
            raise Interrupted("what was tracked so far is kept, and the same command continues") from None
    return {
        "ledger": str(ledger),
        **{name: tracker.place for name, tracker in trackers.items()},
        "runs": len(following.shown),
        "changed": len(following.changed),
        "waiting": waiting,
    }


def _trackers(mlflow: str | None, tensorboard: Path | None) -> dict[str, Tracker]:
    found: dict[str, Tracker] = {}
    if mlflow:
        from posology.report.mlflow_store import MlflowStore

        found["mlflow"] = MlflowStore(mlflow)
    if tensorboard:
        from posology.report.event_files import EventFiles

        found["tensorboard"] = EventFiles(tensorboard)
    return found


class _Following:
    """Passes over a ledger.

    Args:
        ledger: open for reading.
        study: one of its studies, or None for all.
        trackers: where its runs are shown.

    Attributes:
        shown: study and key of the runs that have begun, and in what state they were shown last.
        changed: those that a tracker did not show so before.
    """

    def __init__(self, ledger: Ledger, study: str | None, trackers: dict[str, Tracker]):
        self._ledger, self._study, self._trackers = ledger, study, trackers
        self.shown: dict[tuple[str, str], tuple[Any, ...]] = {}
        self.changed: set[tuple[str, str]] = set()

    def once(self) -> int:
        """Shows what is new, and says how many runs are still pending or running."""
        news, waiting = [], set()
        for study, row in self._rows():
            if row["state"] in ("pending", "running"):
                waiting.add(row["key"])
            seen = (row["state"], row["attempts"], row["ended"])
            if row["begun"] is not None and (row["state"] == "running" or self.shown.get((study, row["key"])) != seen):
                news.append((study, row["key"], seen))
        with console.progress("tracking", len(news)) as advance:
            for study, key, seen in news:
                run = tracked(self._ledger.run(key), study)
                if any([tracker.put(run) for tracker in self._trackers.values()]):
                    self.changed.add((study, key))
                self.shown[study, key] = seen
                advance()
        return len(waiting)

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in [self._study] if self._study else [study["name"] for study in self._ledger.studies()]:
            for row in self._ledger.runs(name):
                yield name, row
