"""What a run answered on a split, by document, without any text: what comparisons of two runs are made from.

A Parquet file in the artifact, readable by its owner only. Columns: `id`, `group`; for classifiers `label` (the index of
the right class) and `logits` (one for each class, in the order of the artifact's labels); for taggers `counts`: right,
predicted and gold entities of each type, one type after the other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from posology.corpus.document import Document
from posology.engine.decode import softmax
from posology.engine.model import Model
from posology.errors import UserError
from posology.evaluation import metrics


class Predictions(NamedTuple):
    """Answers on a split.

    Attributes:
        ids, groups: of the documents.
        gold: the index of the right class, (documents,); None for taggers.
        logits: (documents, classes); None for taggers.
        counts: right, predicted and gold entities, (documents, types, 3); None for classifiers.
    """

    ids: list[str]
    groups: list[str]
    gold: np.ndarray | None
    logits: np.ndarray | None
    counts: np.ndarray | None

    def scores(self, *, ranked: bool = True) -> metrics.ClassificationScores | metrics.EntityScores:
        """The answers as what every metric is taken from; `ranked` as for `ClassificationScores`."""
        if self.counts is not None:
            return metrics.EntityScores(self.counts)
        assert self.gold is not None
        assert self.logits is not None
        return metrics.ClassificationScores(self.gold, softmax(self.logits), ranked=ranked)


def path_of(artifact: Path | str, split: str = "test") -> Path:
    """Where an artifact has them."""
    return Path(artifact) / f"{split}.parquet"


def write(
    artifact: Path, model: Model, documents: Sequence[Document], logits: Sequence[np.ndarray], split: str = "test"
) -> None:
    """Keeps a model's answers in its artifact, in place of earlier ones.

    Args:
        artifact: the folder.
        model: knows how entities are counted.
        documents: in the order of the answers.
        logits: as `Model.answer` gives them.
        split: which.
    """
    import polars as pl

    columns: dict[str, object] = {
        "id": [document.id for document in documents],
        "group": [document.group for document in documents],
    }
    if model.kind == "token-classification":
        counts = model.counts(documents, logits)
        columns["counts"] = pl.Series(counts.reshape(len(counts), -1).astype(np.int32))
    else:
        columns["label"] = model.gold(documents)
        columns["logits"] = pl.Series(np.stack(logits).astype(np.float32))
    path = path_of(artifact, split)
    new = path.with_name(f".{path.name}")
    with os.fdopen(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
        pl.DataFrame(columns).write_parquet(file)
    os.replace(new, path)


def read(artifact: Path | str, split: str = "test") -> Predictions:
    """Answers that `write` has kept.

    Raises:
        UserError: there are none.
    """
    import polars as pl

    path = path_of(artifact, split)
    if not path.is_file():
        raise UserError("holds no answers by document", "Train it anew with this version", path)
    table = pl.read_parquet(path)
    ids, groups = table["id"].to_list(), table["group"].to_list()
    if "counts" in table.columns:
        return Predictions(ids, groups, None, None, table["counts"].to_numpy().reshape(len(ids), -1, 3))
    return Predictions(ids, groups, table["label"].to_numpy(), table["logits"].to_numpy(), None)
