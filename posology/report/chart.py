"""Geometry of the chart of one task: score with interval against trained parameters.

Horizontal positions are percentages of the plot and everything else is in pixels, so the drawing fills
any width while text and markers keep their size. The template draws what is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from posology.report.runs import Comparison, RunRow, count_text

METHOD_ORDER = ("full", "lora", "ia3", "head", "prefix", "prompt", "p-tuning", "dora", "rslora", "bitfit", "layernorm")
"""Methods with a fixed colour and shape on every page; others follow in alphabetical order."""

COLOURS = 7
"""Colours `--c0` ... in the style sheet; with a number of shapes prime to it, each method has its own pair."""

SHAPES = (
    "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0z",
    "M-5 -5h10v10h-10z",
    "M0 -6.5L6.2 4.8H-6.2z",
    "M0 -7L7 0L0 7L-7 0z",
    "M0 6.5L6.2 -4.8H-6.2z",
    "M-2.2 -6.5h4.4v4.3h4.3v4.4h-4.3v4.3h-4.4v-4.3h-4.3v-4.4h4.3z",
    "M0 -6.6L6.3 -2L3.9 5.4H-3.9L-6.3 -2z",
    "M-6.5 0L-3.3 -5.7H3.3L6.5 0L3.3 5.7H-3.3z",
)
"""Marker outlines as SVG paths about the origin, in pixels."""

FILLS = {
    "solid": "",
    "hollow": "",
    "dotted": "M-1.6 0a1.6 1.6 0 1 0 3.2 0a1.6 1.6 0 1 0-3.2 0z",
    "pale": "",
    "barred": "M-4 0H4",
    "upright": "M0 -4V4",
}
"""How a marker is filled, by backbone, and what is drawn inside it; a seventh backbone looks like the first."""

HEIGHT = 330
"""Height of a chart in pixels, axis labels included."""

Scale = Callable[[float], float]
Ticks = list[tuple[float, str]]

_TOP, _BOTTOM = 26, 274
_LEFT, _RIGHT = 4.0, 96.0
_NOMINAL_WIDTH = 640
_DODGE = 13.0


@dataclass(frozen=True, slots=True)
class Marker:
    """How one method on one backbone is drawn: class suffix of the colour, outline, filling, path inside it."""

    colour: str
    shape: str
    fill: str
    inner: str


@dataclass(frozen=True, slots=True)
class Point:
    """One run. `x` is a percentage of the plot's width, `dx` a shift in pixels; `y`, `top`, `bottom` are pixels."""

    index: int
    run: RunRow
    marker: Marker
    x: float
    dx: float
    y: float
    top: float
    bottom: float
    label: str
    label_below: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything the template needs for one drawing. Ticks are `(position, text)`."""

    points: list[Point]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    band: tuple[float, float]
    height: int = HEIGHT
    bottom: int = _BOTTOM + 12


class Markers:
    """Assigns colours and shapes to methods and fills to backbones, the same on every chart of a page."""

    def __init__(self, runs: Sequence[RunRow]):
        present = {run.method for run in runs}
        order = [*METHOD_ORDER, *sorted(present - set(METHOD_ORDER))]
        self.methods = {method: index for index, method in enumerate(order) if method in present}
        sizes: dict[str, int] = {}
        for run in runs:
            sizes[run.backbone] = max(run.backbone_parameters, sizes.get(run.backbone, 0))
        largest_first = sorted(sizes, key=lambda name: (-sizes[name], name))
        self.backbones = {name: list(FILLS)[index % len(FILLS)] for index, name in enumerate(largest_first)}
        self.backbone_parameters = {name: sizes[name] for name in largest_first}

    def __call__(self, method: str, backbone: str) -> Marker:
        index, fill = self.methods[method], self.backbones[backbone]
        return Marker(str(index % COLOURS), SHAPES[index % len(SHAPES)], fill, FILLS[fill])

    def of_method(self, method: str) -> Marker:
        """The legend's marker of a method, whatever the backbone."""
        index = self.methods[method]
        return Marker(str(index % COLOURS), SHAPES[index % len(SHAPES)], "solid", "")

    def of_backbone(self, backbone: str) -> Marker:
        """The legend's marker of a backbone, whatever the method."""
        fill = self.backbones[backbone]
        return Marker("neutral", SHAPES[0], fill, FILLS[fill])


def chart(comparison: Comparison, markers: Markers, indices: Sequence[int]) -> Chart | None:
    """Lays out the runs of one comparison; None if it has no score to draw.

    Args:
        comparison: what to draw; runs without a defined score are left out.
        markers: the page's markers.
        indices: position of each of `comparison.rows` in the page's data.
    """
    drawn = [(index, run) for index, run in zip(indices, comparison.rows, strict=True) if run.scored]
    if comparison.best is None:
        return None
    # Cheapest first, so that the keyboard goes through the points from left to right.
    drawn.sort(key=lambda pair: (pair[1].cost, pair[0]))
    runs = [run for _, run in drawn]
    x_of, x_ticks = _log_axis([run.trainable_parameters for run in runs])
    y_of, y_ticks = _score_axis(min(run.low for run in runs), max(run.high for run in runs))
    x = [x_of(run.trainable_parameters) for run in runs]
    points = []
    for (index, run), position, shift in zip(drawn, x, _dodge(x), strict=True):
        named = run is comparison.best or run is comparison.cheapest
        points.append(
            Point(index, run, markers(run.method, run.backbone), position, shift, y_of(run.value), y_of(run.high),
                  y_of(run.low), run.name if named else "", named and run is not comparison.best)
        )  # fmt: skip
    return Chart(points, x_ticks, y_ticks, (y_of(comparison.best.high), y_of(comparison.best.low)))


def _log_axis(values: Sequence[int]) -> tuple[Scale, Ticks]:
    exponents = [math.log10(max(value, 1)) for value in values]
    first, last = min(exponents), max(exponents)
    slack = max((last - first) * 0.02, 0.25)
    first, last = first - slack, last + slack

    def position(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (math.log10(max(value, 1)) - first) / (last - first)

    steps = (1,) if last - first > 1.6 else (1, 2, 5)
    powers = range(max(math.floor(first), 0), math.ceil(last) + 1)
    ticks = [step * 10**power for power in powers for step in steps]
    return position, [(position(tick), count_text(tick)) for tick in ticks if first <= math.log10(tick) <= last]


def _score_axis(low: float, high: float) -> tuple[Scale, Ticks]:
    step = _round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    last = max(last, first + step)

    def position(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (value - first) / (last - first)

    digits = max(0, -math.floor(math.log10(step)))
    values = [first + step * number for number in range(round((last - first) / step) + 1)]
    return position, [(position(value), f"{value:.{digits}f}") for value in values]


def _round_step(raw: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is at least `raw`."""
    power = 10.0 ** math.floor(math.log10(max(raw, 1e-4)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * (1 - 1e-9) or step == 10)


def _dodge(x: Sequence[float]) -> list[float]:
    """Shifts in pixels that set neighbours apart. `x` ascends, in percent of a plot of nominal width.

    No point moves by more than the distance between two neighbours, so that the axis can still be trusted.
    """
    shifts: list[float] = []
    while len(shifts) < len(x):
        first = len(shifts)
        size = sum((position - x[first]) / 100 * _NOMINAL_WIDTH < _DODGE for position in x[first:])
        gap = min(_DODGE, 2 * _DODGE / max(size - 1, 1))
        shifts += [(number - (size - 1) / 2) * gap for number in range(size)]
    return shifts
