"""What to expect of the best configurations: how far their confidence can be believed, and how well each label is found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from posology.engine import predictions
from posology.engine.decode import softmax
from posology.errors import UserError
from posology.evaluation.calibration import reliability_curve
from posology.report.figures import choose, style
from posology.report.figures.style import Drawing, LeftOut, Looks
from posology.report.results import Configuration, Results, TaskResults

_MOST_LABELS = 20
_STRIP = 0.18
"""Height of the strip below a reliability diagram that tells how many answers have which confidence."""
Curve = list[dict[str, float]]


def reliability(results: Results, looks: Looks) -> Drawing:
    """How often answers of some confidence are right, for the best configuration of each classification task."""
    shown, remarks = [], []
    for task in results.tasks:
        found = choose.scored(task.configurations)[:1]
        if task.kind != "sequence-classification":
            remarks.append(f"{task.task}: answers of taggers are kept as counts of entities, without confidences.")
        elif not found:
            remarks.append(f"{task.task}: no configuration has a defined score.")
        elif not (curve := _curve(found[0])):
            remarks.append(f"{task.task}: the artifact of {found[0].name} keeps no answers by document, or is gone.")
        else:
            shown.append((task, found[0], curve))
    if not shown:
        raise LeftOut(" ".join(remarks) if remarks else "there is no task")
    columns = style.columns_of(len(shown), 4)
    figure, axes = style.panels(len(shown), columns, height=2.4)
    figure.set_figwidth(min(style.DOUBLE, 2.4 * columns))  # the panels are square
    for axis, (task, best, curve) in zip(axes, shown, strict=True):
        _reliability_panel(axis, task, best, curve, looks)
    style.label_x(axes, columns, "mean confidence")
    figure.supylabel("share of right answers, 95 % interval")
    looks.legend(figure, (best.first.method for _, best, _ in shown))
    style.key(
        figure,
        [
            Line2D([], [], color=style.GREY, ls="--", lw=0.8, label="confidence as it should be"),
            Patch(color=style.GREY, label="share of documents in each tenth"),
        ],
        "outside lower center",
    )
    named = "; ".join(f"{task.task}: {best.name}" for task, best, _ in shown)
    caption = (
        f"Reliability on test of the best configuration of each task ({named}), of the seed nearest to the median: right "
        "answers among those of like confidence, in tenths, with Wilson 95 % intervals that take documents as independent. "
        "Below the diagonal answers are less often right than their confidence says. ECE is the expected calibration error."
    )
    return Drawing(figure, caption, remarks)


def _curve(configuration: Configuration) -> Curve:
    """Empty where the answers are gone or have no confidences."""
    run = choose.typical(configuration)
    if run.artifact is None:
        return []
    try:
        answers = predictions.read(run.artifact)
    except (UserError, OSError):
        return []
    if answers.logits is None or answers.gold is None or not np.isfinite(answers.logits).all():
        return []
    return reliability_curve(answers.gold, softmax(answers.logits, _temperature(run.artifact)))


def _temperature(artifact: Path) -> float:
    """What the artifact's logits are divided by; 1 where it says nothing."""
    try:
        value = json.loads((artifact / "posology.json").read_text(encoding="utf-8")).get("temperature")
    except (OSError, ValueError):
        return 1.0
    return float(value) if isinstance(value, int | float) and value > 0 else 1.0


def _reliability_panel(axis: Axes, task: TaskResults, best: Configuration, curve: Curve, looks: Looks) -> None:
    look = looks[best.first.method]
    bins = [one for one in curve if one["count"]]
    total = sum(one["count"] for one in bins)
    for one in bins:
        axis.bar(one["low"], _STRIP * one["count"] / total, bottom=-_STRIP - 0.03, width=one["high"] - one["low"],
                 align="edge", color=style.GREY, edgecolor="white", linewidth=0.5, zorder=1)  # fmt: skip
    axis.axhline(-0.015, color="#000000", lw=0.5)
    axis.plot([0, 1], [0, 1], color=style.GREY, ls="--", lw=0.8, zorder=2)
    x, y = [one["confidence"] for one in bins], [one["accuracy"] for one in bins]
    reach = [[max(one["accuracy"] - one["accuracy_low"], 0.0) for one in bins],
             [max(one["accuracy_high"] - one["accuracy"], 0.0) for one in bins]]  # fmt: skip
    axis.plot(x, y, color=look.colour, ls=look.line, lw=0.7, alpha=0.5, zorder=3)
    axis.errorbar(x, y, yerr=reach, color=look.colour, ls="", marker=look.marker, ms=3.8, elinewidth=0.7, mec="white",
                  mew=0.4, zorder=4)  # fmt: skip
    error = sum(one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / total
    axis.set_xlim(0, 1)
    axis.set_ylim(-_STRIP - 0.04, 1.04)
    axis.set_aspect("equal", adjustable="box")
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axis.set_title(
        f"{style.shorten(task.task, 22)}, n = {total:,}\n{style.shorten(best.first.name, 26)}\nECE {error:.3f}"
    )


def labels(results: Results, looks: Looks) -> Drawing:
    """F1, sensitivity and positive predictive value of every label, for the best configuration of each task."""
    shown, remarks = [], []
    for task in results.tasks:
        best = next(iter(choose.scored(task.configurations)), None)
        rows = _label_rows(best) if best else []
        if best is None or not rows:
            remarks.append(f"{task.task}: no scored configuration has results by label.")
            continue
        if len(rows) > _MOST_LABELS:
            remarks.append(f"{task.task}: the {_MOST_LABELS} most frequent of {len(rows)} labels.")
            rows = sorted(rows, key=lambda row: (-row[1].get("support", 0), row[0]))[:_MOST_LABELS]
        shown.append((task, best, sorted(rows, key=lambda row: (row[1].get("f1", -1.0), row[0]))))
    if not shown:
        raise LeftOut("no scored configuration has results by label")
    shown.sort(key=lambda one: -len(one[2]))  # panels side by side are of like height
    columns = min(len(shown), 2)
    blocks = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    heights = [max(len(rows) for _, _, rows in block) * 0.135 + 0.55 for block in blocks]
    figure = Figure(figsize=(style.SINGLE if columns == 1 else style.DOUBLE, sum(heights) + 0.55), layout="constrained")
    grid = figure.add_gridspec(len(blocks), columns, height_ratios=heights)
    for number, block in enumerate(blocks):
        for column, (task, best, rows) in enumerate(block):
            axis = figure.add_subplot(grid[number, column])
            _labels_panel(axis, rows, max(len(other) for _, _, other in block))
            axis.set_title(f"{style.shorten(task.task, 24)}: {style.shorten(best.first.name, 34)}")
    figure.supxlabel("on test, from 0 to 1; n, how often the label is right there")
    style.key(
        figure,
        [
            Patch(color=_BAR, label="F1"),
            Line2D([], [], color="#000000", marker="o", ls="", ms=3.2, label="recall (sensitivity)"),
            Line2D(
                [],
                [],
                color=_PRECISION,
                marker="|",
                ls="",
                ms=7,
                mew=1.6,
                label="precision (positive predictive value)",
            ),
        ],
        "outside upper center",
    )
    named = "; ".join(f"{task.task}: {best.name}" for task, best, _ in shown)
    caption = (
        f"F1, recall and precision of each label on test, medians over seeds, of the best configuration ({named}). "
        "The number is how often the label is the right one on test: few make a score uncertain."
    )
    return Drawing(figure, caption, remarks)


_BAR, _PRECISION = "#9ecae1", "#D55E00"


def _label_rows(configuration: Configuration) -> list[tuple[str, Mapping[str, float]]]:
    """By label the medians over seeds of what is defined."""
    names = dict.fromkeys(name for run in configuration.runs for name in run.per_label)
    rows: list[tuple[str, Mapping[str, float]]] = []
    for name in names:
        values: dict[str, float] = {}
        for field in ("f1", "recall", "precision", "support"):
            known = [v for run in configuration.runs if (v := run.per_label.get(name, {}).get(field)) is not None]
            known = [v for v in known if math.isfinite(v)]
            if known:
                values[field] = median(known)
        rows.append((name, values))
    return rows


def _labels_panel(axis: Axes, rows: list[tuple[str, Mapping[str, float]]], places: int) -> None:
    """Bars from the top down; `places` is how many the row of panels has room for, so that all bars are equally thick."""
    for y, (_, values) in enumerate(rows):
        if "f1" in values:
            axis.barh(y, values["f1"], height=0.72, color=_BAR, zorder=2)
        else:
            axis.text(0.01, y, "undefined", va="center", fontsize=5.5, color=style.GREY)
        if "recall" in values:
            axis.plot([values["recall"]], [y], marker="o", ms=2.8, color="#000000", zorder=4, clip_on=False)
        if "precision" in values:
            axis.plot([values["precision"]], [y], marker="|", ms=6, mew=1.4, color=_PRECISION, zorder=3, clip_on=False)
        if "support" in values:
            axis.text(1.04, y, f"{values['support']:,.0f}", va="center", fontsize=5.8, color="#444444")
    axis.set_yticks(range(len(rows)), [style.shorten(name, 22) for name, _ in rows])
    axis.text(1.04, len(rows) - 0.3, "n", va="bottom", fontsize=5.8, color="#444444")
    axis.set_ylim(len(rows) - places - 0.6, len(rows) - 0.4)
    axis.set_xlim(0, 1)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", length=0)
