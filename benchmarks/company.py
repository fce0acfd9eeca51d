"""Runs in company beside the same runs one after the other with our own engine: a `posology bench company` for each row.

    python benchmarks/company.py

Eight LoRA runs of ranks 8 to 128 and three learning rates on the shape of TinyBERT (random weights, since only time is
measured), on sentences, and on two tasks of different kinds at once; the same for the bundled model. Writes
benchmarks/results/company.json and company.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from common import HERE, prepared, result
from engine import spinning, tinybert_shape

RESULTS = HERE / "results" / "company.json"
ROWS = [
    {"corpora": ["ncbi-disease"], "backbone": "tinybert-shape", "ranks": [8, 8, 16, 16, 32, 32, 64, 128]},
    {"corpora": ["ncbi-disease", "chemprot"], "backbone": "tinybert-shape", "ranks": [8, 8, 16, 16, 32, 32, 64, 128]},
    {"corpora": ["ncbi-disease"], "backbone": "tinybert-shape", "ranks": [8] * 8},
    {"corpora": ["ncbi-disease"], "backbone": "minilm", "ranks": [8] * 8},
]


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """One row: what is asked, and what `posology bench company` says of it."""
    backbone = str(tinybert_shape()) if row["backbone"] == "tinybert-shape" else row["backbone"]
    command = [sys.executable, "-m", "posology.cli", "bench", "company", "--backbone", backbone]
    command += ["--data", *(str(prepared(corpus)) for corpus in row["corpora"])]
    command += ["--ranks", *map(str, row["ranks"]), "--steps", "4", "--repeats", "5", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=spinning())
    return {**row, **json.loads(done.stdout)}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: examples per second of all runs together."""
    lines = [
        "Examples per second of all runs (median of rounds); the ratio is taken within rounds: median (min to max).",
        "",
        "| corpora | backbone | ranks | in company | one after the other | company is |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        company, alone = (row[side]["examples_per_second"]["median"] for side in ("company", "one_by_one"))
        ratio = "{median:.2f}x ({min:.2f} to {max:.2f})".format(**row["ratio"])
        ranks = ", ".join(map(str, row["ranks"]))
        lines.append(
            f"| {' and '.join(row['corpora'])} | {row['backbone']} | {ranks} | {company:.0f} | {alone:.0f} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    from posology.files import write_json

    started, rows = time.time(), []
    for row in ROWS:
        rows.append(measure(row))
        write_json(RESULTS, result(rows, started))
        RESULTS.with_suffix(".md").write_text(table(rows), encoding="utf-8")
        print(table(rows[-1:]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
