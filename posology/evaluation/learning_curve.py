"""What more labelled documents would bring: an inverse power law through the scores at several training sizes.

The score of a model trained on n documents is taken to be a - b * n^-c: it rises ever more slowly towards a (Figueroa
et al. 2012, BMC Medical Informatics and Decision Making 12:8, who find it to fit clinical text classifiers). Scores
are from 0 to 1, larger being better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from posology.errors import UserError

LEAST_SIZES = 4
"""Three numbers are fitted, and a curve that passes through all points says nothing of its own error."""

# c between a curve that is almost a straight line in log n and one that is flat after a doubling.
_DECAYS = np.geomspace(0.02, 3.0, 160)


def learning_curve(
    scores: Mapping[int, Sequence[float]],
    *,
    factors: Sequence[float] = (2, 4),
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Fits the curve, and reads it where more documents would take it.

    Intervals are from a wild bootstrap: the curve is fitted again to its own values with the residuals added, enlarged
    for the three numbers fitted and for how badly few residuals tell their size (Student's quantile over the normal), each
    with a random sign (Davison & Hinkley 1997, section 6.2.4), so that small sizes may scatter more than large ones. They
    hold for the expected score on the same test documents, if the power law
    holds beyond the sizes seen: they do not know of labels that change in kind.

    Args:
        scores: by number of training documents, the score of each seed.
        factors: read the curve at these multiples of the largest size.
        resamples, seed, level: of the bootstrap.

    Returns:
        `a`, `b`, `c`: of the curve, a at most 1 and b at least 0; `sizes`; `fitted`: the curve at each of them;
        `largest`: the last size; `at`: `{factor: {"documents", "value", "low", "high", "gain"}}`, `gain` being
        `{"value", "low", "high"}` of what the curve rises from the largest size to there.

    Raises:
        UserError: fewer than `LEAST_SIZES` sizes, or a score that is not between 0 and 1.
    """
    sizes = np.array([size for size, values in sorted(scores.items()) for _ in values], dtype=np.float64)
    observed = np.array([value for _, values in sorted(scores.items()) for value in values], dtype=np.float64)
    _check(sizes, observed)
    largest = sizes[-1]
    a, b, c = (float(values[0]) for values in _fit(sizes, observed[None, :]))
    fitted = a - b * sizes**-c
    freedom = len(sizes) - 3
    enlarged = np.sqrt(len(sizes) / freedom) * stdtrit(freedom, (1 + level) / 2) / ndtri((1 + level) / 2)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, len(sizes)))
    drawn = _fit(sizes, fitted + signs * (observed - fitted) * enlarged)
    at = {}
    for factor in factors:
        value, gain = _read(a, b, c, largest, factor)
        drawn_value, drawn_gain = _read(*drawn, largest, factor)
        at[str(factor)] = {
            "documents": round(float(factor * largest)),
            **_interval(value, drawn_value, level),
            "gain": _interval(gain, drawn_gain, level),
        }
    distinct = np.unique(sizes)
    return {
        "a": a,
        "b": b,
        "c": c,
        "sizes": [int(size) for size in distinct],
        "fitted": [float(value) for value in a - b * distinct**-c],
        "largest": int(largest),
        "at": at,
    }


def _check(sizes: np.ndarray, observed: np.ndarray) -> None:
    distinct = len(np.unique(sizes))
    if distinct < LEAST_SIZES:
        raise UserError(
            f"a learning curve needs scores at {LEAST_SIZES} training sizes or more, and there are {distinct}",
            "Run a study that sweeps `shots`",
        )
    if sizes.min() < 1:
        raise UserError(f"{sizes.min():.0f} training documents are none", "Give sizes from 1")
    if not ((observed >= 0) & (observed <= 1)).all():
        raise UserError("a learning curve is of scores from 0 to 1, larger being better", "Choose another metric")


def _fit(sizes: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares for each row of scores, `observed` (R, N): a, b and c, each (R,).

    For a given c the curve is a straight line in n^-c, so c is looked for on a grid and the rest is in closed form:
    no start values, nothing that fails to converge.
    """
    rows = np.arange(len(observed))
    mean = observed.mean(axis=1)
    best = np.full(len(observed), np.inf)
    a, b, c = np.empty(len(rows)), np.empty(len(rows)), np.empty(len(rows))
    for decay in _DECAYS:
        # Divided by its largest value, so that no power of a large number of documents is lost to rounding.
        scale = sizes.min() ** -decay
        power = sizes**-decay / scale
        centred = power - power.mean()
        slope = np.maximum(0.0, -(observed @ centred) / (centred @ centred))
        level = mean + slope * power.mean()
        # Above 1 the best curve within bounds lies on the bound: a = 1, and b fitted alone.
        bounded = np.maximum(0.0, (1.0 - observed) @ power / (power @ power))
        slope, level = np.where(level > 1, bounded, slope), np.minimum(level, 1.0)
        error = ((observed - level[:, None] + slope[:, None] * power) ** 2).sum(axis=1)
        better = error < best
        best[better], a[better], b[better], c[better] = error[better], level[better], slope[better] / scale, decay
    return a, b, c


def _read(a: Any, b: Any, c: Any, largest: float, factor: float) -> tuple[Any, Any]:
    """The curve at a multiple of the largest size, and its rise from there."""
    value = a - b * (factor * largest) ** -c
    return value, value - (a - b * largest**-c)


def _interval(value: float, drawn: np.ndarray, level: float) -> dict[str, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(value), "low": min(float(low), float(value)), "high": max(float(high), float(value))}
