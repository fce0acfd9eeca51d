from __future__ import annotations

import numpy as np
import pytest

from posology.errors import UserError
from posology.evaluation.learning_curve import learning_curve

SIZES = (50, 100, 200, 400, 800)


def curve(sizes: np.ndarray | float, a: float = 0.85, b: float = 1.5, c: float = 0.5) -> np.ndarray:
    return a - b * np.asarray(sizes, dtype=float) ** -c


def noisy(seed: int, noise: float = 0.01, seeds: int = 3) -> dict[int, list[float]]:
    generator = np.random.default_rng(seed)
    return {size: (curve(size) + noise * generator.normal(size=seeds)).tolist() for size in SIZES}


def test_a_curve_without_noise_is_found_and_foretold() -> None:
    found = learning_curve({size: [float(curve(size))] for size in SIZES})
    # c is on a grid, which moves what lies beyond the sizes a little.
    assert found["fitted"] == pytest.approx(curve(np.array(SIZES)).tolist(), abs=1e-3)
    assert (found["a"], found["c"]) == pytest.approx((0.85, 0.5), abs=0.02)
    for factor in ("2", "4"):
        reached = found["at"][factor]
        assert reached["documents"] == 800 * int(factor)
        assert reached["value"] == pytest.approx(float(curve(800 * int(factor))), abs=1e-3)
        assert reached["gain"]["value"] == pytest.approx(reached["value"] - float(curve(800)), abs=1e-3)
        assert reached["high"] - reached["low"] < 0.005


def test_bounds_hold_where_the_data_would_leave_them() -> None:
    straight = learning_curve({10 * 2**step: [0.5 + 0.09 * step] for step in range(5)})
    assert straight["a"] <= 1 and straight["at"]["4"]["high"] <= 1
    falling = learning_curve({10 * 2**step: [0.9 - 0.05 * step] for step in range(5)})
    assert falling["b"] == 0
    assert falling["at"]["2"]["value"] == pytest.approx(0.8)
    assert falling["at"]["2"]["gain"]["value"] == 0


def test_least_squares_are_scipys() -> None:
    from scipy.optimize import curve_fit

    scores = noisy(3)
    sizes = np.repeat(SIZES, 3).astype(float)
    observed = np.concatenate([scores[size] for size in SIZES])
    best, _ = curve_fit(curve, sizes, observed, p0=(0.8, 1.0, 0.5), bounds=([0, 0, 0.02], [1, np.inf, 3]))
    found = learning_curve(scores)
    ours = ((observed - curve(sizes, found["a"], found["b"], found["c"])) ** 2).sum()
    assert ours <= ((observed - curve(sizes, *best)) ** 2).sum() * 1.01


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held, trials = 0, 60
    for trial in range(trials):
        reached = learning_curve(noisy(trial), resamples=200, seed=trial)["at"]["2"]
        held += reached["low"] <= float(curve(1600)) <= reached["high"]
    assert held / trials > 0.8
    assert learning_curve(noisy(0), seed=1) == learning_curve(noisy(0), seed=1)


def test_too_few_sizes_and_other_scores_are_refused() -> None:
    with pytest.raises(UserError, match="4 training sizes or more, and there are 3"):
        learning_curve({size: [0.5, 0.6] for size in SIZES[:3]})
    with pytest.raises(UserError, match="there are 0"):
        learning_curve({})
    with pytest.raises(UserError, match="0 training documents"):
        learning_curve({size: [0.5] for size in (0, *SIZES)})
    with pytest.raises(UserError, match="from 0 to 1"):
        learning_curve({size: [3.5] for size in SIZES})
