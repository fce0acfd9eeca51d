"""What each way to adapt costs beside full fine-tuning: seconds of the same steps, taking turns in one process.

    python benchmarks/methods.py [--repeats 5]

Default recipes, the same batches for all. Writes benchmarks/results/methods.json and methods.md.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from common import HERE, prepared, result
from engine import tinybert_shape

METHODS = ("full", "lora", "ia3", "bitfit", "head")
STEPS = {"ncbi-disease": 6, "specialty11": 1}


def measure(corpus: str, backbone: str, repeats: int) -> dict[str, Any]:
    """A row: by method the seconds of a round, and their ratio to those of full fine-tuning in the same round."""
    from posology.measure.ours import OurTraining
    from posology.measure.rounds import interleave, ratios, spread
    from posology.measure.setting import make_plan, make_setting

    runs = {}
    for method in METHODS:
        setting = make_setting(prepared(corpus), backbone, method, "standard", {}, None, 42)
        runs[method] = OurTraining(setting, setting.task.documents("train"))
    first = runs[METHODS[0]]
    plan = make_plan(first.lengths, setting.recipe.batch_size, STEPS[corpus], repeats, 42)
    for run in runs.values():
        run.run([plan.trial, plan.rounds[0][0]])
    turns = {method: iter([batch for batches in plan.rounds for batch in batches]) for method in METHODS}
    sides = {method: lambda method=method: runs[method].run([next(turns[method])]) for method in METHODS}
    seconds = interleave(sides, repeats, turns=len(plan.rounds[0]))
    return {
        "corpus": corpus,
        "backbone": backbone.rsplit("/")[-1],
        "batch_size": setting.recipe.batch_size,
        "seconds": {method: spread(own) for method, own in seconds.items()},
        "of_full": {method: ratios(own, seconds["full"]) for method, own in seconds.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: each method's share of the time of full fine-tuning."""
    lines = [
        "Seconds of each method's steps as a share of those of full fine-tuning: median of rounds (min to max).",
        "",
        "| corpus | backbone | full, seconds a step | " + " | ".join(METHODS[1:]) + " |",
        "|---" * (3 + len(METHODS) - 1) + "|",
    ]
    for row in rows:
        shares = [row["of_full"][method] for method in METHODS[1:]]
        lines.append(
            f"| {row['corpus']} | {row['backbone']} | {row['seconds']['full']['median'] / STEPS[row['corpus']]:.2f} | "
            + " | ".join(f"{own['median']:.2f} ({own['min']:.2f} to {own['max']:.2f})" for own in shares)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    from posology.files import write_json

    started = time.time()
    rows = []
    for corpus in STEPS:
        for backbone in ("minilm", str(tinybert_shape())):
            rows.append(measure(corpus, backbone, arguments.repeats))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    path = HERE / "results" / "methods.json"
    write_json(path, result(rows, started))
    path.with_suffix(".md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
