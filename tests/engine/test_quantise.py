"""Quantised backbones: near the exact ones, trained through, loaded again, refused where they cannot work."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import posology
from posology.engine import artifact as artifacts
from posology.engine import quantise
from posology.engine.adapted import Adapted
from posology.engine.architectures import architecture_of
from posology.engine.backbone import load_model, resolve
from posology.engine.methods import adapt
from posology.engine.precision import Precision, decide
from posology.engine.recipe import make_recipe
from posology.errors import UserError
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import KINDS, ragged, save_backbone

CPU = Precision(torch.device("cpu"), False, "float32")
OFF = {"8bit": 0.02, "4bit": 0.25}  # of logits, relative
SHAPE = {"hidden_size": 128, "intermediate_size": 256}


@pytest.fixture(scope="module", params=["bert", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = SHAPE | ({"head_dim": 32} if request.param == "llama" else {})
    return save_backbone(tmp_path_factory.mktemp("quantise") / request.param, request.param, **own)


def needs(how: str) -> None:
    pytest.importorskip({"8bit": "torchao", "4bit": "bitsandbytes"}[how])
    pytest.importorskip("accelerate")


def load(folder: Path, method: str, how: str | None, kind: str = KINDS[0], **overrides: Any) -> Adapted:
    recipe = make_recipe(method, overrides={"quantise": how, "precision": "fp32", "adapter_dropout": 0.0, **overrides})
    base, new = load_model(resolve(str(folder)), kind, ["a", "b", "c"], recipe, method=method)
    adapted = adapt(base, method, recipe, kind, new_modules=new)
    adapted.module.eval()
    return adapted


@pytest.mark.parametrize("how", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_near_and_memory_is_less(folder: Path, how: str, kind: str) -> None:
    needs(how)
    exact, quantised = load(folder, "lora", None, kind), load(folder, "lora", how, kind)
    expected, found = exact.logits(ragged()), quantised.logits(ragged())
    assert 0 < (found - expected).norm() / (expected - expected.mean()).norm() < OFF[how]
    architecture = architecture_of(exact.base.config)
    names = quantise.matrices(exact.base, exact.base.base_model_prefix, architecture)
    assert names

    def held(adapted: Adapted) -> int:
        return sum(
            quantise.held_bytes(adapted.base.get_submodule(name))
            for name, part in adapted.base.named_modules()
            if ".layer" in name and not list(part.children()) and "lora" not in name
        )

    assert held(quantised) < {"8bit": 0.33, "4bit": 0.25}[how] * held(exact)


@pytest.mark.parametrize("how", ["8bit", "4bit"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "prefix", "prompt", "head"])
def test_training_goes_through_quantised_layers(folder: Path, how: str, method: str) -> None:
    """Gradients reach what is trained and are near those of the exact backbone, also after a prediction."""
    needs(how)
    gradients = []
    for own in (None, how):
        adapted = load(folder, method, own)
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in adapted.trainable().values():
                weight.add_(torch.randn_like(weight) * 0.05)
            adapted.logits(ragged())  # an evaluation before: bitsandbytes would pack its weights for good
        adapted.module.train()
        for part in adapted.module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        adapted.base.config.attention_dropout = 0.0
        for part in adapted.base.modules():
            if hasattr(part, "attention_dropout"):
                part.attention_dropout = 0.0
        (adapted.logits(ragged()) * torch.arange(9.0).view(3, 3)).sum().backward()
        assert all(weight.dtype == torch.float32 for weight in adapted.trainable().values())
        found = [weight.grad for weight in adapted.trainable().values()]
        assert all(gradient is not None for gradient in found)
        gradients.append(torch.cat([gradient.flatten() for gradient in found if gradient is not None]))
    exact, near = gradients
    assert (near - exact).norm() / exact.norm() < 2 * OFF[how]
    assert torch.nn.functional.cosine_similarity(near, exact, dim=0) > 0.95


@pytest.mark.parametrize("how", ["8bit", "4bit"])
def test_packed_rows_equal_texts_alone(folder: Path, how: str) -> None:
    """Weights are rounded, inputs are not: what a text gives does not depend on its neighbours."""
    needs(how)
    import numpy as np

    from posology.engine.encode import Window

    adapted = load(folder, "lora", how)
    draw, none = np.random.default_rng(0), np.arange(0)
    texts = [Window(index, draw.integers(5, 100, length), 0, none, none) for index, length in enumerate((9, 30, 2))]
    with torch.no_grad():
        together = adapted.answers(adapted.batch(texts))
        alone = torch.cat([adapted.answers(adapted.batch([text])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["8bit", "4bit"])
def test_an_artifact_loads_again(how: str, tmp_path: Path, classification: PreparedTask) -> None:
    needs(how)
    backbone = save_backbone(tmp_path / "backbone", "bert", **SHAPE)
    overrides = {"quantise": how, "epochs": 1}
    trained = posology.train(classification.folder, str(backbone), "lora", tmp_path / "run", overrides=overrides)
    model = artifacts.load(tmp_path / "run")
    answers = model.answer(classification.documents("test"))
    assert model.score(answers.documents, answers.logits)["macro_f1"] == pytest.approx(
        trained["metrics"]["macro_f1"]["value"]
    )


@pytest.mark.parametrize("method", ["full", "bitfit", "layernorm"])
def test_trained_backbones_are_not_quantised(method: str) -> None:
    with pytest.raises(UserError, match="cannot be trained"):
        quantise.check("8bit", method, CPU)


@pytest.mark.parametrize(("how", "library"), [("8bit", "torchao"), ("4bit", "bitsandbytes")])
def test_a_missing_library_is_named(how: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name == library:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(UserError, match=rf"needs {library}, which is not installed. Run .*posology\[quantise\]"):
        quantise.check(how, "lora", CPU)


@pytest.mark.parametrize("how", ["8bit", "4bit"])
def test_what_does_not_work_here_is_refused_with_its_reason(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda *_: None)

    def broken(*_: Any) -> Any:
        raise RuntimeError("no kernel image for this device")

    monkeypatch.setattr(quantise, "_quantised_layer", broken)
    with pytest.raises(UserError, match="does not work on cpu here: RuntimeError: no kernel image"):
        quantise.check(how, "lora", CPU)
    monkeypatch.setattr(quantise, "_quantised_layer", lambda *_: torch.nn.Linear(256, 128))
    with pytest.raises(UserError, match="its products are"):
        quantise.check(how, "lora", CPU)


def test_bytes_per_weight() -> None:
    assert quantise.bytes_per_weight("8bit", 4096) == pytest.approx(1.001, abs=1e-4)
    assert quantise.bytes_per_weight("4bit", 4096) == pytest.approx(0.516, abs=1e-3)


def test_the_trial_leaves_random_numbers_alone() -> None:
    needs("8bit")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quantise.check("8bit", "lora", decide("fp32"))
    assert torch.equal(torch.rand(3), expected)
