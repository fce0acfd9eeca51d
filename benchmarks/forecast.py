"""How well a run's seconds and memory are foretold: the forecast, from a short profile of this machine, beside the run.

    python benchmarks/forecast.py [first setting] [last setting]

Each run is made in a process of its own: its seconds are those of `posology.train` from call to return, the
libraries loaded before, and its memory is the most resident memory that the system saw. Writes benchmarks/results/forecast.json and forecast.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from common import HERE, prepared, result

PARTS = ("training", "evaluation", "fixed", "seconds", "memory", "beyond_process")
SETTINGS: list[dict[str, Any]] = [
    {"corpus": "ncbi-disease", "sizes": (600, 200, 50), "method": "lora", "epochs": 2},
    {"corpus": "ncbi-disease", "sizes": (600, 200, 50), "method": "full", "epochs": 1},
    {"corpus": "ncbi-disease", "sizes": (600, 200, 50), "method": "ia3", "epochs": 1, "backbone": "minilm:3"},
    {"corpus": "ncbi-disease", "sizes": (600, 200, 50), "method": "lora", "epochs": 3, "set": {"top_layers": 2}},
    {"corpus": "chemprot", "sizes": (400, 200, 200), "method": "lora", "epochs": 1},
    {"corpus": "chemprot", "sizes": (400, 200, 200), "method": "full", "epochs": 2, "backbone": "minilm:3"},
    {"corpus": "chemprot", "sizes": (400, 200, 200), "method": "bitfit", "epochs": 3, "shots": 8},
    {"corpus": "mts-dialog", "sizes": (300, 100, 50), "method": "lora", "epochs": 1},
    {"corpus": "mts-dialog", "sizes": (300, 100, 50), "method": "head", "epochs": 3},
    {"corpus": "specialty11", "sizes": (48, 20, 20), "method": "lora", "epochs": 1},
    {"corpus": "specialty11", "sizes": (48, 20, 20), "method": "lora", "epochs": 3, "max_seconds": 8.0},
    {"corpus": "chemprot", "sizes": (1000, 300, 1000), "method": "tf-idf"},
]


def main(first: int = 0, last: int = len(SETTINGS)) -> None:
    started, cells = time.time(), [cell_of(setting) for setting in SETTINGS[first:last]]
    begin = time.perf_counter()
    foretold = in_process("foretell", cells)
    profiling = time.perf_counter() - begin
    rows = []
    for cell, forecast in zip(cells, foretold["runs"], strict=True):
        with tempfile.TemporaryDirectory() as folder:
            measured = in_process("measure", {"cell": cell, "out": f"{folder}/run"})
        rows.append({"setting": forecast.pop("title"), "forecast": forecast, "measured": measured})
        rows[-1]["error"] = {
            part: forecast[part] / measured[part] - 1 for part in PARTS if forecast[part] is not None and measured[part]
        }
        print(said(rows[-1]), flush=True)
    seconds = {side: sum(row[side]["seconds"] for row in rows) for side in ("forecast", "measured")}
    facts = {
        "profiling_seconds": profiling,
        "total": {**seconds, "error": seconds["forecast"] / seconds["measured"] - 1},
        "machine_profiled": foretold["machine"],
    }
    write(result(rows, started, **facts))


def cell_of(setting: dict[str, Any]) -> dict[str, Any]:
    train, validate, test = setting["sizes"]
    overrides = {"epochs": setting["epochs"], **setting.get("set", {})} if "epochs" in setting else {}
    return {
        "task": setting["corpus"],
        "data": str(prepared(setting["corpus"], train=train, validate=validate, test=test)),
        "backbone": setting.get("backbone", "minilm") if overrides else None,
        "method": setting["method"],
        "overrides": overrides,
        **{name: setting[name] for name in ("shots", "max_seconds") if name in setting},
    }


def in_process(part: str, given: Any) -> Any:
    done = subprocess.run(
        [sys.executable, __file__, part], input=json.dumps(given), stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def foretell(given: list[dict[str, Any]]) -> dict[str, Any]:
    from posology.study.cell import Cell
    from posology.study.forecast import forecast
    from posology.study.profile import measure as profile_of

    cells = [Cell(**each) for each in given]
    profile = profile_of(cells)
    found = []
    for cell, each in zip(cells, forecast(cells, profile), strict=True):
        beyond = None if each.memory is None or each.process is None else each.memory - each.process
        found.append({"title": cell.title, **each.record(), "beyond_process": beyond})
    return {"runs": found, "machine": profile["machine"]}


def measure(given: dict[str, Any]) -> dict[str, Any]:
    import resource

    import posology
    import posology.engine.train  # before PyTorch, whose environment it sets

    # isort: split
    import peft  # noqa: F401  (what a worker loads once does not count as part of a run)
    import polars  # noqa: F401
    import transformers.models.bert.modeling_bert  # noqa: F401

    from posology.engine.memory import resident_bytes
    from posology.study.cell import Cell

    cell, before, begin = Cell(**given["cell"]), resident_bytes(), time.perf_counter()
    done = posology.train(**cell.arguments(), out=given["out"])
    seconds = time.perf_counter() - begin
    training, evaluation = done["training"]["seconds"], done["training"]["evaluation_seconds"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "training": training,
        "evaluation": evaluation,
        "fixed": seconds - training - evaluation,
        "seconds": seconds,
        "memory": peak,
        "beyond_process": peak - before,
        "stopped": done["training"]["stopped"],
    }


def said(row: dict[str, Any]) -> str:
    forecast, measured, error = row["forecast"], row["measured"], row["error"]
    parts = ", ".join(f"{part} {forecast[part]:.1f}/{measured[part]:.1f}" for part in PARTS[:3])
    memory = f"; memory {error['memory']:+.0%}" if "memory" in error else ""
    return f"{row['setting']}: {forecast['seconds']:.1f} s foretold, {measured['seconds']:.1f} s, {error['seconds']:+.0%} ({parts}){memory}"


def write(found: dict[str, Any]) -> None:
    from posology.files import write_json

    write_json(HERE / "results" / "forecast.json", found)
    total = found["total"]
    lines = [
        "What runs take, foretold from a profile of the machine, and measured. `python benchmarks/forecast.py`",
        "",
        f"All runs: {total['forecast']:.0f} s foretold, {total['measured']:.0f} s measured ({total['error']:+.0%}); the "
        f"profile took {found['profiling_seconds']:.0f} s, and takes none the next time.",
        "",
        "| run | seconds foretold (low to high) | measured | error | MB foretold | measured | error |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        forecast, measured, error = row["forecast"], row["measured"], row["error"]
        memory = f"{forecast['memory'] / 1e6:,.0f}" if forecast["memory"] is not None else ""
        lines.append(
            f"| {row['setting']} | {forecast['seconds']:.1f} ({forecast['low']:.1f} to {forecast['high']:.1f}) | "
            f"{measured['seconds']:.1f} | {error['seconds']:+.0%} | {memory} | {measured['memory'] / 1e6:,.0f} | "
            f"{format(error['memory'], '+.0%') if 'memory' in error else ''} |"
        )
    (HERE / "results" / "forecast.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1] in ("foretell", "measure"):
        print(json.dumps({"foretell": foretell, "measure": measure}[sys.argv[1]](json.load(sys.stdin))))
    else:
        main(*map(int, sys.argv[1:]))
