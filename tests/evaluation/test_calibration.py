from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from posology.evaluation.calibration import (
    BOUNDS,
    brier_decomposition,
    calibration_scores,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
    wilson_interval,
)
from posology.evaluation.metrics import ClassificationScores, classification_metrics


def answered(rows: int, classes: int, temperature: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gold drawn from the softmax of logits, and these logits times `temperature`: which is what mends them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2, size=(rows, classes))
    drawn = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
    return drawn, logits * temperature


# --- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_that_spoilt_the_logits_is_found(classes: int, temperature: float) -> None:
    gold, logits = answered(20_000, classes, temperature)
    fitted = fit_temperature(gold, logits)
    assert fitted.refused is None
    assert fitted.value == pytest.approx(temperature, rel=0.05)


@given(seed=st.integers(0, 1000), classes=st.integers(2, 6), temperature=st.floats(0.3, 4))
@settings(max_examples=30, deadline=None)
def test_no_temperature_is_more_likely(seed: int, classes: int, temperature: float) -> None:
    gold, logits = answered(80, classes, temperature, seed)
    gold = np.where(np.arange(80) < 6, (logits.argmax(axis=1) + 1) % classes, gold)  # mistakes enough to fit

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(80), gold].mean())

    best = minimize_scalar(loss, bounds=tuple(np.log(BOUNDS)), method="bounded", options={"xatol": 1e-8})
    assert loss(math.log(fit_temperature(gold, logits).value)) <= best.fun + 1e-9


def test_a_worthless_model_and_a_shy_one_end_at_the_bounds() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(500, 3))
    assert fit_temperature(generator.integers(0, 3, 500), 100 * logits).value == BOUNDS[1]
    gold = logits.argmax(axis=1)
    gold[:5] = (gold[:5] + 1) % 3
    assert fit_temperature(gold, 1e-3 * logits).value == BOUNDS[0]


def test_too_little_to_fit_on_leaves_it_at_one() -> None:
    gold, logits = answered(49, 3, 3.0)
    assert fit_temperature(gold, logits) == (1.0, "49 validation documents are fewer than 50")
    assert fit_temperature(gold, logits, documents=50).refused is None  # words of 50 documents
    gold, logits = answered(1000, 3, 3.0)
    right = logits.argmax(axis=1)
    value, refused = fit_temperature(right, logits)
    assert value == 1.0 and refused is not None and refused.startswith("0 mistakes")
    empty = fit_temperature(np.empty(0, np.int64), np.empty((0, 3)))
    assert empty.value == 1.0 and empty.refused is not None


def test_classes_held_impossible_do_not_decide() -> None:
    gold, logits = answered(2000, 4, 2.0)
    alone = fit_temperature(gold, logits).value
    never = np.full((20, 4), -np.inf)
    never[:, 0] = 0.0
    for impossible in (never, np.maximum(never, -1e4)):
        both = fit_temperature(np.append(gold, np.ones(20, int)), np.concatenate([logits, impossible]))
        assert both.value == pytest.approx(alone, rel=1e-5)
    logits[:, 3] = -np.inf  # a forest without a tree for it, where it is not the right class
    kept = gold != 3
    finite = fit_temperature(gold[kept], logits[kept][:, :3]).value
    assert fit_temperature(gold[kept], logits[kept]).value == pytest.approx(finite, rel=1e-5)


def test_very_many_rows_are_thinned() -> None:
    gold, logits = answered(250_000, 2, 1.7)
    assert fit_temperature(gold, logits.astype(np.float32)).value == pytest.approx(1.7, rel=0.03)


def test_broken_logits_are_refused() -> None:
    gold, logits = answered(100, 3)
    for broken in (np.nan, np.inf):
        logits[3, 1] = broken
        with pytest.raises(ValueError, match="below infinity"):
            fit_temperature(gold, logits)
    with pytest.raises(ValueError, match="do not fit"):
        fit_temperature(gold[:5], logits)


# --- measures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_are_those_of_the_metrics_and_of_sklearn(classes: int) -> None:
    gold, logits = answered(400, classes, 2.0)
    probabilities = softmax(logits, axis=1)
    found, known = calibration_scores(gold, probabilities), classification_metrics(gold, probabilities)
    assert found["brier"] == pytest.approx(known["brier"])
    assert found["ece"] == pytest.approx(known["expected_calibration_error"])
    assert found["nll"] == pytest.approx(log_loss(gold, probabilities))
    if classes == 2:
        assert found["brier"] == pytest.approx(brier_score_loss(gold, probabilities[:, 1]))


def test_probability_zero_has_a_finite_likelihood() -> None:
    assert negative_log_likelihood(np.array([1]), np.array([[1.0, 0.0]])) == pytest.approx(-math.log(1e-12))


def test_brier_is_the_sum_of_its_parts_and_they_mean_what_they_say() -> None:
    for classes in (2, 3):
        gold, logits = answered(5000, classes, 2.0)
        parts = brier_decomposition(gold, softmax(logits, axis=1))
        whole = parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within_bins"]
        assert whole == pytest.approx(parts["brier"], abs=1e-12)
        calibrated = brier_decomposition(gold, softmax(logits / 2, axis=1))
        assert calibrated["reliability"] < 0.003 < parts["reliability"]
        assert calibrated["uncertainty"] == pytest.approx(parts["uncertainty"])
    rate = brier_decomposition(np.array([0, 1, 1, 1]), np.tile([0.25, 0.75], (4, 1)))
    assert (rate["reliability"], rate["resolution"]) == (0, 0)
    assert rate["brier"] == rate["uncertainty"] == 0.1875


def test_the_curve_of_one_class_is_that_of_sklearn() -> None:
    gold, logits = answered(3000, 2, 2.0)
    probabilities = softmax(logits, axis=1)
    shares, means = calibration_curve(gold, probabilities[:, 1], n_bins=10)
    curve = reliability_curve(gold, probabilities, positive=1)
    np.testing.assert_allclose([each["accuracy"] for each in curve], shares)
    np.testing.assert_allclose([each["confidence"] for each in curve], means)
    for each in curve:
        assert each["low"] <= each["confidence"] <= each["high"]
        assert each["accuracy_low"] <= each["accuracy"] <= each["accuracy_high"]


@given(
    rows=st.integers(1, 60),
    classes=st.integers(1, 4),
    bins=st.integers(1, 20),
    adaptive=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_calibration_error_is_the_curve_summed_up(
    rows: int, classes: int, bins: int, adaptive: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    gold = generator.integers(0, classes, rows)
    probabilities = softmax(
        np.round(generator.normal(scale=5, size=(rows, classes))), axis=1
    )  # with ties and with ones
    curve = reliability_curve(gold, probabilities, bins, adaptive=adaptive)
    assert sum(each["count"] for each in curve) == rows
    assert 1 <= len(curve) <= bins
    error = sum(each["count"] * abs(each["confidence"] - each["accuracy"]) for each in curve) / rows
    assert error == pytest.approx(expected_calibration_error(gold, probabilities, bins, adaptive=adaptive))
    json.dumps(curve, allow_nan=False)


def test_adaptive_bins_have_like_counts() -> None:
    gold, logits = answered(1000, 3, 3.0)
    curve = reliability_curve(gold, softmax(logits, axis=1), 10, adaptive=True)
    assert [each["count"] for each in curve] == pytest.approx([100] * 10, abs=1)


def test_without_rows_there_is_nothing() -> None:
    gold, probabilities = np.empty(0, np.int64), np.empty((0, 3))
    assert reliability_curve(gold, probabilities) == []
    assert all(math.isnan(value) for value in calibration_scores(gold, probabilities).values())


def test_wilson() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263 and 15 of 148; then the ends.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(29, 29)[1] == 1.0


def test_calibrated_probabilities_count_for_brier_and_calibration_error_only() -> None:
    gold, logits = answered(300, 4, 3.0)
    raw, calibrated = softmax(logits, axis=1), softmax(logits / 3, axis=1)
    weights = np.ones((300, 1))
    both = {name: value[0] for name, value in ClassificationScores(gold, raw, calibrated)(weights).items()}
    own = classification_metrics(gold, calibrated)
    for name, value in classification_metrics(gold, raw).items():
        expected = own[name] if name in ("brier", "expected_calibration_error") else value
        assert both[name] == pytest.approx(expected, abs=1e-12), name
    assert both["brier"] != pytest.approx(classification_metrics(gold, raw)["brier"], abs=1e-3)
