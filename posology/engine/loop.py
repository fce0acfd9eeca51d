"""The loop of one training: micro-batches through the adapted model, evaluations, checkpoints."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from posology import console
from posology.engine.activations import Activations, Kept, answers, frozen_layers, widened
from posology.engine.adapted import Adapted
from posology.engine.batch import cut
from posology.engine.checkpoint import Checkpoint, State, generators, restore_generators, untouched_generators
from posology.engine.encode import Encoded
from posology.engine.precision import Precision
from posology.engine.predictor import NotFinite
from posology.engine.recipe import Recipe
from posology.engine.stopping import Stop
from posology.engine.teaching import Soft, Student
from posology.engine.training import Budget, Diverged, Fit, Training, Watch

TOKEN_BUDGET = 2048
"""Pieces of a micro-batch, padding included where there is some. Cutting a batch changes no gradient, only the memory
and time it takes: on packed sentences 1,024 was a tenth slower on two cores, and 4,096 no faster."""


def fit(
    adapted: Adapted,
    encoded: Encoded,
    targets: Sequence[np.ndarray],
    recipe: Recipe,
    *,
    seed: int,
    precision: Precision,
    validate: Callable[[], Mapping[str, float]],
    metric: str,
    budget: Budget | None = None,
    checkpoint: Checkpoint | None = None,
    token_budget: int | None = None,
    activations: Activations | None = None,
    watch: Watch | None = None,
    soft: Soft | None = None,
) -> Fit:
    """Trains, evaluates after each epoch, and leaves the model in its best state on validation.

    Ctrl-C and SIGTERM end it after the step they come in (at once in an evaluation, and when they come twice), with a
    checkpoint of that moment. Continued from a checkpoint, training ends with the very weights it would have had
    without the interruption, on the same machine with the same number of threads; but not where the budget counts
    seconds, since no two runs take the same.

    Args:
        adapted: the model; changed in place.
        encoded: windows of the training documents.
        targets: for each document its class, shape (), or the tag of each word, (words,).
        recipe: hyper-parameters.
        seed: of the order of documents and of dropout; the model was initialised from it as well.
        precision: device and type of products.
        validate: every metric on validation of the model as it is.
        metric: the one that chooses the best state; higher is better.
        budget: time.
        checkpoint: where to write checkpoints, entered; training continues from the one that is there.
        token_budget: pieces of a micro-batch; of a checkpoint its own, so that sums have the same order.
        activations: keeps what frozen layers make of the training documents; making it counts as training.
        watch: is called after each evaluation with its entry of `Fit.evaluations`; True ends training, `pruned`.
        soft: what a teacher says of the documents.

    Raises:
        UserError: the loss is no longer finite, or the metric is not a number.
    """
    training = make_training(
        adapted, encoded, targets, recipe, precision, seed=seed, budget=budget, watch=watch, soft=soft
    )
    torch.manual_seed(seed)
    tensors, facts = resume(training, checkpoint, recipe.epochs)
    restore_generators(tensors)
    tokens = facts.get("token_budget") or token_budget or TOKEN_BUDGET
    kept = None
    if activations is not None and facts.get("activations", True) and not training.finished:
        kept = _keep(training, activations, encoded)
    done, total = training.fit.documents, recipe.epochs * len(targets)
    with Stop.deferred() as stop, console.progress("training", total, done) as advance:
        try:
            while not training.finished and not stop.asked:
                if not training.evaluation_due:
                    _step(training, adapted, precision, tokens, kept, advance)
                evaluated = training.evaluation_due and not stop.asked
                if evaluated:
                    _evaluate(training, validate, metric, stop, recipe.epochs)
                if checkpoint is not None and checkpoint.due(evaluated=evaluated) and not stop.asked:
                    _write(checkpoint, training, tokens, kept)
            if stop.asked and checkpoint is not None:
                _write(checkpoint, training, tokens, kept)
        except KeyboardInterrupt:  # the second one, in the middle of a step: the last checkpoint has to do
            stop.asked = True
        except Diverged:
            if checkpoint is not None:
                checkpoint.remove()  # it would only diverge again
            raise
    if stop.asked:
        training.fit.stopped = "interrupted"
    training.restore_best()
    return training.fit


def make_training(
    adapted: Adapted,
    encoded: Encoded,
    targets: Sequence[np.ndarray],
    recipe: Recipe,
    precision: Precision,
    *,
    seed: int,
    budget: Budget | None = None,
    watch: Watch | None = None,
    soft: Soft | None = None,
) -> Training:
    """The training of everything that is trainable in a model; arguments as in `fit`."""
    make = Training if soft is None else functools.partial(Student, soft=soft)
    return make(
        adapted.trainable(),
        encoded,
        targets,
        recipe,
        kind=adapted.kind,
        outputs=adapted.base.config.num_labels,
        device=precision.device,
        seed=seed,
        budget=budget,
        watch=watch,
    )


def backward(
    training: Training,
    adapted: Adapted,
    documents: np.ndarray,
    precision: Precision,
    token_budget: int,
    kept: Kept | None = None,
) -> tuple[float, int]:
    """Adds the gradients of one batch to the weights, micro-batch by micro-batch.

    Layers below the first trained one run without dropout, or not at all where it is kept what they give.

    Args:
        training: gives units, targets and scale.
        adapted: the model whose weights it trains.
        documents: of the batch.
        precision: device and type of products.
        token_budget: pieces of a micro-batch.
        kept: hidden states of the training's documents before the first trained layer.

    Returns:
        The mean loss, and the real pieces in the batch.
    """
    adapted.module.train()
    scale = training.scale(documents)
    total, tokens, layer = 0.0, 0, frozen_layers(adapted)
    padded = adapted.layout == "padded"
    for group in cut(training.units(documents), widened(adapted, layer, token_budget), padded=padded):
        batch = adapted.batch(group, precision.device)
        tokens += batch.tokens
        with precision.autocast():
            given = answers(adapted, batch, group, layer, token_budget, kept)
        loss = training.loss(given, batch) / scale
        loss.backward()
        total += loss.item()
    return total, tokens


def _step(
    training: Training,
    adapted: Adapted,
    precision: Precision,
    token_budget: int,
    kept: Kept | None,
    advance: Callable[..., None],
) -> None:
    begin = time.perf_counter()
    documents = training.documents()
    loss, tokens = backward(training, adapted, documents, precision, token_budget, kept)
    training.finish_step(loss, tokens)
    training.spend(time.perf_counter() - begin)
    advance(len(documents), note=f"loss {loss:.3f}")


def _evaluate(
    training: Training, validate: Callable[[], Mapping[str, float]], metric: str, stop: Stop, epochs: int
) -> None:
    """Evaluates, unless it is stopped meanwhile: then it is still due."""
    begin = time.perf_counter()
    try:
        with stop.at_once(), untouched_generators():
            metrics = validate()
    except KeyboardInterrupt:
        stop.asked = True
        return
    except NotFinite:
        training.diverge("the weights are no longer finite numbers")
        return
    training.record(metrics, metric, time.perf_counter() - begin)
    last = training.fit.evaluations[-1]
    console.say(f"epoch {last['epoch']:.3g}/{epochs}: loss {last['loss']:.3f}, validation {last['score']:.4f}")


def _keep(training: Training, activations: Activations, encoded: Encoded) -> Kept | None:
    begin = time.perf_counter()
    kept = activations.of(encoded, "training", training.seconds_left)
    training.spend_on_activations(time.perf_counter() - begin)
    return kept


def _write(checkpoint: Checkpoint, training: Training, token_budget: int, kept: Kept | None) -> None:
    tensors, facts = training.state()
    # What was kept differs from what is computed anew by rounding, so whoever continues does as was done before.
    facts = {"training": facts, "token_budget": token_budget, "activations": kept is not None}
    seconds = checkpoint.write(tensors | generators(), facts)
    training.spend_on_checkpoint(seconds)


def resume(training: Training, checkpoint: Checkpoint | None, epochs: int) -> State:
    """Continues a training from its checkpoint, if there is one that fits.

    Returns:
        What was read: the state of the random generators is among the tensors where it was kept. Empty where there is none.
    """
    found = checkpoint.read() if checkpoint is not None else None
    if found is None:
        return {}, {}
    tensors, facts = found
    training.load_state(tensors, facts["training"])
    training.fit.resumed += 1
    done = training.fit
    console.say(
        f"continuing from the checkpoint of step {done.steps:,} (epoch {training.epoch + 1} of {epochs}, "
        f"{done.seconds:,.0f} s); --fresh would start over"
    )
    return found
