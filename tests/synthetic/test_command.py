"""`posology synthesise`: what it writes, what it counts, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posology import console
from posology.corpus import i2b2_2010, i2b2_2012, i2b2_2014
from posology.errors import UserError
from posology.synthetic.command import FEWEST, MARKER, synthesise
from tests.data import corpus


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "QUIET", True)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("hospital") / "smallest"
    return out, synthesise(out=out, patients=FEWEST, seed=3)


def test_four_parts_and_the_marker(smallest: tuple[Path, dict[str, Any]]) -> None:
    out, told = smallest
    assert {path.name for path in out.iterdir()} == {"mimic-iii", "i2b2-2010", "i2b2-2012", "i2b2-2014", MARKER}
    assert json.loads((out / MARKER).read_text(encoding="utf-8")) | {"out": str(out)} == told
    assert (told["patients"], told["seed"]) == (FEWEST, 3)
    assert not list(out.parent.glob(".smallest.*"))
    assert out.stat().st_mode & 0o077 == 0


def test_the_smallest_hospital_has_every_split(smallest: tuple[Path, dict[str, Any]]) -> None:
    out, told = smallest
    problems: list[tuple[str, str]] = []
    concepts = list(i2b2_2010.read(out / "i2b2-2010", problems))
    events = list(i2b2_2012.read(out / "i2b2-2012", problems))
    tags = list(i2b2_2014.read(out / "i2b2-2014", problems))
    assert not problems
    assert Counter((record.split, record.hospital) for record in concepts) == {
        ("train", "beth"): 3, ("train", "partners"): 5, ("test", ""): 12,
    }  # fmt: skip
    assert Counter(record.split for record in events) == {"train": 12, "test": 8}
    assert Counter(record.split for record in tags) == {"train": 12, "test": 8}
    assert {Path(record.place).parent.name for record in tags} == {
        "training-PHI-Gold-Set1", "training-PHI-Gold-Set2", "testing-PHI-Gold-fixed",
    }  # fmt: skip
    counts = told["counts"]
    assert counts["i2b2-2010"]["concepts"] == sum(len(record.concepts) for record in concepts)
    assert counts["i2b2-2010"]["relations"] == sum(len(record.relations) for record in concepts)
    assert counts["i2b2-2012"]["events"] == sum(len(record.events) for record in events)
    assert counts["i2b2-2014"]["tags"] == sum(len(record.tags) for record in tags)
    assert counts["mimic-iii"]["patients"] == FEWEST


def test_the_same_seed_gives_the_same_files(smallest: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = smallest
    synthesise(out=tmp_path / "again", patients=FEWEST, seed=3)
    assert _files(tmp_path / "again") == _files(out)
    synthesise(out=tmp_path / "other", patients=FEWEST, seed=4)
    first, other = _files(out), _files(tmp_path / "other")
    both = {name for name in first.keys() & other.keys() if name.endswith((".xml", ".txt", ".csv"))}
    assert len(both) > 30 and all(first[name] != other[name] for name in both)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_replaces_only_its_own(smallest: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = tmp_path / "hospital"
    shutil.copytree(smallest[0], copy)
    with pytest.raises(UserError, match="--overwrite"):
        synthesise(out=copy, patients=FEWEST)
    synthesise(out=copy, patients=FEWEST + 1, overwrite=True)
    assert json.loads((copy / MARKER).read_text(encoding="utf-8"))["patients"] == FEWEST + 1
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match=f"holds no {MARKER}"):
        synthesise(out=mine, patients=FEWEST, overwrite=True)
    assert _files(mine) == {"thesis.txt": b"years of work"}


def test_too_few_patients(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{FEWEST - 1} patients are too few"):
        synthesise(out=tmp_path / "out", patients=FEWEST - 1)
    assert not list(tmp_path.iterdir())


def test_notes_for_true_tables(tmp_path: Path) -> None:
    told = synthesise(out=tmp_path / "out", tables=corpus("mimic-iii-demo"), seed=5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mimic-iii", MARKER}
    assert told["tables"] == "mimic-iii-demo" and "patients" not in told
    assert told["counts"]["mimic-iii"]["admissions"] == 129
    assert told["counts"]["mimic-iii"]["noteevents"] >= 129


def test_tables_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        synthesise(out=tmp_path / "out", tables=tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError):
        synthesise(out=tmp_path / "out", tables=empty)
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


def test_a_failure_leaves_what_was_there(
    smallest: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "hospital"
    shutil.copytree(smallest[0], copy)

    def fail(*arguments: object) -> dict[str, int]:
        raise OSError("the disk has gone")

    monkeypatch.setitem(synthesise.__globals__["_TREES"], "i2b2-2014", (fail, lambda patients: (1, 1)))
    with pytest.raises(UserError, match="the disk has gone"):
        synthesise(out=copy, patients=FEWEST, overwrite=True)
    assert _files(copy) == _files(smallest[0])
    assert {path.name for path in tmp_path.iterdir()} == {"hospital"}
