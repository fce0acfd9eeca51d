"""Two runs on the same documents: tests that swap their answers, patient by patient.

If two runs are equally good in every respect, it is chance which of them gave which answer. Documents of one patient
are alike, so what is swapped is the patient, with all documents (a permutation test of matched pairs: Good 2005,
Permutation, Parametric and Bootstrap Tests of Hypotheses, chapter 3). For intervals see `statistics.paired_difference`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posology.evaluation.metrics import ClassificationScores, EntityScores
from posology.evaluation.statistics import batches, check_paired, codes

PairedScores = ClassificationScores | EntityScores


def mcnemar(first_right: np.ndarray, second_right: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """McNemar's exact test of two classifiers' accuracy, by group.

    With one document in each group this is McNemar's exact test (McNemar 1947, Psychometrika 12): whether the
    documents that only one run got right fall to either run as coins would. With more, the coin is tossed
    once for each group: the sum over groups of its difference in right answers, each with a random sign,
    computed exactly (the statistic of Durkalski et al. 2003, Statistics in Medicine 22, without their approximation).

    Args:
        first_right, second_right: (n,) whether each run is right.
        groups: (n,) the group of each document.

    Returns:
        `first_only`, `second_only`: documents that only one of them got right; `p`, two-sided.

    Raises:
        ValueError: lengths differ.
    """
    difference = np.asarray(first_right, dtype=np.int64) - np.asarray(second_right, dtype=np.int64)
    group, names = codes(groups, len(difference))
    by_group = np.bincount(group, weights=difference, minlength=names).astype(np.int64)
    distribution = np.ones(1)  # of half the sum of signed differences and of their sizes: 0, 1 ... sum of the sizes
    for size, count in zip(*np.unique(np.abs(by_group[by_group != 0]), return_counts=True), strict=True):
        tosses = np.zeros(size * count + 1)
        tosses[::size] = _binomial(int(count))
        distribution = np.convolve(distribution, tosses)
    middle = (len(distribution) - 1) / 2
    extreme = np.abs(np.arange(len(distribution)) - middle) >= abs(int(by_group.sum())) / 2
    return {
        "first_only": int((difference > 0).sum()),
        "second_only": int((difference < 0).sum()),
        "p": min(1.0, float(distribution[extreme].sum())),
    }


def permutation_tests(
    first: PairedScores, second: PairedScores, groups: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Whether two runs differ, metric by metric: how often swapping whole groups makes a difference at least as large.

    It is exact, at any number of groups, for the hypothesis that the runs are interchangeable: answers as good *and of
    the same kind*. Two runs with the same score that err differently (one cautious, one bold; probabilities on
    different scales) are not, and then `p` need not be what it says for one metric alone. `paired_difference` asks for
    the metric alone.

    Args:
        first, second: `ClassificationScores` or `EntityScores` of the same documents in the same order.
        groups: (n,) the group of each document.
        resamples: swaps drawn at random; where there are no more different ones than that, all are used once.
        seed: the same seed draws the same swaps.

    Returns:
        By metric, `value`: first - second; `p`, two-sided. None where undefined.

    Raises:
        ValueError: the runs are not on the same documents, or `groups` does not fit them.
    """
    check_paired([first], [second])
    group, number = codes(groups, len(first))
    both = first.followed_by(second)  # type: ignore[arg-type]
    observed = {name: values[0] for name, values in _swapped(both, np.zeros((len(first), 1), dtype=bool)).items()}
    everything = number <= 30 and 2 ** (number - 1) <= resamples
    count = 2 ** (number - 1) if everything else resamples
    generator = np.random.default_rng(seed)
    extreme, defined = dict.fromkeys(observed, 0), dict.fromkeys(observed, 0)
    for start, stop in batches(count, 2 * len(first)):
        if everything:  # the last group stays: swapping all of them only turns the sign
            swaps = (np.arange(start, stop)[None, :] >> np.arange(number)[:, None]) & 1 == 1
        else:
            swaps = generator.random((number, stop - start)) < 0.5
        for name, differences in _swapped(both, swaps[group]).items():
            # Differences of nothing but rounding are none; NaN, where a metric is undefined, is never extreme.
            extreme[name] += int((np.abs(differences) >= abs(observed[name]) - 1e-9).sum())
            defined[name] += int(np.isfinite(differences).sum())
    drawn = 0 if everything else 1  # the data are one of the swaps that might have been drawn
    return {
        name: {"value": float(value), "p": (extreme[name] + drawn) / (defined[name] + drawn)}
        if np.isfinite(value)
        else {"value": None, "p": None}
        for name, value in observed.items()
    }


def _swapped(both: PairedScores, swapped: np.ndarray) -> dict[str, np.ndarray]:
    """First less second by metric, each (R,), for the documents that are `swapped`, (n, R).

    `both` holds the answers of the one and then those of the other.
    """
    kept, exchanged = (~swapped).astype(np.float64), swapped.astype(np.float64)
    first = both(np.concatenate([kept, exchanged]))
    second = both(np.concatenate([exchanged, kept]))
    return {name: first[name] - second[name] for name in first}


def _binomial(count: int) -> np.ndarray:
    """Chance of 0 to `count` heads in `count` tosses: (count + 1,)."""
    from scipy.stats import binom

    return np.asarray(binom.pmf(np.arange(count + 1), count, 0.5))
