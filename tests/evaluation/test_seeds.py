"""Several seeds: published median and deviation, and intervals that combine seeds and documents."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from posology.evaluation.metrics import ClassificationScores, EntityScores
from posology.evaluation.seeds import combined_difference, combined_interval, median_sd
from posology.evaluation.statistics import intervals, paired_difference
from tests.evaluation.generated import found_entities, names

GROUPS = names(np.arange(60) // 2)


def answered(right: np.ndarray) -> ClassificationScores:
    """Of documents of class 1, some answered right."""
    return ClassificationScores(np.ones(len(right), int), np.where(right[:, None], [0.1, 0.9], [0.9, 0.1]))


def seeds_of(shares: list[float], seed: int = 0, documents: int = 60) -> list[ClassificationScores]:
    generator = np.random.default_rng(seed)
    return [answered(generator.random(documents) < share) for share in shares]


def test_median_and_deviation_by_hand() -> None:
    assert median_sd([0.8, 0.7, 0.75]) == pytest.approx({"median": 0.75, "sd": 0.05})
    assert median_sd([0.8]) == {"median": 0.8, "sd": None}
    with pytest.raises(ValueError, match="no values"):
        median_sd([])


def test_one_seed_has_the_interval_of_its_documents() -> None:
    counts = found_entities(60)
    runs = [EntityScores(counts)]
    assert combined_interval("entity_f1", runs, GROUPS) == intervals(runs[0], GROUPS)["entity_f1"]
    weaker = counts.copy()
    weaker[::3, :, 0] = 0
    other = EntityScores(weaker)
    assert combined_difference("entity_f1", runs, [other], GROUPS) == pytest.approx(
        paired_difference("entity_f1", runs[0], other, GROUPS)
    )


def test_equal_seeds_are_as_one() -> None:
    run = seeds_of([0.7])
    once, thrice = (combined_interval("accuracy", run * times, GROUPS) for times in (1, 3))
    assert thrice == pytest.approx(once)


def test_variance_of_the_mean_is_that_of_the_crossed_model() -> None:
    """For a share the textbook's mean squares: documents by seeds, one observation in each cell."""
    runs = seeds_of([0.55, 0.7, 0.95, 0.75], documents=50)
    right = np.array([run(np.eye(50))["accuracy"] for run in runs])
    of_documents, of_seeds = right.mean(axis=0), right.mean(axis=1)
    rest = right - of_documents - of_seeds[:, None] + right.mean()
    document_variance = of_documents.var(ddof=1) / 50
    interaction = np.mean(rest.var(axis=1, ddof=1) / 50) * 4 / 3
    spread = of_seeds.var(ddof=1) - interaction
    assert spread > 0
    total = document_variance + spread / 4
    deviations = of_documents - of_documents.mean()
    freedom = min(49, 2 * 50 / (stats.kurtosis(deviations, fisher=False) - 1))
    freedom = total**2 / (document_variance**2 / freedom + (of_seeds.var(ddof=1) / 4) ** 2 / 3)
    value = right.mean()
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(total) / (value * (1 - value))
    found = combined_interval("accuracy", runs, names(np.arange(50)))
    ends = 1 / (1 + np.exp(-(np.log(value / (1 - value)) + np.array([-reach, reach]))))
    assert found == pytest.approx({"value": value, "low": ends[0], "high": ends[1]})


def test_seeds_that_lie_apart_widen_the_interval_and_more_seeds_narrow_it() -> None:
    def width(shares: list[float]) -> float:
        found = combined_interval("accuracy", seeds_of(shares), GROUPS)
        return found["high"] - found["low"]

    assert width([0.4, 0.95] * 5) > 1.5 * width([0.7] * 10)
    assert width([0.4, 0.95] * 5) < 0.5 * width([0.4, 0.95])


def test_combined_difference_swaps_sign_and_knows_of_seeds() -> None:
    first, second = seeds_of([0.9, 0.8, 0.99]), seeds_of([0.5, 0.75, 0.6], seed=1)
    ahead = combined_difference("accuracy", first, second, GROUPS)
    behind = combined_difference("accuracy", second, first, GROUPS)
    assert behind == pytest.approx(
        {"value": -ahead["value"], "low": -ahead["high"], "high": -ahead["low"], "p": ahead["p"]}
    )
    assert (ahead["p"] < 0.05) == (ahead["low"] > 0)
    # One seed more that is far off makes it less sure, although the mean difference grows.
    wild = combined_difference("accuracy", first, [*second, *seeds_of([0.02])], GROUPS)
    assert wild["value"] > ahead["value"]
    assert wild["high"] - wild["low"] > ahead["high"] - ahead["low"]
    # A single seed is taken to vary as the others do.
    alone = combined_difference("accuracy", first[:1], second, GROUPS)
    as_if_known = paired_difference("accuracy", first[0], second[2], GROUPS)
    assert alone["high"] - alone["low"] > as_if_known["high"] - as_if_known["low"]


def test_undefined_is_none() -> None:
    gold, probabilities = np.zeros(6, int), np.full((6, 2), 0.5)
    runs = [ClassificationScores(gold, probabilities)] * 2
    groups = names(np.arange(6))
    assert combined_interval("auroc", runs, groups) == {"value": None, "low": None, "high": None}
    nothing = {"value": None, "low": None, "high": None, "p": None}
    assert combined_difference("auroc", runs, runs, groups) == nothing
    with pytest.raises(ValueError, match="no predictions"):
        combined_interval("auroc", [], groups)
    with pytest.raises(ValueError, match="not on the same documents"):
        combined_interval("accuracy", [runs[0], answered(np.ones(6, bool))], groups)


def test_intervals_over_seeds_cover_the_truth_where_those_of_one_seed_do_not() -> None:
    """Skill differs from seed to seed by 0.1; 40 patients of three documents. The true accuracy is 0.7."""
    generator, covered, trials = np.random.default_rng(0), {"all": 0, "one": 0}, 150
    groups = names(np.arange(120) // 3)
    for _ in range(trials):
        ease = np.repeat(generator.normal(0, 0.15, size=40), 3)
        runs = [
            answered(generator.random(120) < np.clip(0.7 + ease + generator.choice([-0.1, 0.1]), 0, 1))
            for _ in range(4)
        ]
        for name, part in (("all", runs), ("one", runs[:1])):
            found = combined_interval("accuracy", part, groups)
            covered[name] += found["low"] <= 0.7 <= found["high"]
    assert covered["all"] / trials > 0.88
    assert covered["one"] / trials < 0.75
