"""`posology demo`: the main job from start to end, on generated data and the bundled model."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from posology import console
from posology.errors import Interrupted
from posology.files import check_free

BACKBONES = ("minilm", "minilm:3")
_MARK = ".posology-demo"
METHODS = ("full", "lora", "ia3", "head")
OVERRIDES = {"epochs": 3, "batch_size": 8}


def run(out: Path, *, seed: int = 7, overwrite: bool = False) -> dict[str, Any]:
    """Generates two tasks, trains every method on both backbones, compares them and writes a page.

    Leaves `data/`, `runs/` and `report/index.html` in `out`. Runs that are there already, from a demo that was
    interrupted, are not trained again.

    Args:
        out: the folder; may hold an interrupted demo.
        seed: of the generated data and of training.
        overwrite: start from nothing.

    Returns:
        `page`, `seconds`, and `runs`: what `posology train` returns for each.

    Raises:
        UserError: `out` holds something else.
    """
    from posology.engine.artifact import RECORD, read_record
    from posology.engine.train import summary, train
    from posology.report.page import comparison_table, write_page
    from posology.tasks.synthetic import write_demo_tasks

    started = time.monotonic()
    mark = out / _MARK
    if not mark.is_file():
        check_free(out, marker=_MARK, overwrite=False)
    if overwrite:
        for part in ("data", "runs", "report"):
            shutil.rmtree(out / part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
    folders = write_demo_tasks(out / "data", seed=seed, train=240, validation=80, test=200, overwrite=True)
    runs: list[dict[str, Any]] = []
    total = len(folders) * len(BACKBONES) * len(METHODS)
    for task, data in folders.items():
        for backbone in BACKBONES:
            for method in METHODS:
                artifact = out / "runs" / f"{task}-{backbone.replace(':', '-')}-{method}"
                console.say(f"\n{len(runs) + 1}/{total}: {method} on {backbone}, task {task}")
                if (artifact / RECORD).is_file() and _same(record := read_record(artifact), data, seed):
                    console.say("done already")
                    runs.append(summary(artifact, record))
                    continue
                try:
                    runs.append(train(data, backbone, method, artifact, overrides=OVERRIDES, seed=seed, overwrite=True))
                except KeyboardInterrupt as error:
                    raise Interrupted(f"{len(runs)} of {total} runs are in {out}; the same command goes on") from error
    rows = [_row(one) for one in runs]
    page = write_page(out / "report" / "index.html", "Demonstration on generated notes", rows, _NOTES)
    console.say(f"\n{comparison_table(rows)}\n{page}")
    return {"page": str(page), "seconds": time.monotonic() - started, "runs": runs}


_NOTES = [
    "Both tasks are generated: no patient stands behind any of these notes. They show how the methods compare, not how "
    "well they do on yours.",
    "Each run was trained once, with one seed; another seed moves scores by a point or more.",
    "Validation chose each run's checkpoint, and the test split was scored once. Intervals are 95 % bootstrap intervals "
    "over patients.",
]


def _same(record: dict[str, Any], data: Path, seed: int) -> bool:
    """Whether a finished run is the one wanted: an interrupted one has no test score."""
    from posology.engine.backbone import load_config, resolve
    from posology.engine.recipe import make_recipe
    from posology.tasks.prepared import PreparedTask

    width = load_config(resolve(record["backbone"]["name"])).hidden_size
    recipe = make_recipe(record["method"], overrides=OVERRIDES, width=width).model_dump(mode="json")
    fingerprint = PreparedTask.open(data).fingerprint
    return bool(record["test"]) and (record["task"]["fingerprint"], record["seed"], record["recipe"]) == (
        fingerprint,
        seed,
        recipe,
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
