from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_score, recall_score

from posology.evaluation.thresholds import (
    ThresholdScores,
    choose_threshold,
    decision_curve,
    expected_point,
    operating_point,
)


def scored(documents: int, seed: int = 0, digits: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities, and whether each document is positive."""
    generator = np.random.default_rng(seed)
    probability = generator.beta(0.8, 1.6, size=documents).round(digits)
    return generator.random(documents) < probability, probability


def shares(positive: np.ndarray, probability: np.ndarray, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity."""
    flagged = probability >= threshold
    return float(flagged[positive].mean()), float((~flagged)[~positive].mean())


@given(seed=st.integers(0, 500), documents=st.integers(2, 60), digits=st.integers(1, 4), goal=st.floats(0.01, 1))
@settings(max_examples=80, deadline=None)
def test_goals_are_reached_and_no_other_threshold_does_it_better(
    seed: int, documents: int, digits: int, goal: float
) -> None:
    positive, probability = scored(documents, seed, digits)
    assume(positive.any() and not positive.all())
    others = [-0.5, *np.unique(probability), 1.5]
    everything = [shares(positive, probability, other) for other in others]
    sensitivity, specificity = shares(positive, probability, choose_threshold(positive, probability, sensitivity=goal))
    assert sensitivity >= goal - 1e-6
    assert specificity == max(other for reached, other in everything if reached >= goal - 1e-6)
    sensitivity, specificity = shares(positive, probability, choose_threshold(positive, probability, specificity=goal))
    assert specificity >= goal - 1e-6
    assert sensitivity == max(other for other, reached in everything if reached >= goal - 1e-6)

    def cost(threshold: float) -> float:
        flagged = probability >= threshold
        return float(7 * (positive & ~flagged).sum() + (~positive & flagged).sum())

    chosen = choose_threshold(positive, probability, cost_ratio=7)
    assert cost(chosen) == min(map(cost, others))


def test_the_best_threshold_for_calibrated_probabilities_is_that_of_theory() -> None:
    positive, probability = scored(200_000)
    assert choose_threshold(positive, probability, cost_ratio=4) == pytest.approx(0.2, abs=0.02)


def test_of_equally_cheap_thresholds_the_one_nearest_to_theory_is_taken() -> None:
    positive = np.array([False, False, True, True])
    probability = np.array([0.1, 0.2, 0.8, 0.9])
    assert choose_threshold(positive, probability, cost_ratio=1) == 0.5


def test_a_threshold_lies_between_probabilities_that_occur() -> None:
    positive, probability = scored(100, digits=2)
    for goal in ({"sensitivity": 0.8}, {"specificity": 0.8}, {"cost_ratio": 3.0}):
        assert choose_threshold(positive, probability, **goal) not in probability
    # Neighbours without a number between them are told apart all the same.
    tight = np.array([0.5, np.nextafter(0.5, 1)])
    chosen = choose_threshold(np.array([False, True]), tight, sensitivity=1.0)
    assert (tight >= chosen).tolist() == [False, True]
    sure = choose_threshold(np.array([False, True, False]), np.array([1.0, 0.4, 0.3]), specificity=1.0)
    assert sure > 1  # nobody


def test_what_cannot_be_chosen_is_refused() -> None:
    positive, probability = scored(50)
    with pytest.raises(ValueError, match="exactly one"):
        choose_threshold(positive, probability)
    with pytest.raises(ValueError, match="exactly one"):
        choose_threshold(positive, probability, sensitivity=0.9, cost_ratio=2)
    with pytest.raises(ValueError, match="both positive and negative"):
        choose_threshold(np.ones(50, bool), probability, sensitivity=0.9)


def test_what_a_threshold_reaches() -> None:
    positive, probability = scored(400)
    flagged = probability >= 0.4
    values = {name: value[0] for name, value in ThresholdScores(positive, probability, 0.4)(np.ones((400, 1))).items()}
    assert values["sensitivity"] == pytest.approx(recall_score(positive, flagged))
    assert values["specificity"] == pytest.approx(recall_score(~positive, ~flagged))
    assert values["ppv"] == pytest.approx(precision_score(positive, flagged))
    assert values["npv"] == pytest.approx(precision_score(~positive, ~flagged))
    assert values["flagged"] == pytest.approx(flagged.mean())
    nobody = ThresholdScores(positive, probability, 2.0)(np.ones((400, 1)))
    assert np.isnan(nobody["ppv"]).all() and nobody["sensitivity"] == 0


def test_intervals_hold_the_sensitivity_of_the_population() -> None:
    everybody, likely = scored(200_000, seed=1)
    truth, _ = shares(everybody, likely, 0.4)
    held = 0
    for seed in range(60):
        positive, probability = scored(300, seed=seed + 2)
        found = operating_point(positive, probability, 0.4, [str(n) for n in range(300)], seed=seed)["sensitivity"]
        assert found["low"] is not None and found["high"] is not None
        held += found["low"] <= truth <= found["high"]
    assert held >= 52  # of 60 at 95 %: fewer by chance once in a thousand times


def test_groups_widen_intervals() -> None:
    positive, probability = scored(60)
    positive, probability = np.repeat(positive, 5), np.repeat(probability, 5)
    alone = operating_point(positive, probability, 0.3, [str(n) for n in range(300)])["sensitivity"]
    together = operating_point(positive, probability, 0.3, [str(n // 5) for n in range(300)])["sensitivity"]
    assert together["high"] - together["low"] > 1.5 * (alone["high"] - alone["low"])  # type: ignore[operator]


def test_decision_curve() -> None:
    positive = np.array([True, True, False, False, False])
    probability = np.array([0.9, 0.3, 0.6, 0.1, 0.2])
    low, half = decision_curve(positive, probability, [0.25, 0.5])
    # At 1/4 a false alarm counts a third: two found, one alarm, of five. At 1/2 it counts one.
    assert low == pytest.approx({"threshold": 0.25, "model": (2 - 1 / 3) / 5, "all": (2 - 3 / 3) / 5, "none": 0})
    assert half == pytest.approx({"threshold": 0.5, "model": 0.0, "all": (2 - 3) / 5, "none": 0})
    positive, probability = scored(50_000)
    curve = decision_curve(positive, probability)
    assert [each["threshold"] for each in curve] == pytest.approx(np.linspace(0.01, 0.99, 99))
    assert all(each["model"] >= max(each["all"], 0) - 0.002 for each in curve)  # calibrated probabilities never harm
    for broken in (0.0, 1.0):
        with pytest.raises(ValueError, match="no threshold"):
            decision_curve(positive, probability, [broken])


def test_what_validation_foretells_holds_for_new_documents():
    """The interval covers the sensitivity that fresh documents show in about 95 of 100 cases; that of the threshold taken
    as given covers it in far fewer."""
    generator = np.random.default_rng(3)

    def sample(count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        positive = generator.random(count) < 0.3
        score = generator.normal(positive * 1.5, 1)
        return positive, 1 / (1 + np.exp(-score)), [str(number) for number in range(count)]

    covered = naive = 0
    for _ in range(100):
        validation, new = sample(300), sample(300)
        threshold = choose_threshold(*validation[:2], sensitivity=0.9)
        reached = ThresholdScores(*new[:2], threshold)(np.ones((300, 1)))["sensitivity"][0]
        foretold = expected_point(*validation, resamples=200, sensitivity=0.9)["sensitivity"]
        alone = operating_point(*validation[:2], threshold, validation[2])["sensitivity"]
        covered += foretold["low"] <= reached <= foretold["high"]
        naive += alone["low"] <= reached <= alone["high"]
    assert 89 <= covered <= 100
    assert naive < covered
