"""`posology demo`: the main job from start to end, on a synthetic hospital and the bundled model."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from posology import console
from posology.errors import Interrupted
from posology.files import check_free

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


def run(out: Path, *, seed: int = 7, overwrite: bool = False) -> dict[str, Any]:
    """Writes a hospital, prepares two tasks, trains several methods and a baseline, compares them and writes a page.

    Leaves `hospital/`, `data/`, `runs/` and `report/index.html` in `out`. Runs that are there already, from a demo that
    was interrupted, are not trained again.

    Args:
        out: the folder; may hold an interrupted demo.
        seed: of the hospital and of training.
        overwrite: start from nothing.

    Returns:
        `page`, `seconds`, and `runs`: what `posology train` returns for each.

    Raises:
        UserError: `out` holds something else.
    """
    from posology.engine.artifact import RECORD, read_record
    from posology.engine.train import summary, train
    from posology.report.page import comparison_table, write_page

    started = time.monotonic()
    mark = out / _MARK
    if not mark.is_file():
        check_free(out, marker=_MARK, overwrite=False)
    if overwrite:
        for part in ("hospital", "data", "runs", "report"):
            shutil.rmtree(out / part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
    wanted = _wanted(_prepare(out, seed))
    runs: list[dict[str, Any]] = []
    for data, method, backbone in wanted:
        task = data.name
        name = "-".join([task, method] + ([backbone.replace(":", "-")] if backbone else []))
        artifact = out / "runs" / name
        console.say(f"\n{len(runs) + 1}/{len(wanted)}: {method}{f' on {backbone}' if backbone else ''}, task {task}")
        if (artifact / RECORD).is_file() and _same(record := read_record(artifact), data, seed):
            console.say("done already")
            runs.append(summary(artifact, record))
            continue
        overrides = OVERRIDES if backbone else None
        try:
            runs.append(train(data, backbone, method, artifact, overrides=overrides, seed=seed, overwrite=True))
        except KeyboardInterrupt as error:
            raise Interrupted(f"{len(runs)} of {len(wanted)} runs are in {out}; the same command goes on") from error
    rows = [_row(one) for one in runs]
    page = write_page(out / "report" / "index.html", "Demonstration on a synthetic hospital", rows, _NOTES)
    console.say(f"\n{comparison_table(rows)}\n{page}")
    return {"page": str(page), "seconds": time.monotonic() - started, "runs": runs}


_NOTES = [
    "The notes are generated: no patient stands behind any of them. They show how the methods compare, not how well they "
    "do on yours.",
    "Each run was trained once, with one seed; another seed moves scores by a point or more.",
    "Validation chose each run's checkpoint, and the test split was scored once. Intervals are 95 % bootstrap intervals "
    "over records.",
]


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


def _wanted(folders: list[Path]) -> list[tuple[Path, str, str | None]]:
    """Every run: data, method and backbone."""
    from posology.tasks.prepared import PreparedTask

    wanted: list[tuple[Path, str, str | None]] = []
    for folder in folders:
        wanted.append((folder, BASELINES[PreparedTask.open(folder).kind], None))
        wanted += [(folder, method, backbone) for method, backbone in RUNS]
    return wanted


def _same(record: dict[str, Any], data: Path, seed: int) -> bool:
    """Whether a finished run is the one wanted: an interrupted one has no test score."""
    from posology.tasks.prepared import PreparedTask

    wanted = OVERRIDES if record["backbone"]["parameters"] else {}
    recipe = {key: record["recipe"].get(key) for key in wanted}
    fingerprint = PreparedTask.open(data).fingerprint
    return bool(record["test"]) and (record["task"]["fingerprint"], record["seed"], recipe) == (
        fingerprint,
        seed,
        wanted,
    )


def _row(run: dict[str, Any]) -> Any:
    from posology.report.runs import RunRow

    score = run["metrics"][run["metric"]]
    return RunRow(
        task=run["task"],
        kind=run["kind"],
        backbone=run["backbone"],
        backbone_parameters=run["backbone_parameters"],
        method=run["method"],
        metric=run["metric"],
        value=score["value"],
        low=score["low"],
        high=score["high"],
        trainable_parameters=run["trainable_parameters"],
        adapter_bytes=run["adapter_bytes"],
        seconds=run["seconds"],
        examples_per_second=run["training"]["examples_per_second"],
        seed=run["seed"],
        coverage=run["coverage"]["test"],
    )
