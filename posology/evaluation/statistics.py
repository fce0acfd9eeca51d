"""How sure a score is: bootstrap intervals over groups, paired comparison of two runs, Holm's correction.

Documents of one patient are alike, so what is drawn again is the group, with all its documents
(cluster bootstrap: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from posology.evaluation.metrics import ClassificationScores, EntityScores

# Weights of one batch of resamples: about two megabytes, so that the passes over them stay in the processor's cache.
_BATCH_ELEMENTS = 2**18


class Scores(Protocol):
    """Predictions on n documents that can be scored under many weightings; `gold` tells which documents."""

    gold: np.ndarray

    def __len__(self) -> int: ...

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]: ...


def classification_intervals(
    gold: np.ndarray,
    probabilities: np.ndarray,
    groups: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, float | None]]:
    """Every metric of `classification_metrics` with its interval; see `intervals`.

    Args:
        gold: (n,) class indices.
        probabilities: (n, C).
        groups: (n,) the group of each document.
    """
    return intervals(ClassificationScores(gold, probabilities), groups, resamples=resamples, seed=seed, level=level)


def entity_intervals(
    counts: np.ndarray, groups: Sequence[str], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, float | None]]:
    """Every metric of `entity_metrics` with its interval; see `intervals`.

    Args:
        counts: (n, L, 3), `entity_counts` of each document.
        groups: (n,) the group of each document.
    """
    return intervals(EntityScores(counts), groups, resamples=resamples, seed=seed, level=level)


def intervals(
    scores: Scores, groups: Sequence[str], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, float | None]]:
    """The metrics of a run with percentile bootstrap intervals over groups.

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


def paired_difference(
    metric: str,
    first: Scores,
    second: Scores,
    groups: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, float | None]:
    """How much better the first of two runs is on the same documents: paired bootstrap over groups.

    Both runs are scored on the same draws. `p` is two-sided: twice the share of resamples in which the difference is
    zero or has the rarer sign, the data themselves counted as one more of them so that it is never 0. It is small
    where the percentile interval is far from 0: below 0.05 where 0 lies outside the 95 % interval, but for rounding.
    For several comparisons see `holm`.

    Args:
        metric: a name that both scores give.
        first: predictions of the first run, `ClassificationScores` or `EntityScores`.
        second: predictions of the second run, documents in the same order.
        groups: (n,) the group of each document.
        resamples, seed, level: as in `intervals`.

    Returns:
        `{"value": first - second, "low": .., "high": .., "p": ..}`; None where undefined, as in `intervals`.

    Raises:
        ValueError: the runs are not on the same documents, or `groups` does not fit them.
    """
    if not np.array_equal(first.gold, second.gold):
        raise ValueError("the two runs are not on the same documents: their gold annotations differ")
    everything = np.ones((len(first), 1))
    value = float(first(everything)[metric][0] - second(everything)[metric][0])
    first_resampled = _resampled(first, groups, resamples, seed)
    second_resampled = _resampled(second, groups, resamples, seed)
    if not first_resampled or not second_resampled:
        return {"value": clean(value), "low": None, "high": None, "p": None}
    differences = first_resampled[metric] - second_resampled[metric]
    interval = _percentiles(differences, level)
    if interval["low"] is None:
        return {"value": clean(value), **interval, "p": None}
    defined = differences[~np.isnan(differences)]
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return {"value": clean(value), **interval, "p": min(1.0, 2 * float(tail + 1) / (len(defined) + 1))}


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number, in the given order (Holm 1979, Scandinavian Journal of Statistics 6).

    Comparing each to 0.05 keeps the chance of one false finding or more among all of them below 5 %.
    """
    corrected = [0.0] * len(p_values)
    reached = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = reached
    return corrected


def clean(value: Any) -> Any:
    """The value for JSON: NumPy's numbers and arrays as Python's, NaN and infinities as None, at any depth."""
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return clean(value.tolist())
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def resampling_weights(groups: Sequence[str], resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n documents is drawn, when as many groups as there are get drawn with replacement.

    Yields:
        (n, R) whole numbers as float64, R adding up to `resamples`. The draws depend on nothing but the number of
        groups, their sorted order and the seed.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    batch = max(16, _BATCH_ELEMENTS // max(1, len(group)))
    for start in range(0, resamples, batch):
        size = min(batch, resamples - start)
        drawn = generator.integers(0, len(names), size=(size, len(names)))
        cells = (drawn * size + np.arange(size)[:, None]).ravel()
        times = np.bincount(cells, minlength=len(names) * size).reshape(len(names), size)
        yield times.astype(np.float64)[group]


def _resampled(scores: Scores, groups: Sequence[str], resamples: int, seed: int) -> dict[str, np.ndarray] | None:
    """Each metric in each resample, (resamples,) by name; None where there is nothing to resample."""
    if len(groups) != len(scores):
        raise ValueError(f"{len(groups)} groups were given for {len(scores)} documents")
    if len(set(groups)) < 2:
        return None
    batches = [scores(weights) for weights in resampling_weights(groups, resamples, seed)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _percentiles(values: np.ndarray | None, level: float) -> dict[str, float | None]:
    """`low` and `high` that hold the middle `level` of the values that are defined."""
    if values is None or 2 * np.isnan(values).sum() > len(values):
        return {"low": None, "high": None}
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high)}
