"""Many adapters in one row answer as each artifact alone does."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from posology.corpus.document import Document
from posology.corpus.tags import words_of
from posology.engine.artifact import load
from posology.engine.model import fill
from posology.errors import UserError
from posology.ship.serve.fleet import Fleet, Served
from posology.ship.serve.sharing import Backbone
from tests.engine.tiny import KINDS, forget_digests
from tests.ship.serve.conftest import KINDS as MODELS
from tests.ship.serve.conftest import TEXTS


@pytest.fixture(scope="module")
def fleet(artifacts: Path) -> Iterator[Fleet]:
    fleet = Fleet()
    for name in MODELS:
        fleet.add(name, artifacts / name)
    yield fleet
    fleet.close()


def documents(texts: list[str] = TEXTS) -> list[Document]:
    return [Document(str(number), text) for number, text in enumerate(texts)]


def alone(folder: Path, texts: list[str] = TEXTS) -> list[np.ndarray]:
    """What `posology predict` would go by."""
    read = [Document(str(number), text, words=words_of(text)) for number, text in enumerate(texts)]
    model = load(folder)
    logits = model.answer(read).logits
    if model.kind == "sequence-classification":
        return logits
    return [fill(own, len(document.words)) for own, document in zip(logits, read, strict=True)]


def together(fleet: Fleet, models: list[Served], texts: list[str] = TEXTS) -> list[list[np.ndarray]]:
    asked = fleet.ask(documents(texts), models)
    fleet.batcher.submit(asked.units).future.result(60)
    return [[found.logits for found in own] for own in asked.found]


@pytest.mark.parametrize("tokens", [40, 2048])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_each_artifact_alone(artifacts: Path, kind: str, tokens: int) -> None:
    fleet = Fleet(tokens=tokens)
    try:
        for name in MODELS:
            fleet.add(name, artifacts / name)
        models = [model for model in fleet.models() if model.kind == kind]
        assert len(models) == 4
        seen = []
        for model, found in zip(models, together(fleet, models), strict=True):
            expected = alone(artifacts / model.name)
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
            seen.append(expected[2])
        # They are not equal because adapters do nothing.
        assert all(np.nanmax(np.abs(seen[0] - other)) > 1e-3 for other in seen[1:])
    finally:
        fleet.close()


def test_requests_of_both_kinds_at_once(fleet: Fleet, artifacts: Path) -> None:
    """Classifiers and taggers, with and without adapters, of several requests in the same rows."""
    models = fleet.models()
    asked = [fleet.ask(documents(), [model]) for model in models]
    hold = threading.Event()
    engine = next(model.engine for model in models if isinstance(model.engine, Backbone))
    rows: list[int] = []
    run = engine.run

    def waiting(units: list) -> None:
        hold.wait(30)
        rows.append(len({unit.reading.track for unit in units}))
        run(units)

    engine.run = waiting  # type: ignore[method-assign, assignment]
    try:
        works = [fleet.batcher.submit(own.units) for own in asked]
        hold.set()
        for work in works:
            work.future.result(60)
    finally:
        del engine.run
    assert max(rows) >= 4
    for model, own in zip(models, asked, strict=True):
        for ours, theirs in zip(own.found[0], alone(artifacts / model.name), strict=True):
            np.testing.assert_allclose(ours.logits, theirs, atol=1e-4, rtol=1e-4)


def test_heads_on_one_text_share_a_pass(fleet: Fleet, artifacts: Path) -> None:
    fleet.add("second", artifacts / "head-class")
    models = [model for name in ("head-class", "second") if (model := fleet.get(name))]
    one, both = (len(fleet.ask(documents(), own).units) for own in (models[:1], models))
    assert one == both
    first, second = together(fleet, models)
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    fleet.remove("second")


def test_the_backbone_is_in_memory_once(fleet: Fleet) -> None:
    assert len(fleet.backbones) == 1
    (backbone,) = fleet.backbones.values()
    (embeddings,) = (
        weight for name, weight in backbone._carrier.base.named_parameters() if name.endswith("word_embeddings.weight")
    )
    sharing = [model for model in fleet.models() if model.engine is backbone]
    assert {model.name for model in sharing} == set(MODELS) - {"full-class", "prefix-tags"}
    for model in sharing:
        assert model.head is not None
        held = sum(weight.numel() for weight in model.head._base.parameters())
        assert held < embeddings.numel() / 2  # a pooler and a head, no layers, no embeddings


def test_rows_are_as_the_interface_says(fleet: Fleet) -> None:
    models = [model for name in ("lora-class", "head-class") if (model := fleet.get(name))]
    asked = fleet.ask(documents(["no fever"]), models)
    fleet.batcher.submit(asked.units).future.result(60)
    ((first, second),) = asked.rows()
    assert list(first) == ["model", "label", "score", "probabilities", "coverage"]
    assert (first["model"], second["model"]) == ("lora-class", "head-class")
    assert first["score"] == max(first["probabilities"].values()) and sum(
        first["probabilities"].values()
    ) == pytest.approx(1)


def test_coverage_is_by_document(artifacts: Path) -> None:
    fleet = Fleet()
    try:
        fleet.add("lora-class", artifacts / "lora-class")
        model = fleet.get("lora-class")
        assert model is not None and model.encoder is not None
        model.encoder._recipe = model.encoder._recipe.model_copy(update={"long_text": "truncate"})
        asked = fleet.ask(documents(["fever", "abc " * 50]), [model])
        short, long = (found.coverage for found in asked.found[0])
        assert short == 1.0 and long is not None and 0 < long < 0.3
    finally:
        fleet.close()


def test_a_model_is_added_and_taken_away_while_others_answer(fleet: Fleet, artifacts: Path) -> None:
    assert not fleet.add("more", artifacts / "lora-class")
    model = fleet.get("more")
    assert model is not None
    asked = fleet.ask(documents(), [model])
    assert fleet.add("more", artifacts / "ia3-class")
    assert fleet.remove("more") and not fleet.remove("more") and fleet.get("more") is None
    fleet.batcher.submit(asked.units).future.result(60)  # who had it, has it
    for ours, theirs in zip(asked.found[0], alone(artifacts / "lora-class"), strict=True):
        np.testing.assert_allclose(ours.logits, theirs, atol=1e-4, rtol=1e-4)


def test_backbones_go_with_their_last_model(artifacts: Path) -> None:
    fleet = Fleet()
    try:
        fleet.add("one", artifacts / "lora-class")
        fleet.add("two", artifacts / "ia3-tags")
        fleet.remove("one")
        assert len(fleet.backbones) == 1
        fleet.remove("two")
        assert not fleet.backbones
    finally:
        fleet.close()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a" * 65, "a b", "naïve"])
def test_names_that_are_none(fleet: Fleet, artifacts: Path, name: str) -> None:
    with pytest.raises(UserError, match="name"):
        fleet.add(name, artifacts / "lora-class")


def test_an_artifact_whose_answers_are_no_numbers_is_not_served(fleet: Fleet, artifacts: Path, tmp_path: Path) -> None:
    shutil.copytree(artifacts / "lora-class", tmp_path / "broken")
    path = tmp_path / "broken" / "adapter_model.safetensors"
    save_file({name: torch.full_like(weight, float("nan")) for name, weight in load_file(path).items()}, path)
    forget_digests(tmp_path / "broken")
    before = [model.name for model in fleet.models()]
    with pytest.raises(UserError, match="finite"):
        fleet.add("broken", tmp_path / "broken")
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        fleet.add("broken", tmp_path / "broken")
    assert [model.name for model in fleet.models()] == before


def test_an_artifact_is_no_export(artifacts: Path) -> None:
    fleet = Fleet("onnx")
    try:
        with pytest.raises(UserError, match="ONNX export"):
            fleet.add("one", artifacts / "lora-class")
    finally:
        fleet.close()


def test_served_models_answer_like_any_model(fleet: Fleet, artifacts: Path) -> None:
    model = fleet.get("ia3-tags")
    assert model is not None
    answers = model.within(30).answer(documents())
    for ours, theirs in zip(answers.logits, alone(artifacts / "ia3-tags"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    with pytest.raises(TimeoutError):
        model.within(0).answer(documents(["fever " * 2000]))


@pytest.mark.slow
def test_exports_answer_as_their_artifacts(artifacts: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    from posology.ship.export import export

    fleet = Fleet("onnx")
    try:
        for name in ("lora-class", "ia3-tags"):
            export(artifacts / name, out=tmp_path / name)
            fleet.add(name, tmp_path / name)
            model = fleet.get(name)
            assert model is not None and model.facts["task"] in ("complaint", "mentions")
            (found,) = together(fleet, [model])
            for ours, theirs in zip(found, alone(artifacts / name), strict=True):
                np.testing.assert_allclose(ours[: len(theirs)], theirs[: len(ours)], atol=1e-4, rtol=1e-4)
        with pytest.raises(UserError, match="ONNX export"):
            fleet.add("artifact", artifacts / "lora-class")
    finally:
        fleet.close()
    torch_fleet = Fleet()
    try:
        with pytest.raises(UserError, match="--backend onnx"):
            torch_fleet.add("export", tmp_path / "lora-class")
    finally:
        torch_fleet.close()
