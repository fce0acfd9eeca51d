"""A study file from the command line: plan, run, status, show, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posology.cli import main
from posology.study.ledger import Ledger
from posology.study.study import Study
from posology.tasks.prepared import PreparedTask


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


def test_the_python_interface(file: Path, tmp_path: Path) -> None:
    study = Study(file, ledger=tmp_path / "ledger.db")
    assert len(study.cells) == 8 and study.name == "both"
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        ledger.add(study.name, study.cells)
        assert ledger.status("both")["pending"] == 8
