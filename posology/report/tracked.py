"""What a tracker shows of a run: parameters, numbers, curves and tags, taken from the ledger alone. No text of documents."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from posology.study.cell import Cell

_RECORD = "posology.json"  # `posology.engine.artifact` knows it too, and is slow to import
_FIELDS = ("task", "backbone", "method", "recipe", "seed", "shots", "max_seconds", "evaluate_seconds", "max_memory")
_MEASURED = {
    "training_seconds": "seconds",
    "trainable_parameters": "trainable_parameters",
    "adapter_bytes": "adapter_bytes",
    "peak_memory_bytes": "peak_memory",
    "best_validation_score": "validation",
}
_CURVES = {
    "validation/score": "score",
    "train/loss": "loss",
    "train/epoch": "epoch",
    "train/seconds": "seconds",
}


@dataclass(frozen=True)
class Point:
    """A number in the course of a training.

    Attributes:
        step: steps of the optimiser before it.
        time: when, in Unix seconds: the run's beginning and its seconds of training.
        value: the number.
    """

    step: int
    time: float
    value: float


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers show it. One that belongs to two studies is shown in both.

    Attributes:
        key: in the ledger.
        study: its study.
        name: for people; runs of a study may share it.
        state: of the ledger: `pending`, `running`, `done` or `failed`.
        begun, ended: Unix seconds; `ended` is None before.
        parameters: task, backbone, method, seed and limits, and the fields of the recipe: those that were replaced, and
            all of them once the artifact is there.
        metrics: on test with `_low` and `_high`, by `test/NAME`, and what was measured. Undefined ones are left out.
        curves: evaluations by step.
        tags: what else is known, as text.
    """

    key: str
    study: str
    name: str
    state: str
    begun: float
    ended: float | None
    parameters: dict[str, bool | int | float | str]
    metrics: dict[str, float]
    curves: dict[str, tuple[Point, ...]]
    tags: dict[str, str]

    @functools.cached_property
    def digest(self) -> str:
        """Equal as long as nothing of this changes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def tracked(run: dict[str, Any], study: str) -> TrackedRun:
    """A run that has begun, for trackers.

    Args:
        run: as `Ledger.run` gives it.
        study: of those that it belongs to.
    """
    cell, result, begun = run["cell"], run["result"] or {}, run["begun"]
    asked = cell | {"backbone": _titled(cell["backbone"])}
    parameters = {name: asked[name] for name in _FIELDS} | cell["overrides"]
    parameters = _recipe(run["artifact"]) | parameters if run["state"] == "done" else parameters
    metrics = {name: run[column] for name, column in _MEASURED.items()}
    metrics["tokens_per_second"] = result.get("training", {}).get("tokens_per_second")
    metrics["test_coverage"] = result.get("coverage", {}).get("test")
    for name, entry in result.get("metrics", {}).items():
        ends = {f"test/{name}_{end}": entry.get(end) for end in ("low", "high")}
        metrics |= {f"test/{name}": entry.get("value"), **ends}
    evaluations = run["evaluations"]
    curves = {
        name: tuple(
            Point(each["step"], begun + each["seconds"], float(each[column]))
            for each in evaluations
            if _is_number(each[column])
        )
        for name, column in _CURVES.items()
    }
    tags = {"key": run["key"], "study": study, "task": cell["task"], "state": run["state"], "metric": run["metric"]}
    tags |= {"kind": result.get("kind"), "stopped": result.get("stopped"), "version": run["version"]}
    tags |= {"problem": run["problem"], "worker": run["worker"]}
    return TrackedRun(
        key=run["key"],
        study=study,
        name=Cell.model_validate(asked).title,
        state=run["state"],
        begun=begun,
        ended=run["ended"] if run["state"] in ("done", "failed") else None,
        parameters={name: _plain(value) for name, value in parameters.items() if value is not None},
        metrics={name: float(value) for name, value in metrics.items() if _is_number(value)},
        curves={name: points for name, points in curves.items() if points},
        tags={name: str(value) for name, value in tags.items() if value},
    )


def _titled(backbone: str | None) -> str | None:
    """A backbone's name without the folders above it, which are nobody else's business. Hub ids stay as they are."""
    if backbone is None or not backbone.startswith(("/", ".", "~")):
        return backbone
    return PurePath(backbone).name


def _recipe(artifact: str | None) -> dict[str, Any]:
    """Every field of the recipe, where the artifact lies on this machine."""
    try:
        recipe: dict[str, Any] = json.loads((Path(artifact or "") / _RECORD).read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return recipe


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
