"""The packed masked language model against transformers' own on the padded batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from posology.engine.backbone import load_tokenizer, resolve
from posology.engine.batch import cut
from posology.engine.encode import Window
from posology.errors import UserError
from posology.pretrain.mlm import MaskedModel, adapt_masked, load_masked, merged, weights_of
from tests.engine.tiny import CONFIGS, VOCABULARY, save_backbone

ENCODERS = [name for name in CONFIGS if name != "llama"]


def make(architecture: str) -> PreTrainedModel:
    """With weights large enough that mistakes show, dropout off."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(CONFIGS[architecture]())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(4)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
    return model.eval()


def windows(lengths: tuple[int, ...]) -> list[Window]:
    """Texts in which every third piece is hidden."""
    draw = np.random.default_rng(1)
    found = []
    for number, length in enumerate(lengths):
        places = np.arange(number % 2, length, 3)
        found.append(
            Window(number, draw.integers(5, VOCABULARY, length), 0, places, draw.integers(5, VOCABULARY, len(places)))
        )
    return found


def theirs(model: PreTrainedModel, groups: list[list[Window]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss over all hidden pieces, and gradients, of transformers on padded batches."""
    hidden = sum(len(window.words) for group in groups for window in group)
    total = 0.0
    for group in groups:
        length = max(len(window.ids) for window in group)
        ids, mask = np.zeros((2, len(group), length), np.int64)
        labels = np.full((len(group), length), -100)
        for row, window in enumerate(group):
            ids[row, : len(window.ids)], mask[row, : len(window.ids)] = window.ids, 1
            labels[row, window.columns] = window.words
        given = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        loss = model(**{name: torch.from_numpy(value) for name, value in given.items()}).loss
        loss = loss * (labels >= 0).sum() / hidden
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def ours(model: MaskedModel, texts: list[Window], token_budget: int) -> tuple[float, dict[str, torch.Tensor]]:
    hidden = sum(len(window.words) for window in texts)
    total = 0.0
    for group in cut([[window] for window in texts], token_budget, padded=False):
        loss = model.loss(model.batch(group)) / hidden
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad for name, weight in model.base.named_parameters() if weight.grad is not None}


def assert_equal(own: Any, other: Any) -> None:
    assert own[0] == pytest.approx(other[0], rel=1e-5)
    assert own[1].keys() == other[1].keys()
    whole = torch.stack([gradient.norm() for gradient in other[1].values()]).norm()
    for name, gradient in other[1].items():
        assert (own[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7 * whole, name


@pytest.mark.parametrize("token_budget", [1000, 40])
@pytest.mark.parametrize("architecture", ENCODERS)
def test_loss_and_gradients_are_those_of_the_padded_batch(architecture: str, token_budget: int) -> None:
    twin, texts = make(architecture), windows((12, 30, 5, 17, 17, 3))
    # The last token of a padded text sees the padding beside it in MobileBERT's embeddings: each text is taken alone.
    groups = [[text] for text in texts] if architecture == "mobilebert" else [texts]
    model = adapt_masked(copy.deepcopy(twin), "full")
    assert_equal(ours(model, texts, token_budget), theirs(twin, groups))


@pytest.mark.parametrize("architecture", ENCODERS)
def test_merged_lora_answers_like_the_adapted_model(architecture: str) -> None:
    model = adapt_masked(make(architecture), "lora")
    before = {name: weight.clone() for name, weight in model.base.named_parameters() if "lora" not in name}
    with torch.no_grad():
        for name, weight in model.trainable().items():
            if "lora" in name:
                weight.add_(torch.randn_like(weight) * 0.05)
    model.module.eval()
    batch = model.batch(windows((12, 5, 30)))
    with torch.no_grad():
        wanted = model.answers(batch)
        assert all(
            torch.equal(before[name], weight) for name, weight in model.base.named_parameters() if name in before
        )
        fresh = make(architecture)
        fresh.load_state_dict(merged(model).state_dict())
        plain = adapt_masked(fresh, "full")
        torch.testing.assert_close(plain.answers(batch), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_only_the_head_is_trained_at_first(architecture: str) -> None:
    model = adapt_masked(make(architecture), "full")
    batch = model.batch(windows((12, 5)))
    model.train_head_only(True)
    model.loss(batch).backward()
    touched = {name for name, weight in model.base.named_parameters() if weight.grad is not None}
    assert touched and not any(name.startswith(f"{model.base.base_model_prefix}.") for name in touched)
    model.base.zero_grad()
    model.train_head_only(False)
    model.loss(batch).backward()
    assert any(name.startswith(f"{model.base.base_model_prefix}.") and weight.grad is not None
               for name, weight in model.base.named_parameters())  # fmt: skip


def test_the_head_works_on_hidden_pieces_only() -> None:
    for architecture in ENCODERS:
        model, texts = adapt_masked(make(architecture), "full"), windows((12, 30, 5))
        rows: list[int] = []
        model._body().register_forward_hook(
            lambda *given, rows=rows: rows.append(
                (given[2] if isinstance(given[2], torch.Tensor) else given[2][0]).shape[1]
            )
        )
        model.loss(model.batch(texts))
        assert rows == [sum(len(text.words) for text in texts)], architecture


def test_a_head_is_new_where_the_checkpoint_has_none(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "bare")
    tokenizer = load_tokenizer(resolve(str(folder)))
    model = load_masked(resolve(str(folder)), tokenizer, "full", seed=1)
    assert model.new_head and model.head_weights()
    model.base.save_pretrained(tmp_path / "with-head")
    tokenizer.save_pretrained(tmp_path / "with-head")
    again = load_masked(resolve(str(tmp_path / "with-head")), tokenizer, "full", seed=2)
    assert not again.new_head
    for name, weight in model.base.named_parameters():
        assert torch.equal(weight, again.base.get_parameter(name)), name


def test_the_pooler_of_the_old_backbone_is_kept(tmp_path: Path) -> None:
    for architecture in ("bert", "roberta", "albert", "mobilebert"):
        changes = {"classifier_activation": True} if architecture == "mobilebert" else {}
        folder = save_backbone(tmp_path / architecture, architecture, **changes)
        source = resolve(str(folder))
        model = load_masked(source, load_tokenizer(source), "full", seed=1)
        out = tmp_path / f"{architecture}-out"
        model.base.config.save_pretrained(out)
        save_file(weights_of(merged(model), source), out / "model.safetensors", {"format": "pt"})
        old, new = AutoModel.from_pretrained(folder), AutoModel.from_pretrained(out)
        assert old.state_dict().keys() == new.state_dict().keys()
        assert any("pooler" in name for name in old.state_dict())
        for name, weight in old.state_dict().items():
            assert torch.equal(weight, new.state_dict()[name]), name


def test_what_cannot_be_pre_trained_is_refused(tmp_path: Path) -> None:
    decoder = resolve(str(save_backbone(tmp_path / "llama", "llama")))
    with pytest.raises(UserError, match="is a decoder"):
        load_masked(decoder, load_tokenizer(decoder), "full", seed=0)
