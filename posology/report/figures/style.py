"""How every figure looks: one colour, marker and line for each method, paper sizes, axes, and files that are the same
bytes for the same results."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from posology.files import staged_file
from posology.report.results import Results, Score
from posology.report.text import UNKNOWN

SINGLE, DOUBLE = 3.5, 7.2
"""Widths of a figure in inches: one column of a page, or two."""

GREY = "#767676"
PALE = "#c8c8c8"

RC: Any = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so every machine draws the same
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "legend.columnspacing": 1.4,
    "figure.labelsize": 7.5,
    "figure.dpi": 72,  # a pixel is a point
    "lines.linewidth": 1.1,
    "svg.fonttype": "path",
    "svg.hashsalt": "posology",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.usetex": False,
}
"""Settings of matplotlib under which everything is drawn and saved."""

_METHODS = ("full", "lora", "ia3", "head", "prefix", "prompt", "p-tuning", "dora", "rslora", "bitfit", "layernorm")
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito 2008
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "*")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2)))
_BASELINES: tuple[Any, ...] = ((0, (3, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), "-")


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn."""

    colour: str
    marker: str
    line: Any


class Looks:
    """The look of each method, the same in every figure. Baselines, which have no backbone, are grey."""

    def __init__(self, results: Results):
        runs = [c.first for task in results.tasks for c in task.configurations]
        baselines = sorted({run.method for run in runs if run.backbone is None})
        others = sorted({run.method for run in runs} - set(_METHODS) - set(baselines))
        self._looks = {
            method: Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], _LINES[i % len(_LINES)])
            for i, method in enumerate([*_METHODS, *others])
        }
        for i, method in enumerate(baselines):
            self._looks[method] = Look(GREY, ("x", "+", "1", "2")[i % 4], _BASELINES[i % len(_BASELINES)])

    def __getitem__(self, method: str) -> Look:
        return self._looks[method]

    def ordered(self, methods: Iterable[str]) -> list[str]:
        """Without repetition, in the order of legends."""
        present = set(methods)
        return [method for method in self._looks if method in present]

    def legend(self, figure: Figure, methods: Iterable[str], *, lines: bool = True) -> None:
        """The methods' legend above all panels."""
        handles = [
            Line2D([], [], color=look.colour, marker=look.marker, ls=look.line if lines else "", ms=4.5, label=method)
            for method in self.ordered(methods)
            for look in [self[method]]
        ]
        key(figure, handles, "outside upper center")


@dataclass(slots=True)
class Drawing:
    """A figure and what to say of it.

    Attributes:
        figure: not yet laid out.
        caption: what it shows, in full sentences.
        remarks: what was left out of it and why.
        finish: draws what needs the final layout, such as labels that must not overlap.
    """

    figure: Figure
    caption: str
    remarks: list[str] = field(default_factory=list)
    finish: Callable[[], None] | None = None


class LeftOut(Exception):
    """There is nothing to draw; the message is a sentence that says what is missing."""


def key(figure: Figure, handles: Sequence[Any], place: Literal["outside upper center", "outside lower center"]) -> None:
    """A legend outside the panels, in as many columns as the figure is wide."""
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles)
        fit = int(figure.get_figwidth() * 72 / (32 + 3.7 * longest))
        figure.legend(handles=handles, loc=place, ncols=max(1, min(fit, len(handles))))


def columns_of(count: int, most: int = 3) -> int:
    """In how many columns so many panels are set: as many as are allowed, or fewer if that leaves no more rows."""
    rows = math.ceil(count / most)
    return math.ceil(count / rows)


def panels(count: int, columns: int, *, height: float = 1.75, extra: float = 0.75) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels in rows.

    Args:
        count: at least 1.
        columns: of them.
        height: of a row, in inches.
        extra: height for legends, in inches.
    """
    rows = math.ceil(count / columns)
    width = SINGLE if count == 1 else DOUBLE
    figure = Figure(figsize=(width, rows * height + extra), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subplot(grid[i // columns, i % columns]) for i in range(count)]


def label_x(axes: Sequence[Axes], columns: int, text: str) -> None:
    """Writes the name of the x axis under the lowest panel of each column (a figure's own label would meet the legend)."""
    for axis in axes[-columns:]:
        axis.set_xlabel(text)


def shorten(text: str, length: int) -> str:
    """On one line, and with an ellipsis in its middle where it is longer."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head].rstrip()}…{text[head + 1 - length :].lstrip()}"


def listed(names: Iterable[str], most: int = 6) -> str:
    """`a, b and c`, or the first few `and 12 others`."""
    every = list(names)
    if len(every) > most:
        every = [*every[: most - 1], f"{len(every) - most + 1} others"]
    return every[0] if len(every) == 1 else f"{', '.join(every[:-1])} and {every[-1]}" if every else UNKNOWN


def bounds(score: Score) -> tuple[float, float]:
    """How far the interval reaches below and above the value; zero where there is none."""
    if score.value is None or score.low is None or score.high is None:
        return 0.0, 0.0
    # A percentile interval need not hold the value itself.
    return max(score.value - score.low, 0.0), max(score.high - score.value, 0.0)


def score_axis(axes: Axes, ticks: int = 5) -> None:
    """At most so many round ticks; limits follow what is drawn, but never leave what scores can be by much."""
    low, high = axes.get_ylim()
    if high - low < 0.02:
        middle = (low + high) / 2
        low, high = middle - 0.01, middle + 0.01
    axes.set_ylim(max(low, -0.04), min(high, 1.04))
    axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))


def log_axis(axes: Axes, values: Sequence[float], text: Callable[[float], str], most: int = 5) -> None:
    """A logarithmic x axis that holds positive values, with at most about `most` ticks, written by `text`."""
    first, last = math.log10(min(values)), math.log10(max(values))
    slack = max((last - first) * 0.08, 0.2)
    first, last = first - slack, last + slack
    powers = range(math.floor(first), math.ceil(last) + 1)
    ticks: list[float] = []
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        if len(ticks) < 3:
            ticks = [step * 10.0**power for power in powers for step in steps]
            ticks = [tick for tick in ticks if 10**first <= tick <= 10**last]
    ticks = ticks[:: math.ceil(len(ticks) / (most + 1))]
    axes.set_xscale("log")
    axes.set_xlim(10**first, 10**last)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([text(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def time_unit(longest: float) -> tuple[float, str]:
    """Seconds in the unit that suits a longest time, and its symbol."""
    return (1.0, "s") if longest <= 300 else (60.0, "min") if longest <= 3 * 3600 else (3600.0, "h")


def number(value: float) -> str:
    """A tick of a plain axis: `0.05`, `20`, `1,000`."""
    return f"{value:,.0f}" if value >= 1 and value == round(value) else f"{value:.12f}".rstrip("0").rstrip(".")


def lay_out(drawing: Drawing) -> None:
    """Settles where everything is, once, so that every file has the same layout."""
    FigureCanvasAgg(drawing.figure)  # measures text
    if engine := drawing.figure.get_layout_engine():
        engine.execute(drawing.figure)
    drawing.figure.set_layout_engine("none")
    if drawing.finish:
        drawing.finish()


def save(figure: Figure, folder: Path, name: str, title: str, caption: str) -> list[Path]:
    """Writes SVG (glyphs as outlines) and PDF (fonts embedded), neither with a date.

    Raises:
        UserError: a file cannot be written.
    """
    metadata: dict[str, dict[str, str | None]] = {
        "svg": {"Title": title, "Description": caption, "Creator": "Posology", "Date": None},
        "pdf": {"Title": title, "Subject": caption, "Creator": "Posology", "CreationDate": None},
    }
    written = []
    for kind in ("svg", "pdf"):
        path = folder / f"{name}.{kind}"
        with staged_file(path) as staging:
            figure.savefig(staging, format=kind, metadata=metadata[kind])
        written.append(path)
    return written


@contextlib.contextmanager
def context() -> Iterator[None]:
    """Draw and save within it: whatever the user's own settings of matplotlib are, they neither count nor change."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield
