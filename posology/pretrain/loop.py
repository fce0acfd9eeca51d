"""The loop of pre-training: optimiser batches of texts, cut into packed micro-batches; checkpoints; budgets."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from posology import console
from posology.engine.batch import cut
from posology.engine.checkpoint import Checkpoint, generators, restore_generators, untouched_generators
from posology.engine.encode import Window
from posology.engine.precision import Precision
from posology.engine.recipe import Recipe
from posology.engine.stopping import Stop
from posology.engine.training import Diverged, parameter_groups, schedule
from posology.pretrain.masking import TRAINING, Masker
from posology.pretrain.mlm import MaskedModel
from posology.pretrain.order import Order
from posology.pretrain.store import Texts

TOKEN_BUDGET = {"cpu": 4096, "cuda": 16384}
"""Pieces of a micro-batch. The vocabulary's gradient is as large as its embeddings, and added once for each."""
HEAD_SHARE = 0.1
"""Of all steps, those in which a new head is trained alone: what it says before that would only damage the backbone."""
_PACES = 16


@dataclass
class Progress:
    """What pre-training did so far.

    Attributes:
        steps: of the optimiser.
        tokens: real pieces, special tokens included; repetitions count.
        hidden: pieces among them that were to be guessed.
        seconds: wall clock of steps and checkpoints, over all parts where it was resumed.
        checkpoint_seconds: the part of these in which checkpoints were written.
        loss: a running mean of the loss of the last steps.
        head_steps: steps in which only a new head was trained.
        resumed: how often it was continued.
        stopped: why it ended: `steps`, `seconds` or `interrupted`; None before.
    """

    steps: int = 0
    tokens: int = 0
    hidden: int = 0
    seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    loss: float = 0.0
    head_steps: int = 0
    resumed: int = 0
    stopped: str | None = None


class Pretraining:
    """One pre-training, step by step; what each step does follows from its number and the seed.

    Args:
        model: changed in place.
        texts: to train on.
        masker: hides words.
        recipe: learning rate, batch size, schedule.
        steps: of the optimiser, in all.
        precision: device and type of products.
        seed: of the order of texts.
        max_seconds: of steps and checkpoints; the learning rate falls to zero by then.

    Attributes:
        progress: what was done.
    """

    def __init__(
        self,
        model: MaskedModel,
        texts: Texts,
        masker: Masker,
        recipe: Recipe,
        steps: int,
        precision: Precision,
        *,
        seed: int,
        max_seconds: float | None = None,
    ):
        self.progress = Progress()
        self._model, self._texts, self._masker, self._recipe = model, texts, masker, recipe
        self._steps, self._precision, self._seed, self._max_seconds = steps, precision, seed, max_seconds
        self._token_budget = TOKEN_BUDGET[precision.device.type]
        self._weights = model.trainable()
        self._optimiser = torch.optim.AdamW(
            parameter_groups(self._weights, recipe.weight_decay), lr=recipe.learning_rate, fused=True
        )
        self._paces: deque[float] = deque(maxlen=_PACES)
        self._orders: dict[int, Order] = {}

    @property
    def share(self) -> float:
        """How far it has come, from 0 to 1: of steps or of seconds, whichever is nearer to its end."""
        share = self.progress.steps / self._steps
        return share if self._max_seconds is None else max(share, self.progress.seconds / self._max_seconds)

    @property
    def head_only(self) -> bool:
        """Whether only a new head is trained at this point."""
        return self._model.new_head and self.share < HEAD_SHARE and self.progress.steps == self.progress.head_steps

    @property
    def head_done(self) -> bool:
        """Whether a new head has just had its time alone, and nothing else was trained yet."""
        return 0 < self.progress.steps == self.progress.head_steps and not self.head_only

    def windows(self) -> list[Window]:
        """The texts of the next step, words hidden."""
        step, size, count = self.progress.steps, self._recipe.batch_size, len(self._texts)
        places = np.arange(step * size, (step + 1) * size)
        found = []
        for place in places.tolist():
            epoch = place // count
            if epoch not in self._orders:
                self._orders = {epoch: Order(count, self._seed, epoch)}
            number = int(self._orders[epoch](np.array([place % count]))[0])
            ids, starts, _ = self._texts.read(number)
            found.append(self._masker.window(number, ids, starts, TRAINING, step))
        return found

    def step(self) -> None:
        """One step of the optimiser.

        Raises:
            Diverged: the loss is no longer finite.
        """
        began = time.perf_counter()
        progress, head_only = self.progress, self.head_only
        self._model.train_head_only(head_only)
        loss, tokens, hidden = self._backward(self.windows())
        if not math.isfinite(loss):
            raise Diverged(
                f"pre-training diverged: the loss is {loss} at step {progress.steps + 1}",
                f"Lower the learning rate (--learning-rate {self._recipe.learning_rate / 5:g})",
            )
        rate = self._recipe.learning_rate * self._schedule()
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        weights = [weight for weight in self._weights.values() if weight.grad is not None]
        torch.nn.utils.clip_grad_norm_(weights, self._recipe.max_grad_norm)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        progress.loss = loss if not progress.steps else 0.95 * progress.loss + 0.05 * loss
        progress.steps += 1
        progress.head_steps += head_only
        progress.tokens += tokens
        progress.hidden += hidden
        self._spend(time.perf_counter() - began)

    def _schedule(self) -> float:
        """The share of the peak at this point: behind a new head's time alone it rises once more, for all other weights."""
        factor = schedule(self._recipe, self.share * self._steps, self._steps)
        rise = self._recipe.warmup
        if not self.progress.head_steps or self.head_only or rise * self._steps < 1:
            return factor
        return factor * min(1.0, max(0.0, self.share - HEAD_SHARE) / rise)

    def _backward(self, windows: list[Window]) -> tuple[float, int, int]:
        """Adds the gradients of a batch; its mean loss over hidden pieces, its pieces, and those hidden."""
        hidden = sum(len(window.words) for window in windows)
        units = [[window] for window in windows if len(window.words)]
        total, tokens = 0.0, 0
        self._model.module.train()
        for group in cut(units, self._token_budget, padded=self._model.layout == "padded"):
            batch = self._model.batch(group, self._precision.device)
            tokens += batch.tokens
            with self._precision.autocast():
                loss = self._model.loss(batch)
            (loss / max(1, hidden)).backward()
            total += loss.item()
        return total / max(1, hidden), tokens, hidden

    def _spend(self, seconds: float) -> None:
        self.progress.seconds += seconds
        self._paces.append(seconds)
        if self.progress.steps >= self._steps:
            self.progress.stopped = "steps"
        elif self._max_seconds is not None:
            pace = statistics.median(self._paces)
            if self.progress.seconds + pace >= self._max_seconds:
                self.progress.stopped = "seconds"

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def write(self, checkpoint: Checkpoint, noted: dict[str, Any]) -> None:
        """Writes all that continuing needs; `noted` are facts of whoever drives it."""
        tensors = {f"weights/{name}": weight.detach() for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            for key, value in self._optimiser.state[weight].items():
                tensors[f"optimiser/{key}/{name}"] = value
        facts = {"progress": asdict(self.progress), "paces": list(self._paces), "noted": noted}
        seconds = checkpoint.write(tensors | generators(), facts)
        self.progress.seconds += seconds
        self.progress.checkpoint_seconds += seconds

    @torch.no_grad()
    def read(self, checkpoint: Checkpoint) -> dict[str, Any] | None:
        """Continues from a checkpoint; what was `noted` in it, or None where there is none."""
        found = checkpoint.read()
        if found is None:
            return None
        tensors, facts = found
        for name, weight in self._weights.items():
            weight.copy_(tensors[f"weights/{name}"])
            own = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (saved := tensors.get(f"optimiser/{key}/{name}")) is not None:
                    like = saved.to(weight.device) if key == "step" else weight
                    own[key] = torch.empty_like(like, requires_grad=False).copy_(saved)
            if own:
                self._optimiser.state[weight] = own
        restore_generators(tensors)
        self.progress = Progress(**facts["progress"])
        self.progress.resumed += 1
        self._paces = deque(facts["paces"], maxlen=_PACES)
        console.say(f"continuing from the checkpoint of step {self.progress.steps:,}; --fresh would start over")
        noted: dict[str, Any] = facts["noted"]
        return noted


def run(
    training: Pretraining,
    steps: int,
    checkpoint: Checkpoint,
    noted: dict[str, Any],
    after_head: Callable[[], None],
) -> None:
    """Drives a pre-training to its end, or until it is stopped; `training.progress.stopped` says which.

    Args:
        training: what `Pretraining.read` left, or a new one.
        steps: in all, to show progress.
        checkpoint: entered; where to write.
        noted: goes into each checkpoint.
        after_head: is called when a new head was trained alone; adds `with_new_head` to `noted`.

    Raises:
        Diverged: the loss is no longer finite; there is no checkpoint any more.
    """
    progress = training.progress
    with Stop.deferred() as stop, console.progress("pre-training", steps, progress.steps) as advance:
        try:
            while progress.stopped is None and not stop.asked:
                if training.head_done and "with_new_head" not in noted:
                    with untouched_generators():
                        after_head()
                training.step()
                advance(1, note=f"loss {progress.loss:.3f}")
                if checkpoint.due() and progress.stopped is None:
                    training.write(checkpoint, noted)
            if stop.asked:
                training.write(checkpoint, noted)
        except KeyboardInterrupt:  # the second one: the last checkpoint has to do
            stop.asked = True
        except Diverged:
            checkpoint.remove()  # it would only diverge again
            raise
    if stop.asked and progress.stopped is None:
        progress.stopped = "interrupted"
