"""Configurations of a task against each other on the same documents: which are compared, and what comes out.

Everything against everything would be millions of pairs, and would need corrections that hide every difference. Compared
are, for each task: the best with those that could be mistaken for it, with the best baseline and with what validation
would have chosen; and full fine-tuning with each other method on the same backbone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from posology.errors import UserError
from posology.report import sentences
from posology.report.results import Configuration, Difference, Run, Score
from posology.report.text import UNKNOWN

RIVALS = 12
"""Configurations that the best is compared with, at most."""
PAIRS_WITH_FULL = 8
"""Comparisons of full fine-tuning and another method, at most."""
LEVEL = 0.05
"""Corrected p values below it show a difference."""
ROUGH = (
    "Intervals over seeds and documents are computed from answers by document for configurations that are compared; those "
    "of the others are put together from the intervals of their runs and the spread of their seeds."
)
_RANKED = ("auroc", "auroc_ovo", "average_precision")


class Verdict(NamedTuple):
    """What may be said of a task; see `TaskResults`."""

    sentences: tuple[str, ...]
    best: str | None
    cheapest: str | None


def compare(
    configurations: Sequence[Configuration], advance: Callable[[float], None]
) -> tuple[tuple[Configuration, ...], tuple[Difference, ...], Verdict]:
    """Orders configurations of one task, compares them, and says what came out.

    Args:
        configurations: with rough means.
        advance: is told of the progress, 1 in all.

    Returns:
        The configurations, the best first, those that were compared with means from their answers; the differences; and the
        verdict.
    """
    scored = sorted((each for each in configurations if each.mean.value is not None), key=_rank)
    unscored = tuple(each for each in configurations if each.mean.value is None)
    if not scored:
        advance(1)
        return unscored, (), Verdict(sentences.nothing(unscored[0].first.metric), None, None)
    best, by_validation = scored[0], _chosen_by_validation(scored)
    pairs = _pairs(scored, by_validation)
    book = Book(best.first.metric)
    found = []
    for first, second in pairs:
        found.append(book.difference(first, second))
        advance(1 / len(pairs))
    if not pairs:
        advance(1)
    differences = _differences(pairs, found)
    level = {
        other.name
        for (first, other), difference in zip(pairs, differences, strict=True)
        if first is best and not shown(difference, best, other)
    }
    cheapest = min([best, *(each for each in scored if each.name in level)], key=cost)
    exact = {each.name: book.mean(each) for each in {each.name: each for pair in pairs for each in pair}.values()}
    means = {name: mean for name, mean in exact.items() if mean is not None}
    ordered = [replace(each, mean=means.get(each.name, each.mean)) for each in scored]
    by_name = {each.name: each for each in ordered}
    said = sentences.of_task(
        ordered,
        differences,
        cheapest=by_name[cheapest.name],
        by_validation=by_name[by_validation.name] if by_validation is not None else None,
        level=level,
        documents=book.size,
    )
    return (*ordered, *unscored), differences, Verdict(said, best.name, cheapest.name)


def cost(configuration: Configuration) -> tuple[float, ...]:
    """Orders as prescriptions do: the smallest backbone first, of equals the quickest to train."""
    seconds = float(np.mean([run.seconds for run in configuration.runs]))
    return (configuration.first.backbone_parameters, seconds, configuration.first.adapter_bytes)


def shown(difference: Difference, first: Configuration, second: Configuration) -> bool:
    """Whether two configurations are shown to differ: by their answers, or else by intervals that do not overlap."""
    if difference.corrected is not None:
        return difference.corrected < LEVEL
    return not overlap(first.mean, second.mean)


def overlap(first: Score, second: Score) -> bool:
    """Whether two intervals overlap; one that is not known overlaps everything."""
    ends = (first.low, first.high, second.low, second.high)
    if any(end is None for end in ends):
        return True
    return first.high >= second.low and second.high >= first.low  # type: ignore[operator]


def rough_mean(scores: Sequence[Score]) -> Score:
    """The mean over seeds with an interval made of theirs: what documents leave open is common to all seeds, and
    combined with what the seeds leave open (Student's t of their standard error)."""
    known = [score for score in scores if score.value is not None]
    values = np.array([score.value for score in known], dtype=np.float64)
    if not len(values):
        return Score(None)
    mean = float(values.mean())
    if len(known) == 1:
        return known[0]
    if any(score.low is None or score.high is None for score in known):
        return Score(mean)
    from scipy.special import stdtrit

    seeds = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))
    below = float(np.mean([value - score.low for value, score in zip(values, known, strict=True)]))
    above = float(np.mean([score.high - value for value, score in zip(values, known, strict=True)]))
    return Score(mean, max(0.0, mean - np.hypot(below, seeds)), min(1.0, mean + np.hypot(above, seeds)))


# --- which --------------------------------------------------------------------------------------------------------


def _rank(configuration: Configuration) -> tuple[float, ...]:
    assert configuration.mean.value is not None
    return (-configuration.mean.value, *cost(configuration))


def mean_validation(configuration: Configuration) -> float | None:
    values = [run.validation for run in configuration.runs if run.validation is not None]
    return float(np.mean(values)) if values else None


def _chosen_by_validation(scored: Iterable[Configuration]) -> Configuration | None:
    known = [(value, each) for each in scored if (value := mean_validation(each)) is not None]
    return max(known, key=lambda entry: entry[0])[1] if known else None


def _pairs(
    scored: Sequence[Configuration], by_validation: Configuration | None
) -> list[tuple[Configuration, Configuration]]:
    best = scored[0]
    others = _rivals(scored)
    others += [each for each in scored if each.first.backbone is None][:1]
    others += [each for each in scored if each.first.backbone is not None][:1]
    if by_validation is not None:
        others.append(by_validation)
    pairs = [(best, other) for other in others if other is not best]
    known = {frozenset((first.name, second.name)): (first, second) for first, second in reversed(pairs)}
    for full, other in _with_full(scored):
        known.setdefault(frozenset((full.name, other.name)), (full, other))
    order = {id(pair): position for position, pair in enumerate(pairs)}
    return sorted(known.values(), key=lambda pair: order.get(id(pair), len(order)))


def _rivals(scored: Sequence[Configuration]) -> list[Configuration]:
    """Those that could be mistaken for the best: first those that are cheaper than all that score higher."""
    best = scored[0]
    open_ones = [each for each in scored[1:] if overlap(each.mean, best.mean)]
    front, least = [], cost(best)
    for each in open_ones:
        if cost(each) < least:
            front.append(each)
            least = cost(each)
    half = RIVALS * 2 // 3
    if len(front) > half:
        front = [front[round(position)] for position in np.linspace(0, len(front) - 1, half)]
    rest = [each for each in open_ones if each not in front]
    return sorted([*front, *rest[: RIVALS - len(front)]], key=_rank)


def _with_full(scored: Sequence[Configuration]) -> list[tuple[Configuration, Configuration]]:
    """Full fine-tuning and each other method under the same limits on one backbone; of several recipes what validation
    chose. First those on all documents without a time limit."""
    chosen: dict[tuple[Any, ...], dict[str, Configuration]] = {}
    for each in scored:
        run = each.first
        if run.backbone is None or run.ended_early:
            continue
        own = chosen.setdefault((run.backbone, run.shots, run.max_seconds), {})
        before = own.get(run.method)
        if before is None or (mean_validation(each) or 0.0) > (mean_validation(before) or 0.0):
            own[run.method] = each
    pairs = [
        (own["full"], other)
        for own in sorted(chosen.values(), key=lambda own: _limits(next(iter(own.values())).first))
        for method, other in own.items()
        if "full" in own and method != "full"
    ]
    return pairs[:PAIRS_WITH_FULL]


def _limits(run: Run) -> tuple[bool, bool, int]:
    """Few limits first, then many documents."""
    return (run.shots is not None, run.max_seconds is not None, -(run.shots or 0))


# --- how ----------------------------------------------------------------------------------------------------------


class Answers:
    """A run's answers on test, as the statistics want them: scores under any weighting of the documents.

    They are read from the artifact when they are needed. What a weighting gave is kept, since every comparison of a
    configuration weighs the documents in the same ways; the answers themselves need not be.

    Args:
        run: whose.
        documents: identifiers of the test split, in order.

    Raises:
        UserError: they are not there, or are about other documents.
    """

    def __init__(self, run: Run, documents: Sequence[str] | None):
        self._run, self._scores, self._known = run, None, dict[bytes, np.ndarray]()
        scores, self.ids, self.groups = self._read()
        if documents is not None and self.ids != documents:
            raise UserError("was tested on other documents", "Train it anew", run.key)
        self.gold = scores.gold
        self._scores = scores

    def __len__(self) -> int:
        return len(self.gold)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The run's metric, (R,), for weights (n, R)."""
        weights = np.ascontiguousarray(weights)
        key = hashlib.blake2b(weights.data, digest_size=16).digest() + str(weights.shape).encode()
        if key not in self._known:
            if self._scores is None:
                self._scores = self._read()[0]
            self._known[key] = self._scores(weights)[self._run.metric]
        return {self._run.metric: self._known[key]}

    def release(self) -> None:
        """Forgets the answers, and keeps what they gave."""
        self._scores = None

    def _read(self) -> tuple[Any, list[str], list[str]]:
        from posology.engine import predictions

        if self._run.artifact is None:
            raise UserError("its artifact is not there", "Train it anew", self._run.key)
        read = predictions.read(self._run.artifact)
        return read.scores(ranked=self._run.metric in _RANKED), read.ids, read.groups


class Book:
    """The answers of a task's runs, and what pairs of configurations give.

    Args:
        metric: that they are compared by.
    """

    def __init__(self, metric: str):
        self._metric = metric
        self._answers: dict[str, Answers | None] = {}
        self._ids: list[str] | None = None
        self._groups: list[str] = []

    @property
    def size(self) -> tuple[int, int] | None:
        """Documents and groups of the test split; None where no answers are there."""
        return None if self._ids is None else (len(self._ids), len(set(self._groups)))

    def difference(self, first: Configuration, second: Configuration) -> dict[str, float | None] | None:
        """`value`, `low`, `high` and `p` of the first less the second; None where answers are missing or do not fit."""
        from posology.evaluation.seeds import combined_difference

        own, other = self._of(first), self._of(second)
        if own is None or other is None:
            return None
        try:
            found = combined_difference(self._metric, own, other, self._groups)
        except (ValueError, KeyError):  # other gold annotations, or a metric that this kind of task has not
            return None
        for each in (*own, *other):
            each.release()
        return found

    def mean(self, configuration: Configuration) -> Score | None:
        """The mean over seeds with its interval; None where it cannot be had from answers."""
        from posology.evaluation.seeds import combined_interval

        if len(configuration.runs) == 1 or (own := self._of(configuration)) is None:
            return None
        try:
            found = combined_interval(self._metric, own, self._groups)
        except (ValueError, KeyError):
            return None
        for each in own:
            each.release()
        return Score(found["value"], found["low"], found["high"])

    def _of(self, configuration: Configuration) -> list[Answers] | None:
        found = [self._one(run) for run in configuration.runs]
        return None if any(each is None for each in found) else found  # type: ignore[return-value]

    def _one(self, run: Run) -> Answers | None:
        if run.key not in self._answers:
            import polars as pl

            try:
                answers = Answers(run, self._ids)
            except (UserError, OSError, ValueError, pl.exceptions.PolarsError):
                self._answers[run.key] = None
            else:
                if self._ids is None:
                    self._ids, self._groups = answers.ids, answers.groups
                answers.ids, answers.groups = self._ids, self._groups  # one copy for all
                self._answers[run.key] = answers
        return self._answers[run.key]


def _differences(
    pairs: Sequence[tuple[Configuration, Configuration]], found: Sequence[dict[str, float | None] | None]
) -> tuple[Difference, ...]:
    """Differences with corrected p values and sentences."""
    from posology.evaluation.statistics import holm

    known = [each["p"] for each in found if each is not None and each["p"] is not None]
    corrected = iter(holm([float(p) for p in known]))
    differences = []
    for (first, second), each in zip(pairs, found, strict=True):
        entry = each or {"value": None, "low": None, "high": None, "p": None}
        difference = Difference(
            first=first.name,
            second=second.name,
            value=entry["value"],
            low=None if entry["low"] is None else max(-1.0, entry["low"]),  # scores lie between 0 and 1
            high=None if entry["high"] is None else min(1.0, entry["high"]),
            p=entry["p"],
            corrected=next(corrected) if entry["p"] is not None else None,
            sentence=UNKNOWN,
        )
        sentence = sentences.of_difference(
            difference, first, second, overlap=overlap(first.mean, second.mean), count=len(known), level=LEVEL
        )
        differences.append(replace(difference, sentence=sentence))
    return tuple(differences)
