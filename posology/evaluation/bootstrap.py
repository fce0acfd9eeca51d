"""The percentile bootstrap over groups: the common alternative to the intervals of `posology.evaluation.statistics`.

What is drawn again is the group, with all its documents (cluster bootstrap: Davison & Hinkley 1997, Bootstrap Methods
and their Application, section 3.8). It is kept as a second opinion that assumes no scale and no distribution, and as
what `benchmarks/coverage.py` compares with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from posology.evaluation.statistics import Scores, batches, check_paired, clean, codes


def bootstrap_intervals(
    scores: Scores, groups: Sequence[str], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, float | None]]:
    """The metrics of a run with percentile intervals.

    Each resample is scored as if it were the data, so a class that was not drawn is not averaged over; a resample in
    which a metric is undefined (no positives were drawn) is left out for that metric. `low` and `high`
    are None if it is undefined in most resamples, or if there is only one group, which says nothing about others.
    The calibration error of a resample tends to be larger than that of the sample, whose noise it adds to: its value
    can lie below its interval.

    Args:
        scores: the run's predictions.
        groups: (n,) the group of each document.
        resamples: how many times the groups are drawn.
        seed: the same seed draws the same groups.
        level: share of the resamples inside the interval.

    Returns:
        `{"value": .., "low": .., "high": ..}` by metric, None where undefined; fit for JSON.

    Raises:
        ValueError: `groups` does not fit the documents.
    """
    values = scores(np.ones((len(scores), 1)))
    resampled = _resampled(scores, groups, resamples, seed)
    return {
        name: {"value": clean(value[0]), **_percentiles(resampled[name] if resampled else None, level)}
        for name, value in values.items()
    }


def bootstrap_differences(
    first: Scores, second: Scores, groups: Sequence[str], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, float | None]]:
    """How much better the first of two runs is on the same documents: both are scored on the same draws.

    `p` is two-sided: twice the share of resamples in which the difference is zero or has the rarer sign, the data
    themselves counted as one more of them so that it is never 0. It is below 0.05 where 0 lies outside the 95 %
    interval, but for rounding.

    Args:
        first, second: predictions of the two runs, documents in the same order.
        groups: (n,) the group of each document.
        resamples, seed, level: as in `bootstrap_intervals`.

    Returns:
        `{"value": first - second, "low": .., "high": .., "p": ..}` by metric; None where undefined, as in
        `bootstrap_intervals`.

    Raises:
        ValueError: the runs are not on the same documents, or `groups` does not fit them.
    """
    check_paired([first], [second])
    everything = np.ones((len(first), 1))
    values, subtracted = first(everything), second(everything)
    own, other = (_resampled(each, groups, resamples, seed) for each in (first, second))
    result = {}
    for name in values:
        value = clean(values[name][0] - subtracted[name][0])
        differences = own[name] - other[name] if own and other else None
        found: dict[str, float | None] = {"value": value, **_percentiles(differences, level), "p": None}
        if differences is not None and found["low"] is not None:
            defined = differences[~np.isnan(differences)]
            tail = min((defined <= 0).sum(), (defined >= 0).sum())
            found["p"] = min(1.0, 2 * float(tail + 1) / (len(defined) + 1))
        result[name] = found
    return result


def resampling_weights(groups: Sequence[str], resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n documents is drawn, when as many groups as there are get drawn with replacement.

    Yields:
        (n, R) whole numbers as float64, R adding up to `resamples`. The draws depend on nothing but the number of
        groups, their sorted order and the seed.
    """
    group, number = codes(groups, len(groups))
    generator = np.random.default_rng(seed)
    for start, stop in batches(resamples, len(group)):
        size = stop - start
        drawn = generator.integers(0, number, size=(size, number))
        cells = (drawn * size + np.arange(size)[:, None]).ravel()
        times = np.bincount(cells, minlength=number * size).reshape(number, size)
        yield times.astype(np.float64)[group]


def _resampled(scores: Scores, groups: Sequence[str], resamples: int, seed: int) -> dict[str, np.ndarray] | None:
    """Each metric in each resample, (resamples,) by name; None where there is nothing to resample."""
    if codes(groups, len(scores))[1] < 2:
        return None
    parts = [scores(weights) for weights in resampling_weights(groups, resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _percentiles(values: np.ndarray | None, level: float) -> dict[str, float | None]:
    """`low` and `high` that hold the middle `level` of the values that are defined."""
    if values is None or 2 * np.isnan(values).sum() > len(values):
        return {"low": None, "high": None}
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high)}
