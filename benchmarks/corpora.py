"""Whole corpora, default recipes: test scores and training seconds of each way to adapt, beside published figures.

    python benchmarks/corpora.py [--only ncbi-disease:minilm] [--threads 1]

`ncbi-disease`, `chemprot`, `mts-dialog` and `specialty11`; `full`, `lora`, `ia3` and `head`; the bundled model and its
first three layers; one seed. Seconds are those of the processor, so that it does not matter much what else the machine
does. Writes benchmarks/results/corpora.json and corpora.md after each run; what is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

CORPORA = ("mts-dialog", "ncbi-disease", "chemprot", "specialty11")
METHODS = ("head", "lora", "full", "ia3")
BACKBONES = ("minilm", "minilm:3")
METRICS = {
    "ncbi-disease": ("entity_f1",),
    "chemprot": ("micro_f1", "macro_f1"),
    "mts-dialog": ("accuracy", "macro_f1"),
    "specialty11": ("accuracy", "macro_f1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose corpus:backbone:method begins so")
    parser.add_argument("--threads", default="1")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = arguments.threads

    from common import CACHE, HERE, prepared, result

    import posology
    from posology.engine.artifact import read_record
    from posology.files import write_json

    path, started = HERE / "results" / "corpora.json", time.time()
    for corpus in CORPORA:
        for method in METHODS:
            for backbone in reversed(BACKBONES):
                rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
                cell = {"corpus": corpus, "backbone": backbone, "method": method}
                name = ":".join(cell.values())
                if not name.startswith(arguments.only) or any(cell.items() <= row.items() for row in rows):
                    continue
                begin, out = time.process_time(), CACHE / "corpora" / name.replace(":", "-")
                posology.train(prepared(corpus), backbone, method, out, overwrite=True)
                record = read_record(out)
                training = record["training"]
                row = {
                    **cell,
                    "test": {metric: record["test"]["metrics"][metric] for metric in METRICS[corpus]},
                    "documents": training["documents"],
                    "epochs": record["recipe"]["epochs"],
                    "processor_seconds": time.process_time() - begin,
                    "trainable_parameters": record["parameters"]["head"] + record["parameters"]["method"],
                    "training": {key: training[key] for key in ("seconds", "evaluation_seconds", "stopped", "resumed")},
                }
                rows = [*rows, row]
                write_json(path, result(rows, started, threads=int(arguments.threads)))
                path.with_suffix(".md").write_text(table(rows, HERE), encoding="utf-8")
                print(name, {metric: round(score["value"], 3) for metric, score in row["test"].items()}, flush=True)


def table(rows: list[dict[str, Any]], here: Any) -> str:
    """Markdown: a table for each corpus, published figures below the runs."""
    import yaml

    published = yaml.safe_load((here / "published.yaml").read_text(encoding="utf-8"))
    lines = []
    for corpus in CORPORA:
        own = [row for row in rows if row["corpus"] == corpus]
        if not own:
            continue
        metrics = METRICS[corpus]
        lines += [f"## {corpus}", "", "| model | method | " + " | ".join(metrics) + " | processor s | trained |"]
        lines.append("|---" * (4 + len(metrics)) + "|")
        for row in sorted(own, key=lambda row: (row["backbone"], METHODS.index(row["method"]))):
            scores = [
                f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
                for score in (row["test"][metric] for metric in metrics)
            ]
            lines.append(
                f"| {row['backbone']} | {row['method']} | {' | '.join(scores)} | {_seconds(row)} | "
                f"{row['trainable_parameters']:,} |"
            )
        for other in published[corpus]:
            scores = [f"{other[metric]:.3f}" if metric in other else "" for metric in metrics]
            lines.append(f"| {other['model']} | {other['how']} | {' | '.join(scores)} | | |")
        lines.append("")
    return "\n".join(lines)


def _seconds(row: dict[str, Any]) -> str:
    """Of a run that was continued, only those since then are known."""
    return f"{'more than ' if row['training']['resumed'] else ''}{row['processor_seconds']:,.0f}"


if __name__ == "__main__":
    main()
