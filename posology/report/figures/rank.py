"""What the rank of LoRA and its kin does (the paper's figure B.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from posology.engine.recipe import Recipe
from posology.errors import UserError
from posology.evaluation.seeds import combined_difference
from posology.report.comparing import Answers
from posology.report.figures import choose, style
from posology.report.figures.scores import draw_points
from posology.report.figures.style import Drawing, LeftOut, Looks
from posology.report.results import Configuration, Results, Run, Score, TaskResults
from posology.report.text import metric_label

_METHODS = ("lora", "dora", "rslora")
_DEFAULT: int = Recipe.model_fields["rank"].default
_MOST_PANELS = 12

Series = dict[int, Configuration]


def rank(results: Results, looks: Looks) -> Drawing:
    """Figure B.4: what another rank than the default adds to the score on test, for each backbone."""
    panels: dict[tuple[str, str], dict[str, Series]] = {}
    tasks = {task.task: task for task in results.tasks}
    for task in results.tasks:
        for (method, backbone), series in sorted(_series(task).items(), key=_by_size):
            panels.setdefault((task.task, backbone), {})[method] = series
    if not panels:
        raise LeftOut("no method with a rank was run on one backbone with two ranks under one budget")
    remarks = []
    if len(panels) > _MOST_PANELS:
        others = [f"{backbone} on {name}" for name, backbone in list(panels)[_MOST_PANELS:]]
        remarks = [f"Only the first {_MOST_PANELS} of {len(panels)} panels are drawn; without {style.listed(others)}."]
        panels = dict(list(panels.items())[:_MOST_PANELS])
    drawn = {
        place: {method: _differences(tasks[place[0]], series) for method, series in methods.items()}
        for place, methods in panels.items()
    }
    columns = style.columns_of(len(panels), 4)
    figure, axes = style.panels(len(panels), columns, height=1.7)
    for axis, (place, methods) in zip(axes, panels.items(), strict=True):
        _panel(axis, place, methods, drawn[place], looks)
    _equal_limits(axes)
    metrics = list(dict.fromkeys(metric_label(tasks[name].metric) for name, _ in panels))
    figure.supylabel(f"difference in {metrics[0] if len(metrics) == 1 else 'score'} on test")
    style.label_x(axes, columns, "rank")
    looks.legend(figure, (method for methods in panels.values() for method in methods))
    caption = (
        "Difference of the score on test to that at the reference rank (the default of "
        f"{_DEFAULT} where it was run, else the lowest; the point on the zero line), by rank, for each backbone. Of "
        "several recipes with one rank the one with the best validation score is shown. Bars are paired 95 % "
        "intervals on the same documents, not corrected for the number of comparisons."
    )
    if any(score.low is None for m in drawn.values() for scores in m.values() for score in scores.values()):
        remarks.append("Points without a bar: answers by document are missing, or the interval is undefined.")
    return Drawing(figure, caption, remarks)


def _series(task: TaskResults) -> dict[tuple[str, str], Series]:
    """The configurations by rank, for each method and backbone: under the budget with most ranks, the largest of equals."""
    groups: dict[tuple[str, str, tuple[float, float]], list[Configuration]] = {}
    for configuration in choose.scored(task.configurations):
        run = configuration.first
        if run.method in _METHODS and run.backbone:
            groups.setdefault((run.method, run.backbone, choose.budget(run)), []).append(configuration)
    best: dict[tuple[str, str], tuple[int, tuple[float, float]]] = {}
    found: dict[tuple[str, str], Series] = {}
    for (method, backbone, budget), group in groups.items():
        series = dict(sorted(choose.chosen(group, rank_of).items()))
        merit = (len(series), budget)
        if len(series) > 1 and merit > best.get((method, backbone), (0, (0.0, 0.0))):
            best[method, backbone], found[method, backbone] = merit, series
    return found


def rank_of(run: Run) -> int:
    """Of its adapter."""
    return int(run.overrides.get("rank", run.recipe.get("rank", _DEFAULT)))


def _by_size(item: tuple[tuple[str, str], Series]) -> tuple[int, str, str]:
    (method, backbone), series = item
    return next(iter(series.values())).first.backbone_parameters, backbone, method


def _differences(task: TaskResults, series: Series) -> dict[int, Score]:
    """By rank, the paired difference to the reference rank; without interval where answers by document are missing."""
    reference = _DEFAULT if _DEFAULT in series else min(series)
    base = _answers(series[reference])
    found = {}
    for number, configuration in series.items():
        if number == reference:
            found[number] = Score(0.0, 0.0, 0.0)
        else:
            plain = Score((configuration.mean.value or 0.0) - (series[reference].mean.value or 0.0))
            found[number] = _paired(task.metric, _answers(configuration), base) or plain
    return found


def _answers(configuration: Configuration) -> list[Answers]:
    """Of every seed; none where any is missing or about other documents."""
    found: list[Answers] = []
    try:
        for run in configuration.runs:
            found.append(Answers(run, found[0].ids if found else None))
    except (UserError, OSError):
        return []
    return found


def _paired(metric: str, first: Sequence[Answers], second: Sequence[Answers]) -> Score | None:
    if not first or not second or first[0].ids != second[0].ids:
        return None
    try:
        result = combined_difference(metric, first, second, first[0].groups)
    except ValueError:
        return None  # other gold annotations: the task was prepared anew in between
    return Score(result["value"], result["low"], result["high"]) if choose.known(result["value"]) else None


def _panel(axis: Axes, place: tuple[str, str], methods: dict[str, Series],
           drawn: dict[str, dict[int, Score]], looks: Looks) -> None:  # fmt: skip
    ranks = sorted({number for series in methods.values() for number in series})
    axis.axhline(0, color=style.GREY, lw=0.8, zorder=1)
    ordered = looks.ordered(methods)
    for number, method in enumerate(ordered):
        scores = drawn[method]
        shift = (number - (len(ordered) - 1) / 2) * 0.06
        draw_points(axis, [math.log2(r) + shift for r in scores], list(scores.values()), looks[method])
    axis.set_xticks([math.log2(r) for r in ranks], [str(r) for r in ranks])
    axis.set_xlim(math.log2(ranks[0]) - 0.4, math.log2(ranks[-1]) + 0.4)
    axis.set_title(f"{style.shorten(place[0], 20)}\n{style.shorten(place[1], 24)}")


def _equal_limits(axes: Sequence[Axes]) -> None:
    """The same height on every panel: small effects on one backbone shall not look large."""
    reach = max(max(map(abs, axis.get_ylim())) for axis in axes)
    for axis in axes:
        axis.set_ylim(-reach, reach)
        axis.yaxis.set_major_locator(style.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
