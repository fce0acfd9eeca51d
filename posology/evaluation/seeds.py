"""Several seeds of one configuration: median and deviation as published, and intervals over seeds and documents.

A mean over S seeds is uncertain for two reasons: other patients, and other seeds. With y[s] the score of seed s on these
documents and V the jackknife's variance over groups:

    Var(mean) = V(mean of y) + (spread between seeds) / S
    spread    = max(0, variance of y[s] over seeds - mean of V(y[s] - mean of y) * S / (S - 1))

The first term already holds that seeds err on different documents, which also moves the y[s] apart; the subtraction
keeps it from being counted twice. It is a crossed random-effects model (seeds by groups: Searle, Casella & McCulloch
1992, Variance Components); degrees of freedom are those of Satterthwaite (1946, Biometrics Bulletin 2), so that two or
three seeds that differ give an interval as wide as so few deserve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from posology.evaluation.statistics import Jackknife, Scores, check_paired, difference, interval, intervals, jackknife


def median_sd(values: Sequence[float]) -> dict[str, float | None]:
    """`median`, and `sd`, the sample standard deviation (None for a single value), as the published tables give them.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("no values were given")
    return {
        "median": float(np.median(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }


def combined_interval(
    metric: str, scores: Sequence[Scores], groups: Sequence[str], *, seed: int = 0, level: float = 0.95
) -> dict[str, float | None]:
    """The mean over seeds, with an interval for other patients and other seeds.

    With one seed it is the interval of that run for other patients: it does not know of other seeds.

    Args:
        metric: a name that the scores give.
        scores: of each seed, on the same documents.
        groups: (n,) the group of each document.
        seed, level: as in `intervals`.

    Returns:
        `{"value", "low", "high"}`, None where undefined, as in `intervals`.

    Raises:
        ValueError: the seeds are not on the same documents, or `groups` does not fit them.
    """
    check_paired(scores, scores)
    if len(scores) == 1:
        return intervals(scores[0], groups, seed=seed, level=level)[metric]
    several = _seeds(metric, scores, groups, seed)
    mean = several.mean
    if not mean.defined:
        return interval(metric, mean.value, math.nan, 1.0, level)
    total, freedom = _total(mean.variance, mean.degrees_of_freedom, [several])
    return interval(metric, mean.value, total, freedom, level)


def combined_difference(
    metric: str,
    first: Sequence[Scores],
    second: Sequence[Scores],
    groups: Sequence[str],
    *,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, float | None]:
    """How much better the first of two configurations is, in the mean over seeds of each, on the same documents.

    Documents are paired, seeds are not: the third seed of one method has nothing in common with the third of another.
    If only one configuration has several seeds, the other is taken to vary as much; with one seed each it is
    `paired_difference`, which speaks of these two trained models alone.

    Args:
        metric: a name that the scores give.
        first, second: of each seed, on the same documents; the numbers of seeds may differ.
        groups: (n,) the group of each document.
        seed, level: as in `paired_difference`.

    Returns:
        `{"value", "low", "high", "p"}`, None where undefined, as in `paired_difference`.

    Raises:
        ValueError: the runs are not on the same documents, or `groups` does not fit them.
    """
    check_paired(first, second)
    ahead, behind = (_seeds(metric, scores, groups, seed) for scores in (first, second))
    both = Jackknife(ahead.mean.value - behind.mean.value, ahead.mean.without - behind.mean.without)
    blocks = len(both.without)
    if not both.defined:
        return difference(both.value, math.nan, 1.0, blocks, level)
    several = [each for each in (ahead, behind) if each.seeds > 1]
    if len(several) == 1:
        (known,) = several
        several = [known._replace(seeds=1 / (1 + 1 / known.seeds))]
    total, freedom = _total(both.variance, blocks - 1.0, several)
    return difference(both.value, total, freedom, blocks, level)


class _Seeds(NamedTuple):
    """What S seeds say.

    Attributes:
        mean: over seeds, on all documents and without each block.
        seeds: S: the variance of the mean is the spread divided by it.
        spread: variance between seeds, what differing on the same documents contributes taken off; 0 for one seed.
        observed: variance between seeds as seen.
        freedom: degrees of freedom of it.
    """

    mean: Jackknife
    seeds: float
    spread: float
    observed: float
    freedom: int


def _seeds(metric: str, scores: Sequence[Scores], groups: Sequence[str], seed: int) -> _Seeds:
    found = [jackknife(each, groups, seed)[metric] for each in scores]
    values = np.array([each.value for each in found])
    without = np.stack([each.without for each in found])
    mean = Jackknife(float(values.mean()), without.mean(axis=0))
    number = len(found)
    if number == 1 or not mean.defined:
        return _Seeds(mean, number, 0.0, 0.0, 0)
    apart = [
        Jackknife(value - mean.value, each - mean.without).variance for value, each in zip(values, without, strict=True)
    ]
    observed = float(values.var(ddof=1))
    spread = max(0.0, observed - float(np.mean(apart)) * number / (number - 1))
    return _Seeds(mean, number, spread, observed, number - 1)


def _total(documents: float, freedom: float, configurations: Sequence[_Seeds]) -> tuple[float, float]:
    """The variance over documents and seeds, and its degrees of freedom."""
    total = documents + sum(each.spread / each.seeds for each in configurations)
    uncertain = documents**2 / freedom
    for each in configurations:
        if each.spread:
            uncertain += (each.observed / each.seeds) ** 2 / each.freedom
    return total, float(max(1.0, total**2 / uncertain)) if uncertain else freedom
