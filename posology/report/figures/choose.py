"""Which configurations a figure shows. Where there are several, validation chooses and the test split is only drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import median
from typing import TypeVar

import numpy as np

from posology import catalog
from posology.report.comparing import mean_validation
from posology.report.results import Configuration, Run, Score, TaskResults

Key = TypeVar("Key", bound=Hashable)
Points = tuple[np.ndarray, np.ndarray]

_PAPER_METRICS = {"f1_macro": "macro_f1", "f1_micro": "micro_f1", "f1": "entity_f1", "auroc": "auroc"}


def known(value: float | None) -> bool:
    """Whether it is a number at all."""
    return value is not None and math.isfinite(value)


def scored(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Those whose mean on test is defined, without those that a search gave up before their end."""
    return [c for c in configurations if known(c.mean.value) and not c.first.ended_early]


def typical(configuration: Configuration) -> Run:
    """The run whose score is nearest to the median over seeds."""
    runs = [run for run in configuration.runs if known(run.score.value)]
    if not runs or configuration.median is None:
        return configuration.first
    middle = configuration.median
    return min(runs, key=lambda run: abs((run.score.value or 0.0) - middle))


def middle(configuration: Configuration, value: Callable[[Run], float | None]) -> float | None:
    """Median over seeds of what is known; None where nothing is."""
    values = [v for v in map(value, configuration.runs) if v is not None and math.isfinite(v)]
    return median(values) if values else None


def chosen(configurations: Iterable[Configuration], by: Callable[[Run], Key]) -> dict[Key, Configuration]:
    """Of the configurations that are alike in `by`, the one with the best mean on validation, the plainer of equals."""
    best: dict[Key, Configuration] = {}
    for configuration in configurations:
        group = by(configuration.first)
        if group not in best or _merit(configuration) > _merit(best[group]):
            best[group] = configuration
    return best


def _merit(configuration: Configuration) -> tuple[float, int, str]:
    mean = mean_validation(configuration)
    return (-math.inf if mean is None else mean, -len(configuration.first.overrides), configuration.name)


def budget(run: Run) -> tuple[float, float]:
    """Seconds and examples of each class; infinite where there is no limit."""
    return (math.inf if run.max_seconds is None else run.max_seconds, math.inf if run.shots is None else run.shots)


def alike(task: TaskResults) -> dict[tuple[str, str | None], Configuration]:
    """One configuration for each method and backbone, all under one budget: the largest, as in the report's tables."""
    candidates = scored(task.configurations)
    largest = max((budget(c.first) for c in candidates), default=None)
    return chosen((c for c in candidates if budget(c.first) == largest), lambda run: (run.method, run.backbone))


def budget_words(run: Run) -> str:
    """`all documents`, `16 documents per class, 60 s`."""
    words = "all documents" if run.shots is None else f"{run.shots:,} documents per class"
    return words if run.max_seconds is None else f"{words}, {run.max_seconds:,.4g} s"


def curve(run: Run, x: str, y: str) -> Points:
    """The evaluations at which both are known, in the order of `x`."""
    pairs = sorted((e[x], e[y]) for e in run.curve if known(e.get(x)) and known(e.get(y)))
    array = np.array(pairs, dtype=float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def over_seeds(curves: Sequence[Points]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`x`, median, lowest and highest of several curves.

    Between two evaluations a curve is straight; a run that has ended keeps its last value; the result begins where
    every curve has begun.
    """
    if len(curves) == 1:
        x, y = curves[0]
        return x, y, y, y
    x = np.unique(np.concatenate([points[0] for points in curves]))
    x = x[x >= max(points[0][0] for points in curves)]
    values = np.stack([np.interp(x, *points) for points in curves])
    return x, np.median(values, axis=0), values.min(axis=0), values.max(axis=0)


def family(backbone: str | None) -> str | None:
    """What architecture a backbone of the catalogue is, `tinybert` set apart from `bert`; None where it is not known."""
    entry = catalog.find(backbone) if backbone else None  # some layers of a backbone are none of its family
    return entry.family if entry else None


def paper_value(task: TaskResults, configuration: Configuration) -> Score | None:
    """What the paper's Table 3 has for the same task, backbone, method and metric, with its SD as an interval."""
    run = configuration.first
    entry = catalog.find(run.backbone) if run.backbone else None
    if entry is None or entry.paper_name is None or budget(run) != (math.inf, math.inf):
        return None
    wanted = (entry.paper_name, run.method, task.published, task.metric)
    for row in catalog.paper_table("table3_peft"):
        if (row["model"], row["method"], row["task"], _PAPER_METRICS[row["metric"]]) == wanted:
            value, sd = float(row["median"]), float(row["sd"])
            return Score(value, value - sd, value + sd)
    return None
