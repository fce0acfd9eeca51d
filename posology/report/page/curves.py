"""Scores against time and labelled examples, as lines of the page's charts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from posology.report.results import Configuration, Run, TaskResults
from posology.report.text import duration_text, metric_label

LINES = 8
"""Lines in one chart: more cannot be told apart. Those that reach highest are drawn."""

POINTS = 40
"""Evaluations of a run that are drawn; a longer curve is thinned evenly."""


class _Line(NamedTuple):
    """A line as it is gathered: whose it is, what tells it from others, and its points."""

    run: Run
    settings: list[str]
    points: list[list[Any]]


def curves(task: TaskResults) -> list[dict[str, Any]]:
    """The charts that a task has lines for.

    Returns:
        for each its `title`, `axis`, `unit` (`count` or `seconds`), `caption` and `lines`: `name`, `method`, `backbone`
        and `points` `[x, score, low, high, key of a run]`, by x; an x of None has no limit and comes last.
    """
    metric = metric_label(task.metric)
    charts: list[dict[str, Any]] = [
        {
            "title": "Score by labelled examples", "axis": "labelled examples per class", "unit": "count",
            "caption": f"{metric} on the test split with its 95 % interval.",
            "lines": _limited(task.configurations, lambda run: run.shots, _limit_text),
        },
        {
            "title": "Score by training budget", "axis": "seconds allowed for training", "unit": "seconds",
            "caption": f"{metric} on the test split with its 95 % interval.",
            "lines": _limited(task.configurations, lambda run: run.max_seconds, _shots_text),
        },
        {
            "title": "Score during training", "axis": "training time", "unit": "seconds",
            "caption": f"{metric} on the validation split after each evaluation; the best configuration of each method "
                       "and backbone, its first seed.",
            "lines": _during(task),
        },
    ]  # fmt: skip
    return [chart | {"lines": _named(chart["lines"])} for chart in charts if chart["lines"]]


def thinned(curve: Sequence[Any]) -> list[Any]:
    """At most `POINTS` of it, evenly chosen, the first and the last included."""
    if len(curve) <= POINTS:
        return list(curve)
    step = (len(curve) - 1) / (POINTS - 1)
    return [curve[round(number * step)] for number in range(POINTS)]


def _limited(
    configurations: Iterable[Configuration], limit: Callable[[Run], float | None], other: Callable[[Run], str]
) -> list[_Line]:
    """Configurations that differ in one limit alone, as a line over it; at least two different limits make one."""
    groups: dict[str, list[Configuration]] = {}
    for configuration in configurations:
        run = configuration.first
        if configuration.mean.value is not None:
            same = repr((run.method, run.backbone, other(run), sorted(run.overrides.items(), key=repr)))
            groups.setdefault(same, []).append(configuration)
    lines = []
    for group in groups.values():
        if len({limit(configuration.first) for configuration in group}) < 2:
            continue
        group.sort(key=lambda configuration: _last_if_none(limit(configuration.first)))
        points = [[limit(each.first), each.mean.value, each.mean.low, each.mean.high, each.first.key] for each in group]
        lines.append(_line(group[0].first, points, other(group[0].first)))
    return _highest(lines)


def _during(task: TaskResults) -> list[_Line]:
    """Validation scores of the best configuration of each method and backbone."""
    lines: dict[tuple[str, str | None], _Line] = {}
    for configuration in task.configurations:
        run = configuration.first
        points = [
            [point["seconds"], point["score"], None, None, run.key]
            for point in thinned(run.curve)
            if _finite(point.get("seconds")) and _finite(point.get("score"))
        ]
        if len(points) > 1 and (run.method, run.backbone) not in lines:
            lines[run.method, run.backbone] = _line(run, points)
    return _highest(list(lines.values()))


def _line(run: Run, points: list[list[Any]], other: str = "") -> _Line:
    settings = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in run.overrides.items()
        if isinstance(value, int | float)
    ]
    return _Line(run, [*settings, *([other] if other else [])], points)


def _named(lines: Sequence[_Line]) -> list[dict[str, Any]]:
    """What the page draws; a setting that all lines share is not part of their names."""
    shared = set.intersection(*(set(line.settings) for line in lines))
    return [
        {
            "name": ", ".join([line.run.name, *(setting for setting in line.settings if setting not in shared)]),
            "method": line.run.method,
            "backbone": line.run.backbone or "",
            "points": line.points,
        }
        for line in lines
    ]


def _shots_text(run: Run) -> str:
    return "" if run.shots is None else f"{run.shots} shots"


def _limit_text(run: Run) -> str:
    return "" if run.max_seconds is None else f"at most {duration_text(run.max_seconds)}"


def _highest(lines: Sequence[_Line]) -> list[_Line]:
    return sorted(lines, key=lambda line: -max(point[1] for point in line.points))[:LINES]


def _last_if_none(value: float | None) -> float:
    return math.inf if value is None else value


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
