"""Intervals and paired comparison by the jackknife over groups."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from posology.evaluation import statistics
from posology.evaluation.metrics import ClassificationScores, EntityScores, classification_metrics, entity_metrics
from posology.evaluation.statistics import (
    Jackknife,
    classification_intervals,
    clean,
    entity_intervals,
    holm,
    jackknife,
    paired_difference,
)
from tests.evaluation.generated import classified, found_entities, names


def by_hand(value: float, without: list[float], level: float, ceiling: float = 1.0) -> tuple[float, float]:
    """The interval's formula once more, with SciPy's distributions."""
    deviations = np.array(without) - np.mean(without)
    blocks = len(without)
    error = math.sqrt((blocks - 1) / blocks * (deviations**2).sum())
    freedom = min(blocks - 1, 2 * blocks / (stats.kurtosis(deviations, fisher=False) - 1))
    reach = stats.t.ppf((1 + level) / 2, freedom) * error * ceiling / (value * (ceiling - value))
    ends = np.log(value / (ceiling - value)) + np.array([-reach, reach])
    low, high = ceiling / (1 + np.exp(-ends))
    return low, high


@pytest.mark.parametrize(("classes", "decimals"), [(2, 8), (2, 1), (5, 8), (5, 1)])
def test_classification_intervals_are_those_of_a_plain_loop_over_left_out_groups(classes: int, decimals: int) -> None:
    gold, probabilities = classified(60, classes)
    probabilities = probabilities.round(decimals)
    group = np.random.default_rng(1).integers(0, 12, size=60)
    fast = classification_intervals(gold, probabilities, names(group), level=0.9)
    without = [classification_metrics(gold[group != each], probabilities[group != each]) for each in set(group)]
    for name, value in classification_metrics(gold, probabilities).items():
        ceiling = 2.0 if name == "brier" else 1.0
        low, high = by_hand(value, [each[name] for each in without], 0.9, ceiling)
        assert fast[name] == pytest.approx({"value": value, "low": low, "high": high}, abs=1e-9)
        assert 0 <= low < value < high <= ceiling


def test_entity_intervals_are_those_of_a_plain_loop_over_left_out_documents() -> None:
    counts, group = found_entities(30), np.arange(30) // 3
    fast = entity_intervals(counts, names(group))
    without = [entity_metrics(counts[group != each]) for each in range(10)]
    for name, value in entity_metrics(counts).items():
        low, high = by_hand(value, [each[name] for each in without], 0.95)
        assert fast[name] == pytest.approx({"value": value, "low": low, "high": high}, abs=1e-9)


def test_the_standard_error_of_a_mean_is_the_textbooks() -> None:
    right = np.random.default_rng(0).random(80) < 0.7
    probabilities = np.where(right[:, None], [0.1, 0.9], [0.9, 0.1])
    found = jackknife(ClassificationScores(np.ones(80, int), probabilities), names(np.arange(80)))["accuracy"]
    assert found.variance == pytest.approx(right.var(ddof=1) / 80)


def test_degrees_of_freedom_are_fewer_where_few_groups_decide() -> None:
    generator = np.random.default_rng(0)
    even = Jackknife(0.5, 0.5 + generator.normal(size=400) / 1000)
    few = Jackknife(0.5, np.where(np.arange(400) < 8, 0.49, 0.5))
    assert 300 < even.degrees_of_freedom <= 399
    assert 5 < few.degrees_of_freedom < 20
    assert Jackknife(0.5, np.full(9, 0.5)).degrees_of_freedom == 8


def test_many_groups_are_left_out_in_blocks_that_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = found_entities(900, seed=4)
    groups = names(np.arange(900) // 2)
    whole = entity_intervals(counts, groups)["entity_f1"]
    monkeypatch.setattr(statistics, "MOST_BLOCKS", 100)
    blocks = jackknife(EntityScores(counts), groups)["entity_f1"]
    assert len(blocks.without) == 100
    coarse = entity_intervals(counts, groups)["entity_f1"]
    width = whole["high"] - whole["low"]
    # The standard error of a standard error from 100 blocks is 7 %; three of them are allowed.
    assert coarse["high"] - coarse["low"] == pytest.approx(width, rel=0.22)
    assert coarse == entity_intervals(counts, groups)["entity_f1"]
    assert coarse != entity_intervals(counts, groups, seed=1)["entity_f1"]


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, groups = found_entities(100), names(np.arange(100))
    whole = entity_intervals(counts, groups)
    monkeypatch.setattr(statistics, "_BATCH_ELEMENTS", 1700)
    for name, interval in entity_intervals(counts, groups).items():
        assert interval == pytest.approx(whole[name]), name


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """40 patients with 5 alike documents each; the true accuracy is 0.7. Ignoring the patients covers it far less."""
    generator = np.random.default_rng(0)
    covered = {"patients": 0, "documents": 0}
    trials = 150
    for _ in range(trials):
        ease = generator.beta(1.4, 0.6, size=40)
        right = generator.random((40, 5)) < ease[:, None]
        probabilities = np.where(right.reshape(-1, 1), [0.1, 0.9], [0.9, 0.1])
        gold = np.ones(200, dtype=int)
        for unit, groups in (("patients", np.repeat(np.arange(40), 5)), ("documents", np.arange(200))):
            interval = classification_intervals(gold, probabilities, names(groups))["accuracy"]
            covered[unit] += interval["low"] <= 0.7 <= interval["high"]
    # 95 % of 150, with four standard errors allowed for.
    assert 0.88 < covered["patients"] / trials <= 1
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
    result = classification_intervals(np.zeros(6, dtype=int), np.full((6, 2), 0.5), names(np.arange(6)))
    assert result["auroc"] == {"value": None, "low": None, "high": None}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    nothing = entity_intervals(np.zeros((0, 2, 3)), [])
    assert nothing["entity_f1"] == {"value": 0.0, "low": None, "high": None}


def test_what_rests_on_a_single_group_has_no_interval() -> None:
    gold, probabilities = np.array([1, 0, 0, 0, 0, 1]), classified(6, 2)[1]
    result = classification_intervals(gold, probabilities, ["a", "b", "c", "d", "e", "a"])
    assert result["auroc"]["value"] is not None
    assert result["auroc"]["low"] is result["auroc"]["high"] is None
    assert result["accuracy"]["low"] is not None


def test_without_a_fault_the_interval_is_that_of_clopper_and_pearson() -> None:
    """Scipy's for as many faultless groups; groups without entities say nothing of entities."""
    exact = stats.binomtest(20, 20).proportion_ci(0.95, method="exact")
    perfect = classification_intervals(np.zeros(40, int), np.tile([0.9, 0.1], (40, 1)), names(np.arange(40) // 2))
    assert perfect["accuracy"] == pytest.approx({"value": 1.0, "low": exact.low, "high": 1.0})
    counts = np.tile(np.array([[[2, 2, 2]]]), (40, 1, 1))
    counts[::2] = 0
    assert entity_intervals(counts, names(np.arange(40)))["entity_f1"] == pytest.approx(perfect["accuracy"])
    counts[:, :, 0] = 0
    nothing_right = entity_intervals(counts[1::2], names(np.arange(20)))["entity_f1"]
    assert nothing_right == pytest.approx({"value": 0.0, "low": 0.0, "high": 1 - exact.low})
    separated = classification_intervals(
        np.arange(20) % 2, np.where(np.arange(20)[:, None] % 2, [0.1, 0.9], [0.9, 0.1]), names(np.arange(20))
    )
    assert separated["auroc"] == {"value": 1.0, "low": None, "high": None}  # no document has one alone


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 groups were given for 3 documents"):
        entity_intervals(found_entities(3), ["a", "b"])


def test_paired_difference_of_means_is_the_paired_t_test() -> None:
    generator = np.random.default_rng(2)
    gold = np.ones(60, dtype=int)
    right = generator.random((2, 60)) < np.array([[0.8], [0.6]])
    runs = [ClassificationScores(gold, np.where(each[:, None], [0.1, 0.9], [0.9, 0.1])) for each in right]
    result = paired_difference("accuracy", *runs, names(np.arange(60)), level=0.9)
    expected = stats.ttest_rel(right[0].astype(float), right[1].astype(float))
    low, high = expected.confidence_interval(0.9)
    value = right[0].mean() - right[1].mean()
    assert result == pytest.approx({"value": value, "low": low, "high": high, "p": expected.pvalue})


def test_paired_difference_leaves_each_group_out_of_both_runs() -> None:
    gold, better = classified(60, 3, signal=2.0)
    worse = classified(60, 3, signal=0.5)[1]
    group = np.arange(60) // 2
    first, second = ClassificationScores(gold, better), ClassificationScores(gold, worse)
    result = paired_difference("macro_f1", first, second, names(group))
    without = [
        classification_metrics(gold[group != each], better[group != each])["macro_f1"]
        - classification_metrics(gold[group != each], worse[group != each])["macro_f1"]
        for each in range(30)
    ]
    error = math.sqrt(29 / 30 * np.square(without - np.mean(without)).sum())
    assert (result["high"] - result["value"]) / error == pytest.approx(stats.t.ppf(0.975, 29))
    assert result["p"] == pytest.approx(2 * stats.t.sf(result["value"] / error, 29))
    assert result["p"] < 0.05 < result["value"]


def test_p_is_never_below_what_coins_for_the_groups_could_give() -> None:
    gold = np.ones(5, dtype=int)
    right, wrong = (ClassificationScores(gold, np.tile(each, (5, 1))) for each in ([0.1, 0.9], [0.9, 0.1]))
    assert paired_difference("accuracy", right, wrong, names(gold.cumsum())) == {
        "value": 1.0, "low": 1.0, "high": 1.0, "p": 1 / 16,
    }  # fmt: skip


def test_paired_difference_swaps_sign_with_the_runs_and_is_nothing_for_one_run_twice() -> None:
    gold_and_found = found_entities(50, right=0.8)
    weaker = gold_and_found.copy()
    weaker[::4, :, 0] = 0
    groups = names(np.arange(50))
    first, second = EntityScores(gold_and_found), EntityScores(weaker)
    ahead = paired_difference("entity_f1", first, second, groups)
    behind = paired_difference("entity_f1", second, first, groups)
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
        p = paired_difference("accuracy", *runs, names(np.arange(80)))["p"]
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
