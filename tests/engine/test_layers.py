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
from posology.engine.projection import shares_of
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


def given(
    layer: Layer, *, read: torch.Tensor | None = None, training: bool = True, lengths: np.ndarray = LENGTHS
) -> Input:
    return Input(Segments(lengths), (None, None), read, torch.float64, training)


def every_third(shape: torch.Size, dropped: int, device: torch.device) -> torch.Tensor:
    """In place of random decisions: some that are always the same."""
    return (torch.arange(shape.numel(), device=device) % 3 > 0).to(torch.uint8).view(shape)


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


TEXTS = [np.array([5, 1, 3, 5]), np.array([20]), np.array([2, 2])]
"""Lengths of the texts of three runs: of unlike numbers of tokens."""


def on_one_backbone(methods: tuple[str, ...], **overrides: Any) -> list[Layer]:
    ranks = [2, 8, 3]
    runs = [
        written(method, seed, **({"rank": ranks[seed], "alpha": 5 + seed, **overrides} if method == "lora" else {}))
        for seed, method in enumerate(methods)
    ]
    for run in runs[1:]:  # the frozen weights are one and the same
        for mine, theirs in zip(run.projections, runs[0].projections, strict=True):
            mine._linears = theirs._linears
        run._norms = runs[0]._norms
        run._parameters = []
    return runs


@pytest.mark.parametrize(
    "others", [("lora", "lora"), ("lora", "ia3", "head"), ("ia3", "ia3"), ("lora",) * 3, ("head", "lora")]
)
@pytest.mark.parametrize("absent", [None, 0, 1])
@pytest.mark.parametrize("some", [False, True])
def test_runs_in_one_row_get_what_each_gets_alone(others: tuple[str, ...], absent: int | None, some: bool) -> None:
    runs = on_one_backbone(others)
    texts = [own if number != absent else own[:0] for number, own in enumerate(TEXTS[: len(runs)])]
    tokens = [int(own.sum()) for own in texts]
    reads = [torch.arange(0, count, 3) for count in tokens]
    hidden = torch.randn(sum(tokens), 32, dtype=torch.float64, requires_grad=True)
    rows = hidden.split(tokens)
    present = [number for number, count in enumerate(tokens) if count]
    alone = torch.cat([
        runs[number](rows[number], given(runs[number], read=reads[number] if some else None, training=False,
                                         lengths=texts[number]))
        for number in present
    ])  # fmt: skip
    goal = torch.randn(len(alone), 32, dtype=torch.float64)
    weights = [weight for number in present for weight in runs[number].trained()]
    away = [weight for number, run in enumerate(runs) if number == absent for weight in run.trained()]
    expected = torch.autograd.grad((alone * goal).sum(), [hidden, *weights])
    lead = runs[0]
    lead.share(runs)
    shares = shares_of(tokens), shares_of(map(len, reads))
    starts = np.cumsum([0, *tokens])
    read = torch.cat([own + int(start) for own, start in zip(reads, starts, strict=False)]) if some else None
    row = given(lead, read=read, training=False, lengths=np.concatenate(texts))._replace(shares=shares)
    together = lead(hidden, row)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(torch.autograd.grad((together * goal).sum(), [hidden, *weights]), expected)
    if away:
        assert set(torch.autograd.grad(lead(hidden, row).sum(), away, allow_unused=True)) == {None}


def test_adapters_drop_at_their_own_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def kept(shape: torch.Size, dropped: int, device: torch.device) -> torch.Tensor:
        asked.append((shape[0], dropped))
        return torch.ones(shape, dtype=torch.uint8)

    monkeypatch.setattr(projection, "kept", kept)
    runs = [written("lora", seed, rank=4, adapter_dropout=rate) for seed, rate in enumerate((0.0, 0.5, 0.25))]
    lead = runs[0]
    lead.share(runs)
    tokens = torch.randn(12, 32, dtype=torch.float64)
    own = lead.projections[0]
    dropping, still = (own.forward(tokens, [], training, shares_of((3, 4, 5))) for training in (True, False))
    assert asked == [(4, 128)] * 2 + [(5, 64)] * 2  # on query and value
    torch.testing.assert_close(dropping[:3], still[:3])
    parts = slice(3, 7), slice(7, 12)
    frozen = written("head").projections[0].forward(tokens, [], False)
    for rows, scale in zip(parts, (2.0, 4 / 3), strict=True):  # nothing was dropped, so that all is scaled
        torch.testing.assert_close(dropping[rows] - frozen[rows], scale * (still[rows] - frozen[rows]))


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
