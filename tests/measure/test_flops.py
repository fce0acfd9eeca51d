"""Operations by formula against those that PyTorch counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from posology.engine.methods import adapt
from posology.engine.recipe import make_recipe
from posology.measure.flops import Cost, cost_of
from tests.engine.tiny import KINDS, VOCABULARY, task_model

LENGTH, TEXTS = 40, 3


def _counted(architecture: str, method: str, kind: str) -> tuple[float, float, Cost, Cost]:
    """Operations of forward and of backward as counted on equal lengths, and the formulas of all and of needed ones."""
    model = task_model(architecture, kind)
    adapted = adapt(model, method, make_recipe(method, overrides={"adapter_dropout": 0.0}), kind, attention="eager")
    adapted.layout = "padded"
    costs = cost_of(adapted, all_positions=True), cost_of(adapted)
    ids = torch.randint(5, VOCABULARY, (TEXTS, LENGTH))
    with FlopCounterMode(display=False) as forward:
        logits = adapted.logits({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops(), *costs


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "electra", "roberta", "albert"])
@pytest.mark.parametrize("method", ["full", "lora", "ia3", "head"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_formula_is_what_pytorch_counts(architecture: str, method: str, kind: str) -> None:
    forward, backward, cost, _ = _counted(architecture, method, kind)
    lengths = np.full(TEXTS, LENGTH)
    assert cost.predicting(lengths) == pytest.approx(forward, rel=0.005)
    # The formula counts attention's whole gradient in the lowest layer, and heads' in places of no weight.
    assert cost.training(lengths) - cost.predicting(lengths) == pytest.approx(backward, rel=0.05)


def test_what_nobody_reads_is_not_needed() -> None:
    """A classifier's last layer: 5 of its 7 matrices and its queries' attention at one position instead of all."""
    _, _, everything, needed = _counted("bert", "full", KINDS[0])
    width, inner = 32, 64
    once = 2 * (2 * width * width + 2 * width * inner)
    saved = everything.forward - needed.forward
    assert saved.tolist() == [-once, once - 4 * width, 4 * width]
    _, _, everything, needed = _counted("bert", "full", KINDS[1])
    assert everything.forward.tolist() == needed.forward.tolist()


def test_adapters_on_top_layers_leave_the_others_without_backward() -> None:
    recipe = make_recipe("lora", overrides={"top_layers": 1})
    top = cost_of(adapt(task_model("bert", KINDS[1]), "lora", recipe, KINDS[1]))
    every = cost_of(adapt(task_model("bert", KINDS[1]), "lora", make_recipe("lora"), KINDS[1]))
    assert top.backward[2] == every.backward[2] / 3
    assert top.backward[1] < 0.5 * every.backward[1]


def test_virtual_tokens_cost_too() -> None:
    plain = cost_of(adapt(task_model("bert", KINDS[1]), "head", make_recipe("head"), KINDS[1]))
    prompt = cost_of(adapt(task_model("bert", KINDS[1]), "prompt", make_recipe("prompt"), KINDS[1]))
    prefix = cost_of(adapt(task_model("bert", KINDS[1]), "prefix", make_recipe("prefix"), KINDS[1]))
    assert prompt.predicting(np.array([20])) == plain.predicting(np.array([30]))
    # 10 keys and values more for each query, in 3 layers of width 32
    assert prefix.predicting(np.array([20])) == plain.predicting(np.array([20])) + 3 * 4 * 32 * 10 * 20
