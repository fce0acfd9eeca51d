"""Score against training time and against labelled examples (the paper's figures 3a and 3b), and learning curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from posology.report.figures import choose, style
from posology.report.figures.style import Drawing, LeftOut, Looks
from posology.report.results import Configuration, Results, TaskResults
from posology.report.text import metric_label

_MOST_PANELS = 16
Item = TypeVar("Item")


def time(results: Results, looks: Looks) -> Drawing:
    """Figure 3a: score on validation against seconds of training, for each backbone."""
    panels = []
    for task in results.tasks:
        candidates = [c for c in task.configurations if _curves(c, "seconds", "score")]
        limited = [c for c in candidates if c.first.max_seconds is not None]
        # Where there is a study of time budgets it is the figure's subject; else whatever was trained is shown.
        picked = choose.chosen(limited or candidates, lambda run: (run.backbone, run.method, run.max_seconds))
        if not limited:
            alike = {id(c) for c in choose.alike(task).values()}
            picked = {key: c for key, c in picked.items() if id(c) in alike}
        panels += _by_backbone(task, list(picked.values()))
    if not panels:
        raise LeftOut("no run has two evaluations on validation with a defined score")
    budgeted = [panel for panel in panels if any(c.first.max_seconds is not None for c in panel[2])]
    panels, remarks = _capped(budgeted or panels, _panel_name)
    columns = style.columns_of(len(panels), 4)
    figure, axes = style.panels(len(panels), columns, height=1.6)
    longest = max(float(x[-1]) for _, _, cs in panels for c in cs for x, _ in _curves(c, "seconds", "score"))
    divisor, unit = style.time_unit(longest)
    spread = False
    for axis, (task, backbone, configurations) in zip(axes, panels, strict=True):
        spread |= _time_panel(axis, configurations, looks, divisor)
        axis.set_title(_panel_title(task, backbone))
    _equal_scores(list(zip((task.task for task, _, _ in panels), axes, strict=True)))
    figure.supylabel(f"{_metrics(panels)} on validation")
    style.label_x(axes, columns, f"training time ({unit})")
    looks.legend(figure, (c.first.method for _, _, cs in panels for c in cs))
    if budgeted:
        style.key(figure, [Line2D([], [], color=style.GREY, ls=":", label="time budget")], "outside lower center")
    caption = (
        "Score on validation against training time, evaluations excluded, by method, for each backbone"
        + (", with the time budgets as dotted lines; the run of a shorter budget is drawn paler" if budgeted else "")
        + (". Lines are medians over seeds, bands reach from the lowest to the highest seed." if spread else ".")
        + " Of several recipes the one with the best validation score is shown."
    )
    return Drawing(figure, caption, remarks)


def _time_panel(axis: Axes, configurations: list[Configuration], looks: Looks, divisor: float) -> bool:
    """Curves of one backbone, with times divided by `divisor`; tells whether any has several seeds."""
    times: list[float] = []
    spread = False
    limits = sorted({c.first.max_seconds for c in configurations if c.first.max_seconds is not None})
    for method in looks.ordered(c.first.method for c in configurations):
        look = looks[method]
        for configuration in sorted((c for c in configurations if c.first.method == method), key=_seconds):
            curves = _curves(configuration, "seconds", "score")
            x, y, low, high = choose.over_seeds(curves)
            times += [value / divisor for value in x if value > 0]
            alpha = 1.0 if _seconds(configuration) >= max(limits, default=0) else 0.4
            every = max(1, len(x) // 6)
            axis.plot(x / divisor, y, color=look.colour, ls=look.line, marker=look.marker, ms=2.8, markevery=every,
                      lw=1.0, alpha=alpha)  # fmt: skip
            if len(curves) > 1:
                axis.fill_between(x / divisor, low, high, color=look.colour, alpha=0.15 * alpha, lw=0)
                spread = True
    for limit in limits:
        axis.axvline(limit / divisor, color=style.GREY, ls=":", lw=0.9, zorder=1)
        times.append(limit / divisor)
    if times and max(times) / min(times) > 30:
        style.log_axis(axis, times, style.number, most=4)
    else:
        axis.set_xlim(0, 1.06 * max(times, default=1.0))
        axis.xaxis.set_major_locator(style.MaxNLocator(4, steps=[1, 2, 3, 5, 10]))
    return spread


def shots(results: Results, looks: Looks) -> Drawing:
    """Figure 3b: score on test against labelled examples of each class, for each backbone."""
    panels = []
    for task in results.tasks:
        series = _shot_series(task)
        panels += _by_backbone(task, [c for one in series for c in one])
    if not panels:
        raise LeftOut("no method was run on one backbone with two numbers of examples and else alike")
    panels, remarks = _capped(panels, _panel_name)
    columns = style.columns_of(len(panels), 4)
    figure, axes = style.panels(len(panels), columns, height=1.7)
    several = any(len(c.runs) > 1 for _, _, cs in panels for c in cs)
    for axis, (task, backbone, configurations) in zip(axes, panels, strict=True):
        _shots_panel(axis, configurations, looks)
        axis.set_title(_panel_title(task, backbone))
    _equal_scores(list(zip((task.task for task, _, _ in panels), axes, strict=True)))
    figure.supylabel(f"{_metrics(panels)} on test")
    style.label_x(axes, columns, "training documents per class")
    looks.legend(figure, (c.first.method for _, _, cs in panels for c in cs))
    caption = (
        "Score on test against the number of labelled documents of each class, by method, for each backbone. "
        + ("Medians over seeds; bands are one standard deviation over seeds either way. " if several else "")
        + "Bars, where there is one seed only, are 95 % intervals over documents."
    )
    return Drawing(figure, caption, remarks)


def _shot_series(task: TaskResults) -> list[list[Configuration]]:
    """For each backbone and method, configurations that differ in their number of examples alone."""
    groups: dict[tuple[str, str, float, str], list[Configuration]] = {}
    for c in choose.scored(task.configurations):
        run = c.first
        if run.shots is not None:
            recipe = repr((run.recipe_name, sorted(run.overrides.items())))
            alike = (run.backbone or "", run.method, choose.budget(run)[0], recipe)
            groups.setdefault(alike, []).append(c)
    best: dict[tuple[str, str], list[Configuration]] = {}
    for (backbone, method, _, _), series in sorted(groups.items()):
        series = sorted(choose.chosen(series, lambda run: run.shots).values(), key=lambda c: c.first.shots or 0)
        if len(series) > 1 and _series_merit(series) > _series_merit(best.get((backbone, method), [])):
            best[backbone, method] = series
    return list(best.values())


def _series_merit(series: list[Configuration]) -> tuple[int, float]:
    """Long series first, then what validation says of its largest training set."""
    last = series[-1].runs if series else ()
    return len(series), max((run.validation for run in last if run.validation is not None), default=-math.inf)


def _shots_panel(axis: Axes, configurations: list[Configuration], looks: Looks) -> None:
    for method in looks.ordered(c.first.method for c in configurations):
        look = looks[method]
        series = sorted((c for c in configurations if c.first.method == method), key=lambda c: c.first.shots or 0)
        x = [float(c.first.shots or 1) for c in series]
        y = [c.median if c.median is not None else c.mean.value or 0.0 for c in series]
        axis.plot(x, y, color=look.colour, ls=look.line, marker=look.marker, ms=4, mec="white", mew=0.4)
        deviations = [c.sd or 0.0 for c in series]
        axis.fill_between(x, [v - d for v, d in zip(y, deviations, strict=True)],
                          [v + d for v, d in zip(y, deviations, strict=True)], color=look.colour, alpha=0.15, lw=0)  # fmt: skip
        for position, value, configuration in zip(x, y, series, strict=True):
            if len(configuration.runs) == 1:
                reach = [[bound] for bound in style.bounds(configuration.mean)]
                axis.errorbar(
                    [position], [value], yerr=reach, fmt="none", ecolor=look.colour, elinewidth=0.7, alpha=0.55
                )
    sizes = sorted({c.first.shots or 1 for c in configurations})
    axis.set_xscale("log", base=2)
    ticks = sizes[:: math.ceil(len(sizes) / 6)]
    axis.xaxis.set_major_locator(style.FixedLocator(ticks))
    axis.xaxis.set_major_formatter(style.FixedFormatter([f"{size:,}" for size in ticks]))
    axis.xaxis.set_minor_locator(style.NullLocator())
    axis.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)


def learning(results: Results, looks: Looks) -> Drawing:
    """Training loss and score on validation by step, of each task's best configuration that has evaluations."""
    shown = []
    for task in results.tasks:
        best = next((c for c in choose.scored(task.configurations) if _curves(c, "step", "loss")), None)
        if best:
            shown.append((task, best))
    if not shown:
        raise LeftOut("no scored run was evaluated twice while it was trained")
    shown, remarks = _capped(shown, lambda item: item[0].task)
    columns = style.columns_of(len(shown), 4)
    figure, axes = style.panels(2 * columns * math.ceil(len(shown) / columns), columns, height=1.25)
    for place, axis in enumerate(axes):
        block, row = divmod(place // columns, 2)
        number = block * columns + place % columns
        if number >= len(shown):
            axis.remove()
            continue
        _learning_panel(axis, *shown[number], looks, "score" if row else "loss", first=place % columns == 0)
    looks.legend(figure, (c.first.method for _, c in shown))
    named = "; ".join(f"{task.task}: {configuration.name}" for task, configuration in shown)
    caption = (
        "Training loss since the evaluation before (above) and score on validation (below) of the best configuration "
        f"of each task: {named}. Lines are medians over seeds, bands reach from the lowest to the highest."
    )
    return Drawing(figure, caption, remarks)


def _learning_panel(axis: Axes, task: TaskResults, c: Configuration, looks: Looks, what: str, *, first: bool) -> None:
    look, curves = looks[c.first.method], _curves(c, "step", what, least=1)
    if curves:
        x, y, low, high = choose.over_seeds(curves)
        axis.plot(x, y, color=look.colour, ls=look.line, marker=look.marker, ms=3, markevery=max(1, len(x) // 8))
        axis.fill_between(x, low, high, color=look.colour, alpha=0.15, lw=0)
        axis.set_xlim(0, 1.06 * float(x[-1]))
    axis.xaxis.set_major_locator(style.MaxNLocator(4, integer=True))
    axis.yaxis.set_major_locator(style.MaxNLocator(4))
    if what == "loss":
        axis.set_title(f"{style.shorten(task.task, 24)}\n{style.shorten(c.first.name, 28)}", fontsize=7)
        axis.set_ylabel("training loss" if first else "")
    else:
        style.score_axis(axis, 4)
        axis.set_ylabel(metric_label(task.metric))
        axis.set_xlabel("optimiser steps")


def _curves(configuration: Configuration, x: str, y: str, least: int = 2) -> list[choose.Points]:
    """One for each seed that has enough points."""
    curves = [choose.curve(run, x, y) for run in configuration.runs]
    return [points for points in curves if len(points[0]) >= least]


def _seconds(configuration: Configuration) -> float:
    return choose.budget(configuration.first)[0]


def _by_backbone(
    task: TaskResults, configurations: list[Configuration]
) -> list[tuple[TaskResults, str, list[Configuration]]]:
    """One group for each backbone, smallest first; baselines are a group of their own only if there is nothing else."""
    adapted: dict[str, list[Configuration]] = {}
    for c in configurations:
        adapted.setdefault(c.first.backbone or "", []).append(c)
    baselines = adapted.pop("", [])
    ordered = sorted(adapted.items(), key=lambda item: (item[1][0].first.backbone_parameters, item[0]))
    if not ordered and baselines:
        return [(task, "no backbone", baselines)]
    return [(task, backbone, group + baselines) for backbone, group in ordered]


def _capped(items: list[Item], name: Callable[[Item], str]) -> tuple[list[Item], list[str]]:
    """At most `_MOST_PANELS`, and a sentence about the others."""
    others = items[_MOST_PANELS:]
    remark = (
        f"Only the first {_MOST_PANELS} of {len(items)} panels are drawn; without {style.listed(map(name, others))}."
    )
    return items[:_MOST_PANELS], [remark] if others else []


def _panel_name(panel: tuple[TaskResults, str, list[Configuration]]) -> str:
    return f"{panel[1]} on {panel[0].task}"


def _panel_title(task: TaskResults, backbone: str) -> str:
    return f"{style.shorten(task.task, 18)}\n{style.shorten(backbone, 24)}"


def _metrics(panels: list[tuple[TaskResults, str, list[Configuration]]]) -> str:
    labels = list(dict.fromkeys(metric_label(task.metric) for task, _, _ in panels))
    return labels[0] if len(labels) == 1 else "score"


def _equal_scores(axes: list[tuple[str, Axes]]) -> None:
    """Panels of one task share their limits, so that backbones can be compared by eye."""
    for task in dict.fromkeys(name for name, _ in axes):
        same = [axis for name, axis in axes if name == task]
        limits = [axis.get_ylim() for axis in same]
        for axis in same:
            low, high = min(low for low, _ in limits), max(high for _, high in limits)
            axis.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
            style.score_axis(axis)
