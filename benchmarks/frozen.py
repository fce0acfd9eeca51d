"""What frozen layers that run once save: LoRA on the top two layers, and a head alone, beside LoRA on all layers.

    python benchmarks/frozen.py [--rounds 3] [--train 400] [--only ncbi-disease]

Bundled model, 5 epochs, default recipes; seconds are those of training as `posology train` reports them, the pass over
the frozen layers included and evaluations apart. All runs take turns, in rounds; ratios are formed within a round.
Writes benchmarks/results/frozen.json and frozen.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HERE, prepared, result

CORPORA = {"ncbi-disease": 1, "specialty11": 8}
"""How many times fewer documents are taken: notes are longer than sentences."""
RUNS: dict[str, dict[str, Any]] = {
    "all layers": {"method": "lora"},
    "top 2": {"method": "lora", "overrides": {"top_layers": 2}},
    "head": {"method": "head"},
}
SECONDS = ("seconds", "activation_seconds", "evaluation_seconds")


def measure(corpus: str, rounds: int, train: int) -> dict[str, Any]:
    """A row: by run what each round took, and how many times faster it was than LoRA on all layers."""
    import posology

    size = max(1, train // CORPORA[corpus])
    data = prepared(corpus, train=size, validate=max(1, size // 4), test=20)
    row: dict[str, Any] = {"corpus": corpus, "backbone": "minilm", "documents": size, "runs": {}}
    for _ in range(rounds):
        for name, run in RUNS.items():
            with tempfile.TemporaryDirectory() as folder:
                overrides = {"epochs": 5, **run.get("overrides", {})}
                done = posology.train(data, "minilm", run["method"], Path(folder) / "run", overrides=overrides)
            own = row["runs"].setdefault(name, {key: [] for key in (*SECONDS, "score")})
            for key in SECONDS:
                own[key].append(round(done["training"][key], 3))
            own["score"].append(round(done["validation"][done["metric"]], 4))
    reference = row["runs"]["all layers"]["seconds"]
    for own in row["runs"].values():
        ratios = [slow / fast for slow, fast in zip(reference, own["seconds"], strict=True)]
        own["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: medians of the rounds, and ratios with their spread."""
    lines = [
        "Seconds of 5 epochs (median of rounds); ratios are taken within rounds: median (min to max).",
        "",
        "| corpus | documents | trained | seconds | of these, frozen layers | evaluations | faster than LoRA on all layers "
        "| best validation score |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name, own in row["runs"].items():
            seconds = " | ".join(f"{statistics.median(own[key]):.1f}" for key in SECONDS)
            ratio = own["ratio"]
            lines.append(
                f"| {row['corpus']} | {row['documents']:,} | {name} | {seconds} "
                f"| {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f}) | {own['score'][0]:.3f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=int, default=400, help="training documents of ncbi-disease")
    parser.add_argument("--only", choices=CORPORA, help="one corpus; nothing is written")
    arguments = parser.parse_args()

    from posology.files import write_json

    started = time.time()
    rows = []
    for corpus in CORPORA if arguments.only is None else [arguments.only]:
        rows.append(measure(corpus, arguments.rounds, arguments.train))
        print(table(rows[-1:]), flush=True)
    if arguments.only is None:
        path = HERE / "results" / "frozen.json"
        write_json(path, result(rows, started))
        path.with_suffix(".md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
