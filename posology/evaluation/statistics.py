"""How sure a score is: intervals and paired comparison by a jackknife over groups, Holm's correction.

Documents of one patient are alike, so what is left out is the group, with all its documents (Efron & Stein 1981, Annals
of Statistics 9; for clustered AUROC Obuchowski 1997, Biometrics 53, has the same idea). Intervals are symmetric on the
logit scale. On generated predictions these and percentile bootstrap intervals (`posology.evaluation.bootstrap`) both come
within two points of their level; these do not depend on random draws and take half of the time. See
`docs/statistics.md` and `benchmarks/coverage.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from posology.evaluation.metrics import ClassificationScores, EntityScores

# Weights of one batch of weightings: about two megabytes, so that the passes over them stay in the processor's cache.
_BATCH_ELEMENTS = 2**18

# Beyond so many groups several are left out at once, which costs a little precision of the standard error (3 %).
MOST_BLOCKS = 500

# What metrics can reach at most, if not 1.
_CEILINGS = {"brier": 2.0}


class Scores(Protocol):
    """Predictions on n documents that can be scored under many weightings; `gold` tells which documents."""

    gold: np.ndarray

    def __len__(self) -> int: ...

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Jackknife:
    """A figure, and what it is without each of B blocks of groups.

    Attributes:
        value: on all documents.
        without: (B,).
    """

    value: float
    without: np.ndarray

    @property
    def defined(self) -> bool:
        """Whether the figure is defined, whichever block is left out, and there are two blocks or more."""
        return len(self.without) > 1 and bool(np.isfinite(self.value) and np.isfinite(self.without).all())

    @property
    def variance(self) -> float:
        """Of the figure, over groups drawn anew."""
        blocks = len(self.without)
        return float((blocks - 1) / blocks * (self._deviations**2).sum())

    @property
    def degrees_of_freedom(self) -> float:
        """How many normal deviations tell the variance as well as these do: fewer than B - 1 where a few groups decide
        most of it, such as those of a rare class. From the deviations' kurtosis, as the variance of a sample variance is
        (Cramer 1946, Mathematical Methods of Statistics, section 27.4); at least 1."""
        blocks, squared = len(self.without), self._deviations**2
        if not squared.any():
            return blocks - 1.0
        kurtosis = blocks * (squared**2).sum() / squared.sum() ** 2
        return float(max(1.0, min(blocks - 1.0, 2 * blocks / max(kurtosis - 1, 1e-9))))

    @property
    def _deviations(self) -> np.ndarray:
        # Differences that are nothing but rounding are none.
        deviations = self.without - self.without.mean()
        return np.where(np.abs(deviations) < 1e-13, 0.0, deviations)


def classification_intervals(
    gold: np.ndarray, probabilities: np.ndarray, groups: Sequence[str], *, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, float | None]]:
    """Every metric of `classification_metrics` with its interval; see `intervals`.

    Args:
        gold: (n,) class indices.
        probabilities: (n, C).
        groups: (n,) the group of each document.
    """
    return intervals(ClassificationScores(gold, probabilities), groups, seed=seed, level=level)


def entity_intervals(
    counts: np.ndarray, groups: Sequence[str], *, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, float | None]]:
    """Every metric of `entity_metrics` with its interval; see `intervals`.

    Args:
        counts: (n, L, 3), `entity_counts` of each document.
        groups: (n,) the group of each document.
    """
    return intervals(EntityScores(counts), groups, seed=seed, level=level)


def intervals(
    scores: Scores, groups: Sequence[str], *, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, float | None]]:
    """The metrics of a run with intervals that hold for patients like these.

    With v the value and s its standard error by the jackknife, the interval is logit(v) -+ t s / (v (1 - v)), taken back
    from the logit scale, t being the quantile of Student's distribution at the jackknife's degrees of freedom. A value
    at the end of the scale, such as an accuracy of 1, gets the interval of Clopper and Pearson for as many faultless
    groups. `low` and `high` are None where leaving out a single group leaves the metric undefined, and with one group.

    Args:
        scores: the run's predictions.
        groups: (n,) the group of each document.
        seed: which groups share a block, if there are more than `MOST_BLOCKS`.
        level: how often the interval should hold the value that all such patients would give.

    Returns:
        `{"value": .., "low": .., "high": ..}` by metric, None where undefined; fit for JSON.

    Raises:
        ValueError: `groups` does not fit the documents.
    """
    found = jackknife(scores, groups, seed)
    result = {}
    for name, each in found.items():
        ceiling = _CEILINGS.get(name, 1.0)
        if each.defined and each.value in (0.0, ceiling):
            result[name] = _at_the_end(name, scores, groups, each.value, ceiling, level)
        else:
            variance = each.variance if each.defined else math.nan
            freedom = each.degrees_of_freedom if each.defined else 1.0
            result[name] = interval(name, each.value, variance, freedom, level)
    return result


def interval(
    metric: str, value: float, variance: float, degrees_of_freedom: float, level: float
) -> dict[str, float | None]:
    """`value`, `low` and `high`, symmetric on the logit scale; see `intervals`. None where the variance is not known."""
    ceiling = _CEILINGS.get(metric, 1.0)
    if not math.isfinite(variance) or not math.isfinite(value):
        return {"value": clean(value), "low": None, "high": None}
    share = value / ceiling
    if variance == 0 or not 0 < share < 1:
        return {"value": value, "low": value, "high": value}
    reach = _quantile(degrees_of_freedom, level) * math.sqrt(variance) / ceiling / (share * (1 - share))
    low, high = ceiling * expit(logit(share) + np.array([-reach, reach]))
    return {"value": value, "low": float(low), "high": float(high)}


class _LabelScores:
    """F1 of each of L labels, by its number, under any number of weightings of n documents; counts (n, L, 3)."""

    def __init__(self, counts: np.ndarray):
        self.gold = counts[:, :, 2]
        self._addends = counts.transpose(2, 1, 0).astype(np.float64)

    def __len__(self) -> int:
        return len(self.gold)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        right, predicted, gold = self._addends @ weights
        # Where a label is neither there nor answered in a resample, it says nothing of F1.
        f1 = np.divide(2 * right, predicted + gold, out=np.full_like(right, np.nan), where=predicted + gold > 0)
        return {str(label): values for label, values in enumerate(f1)}


def with_intervals(
    per_label: dict[str, dict[str, float]], counts: np.ndarray, groups: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Results by label with `f1_low` and `f1_high`, the ends of the interval of F1; see `intervals`.

    Args:
        per_label: as `posology.evaluation.metrics.per_class` gives it.
        counts: (n, L, 3) right, predicted and gold, which it was made from.
        groups: (n,) the group of each document.
    """
    found = intervals(_LabelScores(counts), groups)
    ends = [{f"f1_{end}": found[str(label)][end] for end in ("low", "high")} for label in range(len(per_label))]
    return {label: {**entry, **own} for (label, entry), own in zip(per_label.items(), ends, strict=True)}


def paired_difference(
    metric: str, first: Scores, second: Scores, groups: Sequence[str], *, seed: int = 0, level: float = 0.95
) -> dict[str, float | None]:
    """How much better the first of two runs is on the same documents: a paired t test by the jackknife over groups.

    Each group is left out of both runs at once. `p` is two-sided and below 1 - `level` where 0 lies outside the
    interval; but never below 2^(1 - G) with G groups, the least that tossing a coin for each group could give. For
    several comparisons see `holm`.

    Args:
        metric: a name that both scores give.
        first: predictions of the first run, `ClassificationScores` or `EntityScores`.
        second: predictions of the second run, documents in the same order.
        groups: (n,) the group of each document.
        seed, level: as in `intervals`.

    Returns:
        `{"value": first - second, "low": .., "high": .., "p": ..}`; None where undefined, as in `intervals`.

    Raises:
        ValueError: the runs are not on the same documents, or `groups` does not fit them.
    """
    return paired_differences(first, second, groups, seed=seed, level=level)[metric]


def paired_differences(
    first: Scores, second: Scores, groups: Sequence[str], *, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, float | None]]:
    """`paired_difference` of every metric, by name."""
    check_paired([first], [second])
    ahead, behind = (jackknife(each, groups, seed) for each in (first, second))
    result = {}
    for name, own in ahead.items():
        found = Jackknife(own.value - behind[name].value, own.without - behind[name].without)
        variance, blocks = found.variance if found.defined else math.nan, len(found.without)
        result[name] = difference(found.value, variance, blocks - 1.0, blocks, level)
    return result


def difference(
    value: float, variance: float, degrees_of_freedom: float, blocks: int, level: float
) -> dict[str, float | None]:
    """`value`, `low`, `high` and `p` of a difference by Student's distribution; see `paired_difference`."""
    if not math.isfinite(value) or not math.isfinite(variance):
        return {"value": clean(value), "low": None, "high": None, "p": None}
    error = math.sqrt(variance)
    reach = _quantile(degrees_of_freedom, level) * error
    if abs(value) < 1e-13:
        p = 1.0
    else:
        p = 2 * float(stdtr(degrees_of_freedom, -abs(value) / error)) if error else 0.0
        p = min(1.0, max(p, 2.0 ** (1 - blocks)))
    return {"value": value, "low": value - reach, "high": value + reach, "p": p}


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


def jackknife(scores: Scores, groups: Sequence[str], seed: int = 0) -> dict[str, Jackknife]:
    """Each metric, and what it is without each group; beyond `MOST_BLOCKS` groups, without each block of them.

    Args:
        scores: of n documents.
        groups: (n,) the group of each.
        seed: deals the groups into blocks, of equal numbers of groups but for one.

    Raises:
        ValueError: `groups` does not fit the documents.
    """
    block, blocks = codes(groups, len(scores))
    if blocks > MOST_BLOCKS:
        block = (np.random.default_rng(seed).permutation(blocks) % MOST_BLOCKS)[block]
        blocks = MOST_BLOCKS
    parts = [scores(np.ones((len(scores), 1)))]
    if blocks > 1:
        for start, stop in batches(blocks, len(scores)):
            parts.append(scores((block[:, None] != np.arange(start, stop)).astype(np.float64)))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: Jackknife(float(values[0]), values[1:]) for name, values in joined.items()}


def codes(groups: Sequence[str], documents: int) -> tuple[np.ndarray, int]:
    """The group of each document as a number from 0, in the order of their sorted names, and how many groups there are.

    Raises:
        ValueError: there are not as many as documents.
    """
    if len(groups) != documents:
        raise ValueError(f"{len(groups)} groups were given for {documents} documents")
    names, code = np.unique(np.asarray(groups), return_inverse=True)
    return code, len(names)


def batches(weightings: int, documents: int) -> Iterator[tuple[int, int]]:
    """Ranges of weightings, each so many that their weights stay in the processor's cache."""
    size = max(16, _BATCH_ELEMENTS // max(1, documents))
    for start in range(0, weightings, size):
        yield start, min(start + size, weightings)


def check_paired(first: Sequence[Scores], second: Sequence[Scores]) -> None:
    """Raises ValueError if there is nothing to compare, or if not all are on the same documents."""
    if not first or not second:
        raise ValueError("no predictions were given")
    if not all(np.array_equal(first[0].gold, each.gold) for each in (*first[1:], *second)):
        raise ValueError("the runs are not on the same documents: their gold annotations differ")


def _quantile(degrees_of_freedom: float, level: float) -> float:
    """Of Student's distribution: the middle `level` of it lies within plus and minus this."""
    return float(stdtrit(degrees_of_freedom, (1 + level) / 2))


def _at_the_end(
    metric: str, scores: Scores, groups: Sequence[str], value: float, ceiling: float, level: float
) -> dict[str, float | None]:
    """The interval of a metric that is 0 or as large as can be, which leaving out groups does not change.

    As if it were the share of groups without fault (Clopper & Pearson 1934, Biometrika 26): those are counted that,
    each by itself, have the value too. None where that is undefined in each.
    """
    group, number = codes(groups, len(scores))
    alike = 0
    for start, stop in batches(number, len(scores)):
        alone = scores((group[:, None] == np.arange(start, stop)).astype(np.float64))[metric]
        alike += int((alone == value).sum())
    if not alike:
        return {"value": value, "low": None, "high": None}
    missed = ceiling * (1 - ((1 - level) / 2) ** (1 / alike))
    low, high = (0.0, missed) if value == 0 else (value - missed, value)
    return {"value": value, "low": low, "high": high}
