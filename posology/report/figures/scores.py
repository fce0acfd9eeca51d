"""Score against what is trained, and against the domain of pretraining (the paper's figures 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from posology.report.figures import choose, style
from posology.report.figures.style import Drawing, LeftOut, Looks
from posology.report.results import Configuration, Results, Run, Score, TaskResults
from posology.report.text import count_text, metric_label

_DOMAINS = {"general": "G", "biomedical": "B", "clinical": "C"}
_PAPER_KEY = "hollow: the paper (validation, SD)"

_PAPER_WORDS = (
    " Hollow markers: the paper's value (median of its best scores on validation, with its standard deviation)."
)


def title_of(task: TaskResults) -> str:
    """`i2b2-2010-re, macro-F1`."""
    return f"{style.shorten(task.task, 24)}, {metric_label(task.metric)}"


def parameters(results: Results, looks: Looks) -> Drawing:
    """Figure 1: score on test against trained parameters, by method and size of the backbone."""
    shown = [(task, pairs) for task in results.tasks if (pairs := choose.alike(task))]
    shown = [(task, pairs) for task, pairs in shown if any(backbone for _, backbone in pairs)]
    if not shown:
        raise LeftOut("no run of an adapted backbone has a defined score on test")
    columns = style.columns_of(len(shown))
    figure, axes = style.panels(len(shown), columns)
    area = _areas(c for _, pairs in shown for c in pairs.values())
    paper, levels = False, []
    for axis, (task, pairs) in zip(axes, shown, strict=True):
        paper |= _parameters_panel(axis, task, list(pairs.values()), looks, area)
        levels.append(f"{task.task}: {choose.budget_words(next(iter(pairs.values())).first)}")
    style.label_x(axes, columns, "trained parameters")
    figure.supylabel("score on test, 95 % interval")
    looks.legend(figure, (method for _, pairs in shown for method, _ in pairs))
    style.key(figure, [*_size_handles(area), *([_hollow()] if paper else [])], "outside lower center")
    caption = (
        "Score on test against trained parameters (logarithmic), by method; larger markers are larger "
        "backbones, and a line joins backbones of one method and domain. Bars are 95 % intervals, grey lines baselines without a backbone. Where a "
        "method and a backbone were run with several recipes, the one with the best validation score is shown. "
        f"Training data: {'; '.join(levels)}."
    )
    remarks = _not_scored(results, [task.task for task, _ in shown])
    return Drawing(figure, caption + (_PAPER_WORDS * paper), remarks)


def _parameters_panel(
    axis: Axes, task: TaskResults, configurations: list[Configuration], looks: Looks, area: dict[str, tuple[int, float]]
) -> bool:
    adapted = [c for c in configurations if c.first.backbone is not None]
    any_paper = False
    for method in looks.ordered(c.first.method for c in adapted):
        look = looks[method]
        series = [c for c in adapted if c.first.method == method]
        series.sort(key=lambda c: (c.first.backbone_parameters, c.first.trainable_parameters, c.name))
        x = [max(c.first.trainable_parameters, 1) for c in series]
        # Variants of one architecture by domain are as large as each other: one line through all would go to and fro.
        for domain in dict.fromkeys(c.first.domain for c in series):
            own = [(place, c) for place, c in zip(x, series, strict=True) if c.first.domain == domain]
            sizes = [area[c.first.backbone or ""][1] for _, c in own]
            draw_points(axis, [place for place, _ in own], [c.mean for _, c in own], look, sizes=sizes)
        for position, configuration in zip(x, series, strict=True):
            if published := choose.paper_value(task, configuration):
                draw_hollow(axis, position, published, look)
                any_paper = True
    for configuration in (c for c in configurations if c.first.backbone is None):
        look = looks[configuration.first.method]
        axis.axhline(configuration.mean.value or 0.0, color=look.colour, ls=look.line, lw=0.9, zorder=1)
    style.log_axis(axis, [max(c.first.trainable_parameters, 1) for c in adapted], count_text)
    style.score_axis(axis)
    axis.set_title(title_of(task))
    return any_paper


def draw_points(
    axis: Axes, x: Sequence[float], scores: Sequence[Score], look: style.Look, sizes: Sequence[float] | float = 20
) -> None:
    """One method's scores with their intervals, joined by its line."""
    y = [score.value or 0.0 for score in scores]
    reach = list(zip(*(style.bounds(score) for score in scores), strict=True))
    axis.errorbar(x, y, yerr=reach, fmt="none", ecolor=look.colour, elinewidth=0.7, alpha=0.55, zorder=2)
    axis.plot(x, y, color=look.colour, ls=look.line, lw=0.8, alpha=0.8, zorder=3)
    edge = {} if look.marker in "x+12" else {"edgecolors": "white", "linewidths": 0.5}
    axis.scatter(x, y, s=sizes, c=look.colour, marker=look.marker, zorder=4, **edge)  # type: ignore[arg-type]


def draw_hollow(axis: Axes, x: float, score: Score, look: style.Look) -> None:
    """The paper's value: a hollow marker with its deviation over seeds."""
    reach = [[bound] for bound in style.bounds(score)]
    axis.errorbar(
        [x], [score.value or 0.0], yerr=reach, fmt=look.marker, ms=5.5, mfc="none", mec=look.colour, mew=0.9,
        ecolor=look.colour, elinewidth=0.6, capsize=1.5, zorder=5,
    )  # fmt: skip


def _hollow() -> Line2D:
    return Line2D([], [], color=style.GREY, marker="o", mfc="none", ls="", ms=5.5, label=_PAPER_KEY)


def _areas(configurations: Iterable[Configuration]) -> dict[str, tuple[int, float]]:
    """Parameters and marker area of each backbone, smallest first; the logarithm of its size sets the radius."""
    sizes = {c.first.backbone: max(c.first.backbone_parameters, 1) for c in configurations if c.first.backbone}
    ordered = sorted(sizes.items(), key=lambda item: (item[1], item[0]))
    low, high = math.log10(ordered[0][1]), math.log10(ordered[-1][1])
    span = max(high - low, 0.3)
    reach = 4.2 if len(ordered) <= 5 else 2.8
    return {name: (size, (3.0 + reach * (math.log10(size) - low) / span) ** 2) for name, size in ordered}


def _size_handles(area: dict[str, tuple[int, float]], most: int = 6) -> list[Line2D]:
    names = list(area)
    if len(names) > most:
        names = [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]
    return [
        Line2D([], [], color=style.GREY, marker="o", ls="", ms=area[name][1] ** 0.5,
               label=f"{style.shorten(name, 26)} ({count_text(area[name][0])})")
        for name in names
    ]  # fmt: skip


def _not_scored(results: Results, shown: list[str]) -> list[str]:
    missing = [task.task for task in results.tasks if task.task not in shown]
    return [f"{style.listed(missing)}: no adapted backbone with a defined score."] if missing else []


def domains(results: Results, looks: Looks) -> Drawing:
    """Figure 2: score on test by the domain of pretraining, within each family of backbones."""
    shown = []
    for task in results.tasks:
        candidates = [c for c in choose.alike(task).values() if _family(c.first)]
        candidates = [c for c in candidates if c.first.domain in _DOMAINS]
        groups = choose.chosen(candidates, lambda r: (_family(r), r.domain, r.method))
        # A family of one domain compares nothing.
        seen = {(name, method): set[str | None]() for name, _, method in groups}
        for name, domain, method in groups:
            seen[name, method].add(domain)
        groups = {key: c for key, c in groups.items() if len(seen[key[0], key[2]]) > 1}
        if groups:
            shown.append((task, groups))
    if not shown:
        present = sorted({c.first.domain or "unknown" for t in results.tasks for c in t.configurations})
        raise LeftOut(
            "it needs backbones of one family from two domains, adapted by one method under one budget; "
            f"the domains here: {style.listed(present)}"
        )
    columns = style.columns_of(len(shown), 2)
    figure, axes = style.panels(len(shown), columns)
    paper = False
    for axis, (task, groups) in zip(axes, shown, strict=True):
        paper |= _domains_panel(axis, task, groups, looks)
    figure.supylabel("score on test, 95 % interval")
    style.label_x(axes, columns, "domain of pretraining, by family of backbones")
    looks.legend(figure, (method for _, groups in shown for _, _, method in groups))
    words = [Line2D([], [], ls="", label=f"{letter} {domain}") for domain, letter in _DOMAINS.items()]
    style.key(figure, [*words, *([_hollow()] if paper else [])], "outside lower center")
    caption = (
        "Score on test by the domain that a backbone was pretrained on: general (G), biomedical (B) or clinical (C), "
        "by family of backbones and by method. Bars are 95 % intervals. Of several backbones or recipes in one place "
        "the one with the best validation score is shown."
    ) + _PAPER_WORDS * paper
    missing = [task.task for task in results.tasks if task.task not in {t.task for t, _ in shown}]
    remarks = [f"{style.listed(missing)}: no family of backbones from two domains."] if missing else []
    return Drawing(figure, caption, remarks)


def _family(run: Run) -> str | None:
    """Of a backbone of the catalogue, or of one that was made of such a one."""
    return run.family or choose.family(run.backbone)


def _domains_panel(
    axis: Axes, task: TaskResults, groups: dict[tuple[str | None, str | None, str], Configuration], looks: Looks
) -> bool:
    smallest: dict[str, int] = {}
    for (name, _, _), configuration in groups.items():
        size = configuration.first.backbone_parameters
        smallest[name or ""] = min(size, smallest.get(name or "", size))
    families = sorted(smallest, key=lambda name: (smallest[name], name))
    methods = looks.ordered(method for _, _, method in groups)
    any_paper = False
    for number, method in enumerate(methods):
        shift = (number - (len(methods) - 1) / 2) * min(0.24, 0.7 / len(methods))
        for block, name in enumerate(families):
            series = [(i, c) for i, d in enumerate(_DOMAINS) if (c := groups.get((name, d, method)))]
            if not series:
                continue
            x = [4.0 * block + i + shift for i, _ in series]
            draw_points(axis, x, [c.mean for _, c in series], looks[method])
            for position, (_, configuration) in zip(x, series, strict=True):
                if published := choose.paper_value(task, configuration):
                    draw_hollow(axis, position, published, looks[method])
                    any_paper = True
    places = [4.0 * block + i for block in range(len(families)) for i in range(3)]
    letters = list(_DOMAINS.values())
    axis.set_xticks(places, [
        f"{letters[i % 3]}\n{style.shorten(families[i // 3], 14)}" if i % 3 == 1 else letters[i % 3]
        for i in range(len(places))
    ])  # fmt: skip
    axis.set_xlim(-0.8, places[-1] + 0.8)
    axis.grid(False, axis="x")
    for block in range(1, len(families)):
        axis.axvline(4.0 * block - 1, color=style.PALE, lw=0.6)
    style.score_axis(axis)
    axis.set_title(title_of(task))
    return any_paper
