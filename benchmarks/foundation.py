"""The plain training path on real corpora: every method, test scores with intervals and seconds.

    python benchmarks/foundation.py [--corpora ncbi-disease,chemprot] [--methods full,lora]

Trains on subsets of 1,000 documents (specialty11: 256), validates on at most 300, scores the whole test split once.
Writes benchmarks/results/foundation.json and foundation.md. Runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HERE, prepared, result

CORPORA = {"ncbi-disease": 1000, "chemprot": 1000, "mts-dialog": 1000, "specialty11": 256}
METHODS = ("full", "lora", "ia3", "head")
OVERRIDES = {"epochs": 3}
# Long texts are read less often, in smaller batches, so that the optimiser still takes enough steps.
FEWER_TOKENS = {"mts-dialog": {"epochs": 1, "batch_size": 4}, "specialty11": {"epochs": 1, "batch_size": 4}}
RESULTS = HERE / "results" / "foundation.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", default=",".join(CORPORA))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--backbone", default="minilm")
    arguments = parser.parse_args()

    import posology
    from posology.files import write_json

    started = time.time()
    for corpus in arguments.corpora.split(","):
        data = prepared(corpus, train=CORPORA[corpus], validate=300)
        overrides = OVERRIDES | FEWER_TOKENS.get(corpus, {})
        for method in arguments.methods.split(","):
            if any((row["corpus"], row["method"]) == (corpus, method) for row in _rows()):
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = posology.train(
                    data, arguments.backbone, method, Path(folder) / "run", overrides=overrides, seed=1
                )
            row = {
                "corpus": corpus,
                "method": method,
                "backbone": arguments.backbone,
                "documents": CORPORA[corpus],
                **overrides,
                "metric": run["metric"],
                "test": run["metrics"],
                "seconds": round(run["seconds"], 1),
                "examples_per_second": round(run["training"]["examples_per_second"], 1),
                "trainable_parameters": run["trainable_parameters"],
                "adapter_bytes": run["adapter_bytes"],
                "coverage": run["coverage"],
            }
            rows = [*_rows(), row]
            write_json(RESULTS, result(rows, started))
            RESULTS.with_suffix(".md").write_text(table(rows), encoding="utf-8")
            print(corpus, method, run["metrics"][run["metric"]], f"{run['seconds']:.0f} s", flush=True)


def _rows() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each corpus and method."""
    lines = [
        "| corpus | method | metric | test (95 % interval) | trained parameters | MB | training s | examples/s | text read |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    order = {name: index for index, name in enumerate([*CORPORA, *METHODS])}
    for row in sorted(rows, key=lambda row: (order[row["corpus"]], order[row["method"]])):
        score = row["test"][row["metric"]]
        lines.append(
            f"| {row['corpus']} | {row['method']} | {row['metric']} | {score['value']:.3f} ({score['low']:.3f} to "
            f"{score['high']:.3f}) | {row['trainable_parameters']:,} | {row['adapter_bytes'] / 1e6:.2f} | "
            f"{row['seconds']:.0f} | {row['examples_per_second']:.1f} | {row['coverage']['test']:.1%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
