"""The ledger: what goes in comes out, once; others may read but not write; ten thousand runs are no burden."""

from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from posology.errors import UserError
from posology.study.cell import Cell
from posology.study.ledger import Ledger


def result(value: float, **more: Any) -> dict[str, Any]:
    """As `posology.train` returns it, as far as the ledger reads it."""
    evaluations = [
        {"step": 5 * n, "epoch": float(n), "seconds": 1.0 * n, "loss": 0.5, "score": 0.1 * n} for n in (1, 2)
    ]
    return {
        "metric": "macro_f1",
        "metrics": {"macro_f1": {"value": value, "low": value - 0.1, "high": value + 0.1}},
        "validation": {"macro_f1": value + 0.01},
        "training": {"evaluations": evaluations, "stopped": "epochs"},
        "seconds": 2.5,
        "trainable_parameters": 7,
        "adapter_bytes": 100,
        "artifact": "somewhere",
        **more,
    }


def cells(count: int) -> list[Cell]:
    return [Cell(task="t", data=Path("/nowhere"), seed=seed, overrides={"rank": 4}) for seed in range(count)]


def keys(count: int) -> list[str]:
    return [f"{number:032x}" for number in range(count)]


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger(tmp_path / "ledger.db", write=True) as opened:
        yield opened


def test_a_run_goes_from_pending_to_done_once(ledger: Ledger) -> None:
    first, second = ledger.add("s", cells(2), keys=keys(2))
    assert ledger.status("s") == {"pending": 2, "running": 0, "done": 0, "failed": 0}
    ledger.begin(first, "42")
    ledger.evaluated(first, {"step": 3, "epoch": 0.5, "seconds": 0.1, "loss": 1.0, "score": 0.2})
    assert ledger.state(first) == "running"
    assert [each["step"] for each in ledger.run(first)["evaluations"]] == [3]
    ledger.finish(first, result(0.5), peak_memory=10)
    ledger.finish(first, result(0.9))  # a second result of the same run changes nothing
    ledger.fail(first, "too late")
    ledger.begin(first, "43")
    run = ledger.run(first[:-1] + "0")
    assert (run["state"], run["value"], run["low"], run["validation"]) == ("done", 0.5, 0.4, 0.51)
    assert (run["peak_memory"], run["worker"], run["attempts"]) == (10, None, 1)
    assert [each["step"] for each in run["evaluations"]] == [5, 10]  # those of the attempt that was cut off are gone
    ledger.fail(second, "no such thing")
    assert ledger.run(second)["problem"] == "no such thing"
    assert ledger.keys("s", "failed") == [second]
    ledger.open_again([first, second])
    assert ledger.status("s") == {"pending": 1, "running": 0, "done": 1, "failed": 0}
    assert ledger.check() == []


def test_runs_are_shared_by_studies_under_their_own_names(ledger: Ledger) -> None:
    (one, *_) = cells(1)
    other = one.model_copy(update={"task": "another name"})
    ledger.add("a", [one], keys=["k"])
    ledger.add("b", [other, other], keys=["k", "k"])
    ledger.finish("k", result(0.5))
    assert ledger.status("b")["done"] == 1
    assert ledger.run("k")["studies"] == ["a", "b"]
    assert [row["task"] for row in ledger.runs("b")] == ["another name"]
    assert ledger.runs("a")[0]["overrides"] == {"rank": 4}
    ledger.add("a", [], keys=[])  # declared anew, without it
    assert ledger.runs("a") == [] and len(ledger.runs()) == 1


def test_notes_and_tables(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.noted("s", "profile") is None
    ledger.note("s", "profile", {"a": [1, 2]})
    ledger.note("s", "profile", {"a": [3]})
    assert ledger.noted("s", "profile") == {"a": [3]}
    ledger.add("s", cells(3), keys=keys(3))
    ledger.finish(keys(3)[1], result(0.7))
    for name in ("runs.csv", "runs.parquet"):
        assert ledger.export(tmp_path / name) == 3
    table = pl.read_parquet(tmp_path / "runs.parquet")
    assert sorted(table["value"].to_list(), key=str) == [0.7, None, None]
    assert pl.read_csv(tmp_path / "runs.csv").columns == table.columns
    assert ledger.export(tmp_path / "new folder" / "runs.csv") == 3
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        ledger.export(tmp_path / "file" / "runs.csv")
    with pytest.raises(UserError, match=r"neither \.parquet nor \.csv"):
        ledger.export(tmp_path / "runs.xlsx")


def test_one_writes_and_others_read(ledger: Ledger) -> None:
    ledger.add("s", cells(1), keys=["k"])
    with Ledger(ledger.path) as reader:
        assert reader.state("k") == "pending"
        ledger.begin("k")
        assert reader.state("k") == "running"
        with pytest.raises(UserError, match="opened for reading"):
            reader.begin("k")
    with pytest.raises(UserError, match="another process is writing it"):
        Ledger(ledger.path, write=True)
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no ledger"):
        Ledger(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("these are notes, not a database" * 100)
    with pytest.raises(UserError, match="cannot be read as a ledger"):
        Ledger(tmp_path / "text.db", write=True)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE patients (name TEXT)")
    with pytest.raises(UserError, match="no ledger"):
        Ledger(tmp_path / "other.db", write=True)
    with sqlite3.connect(tmp_path / "other.db") as other:
        assert other.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
    with Ledger(tmp_path / "new.db", write=True):
        pass
    with sqlite3.connect(tmp_path / "new.db") as new:
        new.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="has format 99, this program reads 1"):
        Ledger(tmp_path / "new.db")


def test_what_is_forgotten_leaves_no_figures(ledger: Ledger) -> None:
    (key,) = ledger.add("s", cells(1), keys=["k"])
    before = ledger.runs("s")[0]
    ledger.begin(key, "w")
    ledger.finish(key, result(0.5), peak_memory=10)
    ledger.forget([key])
    assert ledger.runs("s")[0] == before | {"attempts": 1}
    assert ledger.run(key)["result"] is None and ledger.run(key)["version"] is None


def test_a_link_leads_to_the_same_lock_and_the_same_artifacts(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    link = tmp_path / "sub" / "linked.db"
    link.symlink_to("../ledger.db")
    with pytest.raises(UserError, match="another process is writing it"):
        Ledger(link, write=True)
    with Ledger(link) as reader:
        assert reader.artifacts == ledger.artifacts == tmp_path / "ledger.runs"


def test_ledgers_of_two_years_have_artifacts_of_their_own(tmp_path: Path) -> None:
    folders = []
    for name in ("r.2024", "r.2025", "r.db", "r"):
        with Ledger(tmp_path / name, write=True) as ledger:
            folders.append(ledger.artifacts.name)
    assert folders == ["r.2024.runs", "r.2025.runs", "r.runs", "r.runs"]


def test_a_full_disk_is_said_and_leaves_the_ledger_sound(ledger: Ledger) -> None:
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UserError, match=r"cannot be written \(database or disk is full\)"):
        ledger.note("s", "long", "x" * 100_000)
    ledger._connection.execute("PRAGMA max_page_count = 100000")
    ledger.note("s", "n", 1)
    assert ledger.noted("s", "n") == 1 and ledger.check() == []
    with pytest.raises(sqlite3.OperationalError, match="no such table"), ledger._transaction() as run:
        run("DELETE FROM wards")


def test_who_drives_it(ledger: Ledger) -> None:
    with Ledger(ledger.path) as reader:
        assert ledger.driven is True and reader.driven is True and not reader.writable
        ledger.close()
        assert reader.driven is False
        (ledger.path.parent / ".ledger.db.lock").unlink()
        assert reader.driven is False


def test_unknown_names_are_named(ledger: Ledger) -> None:
    ledger.add("s", cells(2), keys=["aa", "ab"])
    with pytest.raises(UserError, match=r"holds no study x\. It has s"):
        ledger.status("x")
    with pytest.raises(UserError, match="several runs begin so"):
        ledger.run("a")
    with pytest.raises(UserError, match="no run begins so"):
        ledger.run("b")


def test_a_writer_that_is_killed_leaves_a_sound_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    script = (
        "import sys; from pathlib import Path; from tests.study.test_ledger import *\n"
        "ledger = Ledger(sys.argv[1], write=True)\n"
        "ledger.add('s', cells(500), keys=keys(500))\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for key in keys(500):\n"
        "        ledger.open_again([key]); ledger.begin(key, 'w'); ledger.evaluated(key, result(.5)['training']"
        "['evaluations'][0]); ledger.fail(key, 'x' * 2000)\n"
    )
    for number in range(5):
        process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.02 * (number + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with Ledger(path, write=True) as ledger:  # the lock went with the process
            assert ledger.check() == []
            assert sum(ledger.status("s").values()) == 500


def test_ten_thousand_runs(tmp_path: Path) -> None:
    """Counted in work, not in seconds: queries use an index, so none of them reads the table row by row."""
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        ledger.add("s", cells(10_000), keys=keys(10_000))
        assert ledger.status("s")["pending"] == 10_000
        assert len(ledger.runs("s")) == 10_000
        plans = {
            query: str(ledger._connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()[0]["detail"])
            for query in ("SELECT state FROM runs WHERE key = 'k'", "SELECT study FROM cells WHERE key = 'k'")
        }
        assert all("USING" in plan and "INDEX" in plan for plan in plans.values()), plans
