"""Whether probabilities mean what they say, and one number, the temperature, that mends most of it.

Of all answers that a calibrated model gives with a probability of 0.8, eight in ten are right. Rows are documents for
classifiers and words for taggers. Everything here takes each row as one observation; intervals that respect groups
are those of `posology.evaluation.statistics`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from posology.evaluation.metrics import CALIBRATION_BINS

MIN_DOCUMENTS = 50
MIN_MISTAKES = 5
"""With fewer documents or mistakes on validation no temperature is fitted: it would rest on chance, and where all is
right the likelihood is best at certainty."""

BOUNDS = (0.1, 10.0)
"""Of the temperature."""

_MOST_ROWS = 100_000
_IMPOSSIBLE = 1000.0
_SMALLEST = 1e-12


class Temperature(NamedTuple):
    """What logits are divided by before their softmax.

    Attributes:
        value: above 1 makes probabilities less sure.
        refused: why none was fitted, and `value` is 1; None where one was.
    """

    value: float
    refused: str | None


def fit_temperature(gold: np.ndarray, logits: np.ndarray, documents: int | None = None) -> Temperature:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, ICML).

    The likelihood is concave in 1/T, so that its slope has one root, which is found by Brent's method within `BOUNDS`.
    Rows whose right class the model holds impossible (its logit is 1000 or more below the highest: a forest without a
    tree for it, a class unknown in training) say nothing of T and are left out. Of very many rows 100,000, evenly
    spaced, are enough.

    Args:
        gold: (n,) class indices.
        logits: (n, C), -inf allowed.
        documents: how many the rows come from; n if omitted.

    Returns:
        1 with a reason where there are fewer than `MIN_DOCUMENTS`, or `MIN_MISTAKES` among the rows.

    Raises:
        ValueError: shapes do not fit, or a logit is NaN or +inf.
    """
    from scipy.optimize import brentq

    gold, logits = np.asarray(gold), np.asarray(logits)
    if logits.ndim != 2 or gold.shape != logits.shape[:1]:
        raise ValueError(f"gold {gold.shape} and logits {logits.shape} do not fit: expected (n,), (n, C)")
    if np.isnan(logits).any() or np.isposinf(logits).any():
        raise ValueError("logits must be numbers below infinity")
    documents = len(gold) if documents is None else documents
    if documents < MIN_DOCUMENTS:
        return Temperature(1.0, f"{documents} validation documents are fewer than {MIN_DOCUMENTS}")
    if len(gold) > _MOST_ROWS:
        chosen = np.linspace(0, len(gold) - 1, _MOST_ROWS).astype(np.int64)
        gold, logits = gold[chosen], logits[chosen]
    mistakes = int((logits.argmax(axis=1) != gold).sum())
    if mistakes < MIN_MISTAKES:
        return Temperature(1.0, f"{mistakes} mistakes on validation are fewer than {MIN_MISTAKES}")
    # No class may lie so far below that products with its probability of 0 are no numbers.
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    shifted = np.maximum(shifted, -10 * _IMPOSSIBLE)
    right = shifted[np.arange(len(gold)), gold]
    possible = right > -_IMPOSSIBLE
    shifted, right = shifted[possible], right[possible]
    if not len(right):
        return Temperature(1.0, "the model holds every right answer on validation impossible")

    def slope(inverse: float) -> float:
        """Of the mean negative log-likelihood along 1/T: the mean logit under the model less that of the right class."""
        weights = np.exp(inverse * shifted)
        return float(((weights * shifted).sum(axis=1) / weights.sum(axis=1) - right).mean())

    coldest, hottest = 1 / BOUNDS[0], 1 / BOUNDS[1]
    if slope(hottest) >= 0:
        return Temperature(BOUNDS[1], None)
    if slope(coldest) <= 0:
        return Temperature(BOUNDS[0], None)
    return Temperature(1 / float(brentq(slope, hottest, coldest, xtol=1e-6)), None)


def reliability_curve(
    gold: np.ndarray,
    probabilities: np.ndarray,
    bins: int = 10,
    *,
    adaptive: bool = False,
    positive: int | None = None,
) -> list[dict[str, float]]:
    """How often answers given with some confidence are right.

    Args:
        gold: (n,) class indices.
        probabilities: (n, C).
        bins: how many, of equal width, each closed on the right.
        adaptive: bins of about equal counts instead; equal confidences share a bin.
        positive: looks at the probability of this class, and how often it is the right one, instead of at the most
            probable class of each row.

    Returns:
        For each bin that is not empty `low`, `high`, `count`, mean `confidence`, and `accuracy` with the Wilson 95 %
        interval `accuracy_low` to `accuracy_high`, which takes the rows as independent.
    """
    confidence, right = _answers(gold, probabilities, positive)
    index, edges = _binned(confidence, bins, adaptive)
    curve = []
    for each, (count, confidence_sum, right_sum) in enumerate(_sums(index, len(edges) - 1, confidence, right)):
        if count:
            low, high = wilson_interval(right_sum, count)
            curve.append(
                {
                    "low": float(edges[each]),
                    "high": float(edges[each + 1]),
                    "count": int(count),
                    "confidence": float(confidence_sum / count),
                    "accuracy": float(right_sum / count),
                    "accuracy_low": low,
                    "accuracy_high": high,
                }
            )
    return curve


def expected_calibration_error(
    gold: np.ndarray, probabilities: np.ndarray, bins: int = CALIBRATION_BINS, *, adaptive: bool = False
) -> float:
    """Mean distance of confidence and accuracy over the bins of `reliability_curve`, weighted by their counts.

    With its defaults the metric `expected_calibration_error` of `classification_metrics`; adaptive as in Nixon et al.
    2019 (CVPR workshops), of the most probable class. NaN without rows.
    """
    confidence, right = _answers(gold, probabilities, None)
    if not len(confidence):
        return math.nan
    index, edges = _binned(confidence, bins, adaptive)
    sums = _sums(index, len(edges) - 1, confidence, right)
    return float(np.abs(sums[:, 1] - sums[:, 2]).sum() / len(confidence))


def negative_log_likelihood(gold: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over rows, in nats; a probability below 1e-12 counts as that. NaN without rows."""
    if not len(gold):
        return math.nan
    right = np.asarray(probabilities, dtype=np.float64)[np.arange(len(gold)), gold]
    return float(-np.log(np.maximum(right, _SMALLEST)).mean())


def brier_decomposition(gold: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> dict[str, float]:
    """The Brier score and what it is made of: brier = reliability - resolution + uncertainty + within_bins.

    Reliability is what calibration could mend, resolution how far the bins differ from the base rate, uncertainty that
    of the base rates (Murphy 1973, Journal of Applied Meteorology 12); `within_bins` is what remains since forecasts in
    a bin differ (Stephenson et al. 2008, Weather and Forecasting 23). Summed over classes; with C = 2 of class 1, so
    that `brier` is the metric of `classification_metrics`. NaN without rows.

    Args:
        gold: (n,) class indices.
        probabilities: (n, C).
        bins: of equal width, over the probability of each class.
    """
    gold, probabilities = np.asarray(gold), np.asarray(probabilities, dtype=np.float64)
    names = ("brier", "reliability", "resolution", "uncertainty", "within_bins")
    if not len(gold):
        return dict.fromkeys(names, math.nan)
    totals = np.zeros(len(names))
    for each in range(1 if probabilities.shape[1] == 2 else 0, probabilities.shape[1]):
        forecast, outcome = probabilities[:, each], (gold == each).astype(np.float64)
        index, edges = _binned(forecast, bins, adaptive=False)
        sums = _sums(index, len(edges) - 1, forecast, outcome)
        counts = np.maximum(sums[:, 0], 1)
        mean_forecast, mean_outcome = sums[:, 1] / counts, sums[:, 2] / counts
        rate = outcome.mean()
        off = forecast - mean_forecast[index]
        totals += (
            ((forecast - outcome) ** 2).mean(),
            (sums[:, 0] * (mean_forecast - mean_outcome) ** 2).sum() / len(gold),
            (sums[:, 0] * (mean_outcome - rate) ** 2).sum() / len(gold),
            rate * (1 - rate),
            (off**2 - 2 * off * (outcome - mean_outcome[index])).mean(),
        )
    return dict(zip(names, totals.tolist(), strict=True))


def calibration_scores(gold: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """`nll`, `brier`, `ece` (15 bins of equal width) and `adaptive_ece` (15 of equal counts); see their functions."""
    return {
        "nll": negative_log_likelihood(gold, probabilities),
        "brier": brier_decomposition(gold, probabilities)["brier"],
        "ece": expected_calibration_error(gold, probabilities),
        "adaptive_ece": expected_calibration_error(gold, probabilities, adaptive=True),
    }


def wilson_interval(successes: float, count: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share of independent trials (Wilson 1927, Journal of the American Statistical Association 22)."""
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))
    share, spread = successes / count, z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def _answers(gold: np.ndarray, probabilities: np.ndarray, positive: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Confidence of each row, and whether the answer was right (0 or 1)."""
    gold, probabilities = np.asarray(gold), np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or gold.shape != probabilities.shape[:1]:
        raise ValueError(f"gold {gold.shape} and probabilities {probabilities.shape} do not fit: expected (n,), (n, C)")
    if positive is not None:
        return probabilities[:, positive], (gold == positive).astype(np.float64)
    if not len(gold):
        return np.empty(0), np.empty(0)
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == gold).astype(np.float64)


def _binned(values: np.ndarray, bins: int, adaptive: bool) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each value, and the edges of the bins, from 0 to 1."""
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    if adaptive and len(values):
        # The values at the quantiles themselves, so that equal values never part.
        inner = np.unique(np.quantile(values, inner, method="higher"))
    index = np.digitize(values, inner, right=True)
    return index, np.concatenate([[0.0], inner, [1.0]])


def _sums(index: np.ndarray, bins: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Count, sum of `first` and sum of `second` in each bin, (bins, 3)."""
    parts: list[Any] = [None, first, second]
    return np.stack([np.bincount(index, weights=part, minlength=bins) for part in parts], axis=1)
