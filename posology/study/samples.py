"""Smaller versions of a prepared task, each inside the next: what candidates are compared on before the whole."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from posology.corpus.document import Document
from posology.tasks.prepared import PreparedTask, write_prepared

LEAST_VALIDATION = 100
"""Validation documents of a sample: as many as it has training documents, but not fewer than this."""


def nested(documents: Sequence[Document], size: int, seed: int) -> tuple[list[Document], list[Document]]:
    """So many documents, or a few more where groups are large, and the rest.

    Whole groups are taken in an order drawn by `seed`, so that smaller samples are parts of larger ones; the documents
    of both lists are in that order. The last group is never taken unless everything is asked for.
    """
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.group, []).append(document)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    taken: list[Document] = []
    while order and len(taken) < size and (len(order) > 1 or size >= len(documents)):
        taken += groups[order.pop(0)]
    return taken, [document for group in order for document in groups[group]]


def sizes(training: Sequence[Document], asked: Sequence[int], seed: int) -> list[int]:
    """How many documents `nested` takes for each size; not those where large groups would make it another sample: one
    that is empty, or half again as large as was asked for."""
    taken = [(len(nested(training, size, seed)[0]), size) for size in asked]
    return [count for count, size in taken if 0 < count <= 1.5 * size]


def validation_of(task: PreparedTask, validation: Sequence[Document], documents: int, seed: int) -> list[Document]:
    """The validation documents that go with so many training documents: all, where they are one group.

    Metrics that need every class keep all of them.
    """
    size = len(validation)
    if documents < task.counts["train"] and task.metric not in ("auroc", "average_precision"):
        size = min(size, max(documents, LEAST_VALIDATION))
    return nested(validation, size, seed)[0] or list(validation)


def write_sample(
    folder: Path, task: PreparedTask, training: Sequence[Document], validation: Sequence[Document], size: int, seed: int
) -> PreparedTask:
    """A prepared task of `size` training documents; the one that is in `folder` already if there is one.

    Every run ends with a test, and what chooses must not see the test split: a training document outside of the sample
    stands in for it, whose score means nothing.

    Args:
        folder: where it is, or is to be.
        task: the whole.
        training, validation: all its documents.
        size: of the sample, less than all: one of `sizes`.
        seed: of the draw.

    Raises:
        UserError: it cannot be written, or what is there was changed.
    """
    if folder.is_dir():
        return PreparedTask.open(folder)
    own, others = nested(training, size, seed)
    return write_prepared(
        folder,
        name=task.name,
        kind=task.kind,
        labels=task.labels,
        metric=task.metric,
        protocol=task.protocol,
        splits={
            "train": own,
            "validation": validation_of(task, validation, size, seed),
            "test": others[:1],
        },
        unit=task.unit,
        notes={"sample_of": task.fingerprint, "seed": seed},
    )
