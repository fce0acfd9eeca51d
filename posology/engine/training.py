"""One training, apart from how its losses come about: position, optimiser, schedule, budget, evaluations, best state.

Whoever drives trainings (`posology.engine.loop.fit` drives one) repeats, for each of them:

    documents = training.documents()                      the next batch of the recipe's order
    ... micro-batches of training.units(documents) forwards; training.loss(answers, batch) / training.scale(documents)
        backwards, summed into the gradients of training.weights ...
    training.finish_step(loss, tokens); training.spend(seconds)
    if training.evaluation_due: training.record(metrics, metric, seconds)

until `training.finished`. Nothing here draws random numbers: dropout's generator is the process's, and its driver's.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from posology import console
from posology.engine.batch import Batch, batches
from posology.engine.encode import Encoded, Window
from posology.engine.predictor import pool
from posology.engine.recipe import Recipe
from posology.errors import UserError

UNLABELLED = -100
"""The target of what has no label, which only a teacher can say something of (`posology.engine.teaching`)."""
_PACES = 16
Watch = Callable[[dict[str, float]], bool]
"""Is called after each evaluation with its entry of `Fit.evaluations`; True ends the training."""


@dataclass(frozen=True)
class Budget:
    """What a training may take beside its recipe.

    Attributes:
        max_seconds: wall clock of training: steps and checkpoints, evaluations excluded. Training ends before the step
            that would probably pass it, but not before the first, and the learning rate falls to zero by then.
        evaluate_seconds: evaluate after so many seconds of training since the last evaluation, and after each epoch.
    """

    max_seconds: float | None = None
    evaluate_seconds: float | None = None


@dataclass
class Fit:
    """What a training did.

    Attributes:
        evaluations: for each, passes over the data (`epoch`, with a fraction where it fell inside of one), `step`,
            training `seconds` until then, mean training `loss` since the last one, and `score` on validation.
        best: the position in `evaluations` of the state that was kept; None if there was none.
        metrics: every metric of that evaluation.
        seconds: wall clock of training, evaluations excluded; over all parts where it was resumed.
        evaluation_seconds: wall clock of the evaluations.
        checkpoint_seconds: the part of `seconds` in which checkpoints were written.
        activation_seconds: the part of `seconds` in which layers that are not trained were run once for all epochs.
        steps: steps of the optimiser.
        documents: documents trained on, repetitions included.
        tokens: real pieces trained on, repetitions included.
        resumed: how often it was continued from a checkpoint.
        stopped: why training ended: `epochs`, `patience`, `seconds`, `diverged`, `pruned` (whoever watched it had seen
            enough) or `interrupted`; None before.
    """

    evaluations: list[dict[str, float]] = field(default_factory=list)
    best: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    activation_seconds: float = 0.0
    steps: int = 0
    documents: int = 0
    tokens: int = 0
    resumed: int = 0
    stopped: str | None = None


class Diverged(UserError):
    """The loss is no longer a finite number, and there is no earlier state to keep."""


class Training:
    """One run being trained.

    Args:
        weights: what is trained, by name; changed in place, gradients expected in their `grad`.
        encoded: windows of the training documents.
        targets: for each document its class, shape (), or the tag of each word, (words,); `UNLABELLED` where it has none.
        recipe: hyper-parameters.
        kind: of the task.
        outputs: classes, or tags.
        device: where losses are computed.
        seed: of the order of documents.
        budget: time.
        watch: whether an evaluation is to be the last; it then ends with the best state so far, as with any other.

    Attributes:
        weights: as given.
        fit: what was done so far.
        best_state: a copy of the weights that scored best; None before the first evaluation.
        steps_per_epoch, steps: steps of the optimiser in one epoch, and in all.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.nn.Parameter],
        encoded: Encoded,
        targets: Sequence[np.ndarray],
        recipe: Recipe,
        *,
        kind: str,
        outputs: int,
        device: torch.device | str = "cpu",
        seed: int,
        budget: Budget | None = None,
        watch: Watch | None = None,
    ):
        self.weights, self.fit = dict(weights), Fit()
        self.best_state: dict[str, torch.Tensor] | None = None
        self._encoded, self._recipe, self._kind = encoded, recipe, kind
        self._seed, self._budget, self._watch = seed, budget or Budget(), watch
        self._pieces = np.array([sum(len(window.ids) for window in own) for own in encoded.windows])
        self._targets = np.concatenate([np.atleast_1d(target) for target in targets])
        counts = [np.size(target) for target in targets]
        self._starts = np.cumsum(counts) - counts  # of each document in `_targets`
        self._class_weights = None
        if recipe.class_weights == "balanced":
            self._class_weights = balanced(self._targets[self._targets >= 0], outputs).to(device)
        self.steps_per_epoch = math.ceil(len(targets) / recipe.batch_size)
        self.steps = self.steps_per_epoch * recipe.epochs
        self._optimiser = torch.optim.AdamW(
            parameter_groups(self.weights, recipe.weight_decay), lr=recipe.learning_rate, fused=True
        )
        self._order: tuple[int, list[np.ndarray]] = (-1, [])
        self._loss_sum, self._loss_count = 0.0, 0
        self._last_pieces = 0
        self._paces: deque[float] = deque(maxlen=_PACES)  # seconds per piece of the last steps

    # --- the next batch -----------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Passes over the data that are complete."""
        return self.fit.steps // self.steps_per_epoch

    @property
    def position(self) -> int:
        """Batches of the current pass that were trained on."""
        return self.fit.steps % self.steps_per_epoch

    def documents(self) -> np.ndarray:
        """The documents of the next step, (documents,); the same until `finish_step`."""
        if self._order[0] != self.epoch:
            size = self._recipe.batch_size
            self._order = (self.epoch, list(batches(len(self._starts), size, self._seed, self.epoch)))
        return self._order[1][self.position]

    def units(self, documents: np.ndarray) -> list[list[Window]]:
        """Windows that must be in one micro-batch: of a classified document all, since its logits are their mean."""
        own = [self._encoded.windows[document] for document in documents]
        if self._kind == "sequence-classification":
            return own
        return [[window] for windows in own for window in windows]

    def scale(self, documents: np.ndarray) -> float:
        """What the summed losses of a batch are divided by, so that cutting it into micro-batches changes nothing."""
        if self._kind == "sequence-classification":
            wanted = self._targets[documents]
        else:
            read = [self._starts[document] + window.words
                    for document in documents for window in self._encoded.windows[document]]  # fmt: skip
            wanted = self._targets[np.concatenate(read)]
        if self._class_weights is None:
            return float(max(1, len(wanted)))
        weights = np.append(self._class_weights.cpu().numpy(), np.float32(1))  # the last is of what has no label
        return float(weights[np.maximum(wanted, -1)].sum()) or 1.0

    def loss(self, answers: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The sum of the weighted cross entropies of a micro-batch.

        Args:
            answers: (windows, classes), or in token classification (words, tags), as `Adapted.answers` gives them.
            batch: what they were computed from; its documents are positions in this training's corpus.
        """
        return self._cross_entropy(*self._placed(answers, batch))

    def _placed(self, answers: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, np.ndarray]:
        """Answers of documents or words, and the place of each among the targets."""
        if self._kind == "sequence-classification":
            return pool(answers, batch.owner, len(batch.documents)), batch.documents
        return answers, self._starts[batch.documents[batch.words[:, 0]]] + batch.words[:, 1]

    def _cross_entropy(self, answers: torch.Tensor, places: np.ndarray) -> torch.Tensor:
        goal = torch.as_tensor(self._targets[places], dtype=torch.long, device=answers.device)
        return functional.cross_entropy(
            answers, goal, weight=self._class_weights, reduction="sum", ignore_index=UNLABELLED
        )

    # --- the step -----------------------------------------------------------------------------------------------------

    def learning_rate(self) -> float:
        """Of the next step. Without a budget of time it follows from the number of the step alone.

        With one, whichever of steps and seconds is nearer to its end says how far training has come.
        """
        done: float = self.fit.steps
        if self._budget.max_seconds is not None:
            before = self.fit.activation_seconds
            share = (self.fit.seconds - before) / max(1e-9, self._budget.max_seconds - before)
            done = max(done, share * self.steps)
        return self._recipe.learning_rate * schedule(self._recipe, done, self.steps)

    def finish_step(self, loss: float, tokens: int) -> None:
        """One step of the optimiser on `documents()`, whose gradients are in place.

        Args:
            loss: of the batch, already divided by `scale`.
            tokens: real pieces in it.

        Raises:
            Diverged: the loss is not finite and no state was kept. Where one was, training stops with it.
        """
        if not math.isfinite(loss):
            self.diverge(f"the loss is {loss}")
            return
        for group in self._optimiser.param_groups:
            group["lr"] = self.learning_rate()
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self._recipe.max_grad_norm))
        if not math.isfinite(norm):  # clipped, these gradients would be none, or no numbers
            self.diverge(f"the norm of the gradients is {norm}")
            return
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        documents = self.documents()
        self.fit.documents += len(documents)
        self._last_pieces = int(self._pieces[documents].sum())
        self.fit.tokens += tokens
        self.fit.steps += 1
        self._loss_sum, self._loss_count = self._loss_sum + loss, self._loss_count + 1
        if self.fit.steps == self.steps:
            self.fit.stopped = "epochs"

    def spend(self, seconds: float) -> None:
        """Counts what the step just finished took, and ends training where the next one would pass the budget."""
        self.fit.seconds += seconds
        self._paces.append(seconds / max(1, self._last_pieces))
        self._check_time()

    def spend_on_checkpoint(self, seconds: float) -> None:
        """Counts what writing a checkpoint took: training goes on only after it, so the budget pays."""
        self.fit.seconds += seconds
        self.fit.checkpoint_seconds += seconds
        self._check_time()

    def spend_on_activations(self, seconds: float) -> None:
        """Counts what was done once for all steps that are left."""
        self.fit.seconds += seconds
        self.fit.activation_seconds += seconds
        self._check_time()

    @property
    def seconds_left(self) -> float | None:
        """Of the budget; None where it has no end."""
        limit = self._budget.max_seconds
        return None if limit is None else max(0.0, limit - self.fit.seconds)

    def _check_time(self) -> None:
        limit = self._budget.max_seconds
        if limit is None or self.fit.stopped is not None or not self.fit.steps:
            return
        # The median, since a first step that allocates everything says little of the next.
        pace = statistics.median(self._paces) if self._paces else 0.0
        if self.fit.seconds + pace * float(self._pieces[self.documents()].sum()) >= limit:
            self.fit.stopped = "seconds"

    def diverge(self, what: str) -> None:
        """Ends training with the best state so far.

        Raises:
            Diverged: there is none.
        """
        self._optimiser.zero_grad(set_to_none=True)
        error = Diverged(
            f"training diverged: {what} at step {self.fit.steps + 1}",
            f"Lower the learning rate (--set learning_rate={self._recipe.learning_rate / 10:g})",
        )
        if self.best_state is None:
            raise error
        console.say(f"{error} The best state before that is kept.")
        self.fit.stopped = "diverged"

    @property
    def mean_loss(self) -> float:
        """Of the batches since the last evaluation."""
        return self._loss_sum / max(1, self._loss_count)

    # --- evaluations and the end --------------------------------------------------------------------------------------

    @property
    def evaluation_due(self) -> bool:
        """Whether to evaluate before anything else: after each epoch, by time, and at the end."""
        fit = self.fit
        if fit.stopped in ("patience", "diverged", "pruned") or fit.steps == (
            fit.evaluations[-1]["step"] if fit.evaluations else 0
        ):
            return False
        if fit.stopped is not None or self.position == 0:
            return True
        since = fit.seconds - (fit.evaluations[-1]["seconds"] if fit.evaluations else 0.0)
        return self._budget.evaluate_seconds is not None and since >= self._budget.evaluate_seconds

    @property
    def finished(self) -> bool:
        """Whether neither a step nor an evaluation is left; `fit.stopped` says why."""
        return self.fit.stopped is not None and not self.evaluation_due

    def record(self, metrics: Mapping[str, float], metric: str, seconds: float) -> bool:
        """Notes an evaluation of the weights as they are, keeps them where they are the best, counts patience, and asks
        whoever watches.

        Patience is counted in epochs, however many evaluations fall into one: training ends at the first evaluation
        that comes at least `patience` epochs of steps after the best one.

        Args:
            metrics: on validation.
            metric: the one that chooses; higher is better.
            seconds: what the evaluation took.

        Returns:
            Whether it is the best so far.

        Raises:
            UserError: it is not a number.
        """
        fit, score = self.fit, metrics[metric]
        if math.isnan(score):
            raise UserError(
                "the metric that chooses the checkpoint is undefined on the validation split",
                "Prepare the task with another --metric, or with a validation split that has every class",
            )
        fit.evaluation_seconds += seconds
        fit.evaluations.append(
            {
                "epoch": fit.steps / self.steps_per_epoch,
                "step": fit.steps,
                "seconds": fit.seconds,
                "loss": self.mean_loss,
                "score": score,
            }
        )
        self._loss_sum, self._loss_count = 0.0, 0
        better = fit.best is None or score > fit.evaluations[fit.best]["score"]
        if better:
            fit.best, fit.metrics = len(fit.evaluations) - 1, dict(metrics)
            self.best_state = {name: weight.detach().clone() for name, weight in self.weights.items()}
        best = fit.evaluations[fit.best or 0]
        # A tagger that finds nothing yet is still on its way: its score of 0 says nothing about progress.
        if best["score"] > 0 and fit.steps - best["step"] >= self._recipe.patience * self.steps_per_epoch:
            fit.stopped = fit.stopped or "patience"
        if self._watch is not None and self._watch(dict(fit.evaluations[-1])):
            fit.stopped = fit.stopped or "pruned"
        return better

    @torch.no_grad()
    def restore_best(self) -> None:
        """Puts the best weights back, where there are any."""
        for name, weight in self.best_state.items() if self.best_state is not None else ():
            self.weights[name].copy_(weight)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that continuing needs beside the random generators: tensors by name, and facts for JSON.

        The tensors are those in use, no copies.
        """
        tensors: dict[str, torch.Tensor] = {f"weights/{name}": weight.detach() for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            for key, value in self._optimiser.state[weight].items():
                tensors[f"optimiser/{key}/{name}"] = value
        for name, value in (self.best_state or {}).items():
            tensors[f"best/{name}"] = value
        losses = [self._loss_sum, self._loss_count]
        return tensors, {"fit": asdict(self.fit), "losses": losses, "paces": list(self._paces)}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Continues where `state` was taken.

        Raises:
            ValueError: it is the state of another model; this one is unchanged.
        """
        for name, weight in self.weights.items():
            if f"weights/{name}" not in tensors or tensors[f"weights/{name}"].shape != weight.shape:
                raise ValueError(f"{name} is missing or has another shape")
        best = {}
        for name, weight in self.weights.items():
            weight.copy_(tensors[f"weights/{name}"])
            if f"best/{name}" in tensors:
                best[name] = torch.empty_like(weight).copy_(tensors[f"best/{name}"])
            own = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (saved := tensors.get(f"optimiser/{key}/{name}")) is not None:
                    # The moments get the layout of the weight, as the optimiser makes them.
                    like = saved.to(weight.device) if key == "step" else weight
                    own[key] = torch.empty_like(like).copy_(saved)
            if own:
                self._optimiser.state[weight] = own
        self.best_state = best or None
        self.fit = Fit(**facts["fit"])
        self._loss_sum, self._loss_count = facts["losses"]
        self._paces = deque(facts["paces"], maxlen=_PACES)


def schedule(recipe: Recipe, done: float, steps: int) -> float:
    """The factor of the learning rate after `done` of `steps` steps: a rise from zero, then linear decay or none."""
    # Where the warm-up is shorter than one step there is none.
    warmup = math.ceil(steps * recipe.warmup) if steps * recipe.warmup >= 1 else 0
    if done < warmup:
        return done / warmup
    if recipe.schedule == "constant":
        return 1.0
    return max(0.0, (steps - done) / max(1, steps - warmup))


def balanced(targets: np.ndarray, outputs: int) -> torch.Tensor:
    """n / (classes x count) for each class that occurs, as scikit-learn's `balanced`; 0 for the others: (outputs,)."""
    counts = np.bincount(targets, minlength=outputs)
    present = counts > 0
    weights = np.zeros(len(counts), np.float32)
    weights[present] = len(targets) / (present.sum() * counts[present])
    return torch.from_numpy(weights)


def parameter_groups(weights: Mapping[str, torch.nn.Parameter], decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases, normalisation weights and IA3's factors (which stand for 1, not 0) do not."""
    decays = {name: weight.ndim > 1 and "ia3_l" not in name for name, weight in weights.items()}
    return [
        {"params": [weight for name, weight in weights.items() if decays[name]], "weight_decay": decay},
        {"params": [weight for name, weight in weights.items() if not decays[name]], "weight_decay": 0.0},
    ]
