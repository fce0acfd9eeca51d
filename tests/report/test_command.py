"""`posology report` from the command line: what lies in the folder, who may read it, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from posology.cli import main
from tests.report.ledgers import prepared, run, write


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    task = prepared(tmp_path / "triage")
    runs = [
        run(task, "full", 0.85, study="first"),
        run(task, "lora", 0.84, study="first"),
        run(task, "lora", 0.82, study="second", overrides={"rank": 4}),
    ]
    return write(tmp_path / "ledger.db", runs)


def test_a_report_is_a_folder_of_its_owner(ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    code, text, _ = call(capsys, ledger, "--out", out, "--title", "Ours & theirs", "--json", "--quiet")
    assert code == 0
    found: dict[str, Any] = json.loads(text)
    assert (found["out"], found["page"], found["runs"], found["tasks"]) == (str(out), str(out / "index.html"), 3, 1)
    paths = [found["page"], *found["tables"], *found["figures"]]
    assert all(Path(path).is_file() for path in paths)
    assert {Path(path).suffix for path in found["tables"]} == {".md", ".tex", ".csv"}
    assert {".svg", ".pdf"} <= {Path(path).suffix for path in found["figures"]}
    assert found["verdicts"]["triage"]["best"] == "full on minilm"

    everything = [out, *out.rglob("*")]
    assert not [path for path in everything if path.stat().st_mode & 0o077]
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# Ours & theirs\n")
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert {out / link for link in links} >= set(map(Path, paths))
    assert all((out / link).is_file() for link in links)
    for path in everything:
        if path.suffix in (".md", ".tex", ".csv", ".json", ".html", ".svg"):
            assert str(tmp_path) not in path.read_text(encoding="utf-8"), f"{path.name} tells where things lie"

    code, _, problem = call(capsys, ledger, "--out", out)
    assert code == 2
    assert "not empty" in problem
    code, text, _ = call(capsys, ledger, "--out", out, "--study", "second", "--overwrite", "--quiet")
    assert code == 0
    assert "It is the only configuration with a score" in text
    assert str(out / "index.html") in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.db"], "there is no ledger"),
        (["ledger.db", "--study", "third"], "holds no study third. It has first, second"),
        (["ledger.db", "--price", "own-serve"], "Did you mean 'own-server'?"),
    ],
)
def test_what_cannot_be_reported_is_said(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, _, problem = call(capsys, tmp_path / arguments[0], *arguments[1:], "--out", tmp_path / "out")
    assert code == 2
    assert said in problem
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_not_replaced(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").touch()
    code, _, problem = call(capsys, ledger, "--out", tmp_path / "notes", "--overwrite")
    assert code == 2
    assert "does not replace it" in problem
