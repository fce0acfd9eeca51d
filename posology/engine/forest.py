"""A random forest as arrays: scikit-learn grows it, NumPy reads it, and safetensors can hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_DOCUMENTS_AT_ONCE = 256
_DENSE_ELEMENTS = 2**24
"""Features of some documents that are laid out densely at a time: 64 MB."""


def forest_arrays(forest: Any, labels: int) -> dict[str, np.ndarray]:
    """The nodes of all trees, one tree after the other.

    Args:
        forest: a fitted `RandomForestClassifier` whose classes are label indices.
        labels: how many labels there are; those that the forest has not met get probability 0.

    Returns:
        `roots` (trees,): each tree's first node; `feature` (nodes,): the column a node asks about, -1 for leaves;
        `threshold` (nodes,): documents whose value is no larger go left; `left`, `right` (nodes,): the nodes that
        follow, where `left` of a leaf is its row in `probabilities` (leaves, labels).
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("feature", "threshold", "left", "right")}
    roots, probabilities = [], []
    nodes = leaves = 0
    for estimator in forest.estimators_:
        tree = estimator.tree_
        is_leaf = tree.children_left < 0
        value = tree.value[is_leaf, 0, :]
        rows = np.zeros((len(value), labels), np.float32)
        rows[:, forest.classes_] = value / value.sum(axis=1, keepdims=True)
        roots.append(nodes)
        probabilities.append(rows)
        parts["feature"].append(np.where(is_leaf, -1, tree.feature))
        parts["threshold"].append(np.where(is_leaf, 0.0, tree.threshold))
        parts["left"].append(np.where(is_leaf, leaves + np.cumsum(is_leaf) - 1, tree.children_left + nodes))
        parts["right"].append(np.where(is_leaf, 0, tree.children_right + nodes))
        nodes, leaves = nodes + tree.node_count, leaves + len(value)
    arrays = {
        name: np.concatenate(part).astype(np.float64 if name == "threshold" else np.int32)
        for name, part in parts.items()
    }
    return {**arrays, "roots": np.array(roots, np.int32), "probabilities": np.concatenate(probabilities)}


def forest_probabilities(arrays: Mapping[str, np.ndarray], features: csr_matrix) -> np.ndarray:
    """The mean over trees of the class shares in the leaf that a document falls into, as scikit-learn's.

    Args:
        arrays: as `forest_arrays` gives them.
        features: (documents, columns).

    Returns:
        (documents, labels), in float64.
    """
    roots, probabilities = arrays["roots"], arrays["probabilities"]
    result = np.zeros((features.shape[0], probabilities.shape[1]))
    step = min(_DOCUMENTS_AT_ONCE, max(1, _DENSE_ELEMENTS // max(1, features.shape[1])))
    for start in range(0, features.shape[0], step):
        dense = features[start : start + step].astype(np.float32).toarray()  # trees compare in float32
        nodes = np.tile(roots, len(dense))
        rows = np.repeat(np.arange(len(dense)), len(roots))
        walking = np.flatnonzero(arrays["feature"][nodes] >= 0)
        while len(walking):
            here = nodes[walking]
            goes_left = dense[rows[walking], arrays["feature"][here]] <= arrays["threshold"][here]
            nodes[walking] = np.where(goes_left, arrays["left"][here], arrays["right"][here])
            walking = walking[arrays["feature"][nodes[walking]] >= 0]
        leaf = arrays["left"][nodes].reshape(len(dense), len(roots))
        result[start : start + step] = probabilities[leaf].mean(axis=1, dtype=np.float64)
    return result
