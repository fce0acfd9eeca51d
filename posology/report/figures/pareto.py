"""The Pareto front: what a better score costs in money or time, in latency and in size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from posology.report.figures import choose, style
from posology.report.figures.placing import place_labels
from posology.report.figures.scores import title_of
from posology.report.figures.style import Drawing, LeftOut, Looks
from posology.report.results import Configuration, Results, Run, TaskResults
from posology.report.text import bytes_text, count_text

_MOST_LABELS, _MOST_POINTS = 5, 200

Point = tuple[float, float, Configuration]


@dataclass(frozen=True, slots=True)
class Measure:
    """What a better score is paid with: label of the axis, value of a run in that unit, and how a tick is written."""

    label: str
    value: Callable[[Run], float | None]
    text: Callable[[float], str]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats: at most as costly and at least as good, and better in one of the two.

    Args:
        points: cost, where less is better, and score, where more is better.

    Returns:
        Indices, from the cheapest to the best; of equal points the first.
    """
    reached = float("-inf")
    found = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[index][1] > reached:
            reached = points[index][1]
            found.append(index)
    return found


def pareto(results: Results, looks: Looks) -> Drawing:
    """Score on test against cost or time of training, latency and size, a row for each task."""
    measures = _measures(results)
    rows = []
    for task in results.tasks:
        cells = [_points(task, measure) for measure in measures]
        if any(len(points) > 1 for points in cells):
            rows.append((task, cells))
    if not rows:
        raise LeftOut("no task has two scored configurations to choose between")
    measures, rows = _without_empty(measures, rows)
    figure, axes = style.panels(len(rows) * len(measures), len(measures), height=1.9)
    captioned, labelled, thinned = [], [], 0
    for row, (task, cells) in enumerate(rows):
        for column, (measure, points) in enumerate(zip(measures, cells, strict=True)):
            axis = axes[row * len(measures) + column]
            if not points:
                _not_measured(axis)
                continue
            members, behind, hidden = _panel(axis, points, measure, looks)
            thinned += hidden
            labelled.append((axis, members, behind))
            captioned.append(f"{task.task}, {measure.label}: {'; '.join(p[2].name for p in members)}")
            if row == len(rows) - 1 or not rows[row + 1][1][column]:
                axis.set_xlabel(measure.label)
        axes[row * len(measures)].set_title(title_of(task))
    figure.supylabel("score on test")
    drawn = (p[2].first.method for _, members, behind in labelled for p in (*members, *behind))
    looks.legend(figure, drawn, lines=False)
    style.key(figure, [Line2D([], [], color=style.GREY, lw=1, label="front: none is both cheaper and better")],
              "outside lower center")  # fmt: skip
    caption = (
        "Score on test against what it takes, for every configuration of each task; axes logarithmic. The line joins the "
        "Pareto front: the configurations that none other beats in both. Others are paler. Points are means over seeds "
        "without their intervals: neighbours on the front need not be distinguishable. From the cheapest to the best, "
        f"the front holds: {'. '.join(captioned)}."
    )
    drawing = Drawing(figure, caption)
    if thinned:
        drawing.remarks.append(
            f"{thinned:,} points behind the front are not drawn: the {_MOST_POINTS} best of each panel are."
        )
    drawing.finish = lambda: _label_all(labelled, drawing)
    return drawing


def _measures(results: Results) -> list[Measure]:
    runs = [run for task in results.tasks for c in task.configurations for run in c.runs]
    currencies = {run.currency for run in runs if run.cost is not None}
    if len(currencies) == 1 and all(run.cost is not None for run in runs):
        first = Measure(f"cost of training ({currencies.pop()})", lambda run: run.cost, style.number)
    else:
        divisor, unit = style.time_unit(max((run.seconds for run in runs), default=0.0))
        first = Measure(f"training time ({unit})", lambda run: run.seconds / divisor, style.number)
    latency = Measure("latency, median (ms)", lambda run: run.measures.get("latency_p50_ms"), style.number)
    stored = Measure("stored besides the backbone", lambda run: run.adapter_bytes, bytes_text)
    size = Measure(
        "parameters, backbone included", lambda run: run.backbone_parameters + _added(run) or None, count_text
    )
    timed = any(latency.value(run) is not None for run in runs)
    return [first, latency, size] if timed else [first, size, stored]


def _added(run: Run) -> int:
    """What is trained beside the backbone; full fine-tuning and its like change weights that are there already."""
    return 0 if run.backbone and run.trainable_parameters >= run.backbone_parameters else run.trainable_parameters


def _points(task: TaskResults, measure: Measure) -> list[Point]:
    """Of the configurations where both are known and the cost is above zero, in the report's order."""
    found = []
    for configuration in choose.scored(task.configurations):
        cost = choose.middle(configuration, measure.value)
        if cost is not None and cost > 0:
            found.append((cost, configuration.mean.value or 0.0, configuration))
    return found


def _without_empty(measures: list[Measure], rows: list[Any]) -> tuple[list[Measure], list[Any]]:
    """Drops the columns in which no task has two points."""
    kept = [i for i in range(len(measures)) if any(len(cells[i]) > 1 for _, cells in rows)]
    return [measures[i] for i in kept], [(task, [cells[i] for i in kept]) for task, cells in rows]


def _not_measured(axis: Axes) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center", color=style.GREY)


def _panel(axis: Axes, points: list[Point], measure: Measure, looks: Looks) -> tuple[list[Point], list[Point], int]:
    """Draws; gives the front, the points behind it, and how many more of these are not drawn."""
    members = [points[i] for i in front([point[:2] for point in points])]
    chosen = {id(point[2]) for point in members}
    behind = sorted((p for p in points if id(p[2]) not in chosen), key=lambda p: -p[1])
    hidden, behind = max(0, len(behind) - _MOST_POINTS), behind[:_MOST_POINTS]
    style.log_axis(axis, [p[0] for p in points], measure.text, most=4)
    for group, size, alpha in ((behind, 9, 0.35), (members, 26, 1.0)):
        for method in looks.ordered(p[2].first.method for p in group):
            look = looks[method]
            own = [p for p in group if p[2].first.method == method]
            edge: dict[str, Any] = {} if look.marker in "x+12" else {"edgecolors": "white", "linewidths": 0.4}
            axis.scatter([p[0] for p in own], [p[1] for p in own], s=size, c=look.colour, marker=look.marker, alpha=alpha,
                         zorder=3 + alpha, **edge)  # fmt: skip
    steps = [*((p[0], p[1]) for p in members), (axis.get_xlim()[1], members[-1][1])]
    axis.step([x for x, _ in steps], [y for _, y in steps], where="post", color=style.GREY, lw=0.9, zorder=2)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.22 * (high - low))  # room for labels
    style.score_axis(axis)
    return members, behind, hidden


def _label_all(panels: Sequence[tuple[Axes, list[Point], list[Point]]], drawing: Drawing) -> None:
    """Labels the fronts, and says in a remark how many points stay without a label."""
    left_out = 0
    for axis, members, behind in panels:
        wanted = members
        if len(members) > _MOST_LABELS:
            last = len(members) - 1
            wanted = [members[round(i * last / (_MOST_LABELS - 1))] for i in range(_MOST_LABELS)]
        # The ends of the front matter most, so they choose their places first.
        ordered = sorted(wanted, key=lambda p: (p is not members[-1], p is not members[0]))
        texts = [style.shorten(text, 28) for text in _short_names([p[2] for p in ordered])]
        corners = [(right[0], left[1]) for left, right in itertools.pairwise(members)]
        line = [
            point for pair in zip((p[:2] for p in members), [*corners, None], strict=True) for point in pair if point
        ]
        left_out += len(members) - place_labels(
            axis, [p[:2] for p in ordered], texts, [p[:2] for p in members], [p[:2] for p in behind], line
        )
    if left_out:
        drawing.remarks.append(
            f"{left_out} of {sum(len(members) for _, members, _ in panels)} points on the fronts have no label in the "
            f"drawing: at most {_MOST_LABELS} in a panel have one, and only where there is room. The caption names all."
        )


def _short_names(configurations: Sequence[Configuration]) -> list[str]:
    """Method and backbone, and of what else a name says only that which tells those of one method and backbone apart."""
    parts = [c.name.removeprefix(c.first.name).split(", ") for c in configurations]
    names = [c.first.name for c in configurations]
    short = []
    for own, name in zip(parts, names, strict=True):
        alike = [set(other) for other, others_name in zip(parts, names, strict=True) if others_name == name]
        common = set.intersection(*alike)
        short.append(", ".join([name, *(part for part in own if part and part not in common)]))
    return short
