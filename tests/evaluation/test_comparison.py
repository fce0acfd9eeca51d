"""Tests that swap answers, against SciPy's and plain enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from posology.evaluation.comparison import mcnemar, permutation_tests
from posology.evaluation.metrics import ClassificationScores, EntityScores, classification_metrics, entity_metrics
from tests.evaluation.generated import classified, found_entities, names


def test_mcnemar_with_a_document_in_each_group_is_the_exact_binomial_test() -> None:
    generator = np.random.default_rng(0)
    for documents in (1, 12, 90):
        first, second = generator.random((2, documents)) < np.array([[0.8], [0.6]])
        result = mcnemar(first, second, names(np.arange(documents)))
        ahead, behind = int((first & ~second).sum()), int((~first & second).sum())
        assert (result["first_only"], result["second_only"]) == (ahead, behind)
        expected = stats.binomtest(ahead, ahead + behind).pvalue if ahead + behind else 1.0
        assert result["p"] == pytest.approx(expected)


def test_mcnemar_by_group_is_that_of_all_signs() -> None:
    generator = np.random.default_rng(1)
    group = np.sort(generator.integers(0, 9, size=40))
    first, second = generator.random((2, 40)) < np.array([[0.8], [0.5]])
    sums = np.bincount(group, weights=first.astype(int) - second.astype(int))
    every = [abs(np.dot(signs, sums)) for signs in itertools.product([-1, 1], repeat=len(sums))]
    expected = np.mean(np.array(every) >= abs(sums.sum()))
    assert mcnemar(first, second, names(group))["p"] == pytest.approx(expected)
    assert mcnemar(second, first, names(group))["p"] == pytest.approx(expected)
    assert mcnemar(first, first, names(group)) == {"first_only": 0, "second_only": 0, "p": 1.0}


def test_mcnemar_by_group_finds_less_where_groups_differ_as_one() -> None:
    """Twelve documents of two patients are two pieces of news, not twelve."""
    first, second = np.ones(12, dtype=bool), np.zeros(12, dtype=bool)
    assert mcnemar(first, second, names(np.arange(12)))["p"] == pytest.approx(2 / 2**12)
    assert mcnemar(first, second, names(np.arange(12) // 6))["p"] == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["classes", "entities"])
def test_permutation_of_few_groups_is_that_of_all_swaps(kind: str) -> None:
    group = np.arange(24) // 3
    if kind == "classes":
        gold, first = classified(24, 3, signal=2.5)
        second = classified(24, 3, signal=0.5)[1]
        scores = [ClassificationScores(gold, each) for each in (first, second)]
        plain = lambda answers: classification_metrics(gold, answers)  # noqa: E731
    else:
        first, second = found_entities(24, right=0.9), found_entities(24, right=0.9)
        second[:, :, 0] //= 2
        scores = [EntityScores(each) for each in (first, second)]
        plain = entity_metrics
    result = permutation_tests(*scores, names(group))
    swapped = []
    for signs in itertools.product([False, True], repeat=8):
        swap = np.array(signs)[group].reshape(-1, *[1] * (first.ndim - 1))
        ahead, behind = plain(np.where(swap, second, first)), plain(np.where(swap, first, second))
        swapped.append({name: ahead[name] - behind[name] for name in ahead})
    observed = swapped[0]
    for name, found in result.items():
        p = np.mean([abs(each[name]) >= abs(observed[name]) - 1e-9 for each in swapped])
        assert found == pytest.approx({"value": observed[name], "p": p}), name
    drawn = permutation_tests(*scores, names(group), resamples=100)
    assert drawn == permutation_tests(*scores, names(group), resamples=100)
    for name, found in drawn.items():
        # Five standard errors of a share of 100.
        assert found["p"] == pytest.approx(result[name]["p"], abs=0.02 + 0.5 * np.sqrt(result[name]["p"]))


def test_permutation_of_one_run_with_itself_finds_nothing_and_undefined_is_none() -> None:
    gold, probabilities = np.zeros(40, dtype=int), classified(40, 2)[1]
    scores = ClassificationScores(gold, probabilities)
    result = permutation_tests(scores, scores, names(np.arange(40)), resamples=50)
    assert result["accuracy"] == {"value": 0.0, "p": 1.0}
    assert result["auroc"] == {"value": None, "p": None}


def test_what_does_not_fit_is_refused() -> None:
    gold, probabilities = classified(10, 3)
    first, second = ClassificationScores(gold, probabilities), ClassificationScores((gold + 1) % 3, probabilities)
    with pytest.raises(ValueError, match="not on the same documents"):
        permutation_tests(first, second, names(np.arange(10)))
    with pytest.raises(ValueError, match="9 groups were given for 10 documents"):
        permutation_tests(first, first, names(np.arange(9)))
    with pytest.raises(ValueError, match="9 groups were given for 10 documents"):
        mcnemar(gold > 0, gold > 1, names(np.arange(9)))
