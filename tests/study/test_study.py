"""A study file from the command line: plan, run, status, show, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posology.cli import main
from posology.errors import UserError
from posology.measure.money import cost
from posology.study.forecast import Total
from posology.study.ledger import TRIALS, Ledger
from posology.study.local import LocalExecutor
from posology.study.study import Study
from posology.tasks.prepared import PreparedTask
from tests.study.test_ledger import result


@pytest.fixture
def file(backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(
        f"study: both\ntasks: [{classification.folder}, {tagging.folder}]\nbackbones: [{backbone}]\n"
        "methods: [head, lora]\nseeds: [1, 2]\nset: {epochs: 1, precision: fp32}\n"
    )
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """What a command prints as JSON."""
    with pytest.raises(SystemExit) as done:
        main([*map(str, arguments), "--json", "--quiet"])
    printed = capsys.readouterr()
    assert done.value.code == 0, printed.err
    return json.loads(printed.out)


def test_from_plan_to_table(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "ledger.db"
    done = call(capsys, "study", "run", file, "--ledger", ledger, "--no-company")
    assert (done["done"], done["pending"], done["failed"]) == (8, 0, 0)
    assert {(row["task"], row["method"], row["seed"]) for row in done["runs"]} == {
        (task, method, seed) for task in ("complaint", "mentions") for method in ("head", "lora") for seed in (1, 2)
    }
    assert call(capsys, "study", "status", "both", "--ledger", ledger)["done"] == 8
    row = done["runs"][0]
    shown = call(capsys, "study", "show", row["key"][:10], "--ledger", ledger)
    assert shown["result"]["metrics"][row["metric"]]["value"] == row["value"]
    assert call(capsys, "study", "export", tmp_path / "runs.csv", "--ledger", ledger)["runs"] == 8
    again = call(capsys, "study", "run", file, "--ledger", ledger)
    assert [each["ended"] for each in again["runs"]] == [each["ended"] for each in done["runs"]]


def test_a_study_whose_tasks_are_not_there_has_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    plan = call(capsys, "study", "plan", "paper/table3", "--tasks", "nowhere")
    assert plan["runs"] == 252
    assert plan["parts"]["methods"] == {"full": 84, "ia3": 84, "lora": 84}
    assert "nowhere/mimic-" in plan["unknown"]


def test_small_studies_are_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    found = {row["study"]: row["runs"] for row in call(capsys, "study", "list")}
    assert {f"{kind}/{name}" for kind in ("paper", "small") for name in
            ("table3", "table-c6", "figure3a", "figure3b", "figure-b4", "table4")} <= set(found)  # fmt: skip
    assert (found["paper/table3"], found["paper/figure-b4"]) == (252, 500)


def test_no_ledger_is_one_clear_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["study", "status", "--ledger", str(tmp_path / "none.db")])
    assert done.value.code == 2
    assert "there is no ledger" in capsys.readouterr().err


def test_a_file_of_ones_own_in_a_folder_small_is_about_ones_own_tasks(
    file: Path, tmp_path: Path, classification: PreparedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    file.rename(tmp_path / "small" / "mine.yaml")
    study = Study("small/mine.yaml", ledger=tmp_path / "ledger.db")
    assert study.cells[0].data == classification.folder
    study.prepare()
    assert not (tmp_path / "ledger.tasks").exists()
    assert Study("small/table3").cells[0].data == tmp_path / "ledger.tasks" / "i2b2-2010-re"
    assert Study("small/table3", tasks="mine").cells[0].data == tmp_path / "mine" / "i2b2-2010-re"


FORETOLD = {"runs": 99, "seconds": 1.0}


@pytest.fixture
def foretold(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The runs that a plan foretells, in place of what they take."""
    asked: list[Any] = []

    def foretell(ledger: Any, cells: Any, **_: Any) -> dict[str, Any]:
        asked[:] = cells
        return FORETOLD

    monkeypatch.setattr("posology.study.forecast.forecast_study", foretell)
    return asked


def test_a_plan_counts_what_is_there_and_makes_nothing(file: Path, tmp_path: Path, foretold: list[Any]) -> None:
    study = Study(file, ledger=tmp_path / "ledger.db")
    before = set(tmp_path.iterdir())
    plan = study.plan()
    assert (plan["runs"], plan["done"], plan["missing"], plan["seconds"]) == (8, 0, 8, 1.0)
    assert set(tmp_path.iterdir()) == before
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        keys = ledger.add(study.name, study.cells)
        for key in keys:
            ledger.finish(key, result(0.5))
            plan = study.plan()  # while somebody writes it
        assert (plan["runs"], plan["done"], plan["missing"]) == (8, 8, 0) and foretold == []
    with pytest.raises(UserError, match="0 workers are none"):
        study.plan(workers=0)


def test_a_profile_is_kept_where_there_is_a_ledger_that_nobody_writes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(file, ledger=tmp_path / "ledger.db")
    measured: list[Any] = []
    monkeypatch.setattr("posology.study.forecast.measure", lambda cells, known: measured.append(known) or {"new": 1})
    monkeypatch.setattr("posology.study.forecast.forecast", lambda *_: [])
    monkeypatch.setattr("posology.study.forecast._elapsed", lambda *_: 0.0)
    monkeypatch.setattr("posology.study.forecast._saved", lambda *_: 0.0)
    monkeypatch.setattr("posology.study.forecast.total", lambda *_, **__: Total(0, 0, 0, 0, 0, 0, None, cost(1.0)))
    study.plan()
    with Ledger(study.ledger, write=True):
        study.plan()
    study.plan()
    study.plan()
    assert measured == [None, None, None, {"new": 1}]


def test_a_plan_of_a_search_counts_its_trials(file: Path, tmp_path: Path, foretold: list[Any]) -> None:
    file.write_text(file.read_text() + "search: {trials: 5, space: {learning_rate: [1e-3, 1e-2]}}\n")
    study = Study(file, ledger=tmp_path / "ledger.db")
    assert (study.plan()["runs"], study.plan()["missing"]) == (40, 40)
    cell, other = study.cells[:2]
    trials = [cell, *(cell.model_copy(update={"overrides": {"epochs": number}}) for number in (2, 3, 4))]
    with Ledger(study.ledger, write=True) as ledger:
        ledger.note(study.name, TRIALS, {f"both: {cell.title}": [each.key() for each in (*trials[:3], trials[0])]})
        keys = ledger.add(study.name, trials)
        ledger.finish(keys[0], result(0.5))
        ledger.fail(keys[1], "diverged")
    plan = (
        study.plan()
    )  # trial 0 twice; trial 1 failed and is not tried again; trial 2 was cut off, trial 4 not asked for
    assert (plan["runs"], plan["trials"], plan["done"], plan["missing"]) == (40, 5, 2, 37)
    assert foretold.count(cell) == 2 and foretold.count(other) == 5


def test_a_search_is_tuned_and_not_run(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text() + "search: {trials: 5, space: {learning_rate: [1e-3, 1e-2]}}\n")
    with pytest.raises(UserError, match=r"both: is a search\. Use posology tune"):
        Study(file, ledger=tmp_path / "ledger.db").run()
    assert not (tmp_path / "ledger.db").exists()


def test_a_driver_that_is_gone_is_said(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(file, ledger=tmp_path / "ledger.db")
    with Ledger(study.ledger, write=True) as ledger:
        ledger.begin(ledger.add(study.name, study.cells)[0], "1")
        driven = call(capsys, "study", "status", "--ledger", study.ledger)
    assert (driven["running"], driven["driver"]) == (1, None)
    left = call(capsys, "study", "status", "--ledger", study.ledger)
    assert left["driver"].startswith("nobody drives it")
    with Ledger(study.ledger, write=True) as ledger:
        ledger.open_again(ledger.keys("both"))
    assert call(capsys, "study", "status", "--ledger", study.ledger)["driver"] is None, "nothing is under way"


def test_workers_are_counted_from_one() -> None:
    with pytest.raises(UserError, match="-1 workers are none"):
        LocalExecutor(-1)


def test_the_python_interface(file: Path, tmp_path: Path) -> None:
    study = Study(file, ledger=tmp_path / "ledger.db")
    assert len(study.cells) == 8 and study.name == "both"
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        ledger.add(study.name, study.cells)
        assert ledger.status("both")["pending"] == 8
