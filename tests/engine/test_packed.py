"""The padding-free path against the padded one: the same losses and gradients, for every architecture and method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from posology.engine.attention import Segments
from posology.engine.encode import Window
from posology.engine.methods import METHODS, VIRTUAL, Adapted, adapt
from posology.engine.recipe import make_recipe
from tests.engine.tiny import ARCHITECTURES, KINDS, VOCABULARY, task_model

LONGEST = 96  # positions of the tiny models
CELLS = [
    (architecture, method, kind)
    for architecture in ARCHITECTURES
    for method in METHODS
    for kind in KINDS
    if not (method == "bitfit" and architecture in ("modernbert", "llama"))
]


def make(architecture: str, method: str, kind: str, *, mean: bool = False) -> Adapted:
    """An adapted model without dropout in which every trained weight matters."""
    recipe = make_recipe(method, overrides={"adapter_dropout": 0.0})
    adapted = adapt(task_model(architecture, kind), method, recipe, kind, mean=mean)
    torch.manual_seed(0)
    with torch.no_grad():  # LoRA starts at zero, IA3 at one
        for weight in adapted.trainable().values():
            weight.add_(torch.randn_like(weight) * 0.05)
    adapted.module.eval()
    return adapted


def windows(lengths: tuple[int, ...], *, pairs: bool = False) -> list[Window]:
    """One window of each length, with a word at every other column."""
    draw = np.random.default_rng(1)
    return [
        Window(
            document,
            draw.integers(5, VOCABULARY, length),
            length // 2 if pairs else 0,
            np.arange(0, length, 2),
            np.arange((length + 1) // 2),
        )
        for document, length in enumerate(lengths)
    ]


def gradients(
    adapted: Adapted, groups: list[list[Window]], layout: Any
) -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
    """Loss and gradients summed over groups of windows, and the logits of documents or words."""
    adapted.layout = layout
    adapted.module.zero_grad()
    total, seen = 0.0, []
    for group in groups:
        batch = adapted.batch(group)
        logits = adapted.logits(batch.inputs, batch.segments)
        if adapted.kind == KINDS[1]:
            logits = logits[batch.rows, batch.columns]
            goal = torch.from_numpy(batch.documents[batch.words[:, 0]] * 7 + batch.words[:, 1]) % 5
        else:
            goal = torch.from_numpy(batch.documents) % 5
        loss = functional.cross_entropy(logits, goal, reduction="sum")
        loss.backward()
        total += loss.item()
        seen.append(logits.detach())
    found = {name: weight.grad.clone() for name, weight in adapted.trainable().items() if weight.grad is not None}
    return total, found, torch.cat(seen)


def assert_equal(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Loss, logits and each gradient agree relative to their size; noise around an exact zero is let through."""
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=2e-5)
    whole = torch.stack([gradient.norm() for gradient in theirs[1].values()]).norm()
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        assert (ours[1][name] - gradient).norm() <= tolerance * gradient.norm() + 1e-7 * whole, name


@pytest.mark.parametrize(("architecture", "method", "kind"), CELLS)
def test_a_packed_row_equals_each_text_alone(architecture: str, method: str, kind: str) -> None:
    adapted = make(architecture, method, kind)
    longest = LONGEST - (10 if method in VIRTUAL else 0)
    texts = windows((12, 1, longest, 7, 12))
    alone = gradients(adapted, [[text] for text in texts], "padded")
    assert_equal(gradients(adapted, [texts], "packed"), alone)
