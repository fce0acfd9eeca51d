"""The demo as a study: it leaves a ledger and a report, and goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from posology import demo
from posology.study.ledger import Ledger


def test_the_demo_leaves_a_ledger_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "PATIENTS", 20)
    monkeypatch.setattr(demo, "RUNS", ())  # the baselines: seconds
    monkeypatch.setattr(demo, "TASKS", {"i2b2-2010-ner": "i2b2-2010"})
    out = tmp_path / "demo"
    first = demo.run(out)
    assert Path(first["page"]) == out / "report" / "index.html"
    assert Path(first["page"]).is_file()
    assert [run["method"] for run in first["runs"]] == ["dictionary"]
    assert "dictionary" in capsys.readouterr().err
    with Ledger(out / "ledger.db") as ledger:
        assert ledger.status(demo.STUDY)["done"] == 1
        ended = ledger.runs()[0]["ended"]
    demo.run(out)  # nothing is done again
    with Ledger(out / "ledger.db") as ledger:
        assert ledger.runs()[0]["ended"] == ended
    text = (out / "report" / "README.md").read_text(encoding="utf-8")
    assert "Synthetic notes: i2b2-2010-ner." in text
