"""Posology's side of a measured training."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from posology.corpus.document import Document
from posology.engine.loop import TOKEN_BUDGET, backward
from posology.engine.run import build, targets
from posology.engine.training import Training
from posology.measure.setting import Setting


class OurTraining:
    """One training that takes steps when it is told to.

    Attributes:
        predictor: model, encoder, precision.
        lengths: pieces of each document as the model reads it, special tokens included.
        tokenising: seconds that tokenising all documents took.
        training: its state.
        losses: mean loss of each step.
    """

    def __init__(self, setting: Setting, documents: Sequence[Document]):
        task = setting.task
        self.predictor = build(task, setting.source, setting.method, setting.recipe, setting.seed)
        begin = time.perf_counter()
        documents, encoded = self.predictor.encoder.read(documents, task.unit)
        self.tokenising = time.perf_counter() - begin
        self.lengths = [len(windows[0].ids) for windows in encoded.windows]
        self.losses: list[float] = []
        adapted, precision = self.predictor.adapted, self.predictor.precision
        self.training = Planned(
            adapted.trainable(),
            encoded,
            targets(documents, task.kind, task.labels),
            setting.recipe,
            kind=adapted.kind,
            outputs=adapted.base.config.num_labels,
            device=precision.device,
            seed=setting.seed,
        )
        torch.manual_seed(setting.seed)

    def run(self, batches: Sequence[np.ndarray]) -> None:
        """One step of the optimiser for each batch of positions of documents."""
        for self.training.batch in batches:
            self._step()

    def run_all(self) -> None:
        """All steps of the recipe, in its order."""
        self.training.batch = None
        while self.training.fit.stopped is None:
            self._step()

    def _step(self) -> None:
        training, predictor = self.training, self.predictor
        loss, tokens = backward(training, predictor.adapted, training.documents(), predictor.precision, TOKEN_BUDGET)
        training.finish_step(loss, tokens)
        self.losses.append(loss)


class Planned(Training):
    """A training that can be given its next batch."""

    batch: np.ndarray | None = None

    def documents(self) -> np.ndarray:
        return self.batch if self.batch is not None else super().documents()
