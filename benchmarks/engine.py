"""The engine beside its peers: training and prediction against transformers and PEFT, a `posology bench` for each row.

    python benchmarks/engine.py [--only train:ncbi-disease] [--again]

Rows: LoRA and full fine-tuning on sentences (ncbi-disease) and on long notes (specialty11, at 480 pieces), for the
bundled model and for the shape of TinyBERT (4 layers, 312 wide; random weights, since only time is measured); then
prediction. Writes benchmarks/results/engine.json and engine.md. Rows that are there already are not repeated, unless
--again. Wants a machine that does little else: rounds are paired, but a busy minute widens the spread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import CACHE, HERE, prepared, result

RESULTS = HERE / "results" / "engine.json"
# How much is measured, so that a row takes about three minutes on two cores. Batches of long notes are halved: speed
# depends on their size no more, and twice as many rounds fit.
TRAINING = {
    "ncbi-disease": ["--steps", "6", "--repeats", "5"],
    "specialty11": ["--max-length", "480", "--set", "batch_size=16", "--steps", "1", "--repeats", "4"],
}
PREDICTION = {
    "ncbi-disease": ["--documents", "512", "--repeats", "5"],
    "specialty11": ["--max-length", "480", "--documents", "64", "--repeats", "3"],
}


def cells() -> list[dict[str, str]]:
    """What identifies each row, in the order in which they are measured."""
    training = [
        {"bench": "train", "corpus": corpus, "backbone": backbone, "method": method}
        for corpus in TRAINING
        for backbone in ("minilm", "tinybert-shape")
        for method in ("lora", "full")
    ]
    prediction = [
        {"bench": "predict", "corpus": corpus, "backbone": backbone, "method": "lora"}
        for corpus in PREDICTION
        for backbone in ("minilm", "tinybert-shape")
    ]
    return training + prediction


def tinybert_shape() -> Path:
    """A backbone folder of TinyBERT's shape with random weights, and the tokenizer of the bundled model."""
    folder = CACHE / "tinybert-shape"
    if not (folder / "tokenizer.json").is_file():
        import torch
        from transformers import AutoModel

        from posology.engine.backbone import load_config, load_tokenizer, resolve

        bundled = resolve("minilm")
        config = load_config(bundled)
        config.num_hidden_layers, config.hidden_size = 4, 312
        config.num_attention_heads, config.intermediate_size = 12, 1200
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
        load_tokenizer(bundled).save_pretrained(folder)
    return folder


def spinning() -> dict[str, str]:
    """An environment in which threads wait by spinning, OpenMP's default, for all sides: this script is all that runs.

    Posology lets them sleep on a machine that was busy in the last minute, which it was: with the row before.
    """
    return {"GOMP_SPINCOUNT": "300000", **os.environ}


def measure(cell: dict[str, str]) -> dict[str, Any]:
    """One row: the cell, and what `posology bench` says of it."""
    sizes = (TRAINING if cell["bench"] == "train" else PREDICTION)[cell["corpus"]]
    backbone = str(tinybert_shape()) if cell["backbone"] == "tinybert-shape" else cell["backbone"]
    command = [sys.executable, "-m", "posology.cli", "bench", cell["bench"], "--data", str(prepared(cell["corpus"]))]
    command += ["--backbone", backbone, "--method", cell["method"], "--peer", *sizes, "--json"]
    begin = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=spinning())
    return {**cell, **json.loads(done.stdout), "row_seconds": round(time.perf_counter() - begin)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose bench:corpus:backbone:method begins so")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already once more")
    arguments = parser.parse_args()

    from posology.files import write_json

    started = time.time()
    for cell in cells():
        if not ":".join(cell.values()).startswith(arguments.only):
            continue
        others = [row for row in _rows() if not cell.items() <= row.items()]
        if len(others) < len(_rows()) and not arguments.again:
            continue
        rows = sorted([*others, measure(cell)], key=lambda row: cells().index({key: row[key] for key in cell}))
        write_json(RESULTS, result(rows, started))
        RESULTS.with_suffix(".md").write_text(table(rows), encoding="utf-8")
        print(*cell.values(), {name: round(ratio["median"], 2) for name, ratio in row_of(rows, cell)["ratios"].items()})


def row_of(rows: list[dict[str, Any]], cell: dict[str, str]) -> dict[str, Any]:
    """The row of a cell."""
    return next(row for row in rows if cell.items() <= row.items())


def _rows() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: examples per second of each side, and how many times longer the peers took."""
    lines = [
        "Examples per second (median of rounds); ratios are taken within rounds: median (min to max).",
        "",
        "| bench | corpus | backbone | method | ours | share of peak | peer as the paper / pipeline | ours is | "
        "peer at its best / sorted loop | ours is | same labels |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speeds = [f"{row[name]['examples_per_second']['median']:.1f}" for name in ("ours", *row["ratios"])]
        ratios = [f"{own['median']:.2f}x ({own['min']:.2f} to {own['max']:.2f})" for own in row["ratios"].values()]
        labels = " / ".join(f"{row[name]['same_labels']:.1%}" for name in row["ratios"] if "same_labels" in row[name])
        lines.append(
            f"| {row['bench']} | {row['corpus']} | {row['backbone']} | {row['method']} | {speeds[0]} "
            f"| {row['ours']['share_of_peak']:.0%} | {speeds[1]} | {ratios[0]} | {speeds[2]} | {ratios[1]} | {labels} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
