"""The percentile bootstrap equals a plain loop over repeated documents."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from posology.evaluation import statistics
from posology.evaluation.bootstrap import bootstrap_differences, bootstrap_intervals, resampling_weights
from posology.evaluation.metrics import ClassificationScores, EntityScores, classification_metrics, entity_metrics
from tests.evaluation.generated import classified, found_entities, names


def percentiles(values: list[float], level: float) -> tuple[float, float]:
    defined = [value for value in values if not math.isnan(value)]
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return low, high


@pytest.mark.parametrize(("classes", "decimals"), [(2, 8), (2, 1), (5, 8), (5, 1)])
def test_classification_intervals_are_those_of_a_plain_loop_over_repeated_rows(classes: int, decimals: int) -> None:
    gold, probabilities = classified(40, classes)
    probabilities = probabilities.round(decimals)
    groups = names(np.random.default_rng(1).integers(0, 12, size=40))
    fast = bootstrap_intervals(ClassificationScores(gold, probabilities), groups, resamples=60, seed=3, level=0.9)

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
    fast = bootstrap_intervals(EntityScores(counts), groups, resamples=60, seed=3)
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


def test_paired_difference_is_that_of_a_plain_loop() -> None:
    gold, better = classified(60, 3, signal=2.0)
    worse = classified(60, 3, signal=0.5)[1]
    groups = names(np.arange(60) // 2)
    result = bootstrap_differences(
        ClassificationScores(gold, better), ClassificationScores(gold, worse), groups, resamples=100, seed=5
    )["macro_f1"]
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


def test_what_is_undefined_is_none_and_json_holds_it() -> None:
    one_class = ClassificationScores(np.zeros(6, dtype=int), np.full((6, 2), 0.5))
    result = bootstrap_intervals(one_class, names(np.arange(6)), resamples=20)
    assert result["auroc"] == {"value": None, "low": None, "high": None}
    assert result["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    alone = bootstrap_differences(one_class, one_class, ["a patient"] * 6)["accuracy"]
    assert alone == {"value": 0.0, "low": None, "high": None, "p": None}
