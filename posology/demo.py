"""`posology demo`: the main job from start to end, on a synthetic hospital and the bundled model."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posology import console
from posology.files import check_free

if TYPE_CHECKING:
    from posology.study.cell import Cell

_MARK = ".posology-demo"
PATIENTS = 80
TASKS = {"i2b2-2010-ner": "i2b2-2010", "i2b2-2010-re": "i2b2-2010"}
"""What is trained, and from which part of the hospital."""
BASELINES = {"token-classification": "dictionary", "sequence-classification": "tf-idf"}
RUNS = (
    ("full", "minilm"), ("lora", "minilm"), ("ia3", "minilm"), ("head", "minilm"),
    ("full", "minilm:3"), ("lora", "minilm:3"),
)  # fmt: skip
OVERRIDES = {"epochs": 3}
STUDY = "demo"


def run(out: Path, *, seed: int = 7, overwrite: bool = False) -> dict[str, Any]:
    """Writes a hospital, prepares two tasks, trains several methods and a baseline as a study, and reports on them.

    Leaves `hospital/`, `data/`, `ledger.db`, `ledger.runs/` and `report/` in `out`. A demo that was interrupted goes on.

    Args:
        out: the folder; may hold an interrupted demo.
        seed: of the hospital and of training.
        overwrite: start from nothing.

    Returns:
        `page`, `ledger`, `seconds`, and `runs`: what `posology train` returns for each.

    Raises:
        UserError: `out` holds something else, or no run could be done.
        Interrupted: stopped; the same call goes on.
    """
    from dataclasses import replace

    from posology.report.command import write_report
    from posology.report.reading import read
    from posology.report.terminal import comparison_table
    from posology.study.driver import carry_out
    from posology.study.ledger import Ledger

    started = time.monotonic()
    mark, path = out / _MARK, out / "ledger.db"
    if not mark.is_file():
        check_free(out, marker=_MARK, overwrite=False)
    if overwrite:
        for part in ("hospital", "data", "ledger.runs", "report"):
            shutil.rmtree(out / part, ignore_errors=True)
        for file in out.glob("ledger.db*"):
            file.unlink()
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
    cells = _wanted(_prepare(out, seed), seed)
    with Ledger(path, write=True) as ledger:
        runs = carry_out(ledger, STUDY, cells, title=_TITLE, retry=True)
    for run in runs:
        if run["state"] == "failed":
            console.say(f"{run['task']} {run['method']}: failed: {run['problem']}")
    results = read(path, studies=[STUDY], title=_TITLE)
    written = write_report(replace(results, notes=(*_NOTES, *results.notes)), out / "report", overwrite=True)
    console.say(f"\n{comparison_table(results)}\n{written['page']}")
    return {
        "page": written["page"],
        "ledger": str(path),
        "seconds": time.monotonic() - started,
        "runs": [run["result"] for run in runs if run["result"] is not None],
    }


_TITLE = "Demonstration on a synthetic hospital"
_NOTES = (
    "The notes are generated: no patient stands behind any of them. They show how the methods compare, not how well they "
    "do on yours.",
    "Each run was trained once, with one seed; another seed moves scores by a point or more.",
)


def _prepare(out: Path, seed: int) -> list[Path]:
    """The hospital, and the tasks made of it; what is there already is kept."""
    from posology.synthetic.command import MARKER, synthesise
    from posology.tasks.generic import prepare
    from posology.tasks.prepared import TASK_FILE

    hospital = out / "hospital"
    if not (hospital / MARKER).is_file():
        synthesise(out=hospital, patients=PATIENTS, seed=seed)
    folders = []
    for task, corpus in TASKS.items():
        folder = out / "data" / task
        if not (folder / TASK_FILE).is_file():
            prepare(task, hospital / corpus, folder)  # type: ignore[arg-type]
        folders.append(folder)
    return folders


def _wanted(folders: list[Path], seed: int) -> list[Cell]:
    """Every run: on each task a baseline, and `RUNS`."""
    from posology.study.cell import Cell
    from posology.tasks.prepared import PreparedTask

    wanted = []
    for folder in folders:
        baseline = BASELINES[PreparedTask.open(folder).kind]
        wanted.append(Cell(task=folder.name, data=folder.absolute(), backbone=None, method=baseline, seed=seed))
        wanted += [
            Cell(
                task=folder.name,
                data=folder.absolute(),
                backbone=backbone,
                method=method,
                overrides=OVERRIDES,
                seed=seed,
            )
            for method, backbone in RUNS
        ]
    return wanted
