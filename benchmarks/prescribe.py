"""Prescribing beside trying everything: `posology.prescribe` in a third of the time that the whole grid takes.

    python benchmarks/prescribe.py [--corpora ncbi-disease ...] [--train 1500] [--validate 300] [--test 500]
                                   [--backbones minilm:2 ...] [--methods full ...]

For each corpus: the grid, which trains every candidate on all documents (the bundled model and its first 2, 3 and 4
layers; full, lora, ia3 and head; the standard recipe and a third of its learning rate; the baseline), then
`prescribe(max_seconds=a third of what that took)` with a ledger of its own, so that it reuses nothing. The choice is
looked up in the grid: what it lacks to the best there, on the validation scores that both choose by, is the regret. The
whole takes one to two hours on two cores. Killed and started again, the grid goes on where it was; a corpus that is in
the results already, with the same sizes, is not done again. Writes benchmarks/results/prescribe.json and prescribe.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from common import CACHE, HERE, prepared, result

CORPORA = ("mts-dialog", "ncbi-disease", "chemprot")
BACKBONES = ("minilm:2", "minilm:3", "minilm:4", "minilm")
METHODS = ("full", "lora", "ia3", "head")
RESULTS = HERE / "results" / "prescribe.json"
SHARE = 1 / 3


def grid(data: Path, folder: Path, backbones: list[str], methods: list[str], seed: int) -> dict[str, Any]:
    """Every candidate on all documents, with the executor that `prescribe` takes by default.

    Returns:
        `seconds` of wall clock, over all attempts, and a row for each candidate, the best on validation first.
    """
    from posology.study.candidates import BASELINE, Candidate, list_candidates
    from posology.study.driver import carry_out
    from posology.study.ledger import Ledger
    from posology.study.prescribe import default_executor
    from posology.tasks.prepared import PreparedTask

    task = PreparedTask.open(data)
    candidates = [Candidate(None, BASELINE[task.kind]), *list_candidates(backbones, methods, None)]
    with Ledger(folder / "grid.db", write=True) as ledger:
        spent, begin = ledger.noted("grid", "seconds") or 0.0, time.monotonic()

        def watch(_event: Any) -> bool:
            ledger.note("grid", "seconds", spent + time.monotonic() - begin)
            return False

        cells = [candidate.cell(task.name, data, seed) for candidate in candidates]
        runs = carry_out(ledger, "grid", cells, default_executor(task), watch=watch)
        rows = [
            {
                "title": candidate.title,
                "validation": run["validation"],
                "test": run["value"],
                "seconds": run["seconds"],
                "problem": run["problem"],
            }
            for candidate, run in zip(candidates, runs, strict=True)
        ]
        seconds = ledger.noted("grid", "seconds")
    rows.sort(key=lambda row: -(row["validation"] or 0.0))
    return {"seconds": seconds, "runs": rows}


def measure(corpus: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One corpus: the grid, the prescription, and how they compare."""
    import posology
    from posology.study.prescribe import prescribe

    whole = posology.PreparedTask.open(prepared(corpus)).counts
    sizes = {"train": arguments.train, "validation": arguments.validate, "test": arguments.test}
    sizes = {split: min(size, whole[split]) for split, size in sizes.items()}
    data = prepared(corpus, train=sizes["train"], validate=sizes["validation"], test=sizes["test"])
    folder = CACHE / "prescribe" / f"{data.name}-{len(arguments.backbones)}x{len(arguments.methods)}"
    folder.mkdir(parents=True, exist_ok=True)
    tried = grid(data, folder, arguments.backbones, arguments.methods, arguments.seed)
    limit = SHARE * tried["seconds"]
    begin = time.monotonic()
    found = prescribe(
        data,
        out=folder / "prescription",
        max_seconds=limit,
        backbones=arguments.backbones,
        methods=arguments.methods,
        seed=arguments.seed,
        overwrite=True,
    )
    seconds, chosen = time.monotonic() - begin, found["recommended"]
    by_title = {row["title"]: row for row in tried["runs"]}
    best, same = tried["runs"][0], by_title[chosen["title"]]
    return {
        "corpus": corpus,
        "metric": found["metric"],
        "asked": arguments.train,
        "documents": sizes,
        "candidates": len(tried["runs"]),
        "grid": tried,
        "best": best,
        "choice": {
            "title": chosen["title"],
            "validation": chosen["validation"]["value"],
            "test": chosen["test"]["value"],
            "in_grid": same,
        },
        "regret": {name: best[name] - same[name] for name in ("validation", "test")},
        "seconds": seconds,
        "limit": limit,
        "share_of_grid": seconds / tried["seconds"],
        "rungs": found["rungs"],
        "profiling_seconds": found["profiling_seconds"],
        "dropped": {row["title"]: row["dropped"] for row in found["candidates"]},
        "reason": found["reason"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each corpus."""
    lines = [
        "Scores on validation / test. The choice is shown as trained by the grid, so that both are the same runs; regret is",
        "what it lacks to the best, in points. Time is wall clock of everything, the final training included.",
        "",
        "| corpus | documents | candidates | grid's best | choice | regret | grid s | prescribe s (limit) | share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        best, same, regret = row["best"], row["choice"]["in_grid"], row["regret"]
        lines.append(
            f"| {row['corpus']} | {row['documents']['train']:,} | {row['candidates']} "
            f"| {best['title']}: {best['validation']:.3f} / {best['test']:.3f} "
            f"| {same['title']}: {same['validation']:.3f} / {same['test']:.3f} "
            f"| {100 * regret['validation']:.1f} / {100 * regret['test']:.1f} | {row['grid']['seconds']:,.0f} "
            f"| {row['seconds']:,.0f} ({row['limit']:,.0f}) | {row['share_of_grid']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", nargs="+", default=list(CORPORA), choices=CORPORA)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--validate", type=int, default=300)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--results", type=Path, default=RESULTS, help="another file, for a trial")
    arguments = parser.parse_args()

    from posology.files import write_json

    started = time.time()
    rows = json.loads(arguments.results.read_text(encoding="utf-8"))["rows"] if arguments.results.is_file() else []
    for corpus in arguments.corpora:
        if any(row["corpus"] == corpus and row["asked"] == arguments.train for row in rows):
            continue
        row = measure(corpus, arguments)
        rows = [*(own for own in rows if own["corpus"] != corpus), row]
        write_json(arguments.results, result(rows, started))
        arguments.results.with_suffix(".md").write_text(table(rows), encoding="utf-8")
        print(table([row]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
