"""The training loop against one plain step of the Hugging Face model and its own loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from posology.corpus.document import Document, Span
from posology.corpus.tags import words_of
from posology.engine import loop
from posology.engine.encode import Encoder
from posology.engine.loop import Fit, fit, parameter_groups
from posology.engine.methods import adapt
from posology.engine.precision import decide
from posology.engine.predictor import pool
from posology.engine.recipe import make_recipe
from posology.engine.train import few, targets
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
    trainer = loop._Trainer(adapted, encoded, goals, recipe, decide("fp32"), 0)
    return adapted, encoded, goals, recipe, trainer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1, 30, 4096])
def test_micro_batches_give_the_gradient_of_one_batch_of_transformers(
    kind: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted, encoded, goals, _, trainer = setup(kind)
    monkeypatch.setattr(loop, "TOKEN_BUDGET", budget)
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_: Any, **__: Any) -> torch.Tensor:
        gradients.update(
            {name: weight.grad.clone() for name, weight in adapted.trainable().items() if weight.grad is not None}
        )
        return torch.tensor(0.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    reference = task_model("bert", kind, 2 if kind == KINDS[0] else 3)
    loss = trainer.step(np.arange(6), Fit())

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

    _, _, goals, _, trainer = setup(KINDS[1], class_weights="balanced")
    flat = np.concatenate(goals)
    expected = compute_class_weight("balanced", classes=np.unique(flat), y=flat)
    assert trainer._class_weights.numpy()[np.unique(flat)] == pytest.approx(expected)


def test_logits_of_windows_are_averaged_by_document() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert pool(logits, torch.tensor([1, 0, 1]), 2).tolist() == [[3.0, 4.0], [3.0, 4.0]]
    assert pool(logits, torch.tensor([2, 0, 1]), 3).tolist() == [[3.0, 4.0], [5.0, 6.0], [1.0, 2.0]]


def run(scores: list[float], **overrides: Any) -> tuple[Fit, Any]:
    adapted, encoded, goals, recipe, _ = setup(KINDS[0], "lora", epochs=len(scores), **overrides)
    seen: list[dict[str, torch.Tensor]] = []

    def validate() -> float:
        seen.append({name: weight.detach().clone() for name, weight in adapted.trainable().items()})
        return scores[len(seen) - 1]

    result = fit(adapted, encoded, goals, recipe, seed=0, precision=decide("fp32"), validate=validate)
    return result, (adapted, seen)


def test_the_best_state_on_validation_is_kept_and_patience_ends_training() -> None:
    result, (adapted, seen) = run([0.1, 0.0, 0.5, 0.4, 0.5, 0.9], patience=2)
    assert result.best == 2 and result.stopped == "patience" and len(result.evaluations) == 5
    assert all(torch.equal(weight, seen[2][name]) for name, weight in adapted.trainable().items())
    assert any(not torch.equal(seen[2][name], seen[4][name]) for name in seen[2])


def test_interruption_keeps_the_best_state(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = loop._Trainer.step, []

    def interrupted(self: Any, *arguments: Any) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(loop._Trainer, "step", interrupted)
    result, (adapted, seen) = run([0.5, 0.1, 0.9])
    assert result.stopped == "interrupted" and result.best == 0
    assert all(torch.equal(weight, seen[0][name]) for name, weight in adapted.trainable().items())


def test_time_budget_ends_training_after_a_step() -> None:
    adapted, encoded, goals, recipe, _ = setup(KINDS[0], "lora", epochs=50, batch_size=2)
    options = {"seed": 0, "precision": decide("fp32"), "validate": lambda: 0.0}
    result = fit(adapted, encoded, goals, recipe, max_seconds=1e-6, **options)
    assert result.stopped == "seconds" and result.documents == 2 and len(result.evaluations) == 1


def test_divergence_is_a_clear_error() -> None:
    adapted, _, _, _, trainer = setup(KINDS[0], "full")
    with torch.no_grad():
        next(iter(adapted.trainable().values())).fill_(float("nan"))
    with pytest.raises(UserError, match=r"diverged.*step 1.*learning_rate="):
        trainer.step(np.arange(6), Fit())


def test_an_undefined_metric_is_refused() -> None:
    with pytest.raises(UserError, match="undefined on the validation split"):
        run([float("nan"), 0.5])


def test_divergence_keeps_the_best_state_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = loop._Trainer.step, []

    def diverging(self: Any, *arguments: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise loop.Diverged("training diverged", "Lower the learning rate")
        return step(self, *arguments)

    monkeypatch.setattr(loop._Trainer, "step", diverging)
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
