"""What every benchmark shares: corpora as prepared tasks, subsets of them, and results that say where they come from.

Corpora are looked for in the folder that POSOLOGY_DATA names, `../shared/data` if it is there. Prepared tasks go to
`benchmarks/.cache`.
"""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
DATA = Path(os.environ.get("POSOLOGY_DATA") or HERE.parents[1] / "shared" / "data")

# How each corpus is prepared. The leaks are those of the corpora as published (a handful of texts that stand in two
# splits); they are kept so that results can be compared with published ones.
CORPORA: dict[str, dict[str, Any]] = {
    "ncbi-disease": {"task": "entities", "leaks": "allow"},
    "chemprot": {"task": "relations", "leaks": "allow", "metric": "micro_f1"},
    "mts-dialog": {
        "task": "classification",
        "text": "dialogue",
        "label": "section_header",
        "test": "test1.csv",
        "leaks": "allow",
    },
    "specialty11": {"folder": "mtsamples/specialty11", "task": "classification", "id": "note_id"},
}


def prepared(
    name: str, *, train: int | None = None, validate: int | None = None, test: int | None = None, seed: int = 0
) -> Path:
    """The folder of a prepared corpus, or of a subset of it: so many documents of each split, drawn at random."""
    import posology

    whole = CACHE / name
    if not whole.is_dir():
        options = dict(CORPORA[name])
        source = DATA / options.pop("folder", name)
        if file := options.pop("test", None):
            options |= {"train": source / "train.csv", "validation": source / "dev.csv", "test": source / file}
        posology.prepare(options.pop("task"), source, whole, name=name, **options)
    return subset(whole, train=train, validate=validate, test=test, seed=seed)


def subset(
    whole: Path, *, train: int | None = None, validate: int | None = None, test: int | None = None, seed: int = 0
) -> Path:
    """The folder of a part of a prepared task, beside it: so many documents of each split, drawn at random."""
    from posology.tasks.prepared import SPLITS, PreparedTask, write_prepared

    wanted = {"train": train, "validation": validate, "test": test}
    if not any(wanted.values()):
        return whole
    part = whole.with_name("-".join(map(str, (whole.name, train, validate, test, seed))))
    if not part.is_dir():
        task = PreparedTask.open(whole)
        splits = {}
        for split in SPLITS:
            documents = task.documents(split)
            size = wanted[split] or len(documents)
            if size < len(documents):
                documents = random.Random(f"{seed} {split}").sample(documents, size)
            splits[split] = documents
        write_prepared(
            part,
            name=task.name,
            kind=task.kind,
            labels=task.labels,
            metric=task.metric,
            splits=splits,
            source=task.source,
            notes={"subset": wanted, "seed": seed},
        )
    return part


def answers(artifacts: Iterable[Path | str]) -> tuple[list[Any], list[str]]:
    """Answers on test of runs of one task, as what metrics are taken from, and the groups of the documents."""
    from posology.engine import predictions

    found = [predictions.read(artifact) for artifact in artifacts]
    return [own.scores() for own in found], found[0].groups


def interval(entry: dict[str, Any] | None, *, points: bool = False) -> str:
    """A value with its 95 % interval; a difference in points."""
    if entry is None:
        return ""
    if entry["value"] is None:
        return "undefined"
    factor, form = (100, "+.1f") if points else (1, ".3f")
    value, *ends = (
        None if entry[name] is None else format(factor * entry[name], form) for name in ("value", "low", "high")
    )
    return f"{value}" if None in ends else f"{value} ({ends[0]} to {ends[1]})"


def result(rows: list[dict[str, Any]], started: float, **facts: Any) -> dict[str, Any]:
    """Rows with the machine, versions, commit and command that made them."""
    from posology.doctor import report
    from posology.engine.train import versions

    machine = report()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "posology"], capture_output=True, text=True, cwd=HERE.parent
    )
    return {
        "command": "python " + shlex.join([Path(sys.argv[0]).as_posix().split("/benchmarks/")[-1], *sys.argv[1:]]),
        "commit": commit + (" with changes" if changed.stdout.strip() else ""),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.time() - started),
        "machine": {key: machine[key] for key in ("cpu", "memory", "matrix_peak_gflops") if key in machine},
        "versions": versions(),
        **facts,
        "rows": rows,
    }
