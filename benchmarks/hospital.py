"""The seven clinical tasks from raw files to scores, in both protocols, on the command line alone.

    python benchmarks/hospital.py [--patients 700] [--tasks mimic-mp ...] [--protocols standard] [--methods lora ...]

`posology synthesise` writes a hospital; `prepare` makes each task in each protocol; `train` adapts the bundled model by
every method named, in so many passes that about `--characters` are read (and fits the baseline: tf-idf for texts, a
dictionary for entities); `evaluate` scores the artifact on test. Writes benchmarks/results/hospital.json and hospital.md. What is there already is
not done again; everything lies in benchmarks/.cache/hospital.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import CACHE, HERE, result

TASKS = (
    "mimic-mp",
    "mimic-los",
    "mimic-triage",
    "i2b2-2010-re",
    "i2b2-2010-ner",
    "i2b2-2012-ner",
    "i2b2-2014-ner",
)
PROTOCOLS = ("standard", "paper")
RESULTS = HERE / "results" / "hospital.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=700)
    parser.add_argument("--characters", type=float, default=8e5, help="to read in each training, over all passes")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--protocols", nargs="+", default=PROTOCOLS)
    parser.add_argument("--methods", nargs="+", default=["baseline", "lora"])
    parser.add_argument("--max-seconds", type=float, help="end each training after so many")
    parser.add_argument("--backbone", default="minilm")
    arguments = parser.parse_args()

    from posology.files import write_json

    started = time.time()
    work = CACHE / f"hospital-{arguments.patients}"
    hospital = work / "hospital"
    if not hospital.is_dir():
        posology("synthesise", "--patients", arguments.patients, "--seed", 7, "--out", hospital)
    for task in arguments.tasks:
        corpus = "mimic-iii" if task.startswith("mimic") else "-".join(task.split("-")[:2])
        for protocol in arguments.protocols:
            data = work / f"{task}-{protocol}"
            if not data.is_dir():
                posology("prepare", task, "--source", hospital / corpus, "--out", data, "--protocol", protocol)
            for method in arguments.methods:
                key = {"task": task, "protocol": protocol, "asked": method, "patients": arguments.patients}
                if any(key.items() <= row.items() for row in known_rows()):
                    continue
                row = key | one(data, work / f"{task}-{protocol}-{method}", method, arguments)
                rows = [*known_rows(), row]  # read again: another process may do other tasks
                write_json(RESULTS, result(rows, started))
                RESULTS.with_suffix(".md").write_text(table(rows), encoding="utf-8")
                print(table(rows[-1:]).splitlines()[-1], flush=True)


def one(data: Path, out: Path, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains (or fits) and evaluates one method on a prepared task."""
    task = json.loads((data / "task.json").read_text(encoding="utf-8"))
    shutil.rmtree(out, ignore_errors=True)
    if method == "baseline":
        method = "tf-idf" if task["kind"] == "sequence-classification" else "dictionary"
        options: list[object] = []
    else:
        options = ["--backbone", arguments.backbone, "--set", *settings(data, arguments.characters)]
        if arguments.max_seconds:
            options += ["--max-seconds", arguments.max_seconds]
    run = posology("train", data, "--method", method, "--out", out, *options)
    scored = posology("evaluate", out, data)
    return {
        "method": method,
        "labels": len(task["labels"]),
        "documents": task["counts"],
        "group_overlap": task["notes"]["group_overlap"],
        "metric": task["metric"],
        "test": scored["metrics"],
        "seconds": run["seconds"],
        "trained_documents": run["training"].get("documents"),
        "settings": options[3:],
        "stopped": run["training"].get("stopped"),
        "trainable_parameters": run["trainable_parameters"],
        "coverage": scored["coverage"],
    }


def settings(data: Path, characters: float) -> list[str]:
    """As many passes over a training set as read about so many characters. Where texts are long and few, batches are small,
    the head reads the mean of all positions, which learns in fewer steps, rare classes weigh more, and attention goes
    without dropout, which on a CPU would cost more than everything else."""
    import polars as pl

    lengths = pl.read_parquet(data / "train.parquet", columns=["text"])["text"].str.len_chars()
    passes = min(10, max(1, round(characters / lengths.sum())))
    return [f"epochs={passes}", *(FOR_LONG if lengths.mean() > LONG else ())]


LONG = 500
"""Characters from which texts count as long."""
FOR_LONG = ("batch_size=8", "pooling=mean", "class_weights=balanced", "attention_dropout=0")


def posology(*arguments: object) -> dict[str, Any]:
    """Runs one command and gives its JSON."""
    command = [str(Path(sys.executable).with_name("posology")), *map(str, arguments)]
    print("posology", *command[1:], file=sys.stderr, flush=True)
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def known_rows() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each task, protocol and method."""
    lines = [
        "| task | protocol | method | train / validation / test | labels | metric | test (95 % interval) | AUROC | "
        "training s | text read | documents whose patient or record is in an earlier split |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = {name: index for index, name in enumerate([*TASKS, *PROTOCOLS])}
    for row in sorted(rows, key=lambda row: (order[row["task"]], order[row["protocol"]])):
        score, auroc = row["test"][row["metric"]], row["test"].get("auroc", {}).get("value")
        low_high = f" ({score['low']:.3f} to {score['high']:.3f})" if score.get("low") is not None else ""
        documents = " / ".join(f"{number:,}" for number in row["documents"].values())
        overlap = sum(row["group_overlap"].values())
        lines.append(
            f"| {row['task']} | {row['protocol']} | {row['method']} | {documents} | {row['labels']} | {row['metric']} | "
            f"{score['value']:.3f}{low_high} | {'' if auroc is None else f'{auroc:.3f}'} | {row['seconds']:.0f} | "
            f"{row['coverage']:.0%} | {overlap or ''} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
