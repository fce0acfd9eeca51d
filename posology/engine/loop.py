"""The training loop: micro-batches through the adapted model, and one step of the optimiser on each batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from posology import console
from posology.engine.batch import Batch, batches, cut
from posology.engine.encode import Encoded, Window
from posology.engine.methods import Adapted
from posology.engine.precision import Precision
from posology.engine.predictor import pool
from posology.engine.recipe import Recipe
from posology.errors import UserError

TOKEN_BUDGET = 1024
"""Pieces of a micro-batch, padding included where there is some. Cutting a batch changes no gradient, only the memory
and time it takes: on two cores a quarter of 4,096 was half as much again faster where batches are padded, since less
of it is padding and it stays in the cache."""


@dataclass
class Fit:
    """What a training did.

    Attributes:
        evaluations: for each, `epoch`, `step`, training `seconds` until then, mean training `loss` since the last
            one, and `score` on validation.
        best: the position in `evaluations` of the state that was kept; None if there was none.
        seconds: wall clock of training, evaluations excluded.
        evaluation_seconds: wall clock of the evaluations.
        documents: documents trained on, repetitions included.
        tokens: real pieces trained on, repetitions included.
        stopped: why training ended: `epochs`, `patience`, `seconds`, `diverged` or `interrupted`.
    """

    evaluations: list[dict[str, float]] = field(default_factory=list)
    best: int | None = None
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    documents: int = 0
    tokens: int = 0
    stopped: str = "epochs"


def fit(
    adapted: Adapted,
    encoded: Encoded,
    targets: Sequence[np.ndarray],
    recipe: Recipe,
    *,
    seed: int,
    precision: Precision,
    validate: Callable[[], float],
    max_seconds: float | None = None,
) -> Fit:
    """Trains, evaluates after each epoch, and leaves the model in its best state on validation.

    Args:
        adapted: the model; changed in place.
        encoded: windows of the training documents.
        targets: for each document its class, shape (), or the tag of each word, (words,).
        recipe: hyper-parameters.
        seed: of the order of documents and of dropout; the model was initialised from it as well.
        precision: device and type of products.
        validate: the score on validation of the model as it is; higher is better.
        max_seconds: training stops at the end of the step that passes this.

    Raises:
        UserError: the loss is no longer finite.
    """
    trainer = _Trainer(adapted, encoded, targets, recipe, precision, seed)
    result, kept = Fit(), None
    try:
        with console.progress("training", recipe.epochs * len(targets)) as advance:
            for epoch in range(recipe.epochs):
                losses = []
                for documents in batches(len(targets), recipe.batch_size, seed, epoch):
                    begin = time.perf_counter()
                    losses.append(trainer.step(documents, result))
                    result.seconds += time.perf_counter() - begin
                    advance(len(documents), note=f"loss {losses[-1]:.3f}")
                    if max_seconds is not None and result.seconds >= max_seconds:
                        result.stopped = "seconds"
                        break
                begin = time.perf_counter()
                score = validate()
                if math.isnan(score):
                    raise UserError(
                        "the metric that chooses the checkpoint is undefined on the validation split",
                        "Prepare the task with another --metric, or with a validation split that has every class",
                    )
                result.evaluation_seconds += time.perf_counter() - begin
                result.evaluations.append(
                    {
                        "epoch": epoch + 1,
                        "step": trainer.steps,
                        "seconds": result.seconds,
                        "loss": float(np.mean(losses)),
                        "score": score,
                    }
                )
                console.say(f"epoch {epoch + 1}/{recipe.epochs}: loss {np.mean(losses):.3f}, validation {score:.4f}")
                if result.best is None or score > result.evaluations[result.best]["score"]:
                    result.best, kept = len(result.evaluations) - 1, trainer.state()
                if result.stopped == "seconds":
                    break
                # A tagger that finds nothing yet is still on its way: its score of 0 says nothing about progress.
                found = result.evaluations[result.best]["score"] > 0
                if found and len(result.evaluations) - 1 - result.best >= recipe.patience:
                    result.stopped = "patience"
                    break
    except KeyboardInterrupt:
        result.stopped = "interrupted"
    except Diverged as error:
        if kept is None:
            raise
        console.say(f"{error} The best state before that is kept.")
        result.stopped = "diverged"
    if kept is not None:
        trainer.restore(kept)
    return result


class Diverged(UserError):
    """The loss is no longer a finite number."""


class _Trainer:
    """Model, optimiser and schedule of one training."""

    def __init__(
        self,
        adapted: Adapted,
        encoded: Encoded,
        targets: Sequence[np.ndarray],
        recipe: Recipe,
        precision: Precision,
        seed: int,
    ):
        self._adapted, self._encoded, self._targets = adapted, encoded, targets
        self._recipe, self._precision = recipe, precision
        self._weights = adapted.trainable()
        self._class_weights = self._balance() if recipe.class_weights == "balanced" else None
        steps = math.ceil(len(targets) / recipe.batch_size) * recipe.epochs
        # A warm-up begins at a rate of zero; where it is shorter than one step there is none.
        warmup = math.ceil(steps * recipe.warmup) if steps * recipe.warmup >= 1 else 0
        self._optimiser = torch.optim.AdamW(
            parameter_groups(self._weights, recipe.weight_decay), lr=recipe.learning_rate, fused=True
        )
        self._schedule = (
            get_linear_schedule_with_warmup(self._optimiser, warmup, steps)
            if recipe.schedule == "linear"
            else get_constant_schedule_with_warmup(self._optimiser, warmup)
        )
        self.steps = 0
        torch.manual_seed(seed)

    def step(self, documents: np.ndarray, counted: Fit) -> float:
        """One step of the optimiser on one batch, and its mean loss."""
        adapted = self._adapted
        adapted.module.train()
        scale = self._scale(documents)
        total = 0.0
        for group in cut(self._units(documents), TOKEN_BUDGET, padded=adapted.layout == "padded"):
            batch = adapted.batch(group, self._precision.device)
            counted.tokens += batch.tokens
            with self._precision.autocast():
                logits = adapted.logits(batch.inputs, batch.segments)
            loss = self.loss(logits, batch) / scale
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise Diverged(
                f"training diverged: the loss is {total} at step {self.steps + 1}",
                f"Lower the learning rate (--set learning_rate={self._recipe.learning_rate / 10:g})",
            )
        torch.nn.utils.clip_grad_norm_(list(self._weights.values()), self._recipe.max_grad_norm)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        counted.documents += len(documents)
        return total

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The sum of the weighted cross entropies of a micro-batch."""
        if self._adapted.kind == "sequence-classification":
            logits = pool(logits, batch.owner, len(batch.documents))
            wanted = np.array([self._targets[document] for document in batch.documents])
        else:
            logits = logits[batch.rows, batch.columns]
            wanted = np.array([self._targets[batch.documents[row]][word] for row, word in batch.words], np.int64)
        goal = torch.as_tensor(wanted, dtype=torch.long, device=logits.device)
        return functional.cross_entropy(logits, goal, weight=self._class_weights, reduction="sum")

    def _units(self, documents: np.ndarray) -> list[list[Window]]:
        """Windows that must be in one micro-batch: of a classified document all, since its logits are their mean."""
        own = [self._encoded.windows[document] for document in documents]
        if self._adapted.kind == "sequence-classification":
            return own
        return [[window] for windows in own for window in windows]

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of all trained weights."""
        return {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Puts weights back."""
        for name, weight in self._weights.items():
            weight.copy_(state[name])

    def _scale(self, documents: np.ndarray) -> float:
        """What the summed losses of a batch are divided by, so that cutting it into micro-batches changes nothing."""
        if self._adapted.kind == "sequence-classification":
            wanted = np.array([self._targets[document] for document in documents])
        else:
            wanted = np.concatenate(
                [
                    self._targets[document][window.words]
                    for document in documents
                    for window in self._encoded.windows[document]
                ]
            )
        if self._class_weights is None:
            return float(max(1, len(wanted)))
        return float(self._class_weights.cpu().numpy()[wanted].sum()) or 1.0

    def _balance(self) -> torch.Tensor:
        """n / (classes x count) for each class that occurs, as scikit-learn's `balanced`; 0 for the others."""
        wanted = np.concatenate([np.atleast_1d(target) for target in self._targets])
        counts = np.bincount(wanted, minlength=self._adapted.base.config.num_labels)
        present = counts > 0
        weights = np.zeros(len(counts), np.float32)
        weights[present] = len(wanted) / (present.sum() * counts[present])
        return torch.from_numpy(weights).to(self._precision.device)


def parameter_groups(weights: dict[str, torch.nn.Parameter], decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases, normalisation weights and IA3's factors (which stand for 1, not 0) do not."""
    decays = {name: weight.ndim > 1 and "ia3_l" not in name for name, weight in weights.items()}
    return [
        {"params": [weight for name, weight in weights.items() if decays[name]], "weight_decay": decay},
        {"params": [weight for name, weight in weights.items() if not decays[name]], "weight_decay": 0.0},
    ]
