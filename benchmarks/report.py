"""The report on a ledger of ten thousand runs: how long it takes, and how much memory, on one core.

    python benchmarks/report.py [--runs 10000] [--documents 500] [--share 1]

Makes a ledger of runs that nobody trained: seven tasks in the form of the paper's (kinds, classes and metrics), sixteen
backbones of the catalogue, six methods, five ranks or learning rates, three seeds, with curves, results by label, and
answers by document for a share of the runs (all by default). Then reads it and writes the whole report in a process of its
own on one core. Writes benchmarks/results/report.json and report.md; the ledger lies in benchmarks/.cache meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import CACHE, HERE, result

RESULTS = HERE / "results" / "report.json"
TASKS = {
    "mimic-mp": ("sequence-classification", "auroc", 2),
    "mimic-los": ("sequence-classification", "auroc", 4),
    "mimic-triage": ("sequence-classification", "macro_f1", 7),
    "i2b2-2010-re": ("sequence-classification", "macro_f1", 9),
    "i2b2-2010-ner": ("token-classification", "entity_f1", 3),
    "i2b2-2012-ner": ("token-classification", "entity_f1", 6),
    "i2b2-2014-ner": ("token-classification", "entity_f1", 23),
}
METHODS = {"full": 0.06, "lora": 0.05, "ia3": 0.03, "prefix": 0.01, "bitfit": 0.02, "head": -0.05}
RECIPES = 5
SEEDS = (12, 34, 56)
EVALUATIONS = 5


def make(folder: Path, runs: int, documents: int, share: float) -> Path:
    """A ledger with its artifacts and prepared tasks; the same arguments make the same runs.

    Args:
        folder: to make.
        runs: how many.
        documents: of each test split; every third has a group of its own, the others share one of two.
        share: of the runs that have answers by document.
    """
    from posology.catalog import backbones
    from posology.study.ledger import Ledger

    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    names = [entry.name for entry in backbones().values() if entry.architecture != "llama"][:16]
    tests = {name: _test(name, generator, documents) for name in TASKS}
    folders = {name: _prepared(folder / "tasks" / name, name, documents) for name in TASKS}
    cells = [
        (name, _cell(name, folders[name], backbone, method, recipe, seed), method, recipe, backbone)
        for backbone in names
        for method in METHODS
        for recipe in range(RECIPES)
        for seed in SEEDS
        for name in TASKS
    ][:runs]
    with Ledger(folder / "ledger.db", write=True) as ledger:
        ledger._connection.execute("PRAGMA synchronous = OFF")  # it is thrown away
        keys = [f"{number:032x}" for number in range(len(cells))]
        ledger.add("benchmark", [cell for _, cell, *_ in cells], keys=keys)
        ledger.artifacts.mkdir()
        for number, (name, cell, method, recipe, backbone) in enumerate(cells):
            size = backbones()[backbone].parameters
            skill = 0.25 + METHODS[method] + 0.06 * np.log10(size / 1e7) - 0.02 * abs(recipe - 2)
            skill += generator.normal(0, 0.01)
            artifact = ledger.artifacts / keys[number]
            artifact.mkdir()
            kept = number < share * len(cells)
            metrics, per_label = _answer(artifact if kept else None, name, tests[name], skill, generator)
            ledger.finish(keys[number], _result(cell, name, artifact, size, metrics, per_label, generator))
    return folder / "ledger.db"


def _cell(name: str, data: Path, backbone: str, method: str, recipe: int, seed: int) -> Any:
    from posology.study.cell import Cell

    field = {"lora": ("rank", 2 ** (recipe + 2))}.get(method, ("learning_rate", 1e-4 * 2**recipe))
    return Cell(task=name, data=data, backbone=backbone, method=method, overrides=dict([field]), seed=seed)


def _prepared(folder: Path, name: str, documents: int) -> Path:
    """A prepared task whose documents say nothing: only its description is read."""
    from posology.corpus.document import Document
    from posology.tasks.prepared import write_prepared

    kind, metric, classes = TASKS[name]
    labels = [f"class {index}" for index in range(classes)]
    tagging = kind == "token-classification"
    splits = {
        split: [
            Document(
                id=f"{split}{number}", group=f"{split}{number}", text="x",
                label=None if tagging else labels[number % classes], words=[(0, 1)] if tagging else [],
            )
            for number in range(size)
        ]
        for split, size in (("train", documents), ("validation", 2 * classes), ("test", documents))
    }  # fmt: skip
    write_prepared(folder, name=name, kind=kind, labels=labels, metric=metric, splits=splits)  # type: ignore[arg-type]
    return folder


def _test(name: str, generator: np.random.Generator, documents: int) -> dict[str, Any]:
    kind, _, classes = TASKS[name]
    common = {
        "id": [f"{n:06d}" for n in range(documents)],
        "group": [f"{n - n % 3 // 2:06d}" for n in range(documents)],
    }
    if kind == "token-classification":
        return {**common, "gold": generator.poisson(2 / classes, (documents, classes))}
    gold = generator.choice(classes, documents, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return {**common, "gold": gold, "difficulty": generator.normal(0, 1, (documents, classes))}


def _answer(
    artifact: Path | None, name: str, test: dict[str, Any], skill: float, generator: np.random.Generator
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Writes answers of a model of some skill; its metrics with made-up intervals, and results by label."""
    import polars as pl

    from posology.engine.decode import softmax
    from posology.evaluation.metrics import class_counts, classification_metrics, entity_metrics, per_class

    kind, _, classes = TASKS[name]
    gold = test["gold"]
    table: dict[str, Any] = {"id": test["id"], "group": test["group"]}
    if kind == "token-classification":
        right = generator.binomial(gold, min(0.95, 0.4 + skill))
        counts = np.stack([right, right + generator.poisson(0.3 / classes, gold.shape), gold], axis=2)
        values = entity_metrics(counts)
        table["counts"] = pl.Series(counts.reshape(len(counts), -1).astype(np.int32))
    else:
        logits = 8 * skill * np.eye(classes)[gold] + test["difficulty"] + generator.normal(0, 0.5, (len(gold), classes))
        probabilities = softmax(logits)
        counts, values = class_counts(gold, probabilities), classification_metrics(gold, probabilities)
        table |= {"label": gold, "logits": pl.Series(logits.astype(np.float32))}
    if artifact is not None:
        pl.DataFrame(table).write_parquet(artifact / "test.parquet")
    metrics = {key: {"value": value, "low": value - 0.03, "high": value + 0.03} for key, value in values.items()}
    return metrics, per_class(counts, [f"class {index}" for index in range(classes)])


def _result(
    cell: Any,
    name: str,
    artifact: Path,
    size: int,
    metrics: dict[str, Any],
    per_label: dict[str, Any],
    generator: np.random.Generator,
) -> dict[str, Any]:
    """As `posology.train` returns it."""
    kind, metric, _ = TASKS[name]
    trained = size if cell.method == "full" else 100_000
    seconds = size / 1e6 * float(generator.uniform(0.9, 1.1)) * (1.5 if cell.method == "full" else 1.0)
    score = metrics[metric]["value"]
    curve = [
        {"epoch": float(n), "step": 100 * n, "seconds": seconds * n / EVALUATIONS, "loss": 1 / n,
         "score": score * (1 - 0.5**n)}
        for n in range(1, EVALUATIONS + 1)
    ]  # fmt: skip
    return {
        "artifact": str(artifact), "task": name, "kind": kind, "metric": metric, "backbone": cell.backbone,
        "backbone_parameters": size, "method": cell.method, "seed": cell.seed, "metrics": metrics,
        "validation": {metric: score + float(generator.normal(0, 0.01))}, "per_label": per_label, "seconds": seconds,
        "trainable_parameters": trained, "adapter_bytes": 4 * trained, "coverage": {"test": 1.0},
        "training": {"seconds": seconds, "examples_per_second": 40.0, "tokens_per_second": 8000.0, "stopped": "epochs",
                     "evaluations": curve},
    }  # fmt: skip


CHILD = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
seconds, busy, peak, last = {}, {}, {}, (started, time.process_time())
def mark(name):
    global last
    now = time.perf_counter(), time.process_time()
    seconds[name], busy[name], last = now[0] - last[0], now[1] - last[1], now
    peak[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
from posology.report import figures, page, tables
from posology.report.command import write_report
from posology.report.reading import read
mark("importing")
for module, name in ((tables, "write_tables"), (figures, "write_figures"), (page, "write_page")):
    def timed(*arguments, inner=getattr(module, name), name=name):
        mark("")
        found = inner(*arguments)
        mark(name)
        return found
    setattr(module, name, timed)
results = read(sys.argv[1])
mark("read")
done = write_report(results, Path(sys.argv[2]))
for each in (seconds, busy, peak):
    each.pop("", None)
compared = sum(len(task.differences) for task in results.tasks)
print(json.dumps({"total": time.perf_counter() - started, "seconds": seconds, "cpu_seconds": busy,
                  "peak_bytes": peak, "runs": done["runs"], "compared": compared, "page_bytes": Path(done["page"]).stat().st_size}))
"""


def measure(ledger: Path, out: Path) -> dict[str, Any]:
    """Seconds and peak memory of the report, by stage, in a process on one core."""
    shutil.rmtree(out, ignore_errors=True)
    one = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(ledger), str(out)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **one},
        preexec_fn=lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]),
    )
    return dict(json.loads(done.stdout))


def table(row: dict[str, Any]) -> str:
    """Markdown: seconds and peak memory by stage."""
    lines = [
        f"A report on {row['runs']:,} runs ({row['compared']} comparisons, answers by document for {row['share']:.0%} of "
        f"the runs, {row['documents']:,} test documents each), on one core. Must: under 60 s and 1 GiB.",
        "",
        "| stage | seconds | peak memory so far (MB) |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['seconds'][name]:.1f} | {row['peak_bytes'][name] / 1e6:.0f} |" for name in row["seconds"]
    ]
    lines.append(f"| all | {row['total']:.1f} | {max(row['peak_bytes'].values()) / 1e6:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    from posology.files import write_json

    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--keep", action="store_true", help="leave the ledger and the report where they are")
    arguments = parser.parse_args()
    started, folder = time.time(), CACHE / "report-ledger"
    asked = {"documents": arguments.documents, "share": arguments.share}
    shutil.rmtree(folder, ignore_errors=True)
    ledger = make(folder, arguments.runs, arguments.documents, arguments.share)
    row = {**asked, "making_seconds": time.time() - started, **measure(ledger, folder / "report")}
    write_json(RESULTS, result([row], started))
    RESULTS.with_suffix(".md").write_text(table(row), encoding="utf-8")
    print(table(row))
    if not arguments.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
