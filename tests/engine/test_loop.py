"""The training loop against one plain step of the Hugging Face model and its own loss."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from posology.corpus.document import Document, Span
from posology.corpus.tags import words_of
from posology.engine import loop
from posology.engine.encode import Encoder
from posology.engine.loop import backward, fit, make_training
from posology.engine.methods import adapt
from posology.engine.precision import decide
from posology.engine.predictor import pool
from posology.engine.recipe import make_recipe
from posology.engine.run import few, targets
from posology.engine.training import Budget, Fit, Training, parameter_groups, schedule
from posology.errors import UserError
from tests.engine.tiny import CONFIGS, KINDS, task_model, tokenizer

TEXTS = ["patient no pain", "fever", "the patient fever pain abc def", "pain pain", "no", "fever and the pain of no"]


def corpus(kind: str) -> list[Document]:
    return [
        Document(
            id=str(index),
            text=text,
            label="ab"[index % 2],
            words=words_of(text),
            spans=[Span(0, text.find(" ") if " " in text else len(text), "X")] if kind == KINDS[1] else [],
        )
        for index, text in enumerate(TEXTS)
    ]


def setup(kind: str, method: str = "full", **overrides: Any) -> tuple[Any, ...]:
    recipe = make_recipe(method, overrides={"precision": "fp32", "batch_size": 6, "max_length": 90, **overrides})
    outputs = 2 if kind == KINDS[0] else 3
    base = task_model("bert", kind, outputs)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    adapted = adapt(base, method, recipe, kind)
    documents = corpus(kind)
    encoded = Encoder(tokenizer(), CONFIGS["bert"](), recipe, kind).encode(documents)
    goals = targets(documents, kind, ["a", "b"] if kind == KINDS[0] else ["X"])
    training = make_training(adapted, encoded, goals, recipe, decide("fp32"), seed=0)
    return adapted, encoded, goals, recipe, training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1, 30, 4096])
def test_micro_batches_give_the_gradient_of_one_batch_of_transformers(kind: str, budget: int) -> None:
    adapted, encoded, goals, _, training = setup(kind)
    reference = task_model("bert", kind, 2 if kind == KINDS[0] else 3)
    loss, _ = backward(training, adapted, np.arange(6), decide("fp32"), budget)
    gradients = {name: weight.grad for name, weight in adapted.trainable().items()}

    ids = [windows[0].ids for windows in encoded.windows]
    length = max(map(len, ids))
    padded = torch.tensor([[*row, *[0] * (length - len(row))] for row in ids])
    if kind == KINDS[0]:
        labels = torch.tensor(np.array(goals))
    else:  # as in transformers' own examples: the first piece of a word has its label, all other pieces -100
        labels = torch.full(padded.shape, -100)
        for row, windows in enumerate(encoded.windows):
            labels[row, windows[0].columns] = torch.tensor(goals[row][windows[0].words])
    output = reference(input_ids=padded, attention_mask=(padded != 0).long(), labels=labels)
    output.loss.backward()
    assert loss == pytest.approx(output.loss.item(), rel=1e-5)
    for name, weight in reference.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    _, _, goals, _, training = setup(KINDS[1], class_weights="balanced")
    flat = np.concatenate(goals)
    expected = compute_class_weight("balanced", classes=np.unique(flat), y=flat)
    assert training._class_weights.numpy()[np.unique(flat)] == pytest.approx(expected)


def test_logits_of_windows_are_averaged_by_document() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert pool(logits, torch.tensor([1, 0, 1]), 2).tolist() == [[3.0, 4.0], [3.0, 4.0]]
    assert pool(logits, torch.tensor([2, 0, 1]), 3).tolist() == [[3.0, 4.0], [5.0, 6.0], [1.0, 2.0]]


def run(scores: list[float], **overrides: Any) -> tuple[Fit, Any]:
    adapted, encoded, goals, recipe, _ = setup(KINDS[0], "lora", epochs=len(scores), **overrides)
    seen: list[dict[str, torch.Tensor]] = []

    def validate() -> dict[str, float]:
        seen.append({name: weight.detach().clone() for name, weight in adapted.trainable().items()})
        return {"f1": scores[len(seen) - 1]}

    result = fit(adapted, encoded, goals, recipe, seed=0, precision=decide("fp32"), validate=validate, metric="f1")
    return result, (adapted, seen)


def test_the_best_state_on_validation_is_kept_and_patience_ends_training() -> None:
    result, (adapted, seen) = run([0.1, 0.0, 0.5, 0.4, 0.5, 0.9], patience=2)
    assert result.best == 2 and result.stopped == "patience" and len(result.evaluations) == 5
    assert all(torch.equal(weight, seen[2][name]) for name, weight in adapted.trainable().items())
    assert any(not torch.equal(seen[2][name], seen[4][name]) for name in seen[2])


def test_interruption_keeps_the_best_state(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(*arguments: Any) -> tuple[float, int]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return backward(*arguments)

    monkeypatch.setattr(loop, "backward", interrupted)
    result, (adapted, seen) = run([0.5, 0.1, 0.9])
    assert result.stopped == "interrupted" and result.best == 0
    assert all(torch.equal(weight, seen[0][name]) for name, weight in adapted.trainable().items())


def test_time_budget_ends_training_after_a_step() -> None:
    adapted, encoded, goals, recipe, _ = setup(KINDS[0], "lora", epochs=50, batch_size=2)
    options = {"seed": 0, "precision": decide("fp32"), "validate": lambda: {"f1": 0.0}, "metric": "f1"}
    result = fit(adapted, encoded, goals, recipe, budget=Budget(1e-6), **options)
    assert result.stopped == "seconds" and result.documents == 2 and len(result.evaluations) == 1


def test_divergence_is_a_clear_error() -> None:
    adapted, _, _, _, training = setup(KINDS[0], "full")
    with torch.no_grad():
        next(iter(adapted.trainable().values())).fill_(float("nan"))
    with pytest.raises(UserError, match=r"diverged.*step 1.*learning_rate="):
        training.finish_step(*backward(training, adapted, np.arange(6), decide("fp32"), 1024))


def test_an_undefined_metric_is_refused() -> None:
    with pytest.raises(UserError, match="undefined on the validation split"):
        run([float("nan"), 0.5])


def test_divergence_keeps_the_best_state_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def diverging(*arguments: Any) -> tuple[float, int]:
        calls.append(1)
        loss, tokens = backward(*arguments)
        return (float("nan") if len(calls) == 2 else loss), tokens

    monkeypatch.setattr(loop, "backward", diverging)
    result, (adapted, seen) = run([0.5, 0.9])
    assert result.stopped == "diverged" and result.best == 0
    assert all(torch.equal(weight, seen[0][name]) for name, weight in adapted.trainable().items())


def test_factors_and_biases_do_not_decay() -> None:
    adapted, *_ = setup(KINDS[0], "ia3")
    decaying, still = parameter_groups(adapted.trainable(), 0.01)
    assert [weight.shape for weight in decaying["params"]] == [torch.Size([2, 32])]  # the head's matrix
    assert decaying["weight_decay"] == 0.01 and still["weight_decay"] == 0.0
    assert len(still["params"]) + 1 == len(adapted.trainable())


def test_shots_take_so_many_of_each_class_and_vary_with_the_seed() -> None:
    documents = [Document(id=str(index), text="x", label="abc"[min(index // 10, 2)]) for index in range(24)]
    chosen = few(documents, 5, seed=1)
    assert [sum(one.label == label for one in chosen) for label in "abc"] == [5, 5, 4]
    assert [one.id for one in chosen] != [one.id for one in few(documents, 5, seed=2)]
    with pytest.raises(UserError, match="--shots"):
        few(documents, 0, seed=1)


# --- time -------------------------------------------------------------------------------------------------------------


class Clock:
    """Stands still but for what steps and evaluations are said to take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: float, evaluation: float = 0.0):
        self.now, self._evaluation = 0.0, evaluation
        monkeypatch.setattr(loop.time, "perf_counter", lambda: self.now)

        def slow(*arguments: Any) -> tuple[float, int]:
            self.now += step
            return backward(*arguments)

        monkeypatch.setattr(loop, "backward", slow)

    def validate(self) -> dict[str, float]:
        self.now += self._evaluation
        return {"f1": 0.5 + self.now / 1e6}


def timed(clock: Clock, budget: Budget, **overrides: Any) -> Fit:
    adapted, encoded, goals, recipe, _ = setup(KINDS[0], "lora", batch_size=2, **overrides)
    options = {"seed": 0, "precision": decide("fp32"), "validate": clock.validate, "metric": "f1"}
    return fit(adapted, encoded, goals, recipe, budget=budget, **options)


def test_training_stops_before_a_step_that_would_pass_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    result = timed(Clock(monkeypatch, step=9.0, evaluation=100.0), Budget(max_seconds=60), epochs=50)
    # Pieces differ from batch to batch, so the guess of the next step's seconds may leave one step's worth unused.
    assert result.stopped == "seconds" and 60 - 2 * 9 < result.seconds <= 60
    assert result.seconds == 9 * result.steps
    assert result.evaluation_seconds == 100 * len(result.evaluations) and result.evaluations[-1]["step"] == result.steps


def test_one_step_is_made_however_slow_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    result = timed(Clock(monkeypatch, step=100.0), Budget(max_seconds=60), epochs=50)
    assert result.stopped == "seconds" and result.steps == 1 and result.best == 0


def test_evaluations_come_by_time_and_after_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    result = timed(Clock(monkeypatch, step=1.0), Budget(evaluate_seconds=2.0), epochs=2)
    assert [point["step"] for point in result.evaluations] == [2, 3, 5, 6]
    assert [point["seconds"] for point in result.evaluations] == [2, 3, 5, 6]
    assert [point["epoch"] for point in result.evaluations] == pytest.approx([2 / 3, 1, 5 / 3, 2])
    assert result.stopped == "epochs"


def test_patience_counts_epochs_however_often_it_is_evaluated() -> None:
    *_, training = setup(KINDS[0], "lora", batch_size=2, epochs=9, patience=2)
    scores = iter([0.5, 0.4, 0.6, *[0.1] * 20])
    while not training.finished:
        for weight in training.weights.values():
            weight.grad = torch.zeros_like(weight)
        training.finish_step(1.0, 10)
        training.record({"f1": next(scores)}, "f1", 0.0)  # after each of the three steps of an epoch
    assert training.fit.stopped == "patience" and training.fit.best == 2
    assert training.fit.steps == 3 + 2 * training.steps_per_epoch


def rates(training: Training, seconds: float) -> list[float]:
    """Learning rates of all steps, when each takes so many seconds."""
    found = []
    while training.fit.stopped is None:
        found.append(training.learning_rate())
        for weight in training.weights.values():
            weight.grad = torch.zeros_like(weight)
        training.finish_step(1.0, 10)
        training.spend(seconds)
    return found


@pytest.mark.parametrize("name", ["linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.3])
def test_without_a_limit_the_schedule_is_that_of_transformers(name: str, warmup: float) -> None:
    from transformers import get_scheduler

    *_, recipe, training = setup(KINDS[0], "lora", batch_size=2, epochs=9, schedule=name, warmup=warmup)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([weight], lr=recipe.learning_rate)
    first = int(np.ceil(27 * warmup)) if 27 * warmup >= 1 else 0
    theirs = get_scheduler(
        "constant_with_warmup" if name == "constant" else name, optimiser, num_warmup_steps=first, num_training_steps=27
    )
    expected = []
    for _ in range(27):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        theirs.step()
    assert rates(training, 1000.0) == expected


def test_with_a_limit_the_rate_falls_to_zero_by_then() -> None:
    adapted, encoded, goals, recipe, _ = setup(KINDS[0], "lora", batch_size=2, epochs=100, warmup=0.1)

    def made(limit: float) -> Training:
        return make_training(adapted, encoded, goals, recipe, decide("fp32"), seed=0, budget=Budget(limit))

    training = made(100.0)
    found = rates(training, 1.0)
    peak = recipe.learning_rate
    assert len(found) in (98, 99, 100) and training.fit.stopped == "seconds"
    assert found[:3] == pytest.approx([0.0, 0.1 * peak, 0.2 * peak])  # the warm-up takes a tenth of the seconds
    assert found[55] == pytest.approx(0.5 * peak) and max(found) == pytest.approx(peak) and found[-1] < 0.05 * peak
    plenty = rates(made(1e6), 1.0)  # where the epochs end first, they say how far it is
    assert plenty == [peak * schedule(recipe, step, 300) for step in range(300)]


def test_writing_checkpoints_is_paid_from_the_budget() -> None:
    adapted, encoded, goals, recipe, _ = setup(KINDS[0], "lora", batch_size=2, epochs=100)
    training = make_training(adapted, encoded, goals, recipe, decide("fp32"), seed=0, budget=Budget(10.0))
    training.finish_step(1.0, 10)
    training.spend(1.0)
    assert training.fit.stopped is None
    training.spend_on_checkpoint(9.0)
    assert training.fit.stopped == "seconds" and training.evaluation_due and not training.finished
    assert (training.fit.seconds, training.fit.checkpoint_seconds) == (10.0, 9.0)


def test_a_state_goes_on_as_the_training_it_was_taken_of() -> None:
    def step(training: Training) -> None:
        generator = torch.Generator().manual_seed(training.fit.steps)
        for weight in training.weights.values():
            weight.grad = torch.randn(weight.shape, generator=generator)
        training.finish_step(0.5, 10)
        training.spend(1.0)
        if training.evaluation_due:
            training.record({"f1": 1.0}, "f1", 1.0)

    one, other = (setup(KINDS[1], "full", batch_size=2, epochs=9)[-1] for _ in range(2))
    for _ in range(5):
        step(one)
    tensors, facts = one.state()
    other.load_state({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(facts)))
    assert (other.epoch, other.position) == (1, 2) and np.array_equal(one.documents(), other.documents())
    for _ in range(3):
        step(one)
        step(other)
    assert one.fit == other.fit
    assert all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())
    one.restore_best()
    other.restore_best()
    assert all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())
    name = next(iter(tensors))
    with pytest.raises(ValueError, match="another shape"):
        other.load_state({**tensors, name: torch.zeros(1)}, facts)
