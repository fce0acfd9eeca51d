"""Generated predictions that the tests of statistics share."""

from __future__ import annotations

import numpy as np


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
