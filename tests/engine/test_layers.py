"""The written-out layer: its gradients against finite differences, and several runs in one row against each alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from posology.engine import attention, layers, projection
from posology.engine.attention import Segments
from posology.engine.layers import Input, Layer
from posology.engine.methods import adapt
from posology.engine.recipe import make_recipe
from tests.engine.test_packed import windows
from tests.engine.tiny import KINDS, task_model

LENGTHS = np.array([5, 1, 3, 5])


def written(method: str, seed: int = 0, **overrides: Any) -> Layer:
    """A layer in float64 in which every trained weight matters."""
    adapted = adapt(task_model("bert", KINDS[1]), method, make_recipe(method, overrides=overrides), KINDS[1])
    layer = adapted.layers[1]
    torch.manual_seed(seed)
    adapted.module.double()
    with torch.no_grad():
        for weight in layer.trained():
            weight.add_(torch.randn_like(weight) * 0.1)
    return layer


def given(layer: Layer, *, read: torch.Tensor | None = None, training: bool = True, copies: int = 1) -> Input:
    return Input(Segments(np.tile(LENGTHS, copies)), (None, None), read, torch.float64, training)


def every_third(shape: torch.Size, dropped: int | torch.Tensor, device: torch.device) -> torch.Tensor:
    """In place of random decisions: some that are always the same."""
    mine = (torch.arange(shape.numel(), device=device) % 3 > 0).to(torch.uint8).view(shape)
    return torch.where(torch.as_tensor(dropped).int() > 0, mine, torch.ones_like(mine))


@pytest.mark.parametrize("method", ["full", "lora", "ia3", "bitfit", "layernorm"])
@pytest.mark.parametrize("some", [False, True])
def test_gradients_are_those_of_finite_differences(method: str, some: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (attention, layers, projection):
        monkeypatch.setattr(module, "kept", every_third)
    layer = written(method)
    read = torch.tensor([0, 2, 9]) if some else None
    weights = layer.trained()
    hidden = torch.randn(int(LENGTHS.sum()), 32, dtype=torch.float64, requires_grad=True)

    def run(hidden: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return layer(hidden, given(layer, read=read))

    assert len(weights) == {"full": 16, "lora": 4, "ia3": 4, "bitfit": 8, "layernorm": 4}[method]
    assert torch.autograd.gradcheck(run, (hidden, *weights), fast_mode=True)


def test_no_gradient_is_made_for_hidden_states_that_need_none() -> None:
    layer = written("lora")
    hidden = torch.randn(int(LENGTHS.sum()), 32, dtype=torch.float64)
    layer(hidden, given(layer, training=False)).sum().backward()
    assert hidden.grad is None and all(weight.grad is not None for weight in layer.trained())


@pytest.mark.parametrize(
    "others", [("lora", "lora"), ("lora", "ia3", "head"), ("ia3", "ia3"), ("lora",) * 3, ("head", "lora")]
)
def test_runs_in_one_row_get_what_each_gets_alone(others: tuple[str, ...]) -> None:
    ranks = [2, 8, 3]
    runs = [
        written(method, seed, **({"rank": ranks[seed], "alpha": 5 + seed} if method == "lora" else {}))
        for seed, method in enumerate(others)
    ]
    for run in runs[1:]:  # the frozen weights are one and the same
        for mine, theirs in zip(run.projections, runs[0].projections, strict=True):
            mine._linears = theirs._linears
        run._norms = runs[0]._norms
        run._parameters = []
    tokens = int(LENGTHS.sum())
    hidden = torch.randn(len(runs) * tokens, 32, dtype=torch.float64, requires_grad=True)
    goal = torch.randn(len(runs) * tokens, 32, dtype=torch.float64)
    alone = torch.cat(
        [run(part, given(run, training=False)) for run, part in zip(runs, hidden.split(tokens), strict=True)]
    )
    weights = [weight for run in runs for weight in run.trained()]
    expected = torch.autograd.grad((alone * goal).sum(), [hidden, *weights])
    lead = runs[0]
    lead.share(runs)
    together = lead(hidden, given(lead, training=False, copies=len(runs)))
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(torch.autograd.grad((together * goal).sum(), [hidden, *weights]), expected)


def test_adapters_drop_at_their_own_rates() -> None:
    runs = [written("lora", seed, rank=4, adapter_dropout=rate) for seed, rate in enumerate((0.0, 0.5))]
    lead = runs[0]
    lead.share(runs)
    stacks = lead.projections[0]._stack(torch.float64, True)
    assert [stack.drops.flatten().tolist() for stack in stacks] == [[0, 128]] * 2  # type: ignore[union-attr]
    assert [stack.scales for stack in stacks] == [[1.0, 2.0]] * 2
    assert [stack.drops for stack in lead.projections[0]._stack(torch.float64, False)] == [0, 0]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "distilbert"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mean", [False, True])
def test_a_model_may_be_cut_before_any_layer(architecture: str, kind: str, mean: bool) -> None:
    adapted = adapt(
        task_model(architecture, kind), "lora", make_recipe("lora", overrides={"top_layers": 1}), kind, mean=mean
    )
    adapted.module.eval()
    assert adapted.first_trained == 2
    batch = adapted.batch(windows((12, 1, 30)))
    expected = adapted.answers(batch)
    for layer in range(4):
        hidden = adapted.lower(batch, layer)
        torch.testing.assert_close(adapted.upper(hidden, batch, layer), expected)
        assert len(hidden) == (43 if layer < 3 else 22 if kind == KINDS[1] else 3)
    torch.testing.assert_close(adapted.answers(batch), expected)  # nothing of it stays behind


@pytest.mark.parametrize(
    ("method", "first"),
    [("head", 3), ("lora", 0), ("ia3", 0), ("full", None), ("bitfit", None), ("layernorm", None), ("prompt", None),
     ("prefix", None), ("dora", None)],
)  # fmt: skip
def test_what_lies_below_the_first_trained_layer(method: str, first: int | None) -> None:
    for kind in KINDS:
        assert adapt(task_model("bert", kind), method, make_recipe(method), kind).first_trained == first
