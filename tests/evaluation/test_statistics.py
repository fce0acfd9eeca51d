from __future__ import annotations

import json
import math

import numpy as np
import pytest

from posology.evaluation import statistics
from posology.evaluation.metrics import ClassificationScores, EntityScores, classification_metrics, entity_metrics
from posology.evaluation.statistics import (
    classification_intervals,
    clean,
    entity_intervals,
    holm,
    paired_difference,
    resampling_weights,
)


def classified(documents: int, classes: int, seed: int = 0, signal: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    gold = generator.integers(0, classes, size=documents)
    logits = generator.normal(size=(documents, classes)) + signal * np.eye(classes)[gold]
    return gold, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def found_entities(documents: int, seed: int = 0, right: float = 0.7) -> np.ndarray:
    """Counts of entities, of which a model finds each with probability `right`: (documents, 2, 3)."""
    generator = np.random.default_rng(seed)
    gold = generator.poisson(2.0, size=(documents, 2))
    true_positives = generator.binomial(gold, right)
    predicted = true_positives + generator.poisson(0.5, size=gold.shape)
    return np.stack([true_positives, predicted, gold], axis=2)


def names(groups: np.ndarray) -> list[str]:
    return [f"patient {group}" for group in groups]


def percentiles(values: list[float], level: float) -> tuple[float, float]:
    defined = [value for value in values if not math.isnan(value)]
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return low, high


@pytest.mark.parametrize(("classes", "decimals"), [(2, 8), (2, 1), (5, 8), (5, 1)])
def test_classification_intervals_are_those_of_a_plain_loop_over_repeated_rows(classes: int, decimals: int) -> None:
    gold, probabilities = classified(40, classes)
    probabilities = probabilities.round(decimals)
    groups = names(np.random.default_rng(1).integers(0, 12, size=40))
    fast = classification_intervals(gold, probabilities, groups, resamples=60, seed=3, level=0.9)

    slow: dict[str, list[float]] = {name: [] for name in fast}
    for weights in np.concatenate(list(resampling_weights(groups, 60, 3)), axis=1).T.astype(int):
        drawn = classification_metrics(np.repeat(gold, weights), np.repeat(probabilities, weights, axis=0))
        for name, value in drawn.items():
            slow[name].append(value)
    for name, value in classification_metrics(gold, probabilities).items():
        low, high = percentiles(slow[name], 0.9)
        assert fast[name] == pytest.approx({"value": value, "low": low, "high": high}, abs=1e-12)
        assert low < high


def test_entity_intervals_are_those_of_a_plain_loop_over_repeated_documents() -> None:
    counts = found_entities(30)
    groups = names(np.arange(30) // 3)
    fast = entity_intervals(counts, groups, resamples=60, seed=3)
    weights = np.concatenate(list(resampling_weights(groups, 60, 3)), axis=1).T.astype(int)
    drawn = [entity_metrics(np.repeat(counts, times, axis=0)) for times in weights]
    for name, value in entity_metrics(counts).items():
        low, high = percentiles([each[name] for each in drawn], 0.95)
        assert fast[name] == pytest.approx({"value": value, "low": low, "high": high}, abs=1e-12)


def test_groups_are_drawn_whole_and_as_often_as_there_are_groups() -> None:
    groups = ["b", "a", "b", "c", "c", "c", "d"]
    weights = np.concatenate(list(resampling_weights(groups, 4000, 0)), axis=1)
    assert weights.shape == (7, 4000)
    of_group = dict(zip(groups, weights, strict=True))
    for group, row in zip(groups, weights, strict=True):
        assert np.array_equal(row, of_group[group])
    drawn = np.stack([of_group[group] for group in "abcd"])
    assert (drawn.sum(axis=0) == 4).all()
    # Multinomial counts: mean 1, variance 3/4, covariance -1/4; tolerances are about four standard errors.
    assert drawn.mean(axis=1) == pytest.approx(np.ones(4), abs=0.06)
    expected = np.eye(4) - 0.25
    assert np.abs(np.cov(drawn) - expected).max() < 0.08


def test_the_same_seed_draws_the_same_however_large_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = names(np.arange(50) // 2)
    whole = np.concatenate(list(resampling_weights(groups, 99, 7)), axis=1)
    monkeypatch.setattr(statistics, "_BATCH_ELEMENTS", 50 * 17)
    batches = list(resampling_weights(groups, 99, 7))
    assert len(batches) == 6
    assert np.array_equal(np.concatenate(batches, axis=1), whole)
    assert not np.array_equal(np.concatenate(list(resampling_weights(groups, 99, 8)), axis=1), whole)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """40 patients with 5 alike documents each; the true accuracy is 0.7. Ignoring the patients covers it far less."""
    generator = np.random.default_rng(0)
    covered = {"patients": 0, "documents": 0}
    trials = 150
    for trial in range(trials):
        ease = generator.beta(1.4, 0.6, size=40)
        right = generator.random((40, 5)) < ease[:, None]
        probabilities = np.where(right.reshape(-1, 1), [0.1, 0.9], [0.9, 0.1])
        gold = np.ones(200, dtype=int)
        for unit, groups in (("patients", np.repeat(np.arange(40), 5)), ("documents", np.arange(200))):
            interval = classification_intervals(gold, probabilities, names(groups), resamples=200, seed=trial)[
                "accuracy"
            ]
            covered[unit] += interval["low"] <= 0.7 <= interval["high"]
    # 95 % of 150, with three standard errors and the percentile interval's known slight shortness allowed for.
    assert covered["patients"] / trials > 0.88
    assert covered["documents"] / trials < 0.85


def test_one_group_has_values_but_no_intervals() -> None:
    gold, probabilities = classified(10, 3)
    result = classification_intervals(gold, probabilities, ["a patient"] * 10)
    values = classification_metrics(gold, probabilities)
    assert result == {name: {"value": value, "low": None, "high": None} for name, value in values.items()}
    assert paired_difference(
        "macro_f1",
        ClassificationScores(gold, probabilities),
        ClassificationScores(gold, np.roll(probabilities, 1, axis=1)),
        ["a patient"] * 10,
    )["p"] is None  # fmt: skip


def test_what_is_undefined_is_none_and_json_holds_it() -> None:
    result = classification_intervals(np.zeros(6, dtype=int), np.full((6, 2), 0.5), names(np.arange(6)), resamples=20)
    assert result["auroc"] == {"value": None, "low": None, "high": None}
    assert result["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    nothing = entity_intervals(np.zeros((0, 2, 3)), [])
    assert nothing["entity_f1"] == {"value": 0.0, "low": None, "high": None}
    no_entities = entity_intervals(np.zeros((5, 2, 3)), names(np.arange(5)), resamples=20)
    assert no_entities["entity_macro_f1"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 groups were given for 3 documents"):
        entity_intervals(found_entities(3), ["a", "b"])


def test_paired_difference_is_that_of_a_plain_loop() -> None:
    gold, better = classified(60, 3, signal=2.0)
    worse = classified(60, 3, signal=0.5)[1]
    groups = names(np.arange(60) // 2)
    result = paired_difference(
        "macro_f1", ClassificationScores(gold, better), ClassificationScores(gold, worse), groups, resamples=100, seed=5
    )
    differences = []
    for times in np.concatenate(list(resampling_weights(groups, 100, 5)), axis=1).T:
        first, second = (classification_metrics(gold, run, times)["macro_f1"] for run in (better, worse))
        differences.append(first - second)
    low, high = percentiles(differences, 0.95)
    value = classification_metrics(gold, better)["macro_f1"] - classification_metrics(gold, worse)["macro_f1"]
    tail = min(sum(each <= 0 for each in differences), sum(each >= 0 for each in differences))
    expected = {"value": value, "low": low, "high": high, "p": 2 * (tail + 1) / 101}
    assert result == pytest.approx(expected, abs=1e-12)
    assert result["p"] < 0.05 < value


def test_paired_difference_swaps_sign_with_the_runs_and_is_nothing_for_one_run_twice() -> None:
    gold_and_found = found_entities(50, right=0.8)
    weaker = gold_and_found.copy()
    weaker[::4, :, 0] = 0
    groups = names(np.arange(50))
    first, second = EntityScores(gold_and_found), EntityScores(weaker)
    ahead = paired_difference("entity_f1", first, second, groups, resamples=200)
    behind = paired_difference("entity_f1", second, first, groups, resamples=200)
    assert ahead["low"] > 0
    assert behind == pytest.approx(
        {"value": -ahead["value"], "low": -ahead["high"], "high": -ahead["low"], "p": ahead["p"]}
    )
    assert paired_difference("entity_f1", first, first, groups) == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_paired_difference_seldom_finds_what_is_not_there() -> None:
    trials, found = 120, 0
    for trial in range(trials):
        generator = np.random.default_rng(trial)
        gold = np.ones(80, dtype=int)
        runs = [
            ClassificationScores(gold, np.where(generator.random((80, 1)) < 0.7, [0.1, 0.9], [0.9, 0.1]))
            for _ in range(2)
        ]
        p = paired_difference("accuracy", *runs, names(np.arange(80)), resamples=200, seed=trial)["p"]
        found += p < 0.05
    assert found / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_paired_difference_refuses_runs_on_other_documents() -> None:
    gold, probabilities = classified(10, 3)
    other = (gold + 1) % 3
    with pytest.raises(ValueError, match="not on the same documents"):
        paired_difference(
            "accuracy",
            ClassificationScores(gold, probabilities),
            ClassificationScores(other, probabilities),
            names(np.arange(10)),
        )


def test_holm_by_hand() -> None:
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, never below an earlier one.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_clean_leaves_what_json_can_hold() -> None:
    value = {"a": np.float64("nan"), "b": [np.int64(3), float("inf")], "c": np.array([1.5, np.nan]), "d": ("x", None)}
    cleaned = clean(value)
    assert cleaned == {"a": None, "b": [3, None], "c": [1.5, None], "d": ["x", None]}
    assert json.loads(json.dumps(cleaned, allow_nan=False)) == cleaned
    assert type(cleaned["b"][0]) is int
