"""The ledger: one SQLite file that holds every run of every study, and is the only state they have.

    studies       one row each: the file it was declared in
    cells         which runs a study consists of, in order; a run may belong to several
    runs          one row for each key: what was asked, its state, what came out
    evaluations   scores on validation against steps and seconds, while a run trains and after
    notes         facts beside a study: a profile of the machine, a recommendation

One process writes: the one that drives a study; it holds a lock for as long as it has the ledger open. Others may read
at any time. Every change is one transaction, so that a process killed at any moment leaves the ledger as it was before
or after it. There is no text of documents in it: predictions on test are kept by identifier, as scores.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from posology import __version__, catalog
from posology.errors import UserError
from posology.files import staged_file
from posology.study.cell import Cell

STATES = ("pending", "running", "done", "failed")
TRIALS = "trials"
"""The note of a search: the keys of its trials so far, in order, by the name of the search."""
_FORMAT = 1
_SCHEMA = """
CREATE TABLE studies (name TEXT PRIMARY KEY, title TEXT NOT NULL, source TEXT NOT NULL, created REAL NOT NULL) STRICT;
CREATE TABLE runs (
    key TEXT PRIMARY KEY, cell TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    worker TEXT, begun REAL, ended REAL, problem TEXT, result TEXT, version TEXT,
    task TEXT NOT NULL, backbone TEXT, method TEXT NOT NULL, seed INTEGER NOT NULL, shots INTEGER, max_seconds REAL,
    metric TEXT, value REAL, low REAL, high REAL, validation REAL, seconds REAL, trainable_parameters INTEGER,
    adapter_bytes INTEGER, peak_memory INTEGER, artifact TEXT
) STRICT;
CREATE TABLE cells (
    study TEXT NOT NULL REFERENCES studies (name), position INTEGER NOT NULL, key TEXT NOT NULL REFERENCES runs (key),
    task TEXT NOT NULL, PRIMARY KEY (study, position)
) STRICT;
CREATE INDEX cells_by_key ON cells (key);
CREATE INDEX runs_by_state ON runs (state);
CREATE TABLE evaluations (
    key TEXT NOT NULL REFERENCES runs (key), step INTEGER NOT NULL, epoch REAL NOT NULL, seconds REAL NOT NULL,
    loss REAL, score REAL, PRIMARY KEY (key, step)
) STRICT, WITHOUT ROWID;
CREATE TABLE notes (
    study TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (study, name)
) STRICT, WITHOUT ROWID;
"""
_GIVEN = (
    "worker", "begun", "ended", "problem", "result", "version", "metric", "value", "low", "high", "validation", "seconds",
    "trainable_parameters", "adapter_bytes", "peak_memory", "artifact",
)  # fmt: skip
"""Columns of a run that it has from being done."""
_UNWRITABLE = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_BUSY", "SQLITE_CANTOPEN")
_LINEAGE = ("domain", "pretraining", "distilled_from")
_COLUMNS = (
    "key, runs.task, backbone, method, seed, shots, max_seconds, state, attempts, worker, begun, ended, problem, metric, "
    "value, low, high, validation, seconds, trainable_parameters, adapter_bytes, peak_memory, artifact, cell"
)


class Ledger:
    """A ledger file.

    Args:
        path: the file.
        write: create it where it is missing, and keep other writers out until it is closed.

    Raises:
        UserError: it is missing, is no ledger, was written by a newer program, or another process writes it.
    """

    def __init__(self, path: Path | str, *, write: bool = False):
        path = Path(path)
        # Whatever link leads to it, it has one lock, and its artifacts one folder.
        self.path = path.resolve() if path.is_symlink() else path
        self._lock: int | None = None
        if not write and not self.path.is_file():
            raise UserError("there is no ledger", "`posology study run` writes one", self.path)
        if write:
            self._lock = _locked(self.path)
        try:
            self._connection = self._open(write)
        except BaseException:
            self._unlock()
            raise

    def _open(self, write: bool) -> sqlite3.Connection:
        mode = "rwc" if write else "ro"
        try:
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None
            )
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if write and not tables:
                connection.execute("PRAGMA journal_mode = WAL")
                # Other programs may hold a reader open; a full flush at each commit costs little beside a training.
                connection.execute("PRAGMA synchronous = FULL")
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
                os.chmod(self.path, 0o600)
                return connection
        except sqlite3.DatabaseError as error:
            raise UserError(f"cannot be read as a ledger ({error})", "Name another file", self.path) from error
        if found != _FORMAT:
            connection.close()
            what = "is a database, but no ledger" if found == 0 else f"has format {found}, this program reads {_FORMAT}"
            raise UserError(what, "Name another file, or install the Posology that wrote it", self.path)
        return connection

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and lets others write."""
        self._connection.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def artifacts(self) -> Path:
        """The folder of the runs' artifacts, each under its key."""
        return beside(self.path, ".runs")

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._lock is not None

    @property
    def driven(self) -> bool | None:
        """Whether a process has it open for writing; None where that cannot be told."""
        if self._lock is not None:
            return True
        try:
            lock = os.open(_lock_of(self.path), os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return None
        finally:
            os.close(lock)
        return False

    # --- what is to be done -------------------------------------------------------------------------------------------

    def add(
        self, study: str, cells: Sequence[Cell], *, source: str = "", title: str = "", keys: Sequence[str] | None = None
    ) -> list[str]:
        """Declares a study, or declares it anew. Runs that are known, of whatever study, are not done again.

        Args:
            study: its name.
            cells: its runs; those with the same key are one run.
            source: the text of its file.
            title: for people.
            keys: of the cells, where they are known already.

        Returns:
            The key of each cell.
        """
        keys = [cell.key() for cell in cells] if keys is None else list(keys)
        with self._transaction() as run:
            run(
                "INSERT INTO studies VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET title = excluded.title, "
                "source = excluded.source",
                (study, title, source, time.time()),
            )
            self._connection.executemany(
                "INSERT OR IGNORE INTO runs (key, cell, state, task, backbone, method, seed, shots, max_seconds) "
                "VALUES (?, ?, 'pending', ?, ?, ?, ?, ?, ?)",
                [
                    (key, cell.model_dump_json(), cell.task, cell.backbone, cell.method, cell.seed, cell.shots,
                     cell.max_seconds)
                    for key, cell in zip(keys, cells, strict=True)
                ],
            )  # fmt: skip
            run("DELETE FROM cells WHERE study = ?", (study,))
            once = {key: cell.task for key, cell in zip(reversed(keys), reversed(cells), strict=True)}
            self._connection.executemany(
                "INSERT INTO cells VALUES (?, ?, ?, ?)",
                [(study, number, key, once[key]) for number, key in enumerate(dict.fromkeys(keys))],
            )
        return keys

    def open_again(self, keys: Iterable[str]) -> None:
        """Makes runs that failed, or whose driver died, pending."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE runs SET state = 'pending', worker = NULL, problem = NULL WHERE key = ? AND state <> 'done'",
                [(key,) for key in keys],
            )

    def forget(self, keys: Iterable[str]) -> None:
        """Makes runs pending whatever they gave; their results are lost."""
        with self._transaction():
            own = [(key,) for key in keys]
            nothing = ", ".join(f"{column} = NULL" for column in _GIVEN)
            for change in ("DELETE FROM evaluations", f"UPDATE runs SET state = 'pending', {nothing}"):
                self._connection.executemany(f"{change} WHERE key = ?", own)

    def begin(self, key: str, worker: str | None = None) -> None:
        """A worker has taken a run."""
        with self._transaction() as run:
            run(
                "UPDATE runs SET state = 'running', worker = ?, attempts = attempts + 1, begun = coalesce(begun, ?) "
                "WHERE key = ? AND state <> 'done'",
                (worker, time.time(), key),
            )

    def evaluated(self, key: str, evaluation: dict[str, float]) -> None:
        """A run that is under way was scored on validation."""
        with self._transaction():
            self._evaluations(key, [evaluation])

    def finish(self, key: str, result: dict[str, Any], *, peak_memory: int | None = None) -> None:
        """Records what a run gave, once: a second result of the same run changes nothing.

        Args:
            result: what `posology.train` returns.
            peak_memory: bytes that training it took.
        """
        metric = result["metric"]
        score = result["metrics"].get(metric) or {}
        stopped = result["training"].get("stopped")
        with self._transaction() as run:
            changed = run(
                "UPDATE runs SET state = 'done', ended = ?, worker = NULL, problem = NULL, result = ?, version = ?, "
                "metric = ?, value = ?, low = ?, high = ?, validation = ?, seconds = ?, trainable_parameters = ?, "
                "adapter_bytes = ?, peak_memory = ?, artifact = ? WHERE key = ? AND state <> 'done'",
                (time.time(), json.dumps(result | {"stopped": stopped}), __version__, metric, score.get("value"),
                 score.get("low"), score.get("high"), result["validation"].get(metric), result["seconds"],
                 result["trainable_parameters"], result.get("adapter_bytes"), peak_memory, result["artifact"], key),
            )  # fmt: skip
            if changed.rowcount:
                run("DELETE FROM evaluations WHERE key = ?", (key,))  # an attempt that was cut off may have left others
                self._evaluations(key, result["training"].get("evaluations", []))

    def fail(self, key: str, problem: str) -> None:
        """Records that a run cannot be done, and why."""
        with self._transaction() as run:
            run(
                "UPDATE runs SET state = 'failed', ended = ?, worker = NULL, problem = ? WHERE key = ? "
                "AND state <> 'done'",
                (time.time(), problem, key),
            )

    def _evaluations(self, key: str, evaluations: Iterable[dict[str, Any]]) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?, ?)",
            [
                (key, each["step"], each["epoch"], each["seconds"], each.get("loss"), each.get("score"))
                for each in evaluations
                if "step" in each
            ],
        )

    def note(self, study: str, name: str, value: Any) -> None:
        """Keeps a fact beside a study, in place of an earlier one; `value` is written as JSON."""
        with self._transaction() as run:
            run("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (study, name, json.dumps(value)))

    # --- what is known ------------------------------------------------------------------------------------------------

    def noted(self, study: str, name: str) -> Any:
        """A fact kept by `note`; None where there is none."""
        row = self._one("SELECT value FROM notes WHERE study = ? AND name = ?", (study, name))
        return None if row is None else json.loads(row["value"])

    def studies(self) -> list[dict[str, Any]]:
        """Name, title, file and date of each."""
        return [dict(row) for row in self._connection.execute("SELECT * FROM studies ORDER BY created")]

    def keys(self, study: str, state: str | None = None) -> list[str]:
        """The runs of a study in its order, all or those in one state."""
        self._check(study)
        rows = self._connection.execute(
            "SELECT key FROM cells JOIN runs USING (key) WHERE study = ? AND (? IS NULL OR state = ?) ORDER BY position",
            (study, state, state),
        )
        return [row["key"] for row in rows]

    def pruned(self, study: str) -> list[str]:
        """The runs of a study that somebody ended early, since others were ahead."""
        rows = self._connection.execute(
            "SELECT key FROM cells JOIN runs USING (key) WHERE study = ? "
            "AND json_extract(result, '$.training.stopped') = 'pruned'",
            (study,),
        )
        return [row["key"] for row in rows]

    def state(self, key: str) -> str | None:
        """Of a run; None where it is not known."""
        row = self._one("SELECT state FROM runs WHERE key = ?", (key,))
        return None if row is None else str(row["state"])

    def status(self, study: str | None = None) -> dict[str, int]:
        """How many runs are in each state, of one study or of all."""
        if study is None:
            rows = self._connection.execute("SELECT state, count(*) AS runs FROM runs GROUP BY state")
        else:
            self._check(study)
            rows = self._connection.execute(
                "SELECT state, count(*) AS runs FROM cells JOIN runs USING (key) WHERE study = ? GROUP BY state",
                (study,),
            )
        found = {row["state"]: row["runs"] for row in rows}
        return {state: found.get(state, 0) for state in STATES}

    def run(self, key: str) -> dict[str, Any]:
        """All that is known of a run: its columns, `cell`, `result`, `evaluations` and the `studies` it belongs to.

        Args:
            key: or a beginning of it that no other run has.

        Raises:
            UserError: none or several begin so.
        """
        rows = self._connection.execute(
            "SELECT * FROM runs WHERE key >= ? AND key < ? LIMIT 3", (key, key + "\x7f")
        ).fetchall()
        if len(rows) != 1:
            problem = "no run begins so" if not rows else "several runs begin so"
            raise UserError(f"{key}: {problem}", "`posology study status --runs` lists them", self.path)
        row = dict(rows[0])
        own = row["key"]
        row["cell"] = json.loads(row["cell"])
        row["result"] = None if row["result"] is None else json.loads(row["result"])
        row["evaluations"] = [
            dict(each)
            for each in self._connection.execute(
                "SELECT step, epoch, seconds, loss, score FROM evaluations WHERE key = ? ORDER BY step", (own,)
            )
        ]
        row["studies"] = [each[0] for each in self._connection.execute("SELECT study FROM cells WHERE key = ?", (own,))]
        return row

    def runs(self, study: str | None = None, state: str | None = None) -> list[dict[str, Any]]:
        """One flat row for each run, of one study in its order or of all, without curves and details.

        Columns: `key`, `task`, `backbone`, `method`, `seed`, `shots`, `max_seconds`, `overrides`, `state`, `attempts`,
        `problem`, `metric`, `value`, `low`, `high` (on test), `validation`, `seconds` (of training),
        `trainable_parameters`, `adapter_bytes`, `peak_memory` (bytes), `artifact`, `begun`, `ended` (Unix time).
        """
        if study is None:
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM runs WHERE ? IS NULL OR state = ? ORDER BY begun", (state, state)
            )
        else:
            self._check(study)
            rows = self._connection.execute(
                f"SELECT {_COLUMNS}, cells.task AS named FROM cells JOIN runs USING (key) WHERE study = ? "
                "AND (? IS NULL OR state = ?) ORDER BY position",
                (study, state, state),
            )
        return [_flat(row) for row in rows]

    def results(self) -> Iterator[dict[str, Any]]:
        """Every run that is done, in order of declaration, read in one pass: `key`, `cell`, `result` and `studies` as
        `run` gives them (the curve is in `result`), `peak_memory`, `artifact`, `ended` and `version`."""
        rows = self._connection.execute(
            "SELECT key, cell, result, peak_memory, artifact, ended, version, (SELECT json_group_array(study) FROM cells "
            "WHERE cells.key = runs.key) AS studies FROM runs WHERE state = 'done' ORDER BY rowid"
        )
        for row in rows:
            yield dict(row) | {name: json.loads(row[name]) for name in ("cell", "result", "studies")}

    def export(self, out: Path | str) -> int:
        """Writes all runs as a table: the columns of `runs`, and `domain`, `pretraining` and `distilled_from` of what was
        trained, null for runs that are not done and for baselines.

        Args:
            out: a file that ends in .parquet or .csv.

        Returns:
            How many runs.
        """
        import polars as pl

        out = Path(out)
        if out.suffix not in (".parquet", ".csv"):
            raise UserError("is neither .parquet nor .csv", "Let its name end in one of them", out)
        lineages = self._lineages()
        rows = [row | lineages[row["key"]] | {"overrides": json.dumps(row["overrides"])} for row in self.runs()]
        table = pl.DataFrame(rows, infer_schema_length=None)
        with staged_file(out) as staging:
            table.write_parquet(staging) if out.suffix == ".parquet" else table.write_csv(staging)
        return len(rows)

    def _lineages(self) -> dict[str, dict[str, str | None]]:
        """By key, what is known of the pre-training of a run's backbone, and what the run was distilled from."""
        columns = ", ".join(f"json_extract(result, '$.{name}') AS {name}" for name in _LINEAGE)
        rows = self._connection.execute(f"SELECT key, backbone, state, {columns} FROM runs")
        found = {}
        for row in rows:
            found[row["key"]] = own = {name: row[name] for name in _LINEAGE}
            if own["domain"] is None and row["state"] == "done":  # written before results said it
                entry = catalog.find((row["backbone"] or "").partition(":")[0])
                own["domain"] = None if entry is None else entry.domain
        return found

    def check(self) -> list[str]:
        """What SQLite's own check of the file finds wrong; nothing where it is sound."""
        found = [row[0] for row in self._connection.execute("PRAGMA integrity_check")]
        found += [
            f"a row of {row[0]} belongs to nothing" for row in self._connection.execute("PRAGMA foreign_key_check")
        ]
        return [problem for problem in found if problem != "ok"]

    def _check(self, study: str) -> None:
        if self._one("SELECT 1 FROM studies WHERE name = ?", (study,)) is None:
            known = ", ".join(each["name"] for each in self.studies()) or "none"
            raise UserError(f"holds no study {study}", f"It has {known}", self.path)

    def _one(self, query: str, values: tuple[Any, ...]) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._connection.execute(query, values).fetchone()
        return row

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        if self._lock is None:
            raise UserError("was opened for reading", "Open it with write=True", self.path)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection.execute
            self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:  # where the disk is full, SQLite has rolled back itself
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorname.startswith(_UNWRITABLE):
                mend = "Make room for it, or let it be written; the same command continues"
                raise UserError(f"cannot be written ({error})", mend, self.path) from error
            raise


def _flat(row: sqlite3.Row) -> dict[str, Any]:
    flat = dict(row)
    flat["task"] = flat.pop("named", flat["task"])
    flat["overrides"] = json.loads(flat.pop("cell"))["overrides"]
    return flat


def beside(ledger: Path, ending: str) -> Path:
    """The name of what lies beside a ledger: `ledger.db` has `ledger.runs`, and `r.2024` has `r.2024.runs`."""
    return ledger.with_suffix(ending) if ledger.suffix == ".db" else ledger.with_name(ledger.name + ending)


def _lock_of(ledger: Path) -> Path:
    return ledger.with_name(f".{ledger.name}.lock")


def _locked(path: Path) -> int:
    """Holds the lock of writers; it goes with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise UserError("another process is writing it", "Wait for it, or name another ledger", path) from error
    os.truncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock
