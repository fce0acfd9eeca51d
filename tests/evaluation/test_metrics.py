"""scikit-learn and seqeval are the oracles."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from seqeval.metrics import classification_report as seqeval_report
from seqeval.scheme import IOB2
from sklearn import metrics as sklearn_metrics

from posology.corpus.document import Span
from posology.corpus.tags import tags_to_spans
from posology.errors import UserError
from posology.evaluation.metrics import (
    ClassificationScores,
    class_counts,
    classification_metrics,
    entity_counts,
    entity_metrics,
    per_class,
)

LABELS = ("problem", "test", "treatment")


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gold classes and probabilities; among them absent classes, classes never predicted, ties, and a single class."""
    generator = np.random.default_rng(seed)
    classes = int(generator.choice([2, 3, 13]))
    found = generator.permutation(classes)[: generator.integers(1, classes + 1)]
    gold = generator.choice(found, size=int(generator.integers(1, 60)))
    logits = generator.normal(size=(len(gold), classes)) + 2 * generator.random() * np.eye(classes)[gold]
    if generator.random() < 0.3:
        logits[:, generator.integers(classes)] -= 50  # a class that is never predicted
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if generator.random() < 0.5:
        # Multiples of 1/16 that sum to exactly 1, so that many scores tie.
        sixteenths = np.array([generator.multinomial(16, row / row.sum()) for row in probabilities])
        probabilities = sixteenths / 16
    return gold, probabilities


def binned_calibration_error(gold: np.ndarray, probabilities: np.ndarray) -> float:
    error = 0.0
    for index in range(15):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, gold, strict=True)
            if index / 15 < row.max() <= (index + 1) / 15
        ]
        if inside:
            confidence, right = np.array(inside, dtype=float).T
            error += len(inside) / len(gold) * abs(confidence.mean() - right.mean())
    return error


def expected_metrics(gold: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The same by scikit-learn, one class or pair of classes at a time where it refuses absent classes."""
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    one_hot = np.eye(classes, dtype=int)[gold]
    found = sorted(set(gold.tolist()))
    ranked = [label for label in found if classes > 2 or label == 1]
    rest = [
        sklearn_metrics.roc_auc_score(one_hot[:, label], probabilities[:, label]) for label in ranked if len(found) > 1
    ]
    if classes == 2 and len(found) == 2:
        rest = [sklearn_metrics.roc_auc_score(gold, probabilities[:, 1])]
    pairs = []
    for number, first in enumerate(found):
        for second in found[number + 1 :]:
            rows = np.isin(gold, [first, second])
            for label in (first, second):
                pairs.append(sklearn_metrics.roc_auc_score(gold[rows] == label, probabilities[rows, label]))
    precision = [
        sklearn_metrics.average_precision_score(one_hot[:, label], probabilities[:, label]) for label in ranked
    ]
    mean = lambda values: float(np.mean(values)) if values else np.nan  # noqa: E731
    return {
        "accuracy": sklearn_metrics.accuracy_score(gold, predicted),
        "macro_f1": sklearn_metrics.f1_score(gold, predicted, average="macro"),
        "micro_f1": sklearn_metrics.f1_score(gold, predicted, average="micro"),
        "weighted_f1": sklearn_metrics.f1_score(gold, predicted, average="weighted"),
        "auroc": mean(rest),
        "auroc_ovo": mean(rest if classes == 2 else pairs),
        "average_precision": mean(precision),
        "brier": sklearn_metrics.brier_score_loss(gold, probabilities[:, 1], pos_label=1, labels=[0, 1])
        if classes == 2
        else float(((probabilities - one_hot) ** 2).sum(axis=1).mean()),
        "expected_calibration_error": binned_calibration_error(gold, probabilities),
    }


@pytest.mark.parametrize("seed", range(300))
def test_classification_metrics_are_those_of_scikit_learn(seed: int) -> None:
    gold, probabilities = random_case(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = expected_metrics(gold, probabilities)
    assert classification_metrics(gold, probabilities) == pytest.approx(expected, abs=1e-12, nan_ok=True)


EDGES = {
    "a class that is absent from gold and predictions": (
        [0, 2, 2, 0],
        [[0.6, 0.1, 0.3], [0.5, 0, 0.5], [0, 0, 1], [1, 0, 0]],
    ),
    "a class that is predicted and not in gold": ([0, 0, 2], [[0.2, 0.8, 0], [0.9, 0, 0.1], [0, 0.3, 0.7]]),
    "a class that is in gold and never predicted": ([0, 1, 2], [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]]),
    "one class only": ([1, 1], [[0.3, 0.7], [0.6, 0.4]]),
    "all scores tied": ([0, 1, 1, 2], [[0.5, 0.25, 0.25]] * 4),
    "two classes tied at one half": ([0, 1, 1], [[0.5, 0.5]] * 3),
    "positives tied with negatives at some scores": ([1, 0, 1, 0], [[0.2, 0.8], [0.2, 0.8], [0.6, 0.4], [0.6, 0.4]]),
    "without a fault": ([0, 1, 2], np.eye(3).tolist()),
    "nothing right": ([1, 2, 0], np.eye(3).tolist()),
    "one document": ([1], [[0.2, 0.8]]),
}


@pytest.mark.parametrize("case", EDGES)
def test_edge_cases_are_those_of_scikit_learn(case: str) -> None:
    gold, probabilities = np.array(EDGES[case][0]), np.array(EDGES[case][1], dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = expected_metrics(gold, probabilities)
    assert classification_metrics(gold, probabilities) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("classes", [3, 13])
def test_multi_class_rankings_are_scikit_learns_own_averages(classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    gold = generator.permutation(np.arange(4 * classes) % classes)
    probabilities = generator.multinomial(16, np.ones(classes) / classes, size=len(gold)) / 16
    ours = classification_metrics(gold, probabilities)
    for name, multi_class in (("auroc", "ovr"), ("auroc_ovo", "ovo")):
        theirs = sklearn_metrics.roc_auc_score(gold, probabilities, multi_class=multi_class, average="macro")
        assert ours[name] == pytest.approx(theirs, abs=1e-12)
    theirs = sklearn_metrics.average_precision_score(gold, probabilities, average="macro")
    assert ours["average_precision"] == pytest.approx(theirs, abs=1e-12)
    theirs = sklearn_metrics.brier_score_loss(gold, probabilities, labels=list(range(classes)), scale_by_half=False)
    assert ours["brier"] == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("seed", range(100))
def test_weights_are_the_same_as_repeated_rows(seed: int) -> None:
    gold, probabilities = random_case(seed)
    times = np.random.default_rng(seed).integers(0, 4, size=len(gold))
    times[0] = 1
    weighted = classification_metrics(gold, probabilities, times)
    repeated = classification_metrics(np.repeat(gold, times), np.repeat(probabilities, times, axis=0))
    assert weighted == pytest.approx(repeated, abs=1e-12, nan_ok=True)


def test_many_weightings_together_are_those_one_by_one() -> None:
    gold, probabilities = random_case(8)
    weights = np.random.default_rng(0).random((len(gold), 5))
    together = ClassificationScores(gold, probabilities)(weights)
    for column in range(5):
        alone = classification_metrics(gold, probabilities, weights[:, column])
        assert {name: values[column] for name, values in together.items()} == pytest.approx(alone, nan_ok=True)


def test_what_is_undefined_is_nan() -> None:
    one_class = classification_metrics(np.array([1, 1]), np.array([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]]))
    assert np.isnan([one_class["auroc"], one_class["auroc_ovo"]]).all()
    assert one_class["average_precision"] == 1.0
    assert one_class["macro_f1"] == pytest.approx(1 / 3)
    only_negatives = classification_metrics(np.array([0, 0]), np.array([[0.9, 0.1], [0.4, 0.6]]))
    assert np.isnan([only_negatives[name] for name in ("auroc", "auroc_ovo", "average_precision")]).all()
    nothing = classification_metrics(np.array([], dtype=int), np.empty((0, 3)))
    assert np.isnan(list(nothing.values())).all()


def test_calibration_bins_are_closed_on_the_right() -> None:
    # 0.6 is the right edge of the ninth bin, so it shares that bin with 0.59 (one right, one wrong) but not with 0.61.
    probabilities = np.array([[0.59, 0.41], [0.6, 0.4], [0.61, 0.39]])
    error = classification_metrics(np.array([0, 1, 0]), probabilities)["expected_calibration_error"]
    assert error == pytest.approx((abs(0.59 - 1 + 0.6) + abs(0.61 - 1)) / 3)


def test_predictions_of_a_diverged_model_are_refused() -> None:
    with pytest.raises(UserError, match=r"1 of 2 documents .* lower learning rate"):
        classification_metrics(np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.1]]))


@pytest.mark.parametrize(
    ("gold", "probabilities"),
    [
        (np.array([0, 2]), np.full((2, 2), 0.5)),
        (np.array([0, -1]), np.full((2, 2), 0.5)),
        (np.array([0, 1, 1]), np.full((2, 2), 0.5)),
        (np.array([0.0, 1.0]), np.full((2, 2), 0.5)),
        (np.array([0, 1]), np.array([0.5, 0.5])),
    ],
)
def test_arrays_that_do_not_fit_are_refused(gold: np.ndarray, probabilities: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"fit|class indices"):
        classification_metrics(gold, probabilities)


@pytest.mark.parametrize("seed", range(30))
def test_per_class_of_a_classification_is_scikit_learns_report(seed: int) -> None:
    gold, probabilities = random_case(seed)
    labels = [f"class {index}" for index in range(probabilities.shape[1])]
    report = sklearn_metrics.classification_report(
        gold,
        probabilities.argmax(axis=1),
        labels=list(range(len(labels))),
        target_names=labels,
        output_dict=True,
        zero_division=0,
    )
    ours = per_class(class_counts(gold, probabilities), labels)
    assert list(ours) == labels
    for label in labels:
        theirs = report[label]
        assert ours[label] == pytest.approx(
            {name.replace("f1-score", "f1"): value for name, value in theirs.items()}, abs=1e-12
        )


def random_tags(generator: np.random.Generator, words: int) -> list[str]:
    """Any tags at all: most sequences have an I- that continues nothing."""
    tags = ["O", *(f"{letter}-{label}" for letter in "BI" for label in LABELS)]
    likely = np.array([generator.choice([0.2, 1.0, 8.0]), *[1.0] * 3, *[1.0] * 3])
    return generator.choice(tags, size=words, p=likely / likely.sum()).tolist()


def tagged_cases(number: int) -> Iterator[tuple[list[list[str]], list[list[str]]]]:
    for seed in range(number):
        generator = np.random.default_rng(seed)
        gold, predicted = [], []
        for _ in range(generator.integers(1, 6)):
            tags = random_tags(generator, int(generator.integers(1, 12)))
            other = random_tags(generator, len(tags))
            keep = generator.random(len(tags)) < generator.random()
            gold.append(tags)
            predicted.append([tag if kept else new for tag, new, kept in zip(tags, other, keep, strict=True)])
        if seed % 50 == 0:
            gold = [["O"] * len(tags) for tags in gold]
        if seed % 75 == 0:
            predicted = [["O"] * len(tags) for tags in predicted]
        yield gold, predicted


def strict_entities(tags: list[str]) -> list[Span]:
    """The entities of IOB2 tags, over words of one character each: B- begins one, the same I- continues it."""
    spans = []
    for begin, tag in enumerate(tags):
        if tag[0] == "B":
            end = begin + 1
            while end < len(tags) and tags[end] == f"I-{tag[2:]}":
                end += 1
            spans.append(Span(begin, end, tag[2:]))
    return spans


def test_entity_metrics_are_those_of_seqeval_in_strict_mode_on_a_thousand_cases() -> None:
    without_entities = 0
    for gold, predicted in tagged_cases(1000):
        gold_spans, predicted_spans = map(strict_entities, gold), map(strict_entities, predicted)
        counts = np.stack([entity_counts(*pair, LABELS) for pair in zip(gold_spans, predicted_spans, strict=True)])
        ours = entity_metrics(counts)
        if not counts.any():
            # seqeval divides by the number of entity types here, which is zero.
            assert set(ours.values()) == {0.0}
            without_entities += 1
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = seqeval_report(gold, predicted, mode="strict", scheme=IOB2, output_dict=True)
        micro = theirs["micro avg"]
        assert ours == pytest.approx(
            {
                "entity_f1": micro["f1-score"],
                "entity_precision": micro["precision"],
                "entity_recall": micro["recall"],
                "entity_macro_f1": theirs["macro avg"]["f1-score"],
            },
            abs=1e-12,
        )
        for label, scores in per_class(counts, LABELS).items():
            expected = theirs.get(label, {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
            assert scores == pytest.approx(
                {name.replace("f1-score", "f1"): value for name, value in expected.items()}, abs=1e-12
            )
    assert 0 < without_entities < 100


def test_entities_from_tags_over_real_words_score_the_same() -> None:
    for gold, predicted in tagged_cases(100):
        for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
            words = [(5 * index, 5 * index + 4) for index in range(len(gold_tags))]
            from_words = entity_counts(tags_to_spans(words, gold_tags), tags_to_spans(words, predicted_tags), LABELS)
            from_tags = entity_counts(strict_entities(gold_tags), strict_entities(predicted_tags), LABELS)
            assert from_words.tolist() == from_tags.tolist()


def test_an_entity_is_right_only_with_its_start_end_and_label_and_counts_once() -> None:
    gold = [Span(0, 7, "problem"), Span(10, 14, "test"), Span(20, 30, "treatment")]
    predicted = [Span(0, 7, "problem"), Span(0, 7, "problem"), Span(10, 13, "test"), Span(20, 30, "problem")]
    assert entity_counts(gold, predicted, LABELS).tolist() == [[1, 2, 1], [0, 1, 1], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"'drug'.*problem, test, treatment"):
        entity_counts(gold, [Span(0, 1, "drug")], LABELS)


def test_counts_that_do_not_fit_the_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 3 labels"):
        per_class(np.zeros((4, 2, 3)), LABELS)
    with pytest.raises(ValueError, match=r"\(documents, labels, 3\)"):
        entity_metrics(np.zeros((2, 3)))
