"""What a run scored: classification and strict entity metrics, each for one or many weightings of the documents.

A bootstrap resample or a patient left out is nothing but a weight per document, so there is one implementation:
`ClassificationScores` and `EntityScores` do everything that does not depend on the weights once, and then score any
number of weightings together. The plain functions are the case of a single weighting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posology.corpus.document import Span
from posology.errors import UserError

CALIBRATION_BINS = 15


def classification_metrics(
    gold: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Every metric of single-label classification, for n documents and C classes; the predicted class is the argmax.

    * `accuracy`; `micro_f1`, which equals it for single-label tasks; `weighted_f1`, weighted by gold frequency;
      `macro_f1`, over the classes found in gold or in the predictions, as scikit-learn does it.
    * `auroc`: one class against the rest, macro over the classes with positives and negatives.
      `auroc_ovo`: every pair of classes found in gold, macro (Hand & Till 2001, Machine Learning 45).
      `average_precision`: one class against the rest, macro over the classes found in gold, without interpolation.
      With C = 2 all three look at the probability of class 1 alone (and the two AUROCs are the same).
    * `brier`: mean over documents of the squared error summed over classes, from 0 to 2; with C = 2 the usual binary
      score of class 1, from 0 to 1, which is half of that.
    * `expected_calibration_error`: 15 bins of equal width over the top probability, each closed on the right
      (Guo et al. 2017, ICML).

    Args:
        gold: (n,) class indices from 0 to C - 1.
        probabilities: (n, C).
        weights: (n,), none negative; whole numbers are the same as repeating rows, so a class that is found only in
            rows of weight 0 counts as not found. All 1 if omitted.

    Returns:
        Metric by name; NaN where it is undefined.

    Raises:
        UserError: a probability is not finite.
        ValueError: shapes or class indices do not fit.
    """
    column = np.ones((len(gold), 1)) if weights is None else np.asarray(weights, dtype=np.float64)[:, None]
    return {name: float(values[0]) for name, values in ClassificationScores(gold, probabilities)(column).items()}


def class_counts(gold: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """True positives, predicted and gold of each class in each document: (n, C, 3) zeros and ones, for `per_class`."""
    gold, probabilities = _checked(gold, probabilities)
    classes = np.arange(probabilities.shape[1])
    is_gold = gold[:, None] == classes
    is_predicted = np.argmax(probabilities, axis=1)[:, None] == classes
    return np.stack([is_gold & is_predicted, is_predicted, is_gold], axis=2).astype(np.int64)


def entity_counts(gold: Sequence[Span], predicted: Sequence[Span], labels: Sequence[str]) -> np.ndarray:
    """True positives, predicted and gold entities of each type in one document.

    Strict: a prediction is right if start, end and label are those of a gold span. An entity named twice counts once.

    Args:
        gold: snapped to words, as predictions are.
        predicted: the model's spans.
        labels: the L entity types.

    Returns:
        (L, 3) whole numbers.

    Raises:
        ValueError: a span has a label that is not among `labels`.
    """
    gold_set, predicted_set = set(gold), set(predicted)
    row = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), 3), dtype=np.int64)
    for column, spans in enumerate((gold_set & predicted_set, predicted_set, gold_set)):
        for span in spans:
            if span.label not in row:
                raise ValueError(f"a span is labelled {span.label!r}, which is not one of {', '.join(labels)}")
            counts[row[span.label], column] += 1
    return counts


def entity_metrics(counts: np.ndarray) -> dict[str, float]:
    """`entity_precision`, `entity_recall`, `entity_f1` (micro) and `entity_macro_f1` of a set of documents.

    The macro average is over the types found in gold or in the predictions. 0/0 is 0, as in seqeval.

    Args:
        counts: (n_docs, L, 3), `entity_counts` of each document.
    """
    column = np.ones((len(counts), 1))
    return {name: float(values[0]) for name, values in EntityScores(counts)(column).items()}


def per_class(counts: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """`precision`, `recall`, `f1` and `support` (how often it is in gold) of each label; 0/0 is 0.

    Args:
        counts: (n_docs, L, 3), from `class_counts`, or from `entity_counts` of each document.
        labels: the L names.
    """
    if counts.ndim != 3 or counts.shape[1:] != (len(labels), 3):
        raise ValueError(f"counts of shape {counts.shape} do not fit {len(labels)} labels")
    result = {}
    for label, (right, predicted, gold) in zip(labels, counts.sum(axis=0).astype(np.float64), strict=True):
        scores = {
            "precision": _ratio(right, predicted),
            "recall": _ratio(right, gold),
            "f1": _ratio(2 * right, predicted + gold),
        }
        result[label] = {name: float(value) for name, value in scores.items()} | {"support": int(gold)}
    return result


class EntityScores:
    """Scores the entities of n documents under any number of weightings; see `entity_metrics`.

    Args:
        counts: (n, L, 3).

    Attributes:
        gold: what two runs on the same documents have in common: (n, L) gold entities.
    """

    def __init__(self, counts: np.ndarray):
        counts = np.asarray(counts, dtype=np.float64)
        if counts.ndim != 3 or counts.shape[2] != 3:
            raise ValueError(f"counts have shape {counts.shape}, expected (documents, labels, 3)")
        self._counts = np.ascontiguousarray(counts.transpose(2, 1, 0))
        self.gold = counts[:, :, 2]

    def __len__(self) -> int:
        return len(self.gold)

    def part(self, rows: np.ndarray) -> EntityScores:
        """The scores of some of the documents, by index or mask."""
        return EntityScores(self._counts.transpose(2, 1, 0)[rows])

    def followed_by(self, other: EntityScores) -> EntityScores:
        """The scores of 2n answers: these, and then those of another run."""
        return EntityScores(np.concatenate([self._counts, other._counts], axis=2).transpose(2, 1, 0))

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics by name, each (R,), for weights (n, R)."""
        right, predicted, gold = self._counts @ weights
        right_all, predicted_all, gold_all = right.sum(axis=0), predicted.sum(axis=0), gold.sum(axis=0)
        macro = _macro(_ratio(2 * right, predicted + gold), predicted + gold > 0)
        return {
            "entity_f1": _ratio(2 * right_all, predicted_all + gold_all),
            "entity_precision": _ratio(right_all, predicted_all),
            "entity_recall": _ratio(right_all, gold_all),
            "entity_macro_f1": np.nan_to_num(macro, nan=0.0),
        }


class ClassificationScores:
    """Scores n classified documents under any number of weightings; see `classification_metrics`.

    Args:
        gold: (n,) class indices.
        probabilities: (n, C).
        calibrated: (n, C) probabilities for `brier` and `expected_calibration_error`, where these are to be others than
            those that classes and rankings are taken from.
        ranked: whether the two AUROCs and average precision are wanted, which take nearly all of the time.

    Attributes:
        gold: what two runs on the same documents have in common: (n,) class indices.

    Raises:
        UserError: a probability is not finite.
        ValueError: shapes or class indices do not fit.
    """

    def __init__(
        self,
        gold: np.ndarray,
        probabilities: np.ndarray,
        calibrated: np.ndarray | None = None,
        *,
        ranked: bool = True,
    ):
        self._ranked = ranked
        self.gold, probabilities = _checked(gold, probabilities)
        calibrated = probabilities if calibrated is None else _checked(gold, calibrated)[1]
        self._answers = (probabilities, calibrated)
        self._classes = probabilities.shape[1]
        predicted = np.argmax(probabilities, axis=1)
        classes = np.arange(self._classes)
        is_gold = self.gold == classes[:, None]
        is_predicted = predicted == classes[:, None]
        squared_errors = (calibrated.T - is_gold) ** 2
        squared_error = squared_errors[1:] if self._classes == 2 else squared_errors.sum(axis=0, keepdims=True)
        gaps = _calibration_gaps(self.gold, calibrated)
        # Every metric but the rankings is a function of weighted sums over documents: one matrix product gives them.
        self._addends = np.concatenate(
            [is_gold & is_predicted, is_predicted, is_gold, squared_error, gaps], dtype=np.float64
        )
        self._first_ranked = 1 if self._classes == 2 else 0
        self._by_class = np.argsort(self.gold, kind="stable")
        self._found, self._starts = np.unique(self.gold[self._by_class], return_index=True)
        self._rankings = [
            _Ranking.of(index, self.gold, probabilities[:, index], self._by_class)
            for index in self._found
            if ranked and index >= self._first_ranked
        ]

    def __len__(self) -> int:
        return len(self.gold)

    def part(self, rows: np.ndarray) -> ClassificationScores:
        """The scores of some of the documents, by index or mask."""
        return ClassificationScores(self.gold[rows], *(values[rows] for values in self._answers), ranked=self._ranked)

    def followed_by(self, other: ClassificationScores) -> ClassificationScores:
        """The scores of 2n answers: these, and then those of another run."""
        both = (np.concatenate(pair) for pair in zip(self._answers, other._answers, strict=True))
        return ClassificationScores(np.concatenate([self.gold, other.gold]), *both, ranked=self._ranked)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics by name, each (R,), NaN where undefined, for weights (n, R)."""
        weights = np.ascontiguousarray(weights, dtype=np.float64)
        if weights.ndim != 2 or len(weights) != len(self):
            raise ValueError(f"weights have shape {weights.shape}, expected ({len(self)}, any number)")
        sums = self._addends @ weights
        right, predicted, gold = sums[: 3 * self._classes].reshape(3, self._classes, -1)
        squared_error, gaps = sums[3 * self._classes], sums[3 * self._classes + 1 :]
        total = gold.sum(axis=0)
        f1 = _ratio(2 * right, predicted + gold)
        accuracy = _ratio(right.sum(axis=0), total, undefined=np.nan)
        return {
            "accuracy": accuracy,
            "macro_f1": _macro(f1, predicted + gold > 0),
            "micro_f1": accuracy.copy(),
            "weighted_f1": _ratio((f1 * gold).sum(axis=0), total, undefined=np.nan),
            **(self._ranking_metrics(weights, gold) if self._ranked else {}),
            "brier": _ratio(squared_error, total, undefined=np.nan),
            "expected_calibration_error": _ratio(np.abs(gaps).sum(axis=0), total, undefined=np.nan),
        }

    def _ranking_metrics(self, weights: np.ndarray, gold: np.ndarray) -> dict[str, np.ndarray]:
        """The two AUROCs and average precision, from weights (n, R) and gold (C, R) summed by class."""
        # won[a, b]: weight of the pairs of a document of class a and one of class b in which the score of a is higher.
        won = np.zeros((self._classes, *gold.shape))
        precision = np.zeros(gold.shape)
        weights_by_class = weights[self._by_class]
        work = np.empty((2, *weights.shape))
        for ranking in self._rankings:
            own, positives = ranking.index, weights[ranking.positives]
            won[own, self._found] = ranking.pairs_won(positives, weights_by_class, self._starts, work)
            won[own, own] = 0.0
            precision[own] = _ratio(ranking.precision_sum(positives, weights, work[0]), gold[own])

        ranked = slice(self._first_ranked, None)
        pairs = gold * (gold.sum(axis=0) - gold)
        auroc = _macro(_ratio(won.sum(axis=1), pairs)[ranked], pairs[ranked] > 0)
        if self._classes == 2:
            auroc_ovo = auroc.copy()
        else:
            first, second = np.triu_indices(self._classes, k=1)
            pairs_ovo = gold[first] * gold[second]
            auroc_ovo = _macro(_ratio((won[first, second] + won[second, first]) / 2, pairs_ovo), pairs_ovo > 0)
        average_precision = _macro(precision[ranked], gold[ranked] > 0)
        return {"auroc": auroc, "auroc_ovo": auroc_ovo, "average_precision": average_precision}


@dataclass(slots=True)
class _Ranking:
    """The documents in the order of one class's score, as far as it does not depend on the weights.

    "Positives" are the documents of that class. Ties are kept exact: equal scores share one threshold.

    Attributes:
        index: the class.
        positives: (p,) positives by falling score.
        above, not_below: (n,) how many positives score higher than, and at least as high as, each document; documents
            are in the order of their gold classes. None for `not_below` where no document ties with a positive.
        ranked: documents by falling score, down to the last positive.
        ranked_starts, positive_starts: (k,) where in `ranked` and `positives` each distinct score of a positive begins
            to count: documents between two of these scores belong to the lower.
    """

    index: int
    positives: np.ndarray
    above: np.ndarray
    not_below: np.ndarray | None
    ranked: np.ndarray
    ranked_starts: np.ndarray
    positive_starts: np.ndarray

    @classmethod
    def of(cls, index: int, gold: np.ndarray, scores: np.ndarray, by_class: np.ndarray) -> _Ranking:
        # All on the negated scores, which rise where the scores fall: searchsorted wants rising ones.
        falling = -scores
        order = np.argsort(falling, kind="stable")
        positives = order[gold[order] == index]
        thresholds, positive_starts = np.unique(falling[positives], return_index=True)
        above = np.searchsorted(falling[positives], falling[by_class], side="left")
        not_below = np.searchsorted(falling[positives], falling[by_class], side="right")
        negative = gold[by_class] != index
        ends = np.searchsorted(falling[order], thresholds, side="right")
        return cls(
            index=index,
            positives=positives,
            above=above,
            not_below=not_below if (above != not_below)[negative].any() else None,
            ranked=order[: ends[-1]],
            ranked_starts=np.concatenate([[0], ends[:-1]]),
            positive_starts=positive_starts,
        )

    def pairs_won(self, positives: np.ndarray, weights: np.ndarray, starts: np.ndarray, work: np.ndarray) -> np.ndarray:
        """Weight of the pairs of a positive and another document in which the positive scores higher; ties count half.

        Args:
            positives: (p, R) weights of the positives by falling score.
            weights: (n, R) in the order of the gold classes, of which each one found begins at one of `starts` (f,).
            work: (2, n, R) scratch space.

        Returns:
            (f, R), by class of the other document; the entry of the positives' own class means nothing.
        """
        cumulative = np.zeros((len(positives) + 1, positives.shape[1]))
        np.cumsum(positives, axis=0, out=cumulative[1:])
        won = np.take(cumulative, self.above, axis=0, out=work[0])
        if self.not_below is not None:
            won += np.take(cumulative, self.not_below, axis=0, out=work[1])
            won *= 0.5
        won *= weights
        return np.add.reduceat(won, starts, axis=0)

    def precision_sum(self, positives: np.ndarray, weights: np.ndarray, work: np.ndarray) -> np.ndarray:
        """Precision at the score of each positive, summed by weight over positives: (R,).

        Args:
            positives: (p, R) weights of the positives by falling score.
            weights: (n, R) of all documents.
            work: (n, R) scratch space.
        """
        ranked = np.take(weights, self.ranked, axis=0, out=work[: len(self.ranked)])
        retrieved = np.cumsum(np.add.reduceat(ranked, self.ranked_starts, axis=0), axis=0)
        gained = np.add.reduceat(positives, self.positive_starts, axis=0)
        right = np.cumsum(gained, axis=0)
        return (gained * _ratio(right, retrieved)).sum(axis=0)


def _checked(gold: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays that fit each other: (n,) integers below C, (n, C) finite float64."""
    gold, probabilities = np.asarray(gold), np.asarray(probabilities, dtype=np.float64)
    if gold.ndim != 1 or probabilities.ndim != 2 or len(gold) != len(probabilities) or not probabilities.shape[1]:
        raise ValueError(f"gold {gold.shape} and probabilities {probabilities.shape} do not fit: expected (n,), (n, C)")
    if len(gold) and not np.issubdtype(gold.dtype, np.integer):
        raise ValueError(f"gold has type {gold.dtype}, expected class indices")
    if len(gold) and (gold.min() < 0 or gold.max() >= probabilities.shape[1]):
        raise ValueError(f"gold classes {gold.min()} to {gold.max()} do not fit {probabilities.shape[1]} probabilities")
    broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if broken:
        raise UserError(
            f"{broken} of {len(gold)} documents have probabilities that are not finite: the training diverged",
            "Train again with a lower learning rate, or in fp32",
        )
    return gold.astype(np.int64), probabilities


def _calibration_gaps(gold: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Confidence less correctness of each document, in the row of its bin: (CALIBRATION_BINS, n)."""
    gaps = np.zeros((CALIBRATION_BINS, len(gold)))
    if len(gold):
        confidence = probabilities.max(axis=1)
        inner_edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
        bins = np.digitize(confidence, inner_edges, right=True)
        gaps[bins, np.arange(len(gold))] = confidence - (np.argmax(probabilities, axis=1) == gold)
    return gaps


def _ratio(numerator: np.ndarray, denominator: np.ndarray, undefined: float = 0.0) -> np.ndarray:
    """Numerator over denominator, `undefined` where the denominator is 0."""
    out = np.full(np.shape(numerator), undefined)
    return np.divide(numerator, denominator, out=out, where=np.not_equal(denominator, 0))


def _macro(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean over the first axis of the values that are counted; NaN where none is."""
    return _ratio((values * counted).sum(axis=0), counted.sum(axis=0), undefined=np.nan)
