"""From probabilities to decisions in binary tasks: a threshold at a wanted sensitivity, specificity or ratio of costs,
what it reaches, and whether acting by the model is better than treating everybody or nobody."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posology.evaluation.statistics import intervals


def choose_threshold(
    positive: np.ndarray,
    probability: np.ndarray,
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
    cost_ratio: float | None = None,
) -> float:
    """The threshold that reaches one goal on these documents; those at or above it are called positive.

    It lies half way between two probabilities that occur, so that rounding moves no document across it.

    Args:
        positive: (n,) whether each document is.
        probability: (n,) of being positive.
        sensitivity: the highest threshold that finds at least this share of the positive documents.
        specificity: the lowest threshold that leaves at least this share of the negative ones alone.
        cost_ratio: the threshold of the least cost, where missing a positive document costs so many times what a
            false alarm does; among equal ones that nearest to 1 / (1 + ratio), which is best for calibrated
            probabilities (Elkan 2001, IJCAI).

    Raises:
        ValueError: not exactly one goal, or no document of one kind.
    """
    if sum(goal is not None for goal in (sensitivity, specificity, cost_ratio)) != 1:
        raise ValueError("exactly one of sensitivity, specificity and cost_ratio is needed")
    positive, probability = np.asarray(positive, dtype=bool), np.asarray(probability, dtype=np.float64)
    if positive.all() or not positive.any():
        raise ValueError("both positive and negative documents are needed")
    thresholds = _thresholds(probability)  # rising: fewer and fewer documents are called positive
    of_positive, of_negative = np.sort(probability[positive]), np.sort(probability[~positive])
    found = len(of_positive) - np.searchsorted(of_positive, thresholds)
    alarms = len(of_negative) - np.searchsorted(of_negative, thresholds)
    slack = 1e-9  # a share such as 0.9 of ten is not to fail for its last bit
    if sensitivity is not None:
        return float(thresholds[np.flatnonzero(found >= (sensitivity - slack) * len(of_positive))[-1]])
    if specificity is not None:
        left_alone = len(of_negative) - alarms
        return float(thresholds[np.flatnonzero(left_alone >= (specificity - slack) * len(of_negative))[0]])
    assert cost_ratio is not None
    costs = cost_ratio * (len(of_positive) - found) + alarms
    best = thresholds[costs <= costs.min() * (1 + slack)]
    return float(best[np.abs(best - 1 / (1 + cost_ratio)).argmin()])


class ThresholdScores:
    """Scores the decisions of a threshold under any number of weightings of n documents.

    `sensitivity`, `specificity`, `ppv` and `npv` (positive and negative predictive value) and `flagged`, the share of
    documents called positive; NaN where undefined.

    Args:
        positive: (n,) whether each document is.
        probability: (n,) of being positive.
        threshold: documents at or above it are called positive.

    Attributes:
        gold: what two runs on the same documents have in common: `positive`.
    """

    def __init__(self, positive: np.ndarray, probability: np.ndarray, threshold: float):
        self.gold = np.asarray(positive, dtype=bool)
        flagged = np.asarray(probability, dtype=np.float64) >= threshold
        self._addends = np.stack(
            [self.gold & flagged, ~self.gold & ~flagged, self.gold, flagged, np.ones_like(flagged)]
        ).astype(np.float64)

    def __len__(self) -> int:
        return len(self.gold)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics by name, each (R,), for weights (n, R)."""
        true_positive, true_negative, positive, flagged, total = self._addends @ weights
        pairs = {
            "sensitivity": (true_positive, positive),
            "specificity": (true_negative, total - positive),
            "ppv": (true_positive, flagged),
            "npv": (true_negative, total - flagged),
            "flagged": (flagged, total),
        }
        return {
            name: np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
            for name, (part, whole) in pairs.items()
        }


def operating_point(
    positive: np.ndarray, probability: np.ndarray, threshold: float, groups: Sequence[str], *, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """What a threshold reaches, with 95 % intervals over groups; see `ThresholdScores` and `intervals`.

    The threshold is taken as given. On the documents it was chosen on, its sensitivity is as wanted by choice; what new
    documents will show is told by others, such as the test split.
    """
    return intervals(ThresholdScores(positive, probability, threshold), groups, seed=seed)


def expected_point(
    positive: np.ndarray,
    probability: np.ndarray,
    groups: Sequence[str],
    *,
    new_groups: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    sensitivity: float | None = None,
    specificity: float | None = None,
    cost_ratio: float | None = None,
) -> dict[str, dict[str, float | None]]:
    """What new documents will show, at a threshold chosen on these for a goal of `choose_threshold`.

    On the documents it was chosen on, a threshold reaches its goal by choice. Other documents differ from them twice:
    the choice depends on those that happened to be in validation, and what it reaches on those that are new. So each
    resample chooses on one draw of the groups and looks at another.

    Args:
        positive, probability, sensitivity, specificity, cost_ratio: as in `choose_threshold`.
        groups: (n,) the group of each document.
        new_groups: groups of the new documents; as many as there are here by default.
        resamples, seed, level: as in `intervals`.

    Returns:
        `{"low": .., "high": ..}` for each metric of `ThresholdScores`, None where undefined in most resamples.
    """
    positive, probability = np.asarray(positive, dtype=bool), np.asarray(probability, dtype=np.float64)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        return np.bincount(generator.integers(0, len(names), count), minlength=len(names))[group]

    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        chosen = np.repeat(np.arange(len(group)), draw(len(names)))
        weights = draw(new_groups or len(names))
        if positive[chosen].all() or not positive[chosen].any():
            continue
        threshold = choose_threshold(
            positive[chosen],
            probability[chosen],
            sensitivity=sensitivity,
            specificity=specificity,
            cost_ratio=cost_ratio,
        )
        for name, values in ThresholdScores(positive, probability, threshold)(weights[:, None]).items():
            found.setdefault(name, []).append(float(values[0]))
    expected: dict[str, dict[str, float | None]] = {}
    for name, each in found.items():
        defined = np.array(each)[~np.isnan(each)]
        low, high = (1 - level) / 2, (1 + level) / 2
        known = 2 * len(defined) > resamples
        expected[name] = {
            "low": float(np.quantile(defined, low)) if known else None,
            "high": float(np.quantile(defined, high)) if known else None,
        }
    return expected


def decision_curve(
    positive: np.ndarray, probability: np.ndarray, thresholds: Sequence[float] | None = None
) -> list[dict[str, float]]:
    """Net benefit of acting by the model, beside acting on all documents and on none (Vickers & Elkin 2006, Medical
    Decision Making 26).

    A threshold t says that a needless action is worth t / (1 - t) of a needed one. The net benefit is the share of true
    positives less that of false positives times this weight: for none it is 0. It assumes calibrated probabilities.

    Args:
        positive: (n,) whether each document is.
        probability: (n,) of being positive.
        thresholds: above 0 and below 1; by default 0.01 to 0.99.

    Returns:
        For each threshold `threshold`, `model`, `all`, `none`.
    """
    positive, probability = np.asarray(positive, dtype=bool), np.asarray(probability, dtype=np.float64)
    if not len(positive):
        raise ValueError("a decision curve needs documents")
    curve = []
    for threshold in np.arange(1, 100) / 100 if thresholds is None else np.asarray(thresholds, dtype=np.float64):
        if not 0 < threshold < 1:
            raise ValueError(f"{threshold} is no threshold above 0 and below 1")
        weight = threshold / (1 - threshold)
        flagged = probability >= threshold
        curve.append(
            {
                "threshold": float(threshold),
                "model": float((flagged & positive).mean() - weight * (flagged & ~positive).mean()),
                "all": float(positive.mean() - weight * (~positive).mean()),
                "none": 0.0,
            }
        )
    return curve


def _thresholds(probability: np.ndarray) -> np.ndarray:
    """Every threshold that tells the documents apart in another way, rising: from all positive to none."""
    values = np.unique(probability)
    between = (values[:-1] + values[1:]) / 2
    between = np.where(between > values[:-1], between, values[1:])  # neighbours may have nothing between them
    above = (1 + values[-1]) / 2 if values[-1] < 1 else np.nextafter(1.0, 2.0)
    return np.concatenate([[0.0], between, [above]])
