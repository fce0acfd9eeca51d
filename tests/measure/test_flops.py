"""Operations by formula against those that PyTorch counts on the padded model of transformers and PEFT."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from posology.engine.adapted import Adapted
from posology.engine.methods import adapt
from posology.engine.recipe import make_recipe
from posology.measure.flops import cost_of
from tests.engine.tiny import ARCHITECTURES, KINDS, VOCABULARY, task_model

LENGTH, TEXTS = 40, 3
ONCE_A_BATCH = ("dora", "p-tuning")


def _adapted(architecture: str, method: str, kind: str, **overrides: Any) -> Adapted:
    dropout = {"adapter_dropout": 0.0} if method in ("lora", "dora", "rslora") else {}
    recipe = make_recipe(method, overrides=dropout | overrides)
    adapted = adapt(task_model(architecture, kind), method, recipe, kind, attention="eager")
    adapted.layout = "padded"
    return adapted


def _counted(adapted: Adapted, texts: int = TEXTS) -> np.ndarray:
    """Operations of forward and of backward, as counted on texts of equal lengths."""
    ids = torch.randint(5, VOCABULARY, (texts, LENGTH))
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not know the CPU's own kernel, which prefixes would run
        with FlopCounterMode(display=False) as forward:
            logits = adapted.logits({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
    return np.array([forward.get_total_flops(), backward.get_total_flops()], np.float64)


def _by_formula(adapted: Adapted, texts: int = TEXTS) -> np.ndarray:
    cost, lengths = cost_of(adapted, all_positions=True), np.full(texts, LENGTH)
    return np.array([cost.predicting(lengths), cost.training(lengths) - cost.predicting(lengths)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *itertools.product(["full", "lora", "ia3", "head"], KINDS),
        ("layernorm", KINDS[0]),
        ("prefix", KINDS[0]),
        ("prompt", KINDS[1]),
    ],
)
@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_the_formula_is_what_pytorch_counts(architecture: str, method: str, kind: str) -> None:
    adapted = _adapted(architecture, method, kind)
    np.testing.assert_allclose(_by_formula(adapted), _counted(adapted), rtol=1e-9)


@pytest.mark.parametrize(
    ("architecture", "method", "overrides"),
    [
        ("bert", "bitfit", {}),
        ("mobilebert", "bitfit", {}),
        ("bert", "lora", {"targets": ("key",)}),
        ("distilbert", "lora", {"targets": ("attention_output",), "top_layers": 2}),
        ("mobilebert", "lora", {"targets": ("down",)}),
        ("mobilebert", "ia3", {"targets": ("down",)}),
        ("llama", "rslora", {"targets": "all", "top_layers": 1}),
    ],
)
def test_it_is_that_wherever_the_lowest_adapter_is(architecture: str, method: str, overrides: dict[str, Any]) -> None:
    adapted = _adapted(architecture, method, KINDS[0], **overrides)
    np.testing.assert_allclose(_by_formula(adapted), _counted(adapted), rtol=1e-9)


@pytest.mark.parametrize("method", ONCE_A_BATCH)
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_what_is_needed_once_a_batch_is_left_out(architecture: str, method: str) -> None:
    """Between batches of six and of three texts lies what three texts need."""
    adapted = _adapted(architecture, method, KINDS[1])
    np.testing.assert_allclose(_by_formula(adapted, 3), _counted(adapted, 6) - _counted(adapted, 3), rtol=1e-9)


def test_what_nobody_reads_is_not_needed() -> None:
    """A classifier's last layer: 5 of its 7 matrices and its queries' attention at one position instead of all."""
    adapted = _adapted("bert", "full", KINDS[0])
    everything, needed = cost_of(adapted, all_positions=True), cost_of(adapted)
    width, inner = 32, 64
    once = 2 * (2 * width * width + 2 * width * inner)
    saved = everything.forward - needed.forward
    assert saved.tolist() == [-once, once - 4 * width, 4 * width]
    tagger = _adapted("bert", "full", KINDS[1])
    assert cost_of(tagger, all_positions=True).forward.tolist() == cost_of(tagger).forward.tolist()


def test_adapters_on_top_layers_leave_the_others_without_backward() -> None:
    everywhere = cost_of(_adapted("bert", "lora", KINDS[1]))
    top = cost_of(_adapted("bert", "lora", KINDS[1], top_layers=1))
    # LoRA on queries and values: in its lowest layer the gradient of keys, one of four products, has nobody to go to.
    assert top.backward[2] / everywhere.backward[2] == pytest.approx(1.5 / (1.5 + 2 + 2))
    assert top.backward[1] < 0.4 * everywhere.backward[1] and top.forward[1] < everywhere.forward[1]


def test_virtual_tokens_cost_too() -> None:
    plain, prompt, prefix = (cost_of(_adapted("bert", method, KINDS[1])) for method in ("head", "prompt", "prefix"))
    assert prompt.predicting(np.array([20])) == plain.predicting(np.array([30]))
    # 10 keys and values more for each query, in 3 layers of width 32
    assert prefix.predicting(np.array([20])) == plain.predicting(np.array([20])) + 3 * 4 * 32 * 10 * 20
