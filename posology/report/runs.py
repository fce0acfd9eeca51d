"""What a report knows about a run, and what the intervals of a task's runs allow one to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run as a report shows it.

    Attributes:
        task: name of the prepared task.
        kind: `sequence-classification` or `token-classification`.
        backbone: catalogue name or folder name, such as `minilm:3`; `none` for a baseline.
        backbone_parameters: parameters of the backbone, without head and adapter; 0 for a baseline.
        method: how the backbone was adapted: `full`, `lora`, ...
        metric: name of the score; higher is better.
        value: the score on the test split; not finite where it is undefined.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        trainable_parameters: what the optimiser changed.
        adapter_bytes: what has to be stored or shipped besides the backbone (all weights for `full`).
        seconds: training time.
        examples_per_second: training throughput.
        seed: seed of initialisation and order.
        coverage: share of the tokens of the text that the model saw, from 0 to 1.
        extra: further columns of the table, as text.
    """

    task: str
    kind: str
    backbone: str
    backbone_parameters: int
    method: str
    metric: str
    value: float
    low: float
    high: float
    trainable_parameters: int
    adapter_bytes: int
    seconds: float
    examples_per_second: float
    seed: int
    coverage: float
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.method} on {self.backbone}" if self.adapted else self.method

    @property
    def adapted(self) -> bool:
        """Whether a backbone was adapted; a baseline has none."""
        return self.backbone_parameters > 0

    @property
    def scored(self) -> bool:
        """Whether the score and its interval are numbers at all (a metric can be undefined)."""
        return all(map(math.isfinite, (self.value, self.low, self.high)))

    @property
    def cost(self) -> tuple[float, ...]:
        """Orders runs by what they cost: trained parameters, then the backbone's size, storage and time."""
        return (self.trainable_parameters, self.backbone_parameters, self.adapter_bytes, self.seconds)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The runs of one task that were scored by one metric, and what their intervals allow.

    Two runs count as *not distinguishable* if their 95 % intervals overlap. This is cautious (a paired
    comparison on the same documents can separate runs whose intervals overlap) and never shows that two
    runs are equal.

    Attributes:
        rows: every run, scored ones first, best first.
        best: the run with the highest score, the cheaper one of equals; None if no run has a score.
        level: runs that are not distinguishable from the best, the best included, cheapest first.
        efficient: the highest-scoring run that adapted a backbone without full fine-tuning, if any.
    """

    task: str
    kind: str
    metric: str
    rows: tuple[RunRow, ...]
    best: RunRow | None
    level: tuple[RunRow, ...]
    efficient: RunRow | None

    @property
    def cheapest(self) -> RunRow | None:
        """The cheapest run that is not distinguishable from the best; may be the best itself."""
        return self.level[0] if self.level else None


def compare(runs: Sequence[RunRow]) -> list[Comparison]:
    """Groups runs by task and metric, in order of appearance, and compares those of each group."""
    groups: dict[tuple[str, str], list[RunRow]] = {}
    for run in runs:
        groups.setdefault((run.task, run.metric), []).append(run)
    return [_compare_group(rows) for rows in groups.values()]


def _compare_group(runs: list[RunRow]) -> Comparison:
    scored = sorted((run for run in runs if run.scored), key=lambda run: (-run.value, run.cost))
    rows = scored + [run for run in runs if not run.scored]
    best = scored[0] if scored else None
    level = sorted((run for run in scored if best and run.high >= best.low), key=lambda run: run.cost)
    efficient = next((run for run in scored if run.method != "full" and run.adapted), None)
    return Comparison(runs[0].task, runs[0].kind, runs[0].metric, tuple(rows), best, tuple(level), efficient)


def headline(comparison: Comparison) -> list[str]:
    """Plain sentences: the best run, the cheapest one that the intervals cannot tell from it, and how many they can.

    Seeds are named where one configuration was run with several.
    """
    best, cheapest = comparison.best, comparison.cheapest
    if best is None or cheapest is None:
        return [f"No run has a defined {metric_label(comparison.metric)}, so there is nothing to compare."]
    scored = [run for run in comparison.rows if run.scored]
    first = (
        f"{_named(best, scored)} scores highest, with {metric_label(comparison.metric)} {score_text(best)}, "
        f"{count_text(best.trainable_parameters)} trainable parameters and {duration_text(best.seconds)} of training."
    )
    if len(scored) == 1:
        return [first, "It is the only run with a score: there is nothing to compare it with."]
    lower = len(scored) - len(comparison.level)
    if len(comparison.level) == 1:
        following = scored[1]
        return [first, f"It is clearly ahead of every other run; the next, {_named(following, scored)}, "
                       f"reaches {score_text(following)}."]  # fmt: skip
    if cheapest is best:
        cheapest_of_all = min(scored, key=lambda run: run.cost) is best
        second = "It is also the cheapest run." if cheapest_of_all else "Every cheaper run is clearly lower."
    else:
        second = (
            f"{_named(cheapest, scored)} ({count_text(cheapest.trainable_parameters)} trainable parameters, "
            f"{bytes_text(cheapest.adapter_bytes)}) is not distinguishable from the best, at {score_text(cheapest)}"
            f"{_saving(cheapest, best)}."
        )
    if lower == 0:
        third = f"The intervals of all {len(scored)} runs overlap that of the best: this test set cannot rank them."
    else:
        third = f"{lower} of {len(scored)} runs {'is' if lower == 1 else 'are'} clearly lower than the best."
    return [first, second, third]


def _named(run: RunRow, among: Sequence[RunRow]) -> str:
    seeds = {other.seed for other in among if other.name == run.name}
    return f"{run.name} with seed {run.seed}" if len(seeds) > 1 else run.name


def _saving(cheapest: RunRow, best: RunRow) -> str:
    ratio = best.trainable_parameters / max(cheapest.trainable_parameters, 1)
    return f", and trains {ratio:,.0f} times fewer parameters" if ratio >= 2 else ""


_METRIC_LABELS = {
    "macro_f1": "macro-F1", "micro_f1": "micro-F1", "weighted_f1": "weighted F1", "entity_f1": "entity F1",
    "auroc": "AUROC", "average_precision": "average precision",
}  # fmt: skip


def metric_label(metric: str) -> str:
    return _METRIC_LABELS.get(metric, metric.replace("_", " "))


def score_text(run: RunRow) -> str:
    """`0.812 (0.774 to 0.846)`; a dash where the score is undefined."""
    return f"{run.value:.3f} ({run.low:.3f} to {run.high:.3f})" if run.scored else "–"


def decimal_text(value: float) -> str:
    """`1,234.5`; a dash where it is not known."""
    return f"{value:,.1f}" if math.isfinite(value) else "–"


def count_text(count: float) -> str:
    """A count to three figures: `820`, `59.9 k`, `22.7 M`, `6.74 G`."""
    return _scaled(count, ("", " k", " M", " G"))


def bytes_text(size: float) -> str:
    """A size to three figures in decimal units: `210 kB`, `90.9 MB`."""
    return _scaled(size, (" bytes", " kB", " MB", " GB"))


def _scaled(value: float, units: Sequence[str]) -> str:
    power = 0
    # 999.5 would be printed as 1000 of the smaller unit.
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    number = f"{value:,.{digits}f}"
    return (number.rstrip("0").rstrip(".") if digits else number) + units[power]


def duration_text(seconds: float) -> str:
    """`8.2 s`, `75 s`, `12 min 5 s`, `3 h 20 min`; a dash where it is not known."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
