"""Exports beside each other: ONNX in float32 and in int8, quality and texts per second, with one thread and with two.

    python benchmarks/export.py [--tiny]

LoRA on the bundled model, a classifier of dialogues and a tagger of diseases, trained on subsets of real corpora; exported,
and timed on the test split with batches of texts of like lengths. The sides take turns within a round. Writes
benchmarks/results/export.json and export.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HERE, prepared, result

RESULTS = HERE / "results" / "export.json"
ROUNDS = 7
SIDES = ("fp32", "int8")
CORPORA: dict[str, dict[str, int]] = {
    "mts-dialog": {"train": 1201, "validate": 100, "test": 200},
    "ncbi-disease": {"train": 2000, "validate": 900, "test": 400},
}
RECIPES: dict[str, dict[str, Any]] = {
    "mts-dialog": {"epochs": 6, "max_length": 256},
    "ncbi-disease": {"epochs": 5, "max_length": 128, "overlap": 32},
}


def exported(corpus: str, folder: Path, tiny: bool) -> list[dict[str, Any]]:
    """Trains, exports and times a corpus: one row for each number of threads."""
    import posology
    from posology.errors import UserError
    from posology.ship.export import export

    data = prepared(corpus, **({"train": 48, "validate": 20, "test": 20} if tiny else CORPORA[corpus]))
    recipe = RECIPES[corpus] | ({"epochs": 1} if tiny else {})
    posology.train(data, "minilm", "lora", folder / "run", overrides=recipe)
    gates: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        out = folder / side
        try:
            gates[side] = export(folder / "run", out=out, precision=side, data=data)
        except UserError as error:  # a result too; how fast it would have been is of interest as well
            found = export(folder / "run", out=out, precision=side, data=data, max_loss=100, max_changed=100)
            gates[side] = {"refused": error.problem, **found}
        gates[side]["out"] = side  # its folder is gone, and was of this machine
    documents = posology.PreparedTask.open(data).documents("test")
    texts = [document.text for document in documents] * (1 if tiny else 2)
    return [
        {
            "corpus": corpus,
            "threads": threads,
            "texts": len(texts),
            **timed(folder, texts, threads),
            "exports": gates,
        }
        for threads in (1, 2)
    ]


def timed(folder: Path, texts: list[str], threads: int) -> dict[str, Any]:
    """Texts per second of each side, everything from text to answer, and how much faster int8 is."""
    from posology.ship.runtime import Runtime

    runtimes = {side: Runtime(folder / side, threads=threads) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(ROUNDS + 1):
        for side, runtime in runtimes.items():
            begin = time.perf_counter()
            runtime.predict(texts)
            if number:  # the first round warms up
                seconds[side].append(time.perf_counter() - begin)
    ratios = [fp32 / int8 for fp32, int8 in zip(seconds["fp32"], seconds["int8"], strict=True)]
    rates = {side: len(texts) / statistics.median(own) for side, own in seconds.items()}
    ratio = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {"texts_per_second": rates, "ratio": ratio}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: speed, and what was lost."""
    lines = [
        f"Texts per second from text to answer (median of {ROUNDS} rounds); the ratio is taken within rounds: median (min to "
        "max). Metric and changed labels are those of the gate, on validation, against the artifact in float32.",
        "",
        "| corpus | threads | fp32 | int8 | int8 is | metric, artifact | int8 | loss, points | labels changed | left in fp32 | gate |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates, int8 = row["texts_per_second"], row["exports"]["int8"]
        gate, ratio = int8["gate"], "{median:.2f}x ({min:.2f} to {max:.2f})".format(**row["ratio"])
        lines.append(
            f"| {row['corpus']} | {row['threads']} | {rates['fp32']:.0f} | {rates['int8']:.0f} | {ratio} | "
            f"{gate['metric']} {gate['before']:.4f} | {gate['after']:.4f} | {gate['loss']:+.2f} | {gate['changed']:.1f} % of "
            f"{gate['labels']} | {len(int8['kept_in_fp32'])} | {'refused' if 'refused' in int8 else 'passed'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    from posology.files import write_json

    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a few documents, to see that it runs; writes nothing")
    tiny = parser.parse_args().tiny
    started, rows = time.time(), []
    for corpus in CORPORA:
        with tempfile.TemporaryDirectory() as folder:
            rows += exported(corpus, Path(folder), tiny)
        print(table(rows), flush=True)
        if not tiny:
            write_json(RESULTS, result(rows, started))
            RESULTS.with_suffix(".md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
