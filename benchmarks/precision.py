"""Whether products in bfloat16 cost score: the same runs in float32 and in bfloat16.

    python benchmarks/precision.py [--backbone minilm:3] [--train 1500] [--seeds 1 2 3]

Two corpora (entities and classes), LoRA and full fine-tuning, standard recipe; each seed is trained in both precisions
from the same initial weights, in the same order and with the same dropout. What is shown is the difference on test,
bfloat16 minus float32, in points, beside what another seed alone changes. Killed and started again it goes on where it
was. Writes benchmarks/results/precision.json and precision.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from common import CACHE, HERE, prepared, result

CORPORA = ("ncbi-disease", "mts-dialog")
METHODS = ("lora", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="minilm:3")
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()

    from posology.files import write_json
    from posology.study.cell import Cell
    from posology.study.driver import carry_out
    from posology.study.ledger import Ledger
    from posology.study.local import LocalExecutor

    started = time.time()
    cells = [
        Cell(
            task=corpus,
            data=prepared(corpus, train=arguments.train),
            backbone=arguments.backbone,
            method=method,
            seed=seed,
            overrides={"precision": precision},
        )
        for corpus in CORPORA
        for method in METHODS
        for seed in arguments.seeds
        for precision in ("fp32", "bf16")
    ]
    with Ledger(CACHE / "precision.db", write=True) as ledger:
        runs = carry_out(ledger, "precision", cells, LocalExecutor(workers=1, company=False))
    rows = [_row(corpus, method, arguments.seeds, runs) for corpus in CORPORA for method in METHODS]
    write_json(HERE / "results" / "precision.json", result(rows, started, backbone=arguments.backbone))
    (HERE / "results" / "precision.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def _row(corpus: str, method: str, seeds: list[int], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One corpus and method: scores on test by seed in both precisions."""
    found = {
        (run["seed"], run["cell"]["overrides"]["precision"]): run["value"]
        for run in runs
        if (run["cell"]["task"], run["method"]) == (corpus, method)
    }
    fp32, bf16 = ([found[seed, precision] for seed in seeds] for precision in ("fp32", "bf16"))
    return {
        "corpus": corpus,
        "method": method,
        "seeds": seeds,
        "fp32": fp32,
        "bf16": bf16,
        "differences": [one - other for one, other in zip(bf16, fp32, strict=True)],
        "sd_of_seeds": statistics.stdev(fp32) if len(fp32) > 1 else None,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each corpus and method."""
    lines = [
        "Score on test, by seed; differences are bfloat16 minus float32, in points.",
        "",
        "| corpus | method | float32 | bfloat16 | differences | mean | SD between seeds (float32) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scores = [" ".join(f"{value:.3f}" for value in row[name]) for name in ("fp32", "bf16")]
        differences = " ".join(f"{100 * value:+.1f}" for value in row["differences"])
        spread = "" if row["sd_of_seeds"] is None else f"{100 * row['sd_of_seeds']:.1f}"
        lines.append(
            f"| {row['corpus']} | {row['method']} | {scores[0]} | {scores[1]} | {differences} "
            f"| {100 * statistics.mean(row['differences']):+.1f} | {spread} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
