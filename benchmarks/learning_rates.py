"""Chooses each method's default learning rate: best validation score on small subsets of two corpora, the first three layers of
the bundled model.

    python benchmarks/learning_rates.py [--methods lora,ia3] [--corpora ncbi-disease,specialty11]

Writes benchmarks/results/learning_rates-CORPUS.json. Test splits are not looked at. Runs that are there
already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from common import HERE, prepared, result

GRID = {
    "full": [3e-5, 1e-4, 3e-4, 1e-3],
    "lora": [3e-4, 1e-3, 2e-3, 5e-3, 1e-2],
    "ia3": [3e-3, 1e-2, 3e-2],
    "head": [1e-3, 5e-3, 2e-2],
    "prefix": [3e-3, 1e-2, 3e-2],
    "prompt": [3e-3, 1e-2, 3e-2],
    "p-tuning": [1e-3, 3e-3, 1e-2],
    "bitfit": [1e-3, 3e-3, 1e-2],
    "layernorm": [1e-3, 3e-3, 1e-2],
    "dora": [1e-3, 2e-3, 5e-3],
    "rslora": [5e-4, 1e-3, 2e-3],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(GRID))
    parser.add_argument("--corpora", default="ncbi-disease,specialty11")
    parser.add_argument("--backbone", default="minilm:3")
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=128, help="longer texts are cut, to save time")
    arguments = parser.parse_args()

    import posology
    from posology.files import write_json

    for corpus in arguments.corpora.split(","):
        started, results = time.time(), HERE / "results" / f"learning_rates-{corpus}.json"
        rows = json.loads(results.read_text(encoding="utf-8"))["rows"] if results.is_file() else []
        data = prepared(corpus, train=arguments.train, validate=200, test=50)
        for method in arguments.methods.split(","):
            for rate in GRID[method]:
                if any((row["method"], row["learning_rate"]) == (method, rate) for row in rows):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    run = posology.train(
                        data,
                        arguments.backbone,
                        method,
                        Path(folder) / "run",
                        overrides={
                            "learning_rate": rate,
                            "epochs": arguments.epochs,
                            "max_length": arguments.max_length,
                            "long_text": "truncate",
                        },
                        seed=1,
                    )
                metric = posology.PreparedTask.open(data).metric
                rows.append(
                    {
                        "corpus": corpus,
                        "method": method,
                        "learning_rate": rate,
                        "validation": run["validation"][metric],
                        "accuracy": run["validation"].get("accuracy"),
                        "curve": [point["score"] for point in run["training"]["evaluations"]],
                        "seconds": round(run["seconds"], 1),
                    }
                )
                print(corpus, method, rate, f"{run['validation'][metric]:.4f}", f"{run['seconds']:.0f} s", flush=True)
                write_json(results, result(rows, started))


if __name__ == "__main__":
    main()
