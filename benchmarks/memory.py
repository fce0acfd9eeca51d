"""How well the memory of a training is foretold: the estimate, made before anything is loaded, beside the measured peak.

    python benchmarks/memory.py

Each training runs in a process of its own; its peak is the most resident memory that the system saw. Writes
benchmarks/results/memory.json and memory.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HERE, prepared, result

SIZES: dict[str, dict[str, int]] = {"train": 64, "validate": 16, "test": 8}
SETTINGS: list[dict[str, Any]] = [
    {"name": "MiniLM, lora, sentences", "corpus": "ncbi-disease", "method": "lora"},
    {"name": "MiniLM, full, sentences", "corpus": "ncbi-disease", "method": "full"},
    {"name": "MiniLM, lora, notes of 480 pieces", "corpus": "specialty11", "method": "lora"},
    {"name": "MiniLM, head, dialogues", "corpus": "mts-dialog", "method": "head"},
    {"name": "MiniLM, lora, notes, fp32", "corpus": "specialty11", "method": "lora", "set": {"precision": "fp32"}},
    {"name": "BERT shape, full, sentences", "corpus": "ncbi-disease", "method": "full", "shape": (12, 768, 12, 3072)},
    {"name": "BERT shape, lora, notes", "corpus": "specialty11", "method": "lora", "shape": (12, 768, 12, 3072)},
    {"name": "TinyBERT shape, full, relations", "corpus": "chemprot", "method": "full", "shape": (4, 312, 12, 1200)},
]


def main() -> None:
    started, rows = time.time(), []
    for setting in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            backbone = "minilm"
            if "shape" in setting:
                backbone = str(make_backbone(Path(folder) / "backbone", *setting["shape"]))
            given = {
                "data": str(prepared(setting["corpus"], **SIZES)),
                "backbone": backbone,
                "method": setting["method"],
                "overrides": {"epochs": 2, "long_text": "truncate", **setting.get("set", {})},
                "out": f"{folder}/run",
            }
            row: dict[str, Any] = {"setting": setting["name"]}
            for part in ("estimate", "measure"):  # apart, so that neither is in the other's memory
                command = [sys.executable, __file__, part, json.dumps(given)]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                row |= json.loads(done.stdout.splitlines()[-1])
        row["error"] = row["estimate"]["peak"] / row["measured"] - 1
        beyond = row["measured"] - row["before_model"]
        row["error_beyond_process"] = (row["estimate"]["peak"] - row["estimate"]["process"]) / beyond - 1
        rows.append(row)
        print(f"{row['setting']}: {row['estimate']['peak'] / 1e6:.0f} of {row['measured'] / 1e6:.0f} MB, "
              f"{row['error']:+.1%}; beyond the process {row['error_beyond_process']:+.1%}", flush=True)  # fmt: skip
    write(result(rows, started))


def make_backbone(folder: Path, layers: int, width: int, heads: int, inner: int) -> Path:
    """A BERT of random weights with the bundled model's tokenizer: memory does not depend on what weights say."""
    import torch
    from transformers import BertConfig, BertModel

    from posology.engine.backbone import load_tokenizer, resolve

    torch.manual_seed(0)
    shape = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    BertModel(BertConfig(**shape, intermediate_size=inner)).save_pretrained(folder)
    load_tokenizer(resolve("minilm")).save_pretrained(folder)
    return folder


def estimate(given: dict[str, Any]) -> dict[str, Any]:
    from posology.engine.backbone import load_config, load_tokenizer, resolve
    from posology.engine.encode import Encoder
    from posology.engine.memory import Rehearsal, heaviest
    from posology.engine.precision import decide
    from posology.engine.predictor import outputs_of
    from posology.engine.recipe import make_recipe
    from posology.engine.virtual import VIRTUAL
    from posology.tasks.prepared import PreparedTask

    task, source = PreparedTask.open(given["data"]), resolve(given["backbone"])
    config = load_config(source)
    recipe = make_recipe(given["method"], overrides=given["overrides"], width=config.hidden_size)
    begin = time.perf_counter()
    rehearsal = Rehearsal(
        config, given["method"], recipe, task.kind, decide(recipe.precision),
        outputs=len(outputs_of(task.kind, task.labels)), family=source.family,
    )  # fmt: skip
    tokens = recipe.virtual_tokens if given["method"] in VIRTUAL else 0
    encoder = Encoder(load_tokenizer(source), config, recipe, task.kind, tokens)
    _, encoded = encoder.read(task.documents("train"), task.unit)
    lengths = heaviest(rehearsal, encoded, 42)
    memory = rehearsal.estimate(lengths)
    seconds = time.perf_counter() - begin
    return {"estimate": memory.record(), "pieces": sum(lengths), "longest": max(lengths), "seconds": round(seconds, 1)}


def measure(given: dict[str, Any]) -> dict[str, Any]:
    import resource

    import posology
    import posology.engine.train
    from posology.engine.memory import resident_bytes

    before = resident_bytes()
    posology.train(given["data"], given["backbone"], given["method"], given["out"], overrides=given["overrides"])
    return {"measured": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "before_model": before}


def write(found: dict[str, Any]) -> None:
    from posology.files import write_json

    write_json(HERE / "results" / "memory.json", found)
    lines = [
        "Memory of a training: estimate before anything is loaded, and measured peak, in MB. `python benchmarks/memory.py`",
        "",
        "| setting | estimate | measured | error | error beyond the program itself |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['setting']} | {row['estimate']['peak'] / 1e6:,.0f} | {row['measured'] / 1e6:,.0f} | "
            f"{row['error']:+.1%} | {row['error_beyond_process']:+.1%} |"
        )
    (HERE / "results" / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({"estimate": estimate, "measure": measure}[sys.argv[1]](json.loads(sys.argv[2]))))
    else:
        main()
