"""What stands on the page: rows, cards, curves and words, ready to be written as JSON.

Everything a person reads is worded here, so that the scripts only draw: a number that is sorted or drawn comes beside
its text.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import json
import math
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from posology.report.comparing import LEVEL
from posology.report.page import markers
from posology.report.page.curves import curves, thinned
from posology.report.results import Configuration, Difference, Results, Run, TaskResults
from posology.report.tables import standings
from posology.report.text import (
    UNKNOWN,
    bytes_text,
    count_text,
    decimal_text,
    duration_text,
    flops_text,
    metric_label,
    money_text,
    points_text,
)

if TYPE_CHECKING:
    from markupsafe import Markup

FIRST_ROWS = 50
"""Rows of the leaderboard that are there without scripts, and on each of its pages."""

RUNS_PER_BLOCK = 100
"""Runs that are read at once when a card is opened."""

SHOWN_DIFFERENCES = 12
"""Comparisons of a task that stand in its table; all are on the cards."""

STANDINGS = {
    "best": "best",
    "not shown to be worse": "level",
    "worse": "worse",
    "not compared": "not compared",
    "no score": UNKNOWN,
}
"""How a configuration stands against the best of its task (`posology.report.tables.standings`), and how a row says so."""

_VERSIONS_OF = ("posology", "torch", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the leaderboard and an axis of the chart; lower is better.

    Attributes:
        heading: of the column.
        axis: what the chart's axis is called.
        unit: how the axis words its ticks: `count`, `bytes`, `seconds`, `milliseconds` or `money`.
        of: a run's value; None where it was not measured.
        text: of a value.
    """

    heading: str
    axis: str
    unit: str
    of: Callable[[Run], float | None]
    text: Callable[[float], str]


def _measures(runs: Sequence[Run]) -> tuple[Measure, ...]:
    currencies = {run.currency for run in runs if run.cost is not None and run.currency}
    # Sums in several currencies can neither be sorted nor drawn: the cards have them.
    currency = currencies.pop() if len(currencies) == 1 else None
    return (
        Measure("Trainable", "trainable parameters", "count", lambda run: run.trainable_parameters, count_text),
        Measure("Size", "size beside the backbone", "bytes", lambda run: run.adapter_bytes, bytes_text),
        Measure("Training", "training time", "seconds", lambda run: run.seconds, duration_text),
        Measure(f"Cost, {currency}", f"cost of training, {currency}", "money",
                lambda run: run.cost if currency else None,
                lambda value: money_text(value, currency).removesuffix(f" {currency}")),
        Measure("Latency", "latency of one document", "milliseconds",
                lambda run: run.measures.get("latency_p50_ms"), lambda value: f"{decimal_text(value)} ms"),
        Measure("Memory", "peak memory of training", "bytes", lambda run: run.peak_memory, bytes_text),
    )  # fmt: skip


def _measured(name: str, text: Callable[[float], str]) -> Callable[[Run], str]:
    def of(run: Run) -> str:
        value = run.measures.get(name)
        return UNKNOWN if value is None else text(value)

    return of


FACTS: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("Trainable parameters", lambda run: f"{run.trainable_parameters:,}"),
    ("Size beside the backbone", lambda run: bytes_text(run.adapter_bytes)),
    ("Training time", lambda run: duration_text(run.seconds)),
    ("Cost of training", lambda run: money_text(run.cost, run.currency)),
    ("Training tokens per second", lambda run: decimal_text(run.tokens_per_second)),
    ("Training compute", _measured("training_flops", flops_text)),
    ("Compute per token", _measured("flops_per_token", flops_text)),
    ("Peak memory of training", lambda run: bytes_text(run.peak_memory)),
    ("Energy of training", _measured("energy_joules", lambda value: f"{decimal_text(value)} J")),
    ("Median latency", _measured("latency_p50_ms", lambda value: f"{decimal_text(value)} ms")),
    ("95th percentile of latency", _measured("latency_p95_ms", lambda value: f"{decimal_text(value)} ms")),
    ("Prediction tokens per second", _measured("prediction_tokens_per_second", decimal_text)),
    ("Size on disk", _measured("bytes", bytes_text)),
    ("Text read", lambda run: UNKNOWN if run.coverage is None else f"{decimal_text(100 * run.coverage)} %"),
)
"""What a card tells of a run besides its scores."""


ASKED: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("backbone's parameters", lambda run: f"{run.backbone_parameters:,}" if run.backbone_parameters else ""),
    ("backbone's domain", lambda run: run.domain or ""),
    ("recipe", lambda run: run.recipe_name),
    ("examples per class", lambda run: "" if run.shots is None else str(run.shots)),
    ("limit of time", lambda run: "" if run.max_seconds is None else duration_text(run.max_seconds)),
)
"""What a run was asked for besides task, method, backbone, seed and fields of the recipe."""


def content(results: Results) -> dict[str, Any]:
    """What the template shows and the scripts draw from."""
    runs = [run for task in results.tasks for configuration in task.configurations for run in configuration.runs]
    methods, backbones = markers.methods(runs), markers.backbones(runs)
    measures, recipe = _measures(runs), _usual_recipe(runs)
    by_task = list(_rows(results.tasks, measures))
    rows = list(itertools.chain.from_iterable(by_task))
    today = date.today()
    data = {
        "tasks": [_task_data(task) for task in results.tasks],
        "measures": [{"axis": measure.axis, "unit": measure.unit} for measure in measures],
        "facts": [name for name, _ in FACTS],
        "asked": [name for name, _ in ASKED],
        "recipe": recipe,
        "standings": STANDINGS,
        "methods": methods,
        "backbones": {name: [fill, count_text(size)] for name, (fill, size) in backbones.items()},
        "shapes": markers.SHAPES,
        "fills": markers.FILLS,
        "rows": [{name: value for name, value in row.items() if value != "" and value is not False} for row in rows],
        "page": FIRST_ROWS,
        "block": RUNS_PER_BLOCK,
    }
    return {
        "title": results.title,
        "today": today.isoformat(),
        "date": f"{today.day} {today:%B %Y}",
        "tasks": [_task_view(task, own[:1]) for task, own in zip(results.tasks, by_task, strict=True)],
        "notes": results.notes,
        "rows": rows[:FIRST_ROWS],
        "counts": {"runs": len(runs), "configurations": len(rows), "tasks": len(results.tasks)},
        "columns": [
            (index, measure)
            for index, measure in enumerate(measures)
            if any(row["values"][index] is not None for row in rows)
        ],
        "standings": STANDINGS,
        "methods": methods,
        "backbones": {name: count_text(size) for name, (_, size) in backbones.items()},
        "shapes": markers.SHAPES,
        "data": as_json(data),
        "blocks": [as_json(block) for block in _blocks(results.tasks, recipe)],
    }


def _rows(tasks: Sequence[TaskResults], measures: Sequence[Measure]) -> Iterator[list[dict[str, Any]]]:
    """Every configuration as the leaderboard shows it, task by task."""
    counted = 0
    for index, task in enumerate(tasks):
        means = [configuration.mean for configuration in task.configurations]
        ends = [_number(end) for mean in means for end in (mean.value, mean.low, mean.high)]
        place, standing = _placing([end for end in ends if end is not None]), standings(task)
        rows = []
        for configuration in task.configurations:
            first, mean = configuration.first, configuration.mean
            score = [_number(value, 6) for value in (mean.value, mean.low, mean.high)]
            values = [_median(measure, configuration) for measure in measures]
            first_run, counted = counted, counted + len(configuration.runs)
            rows.append({
                "task": index, "name": configuration.name, "method": first.method, "backbone": first.backbone or "",
                "setting": _setting(configuration), "score": score,
                "bar": [place(value) for value in score],
                "standing": list(STANDINGS).index(standing[configuration.name]),
                "cheapest": configuration.name == task.cheapest,
                "spread": _spread(configuration),
                "values": [_number(value, 6) for value in values],
                "texts": [UNKNOWN if value is None else measure.text(value)
                          for measure, value in zip(measures, values, strict=True)],
                "keys": [run.key for run in configuration.runs],
                "first": first_run,
            })  # fmt: skip
        yield rows


def _median(measure: Measure, configuration: Configuration) -> float | None:
    """Over the seeds where it was measured."""
    values = [value for run in configuration.runs if (value := _number(measure.of(run))) is not None]
    return statistics.median(values) if values else None


def _placing(ends: Sequence[float]) -> Callable[[float | None], float | None]:
    """Where a score stands on a bar for all of its task, in percent, with room for the mark at both ends."""
    low, width = min(ends, default=0.0), (max(ends, default=1.0) - min(ends, default=0.0)) or 1.0
    return lambda value: None if value is None else _number(round(5 + 90 * (value - low) / width, 1))


def _setting(configuration: Configuration) -> str:
    """What tells it from others with the same method and backbone: `rank=16`."""
    name = configuration.name.removeprefix(configuration.first.name)
    return "" if name == configuration.name else name.strip(" ,;:()")


def _spread(configuration: Configuration) -> str:
    if len(configuration.runs) == 1 or configuration.median is None:
        return ""
    seeds = f"{len(configuration.runs)} seeds: median {configuration.median:.3f}"
    return seeds if configuration.sd is None else f"{seeds}, standard deviation {configuration.sd:.3f}"


def _task_data(task: TaskResults) -> dict[str, Any]:
    return {
        "name": task.task,
        "metric": metric_label(task.metric),
        "metrics": [metric_label(name) for name in _metrics(task)],
        "labels": _labels(task),
        "said": [[difference.first, difference.second, difference.sentence] for difference in task.differences],
        "curves": curves(task),
    }


def _metrics(task: TaskResults) -> list[str]:
    """Every metric of its runs, the one it is judged by first."""
    names = (name for configuration in task.configurations for run in configuration.runs for name in run.scores)
    return list(dict.fromkeys(itertools.chain([task.metric], names)))


def _labels(task: TaskResults) -> list[str]:
    names = (name for configuration in task.configurations for run in configuration.runs for name in run.per_label)
    return list(dict.fromkeys(itertools.chain(task.labels, names)))


def _task_view(task: TaskResults, best: Sequence[dict[str, Any]]) -> dict[str, Any]:
    runs = sum(len(configuration.runs) for configuration in task.configurations)
    documents = ", ".join(f"{name} {count:,}" for name, count in task.counts.items())
    facts = [
        task.kind.replace("-", " "),
        metric_label(task.metric),
        *([f"made from {task.source}"] if task.source else []),
        *([f"{task.protocol} protocol"] if task.protocol else []),
        *([f"documents: {documents}"] if documents else []),
        *([f"data {task.fingerprint[:12]}"] if task.fingerprint else []),
        f"{runs:,} run{'s' * (runs != 1)}",
    ]
    return {
        "name": task.task,
        "metric": metric_label(task.metric),
        "facts": " · ".join(facts),
        "sentences": task.sentences,
        "best": best[0] if best else None,
        "differences": [_difference(difference) for difference in task.differences[:SHOWN_DIFFERENCES]],
        "more": max(0, len(task.differences) - SHOWN_DIFFERENCES),
    }


def _difference(difference: Difference) -> dict[str, Any]:
    interval = UNKNOWN
    if difference.low is not None and difference.high is not None:
        interval = f"{points_text(difference.low)} to {points_text(difference.high)}"
    return {
        "first": difference.first,
        "second": difference.second,
        "points": UNKNOWN if difference.value is None else points_text(difference.value),
        "interval": interval,
        "p": _p_text(difference.p),
        "corrected": _p_text(difference.corrected),
        "shown": difference.corrected is not None and difference.corrected < LEVEL,
    }


def _p_text(p: float | None) -> str:
    if p is None:
        return UNKNOWN
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _blocks(tasks: Sequence[TaskResults], recipe: Mapping[str, str]) -> Iterator[list[dict[str, Any]]]:
    """The cards' runs in the order of the rows, a block at a time."""
    cards = (
        _card(run, metrics, labels, recipe)
        for task in tasks
        for metrics, labels in [(_metrics(task), _labels(task))]
        for configuration in task.configurations
        for run in configuration.runs
    )
    while block := list(itertools.islice(cards, RUNS_PER_BLOCK)):
        yield block


def _card(run: Run, metrics: Sequence[str], labels: Sequence[str], recipe: Mapping[str, str]) -> dict[str, Any]:
    """One run, without what its row says and without names that many cards share."""
    scores = [run.scores.get(name) for name in metrics]
    per_label = [run.per_label.get(name) for name in labels]
    card = {
        "seed": run.seed,
        "studies": run.studies,
        "asked": [text(run) for _, text in ASKED],
        "overrides": {name: plain_text(value) for name, value in run.overrides.items()},
        "validation": UNKNOWN if run.validation is None else f"{run.validation:.3f}",
        "scores": [score and [_number(value, 4) for value in (score.value, score.low, score.high)] for score in scores],
        "labels": [
            label and [_number(label.get(name), 4) for name in ("precision", "recall", "f1", "support")]
            for label in per_label
        ],
        "curve": [
            [_number(point.get(name), 4) for name in ("seconds", "loss", "score")] for point in thinned(run.curve)
        ],
        "facts": ["" if (words := text(run)) == UNKNOWN else words for _, text in FACTS],
    }  # fmt: skip
    if run.recipe:
        texts = {name: plain_text(value) for name, value in run.recipe.items()}
        card["recipe"] = {name: text for name, text in texts.items() if text != recipe[name]}
    if run.ended_early:
        card["early"] = True
    return card


def _usual_recipe(runs: Iterable[Run]) -> dict[str, str]:
    """The commonest value of each hyper-parameter: cards only carry what is different."""
    values: dict[str, Counter[str]] = {}
    for run in runs:
        for name, value in run.recipe.items():
            values.setdefault(name, Counter())[plain_text(value)] += 1
    return {name: counter.most_common(1)[0][0] for name, counter in values.items()}


def plain_text(value: Any) -> str:
    """A setting as text; of an absolute path only the name, as folders may name people and machines."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain_text, value))
    if isinstance(value, str):
        return _without_folders(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


@functools.cache
def _without_folders(text: str) -> str:
    for path in (PurePosixPath(text), PureWindowsPath(text)):
        if path.is_absolute():
            return path.name
    return text


def _number(value: float | None, figures: int | None = None) -> float | None:
    """None for what JSON cannot hold; otherwise to so many significant figures."""
    if value is None or not math.isfinite(value):
        return None
    if figures is None or isinstance(value, int) or value == int(value):
        return int(value) if value == int(value) else value
    return float(f"{value:.{figures}g}")


def as_json(value: Any) -> Markup:
    """JSON that may stand inside a `<script>`: nothing in it can end that or open a comment."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def versions() -> dict[str, str]:
    """Of Python and of the packages that scores depend on, where they are installed."""
    found = {"Python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
