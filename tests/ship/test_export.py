"""Exports answer as their artifact does, run without torch, and are refused where they lose too much."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

import posology
from posology.engine.adapted import Adapted
from posology.engine.artifact import load
from posology.engine.methods import adapt
from posology.engine.recipe import make_recipe
from posology.errors import UserError
from posology.ship import export as exports
from posology.ship import onnx_graph, onnx_int8
from posology.ship.export import export
from posology.ship.runtime import Runtime
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import ARCHITECTURES, KINDS, forget_digests, ragged, save_backbone, task_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

FAST = {"epochs": 4, "learning_rate": 5e-3, "max_length": 40, "overlap": 8, "precision": "fp32"}
LEARNT = {**FAST, "batch_size": 8, "patience": 50, "dropout": 0.0, "attention_dropout": 0.0}
"""Enough for the tiny backbone, all of it trained, to know what it was asked."""
NOTES = [f"note {number} patient had no fever, abc pain " * (1 + number % 5) for number in range(24)]

# Lets in the standard library and what onnxruntime and tokenizers bring, so that torch and all of Posology are missing.
ALONE = """
import sys
ALLOWED = {"numpy", "onnxruntime", "tokenizers", "flatbuffers", "google", "packaging", "sympy", "mpmath"}
class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top not in sys.stdlib_module_names:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Only())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _alone(script: Path, *arguments: object, given: str = "") -> str:
    """What a script prints in a Python that can import next to nothing, in a folder of its own."""
    command = [sys.executable, "-I", "-c", ALONE, str(script), *map(str, arguments)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, cwd=script.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _predicted(artifact: Path, folder: Path) -> list[dict[str, Any]]:
    """What `posology predict` says of the notes."""
    source = folder / "notes.jsonl"
    source.write_text("".join(json.dumps({"id": str(n), "text": note}) + "\n" for n, note in enumerate(NOTES)))
    posology.predict(artifact, source, folder / "predicted.jsonl", id="id")
    return [json.loads(line) for line in (folder / "predicted.jsonl").read_text().splitlines()]


def _assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    def numbers(rows: list[dict[str, Any]]) -> list[float]:
        spans = [span["score"] for row in rows for span in row.get("spans", [])]
        return spans + [value for row in rows for value in row.get("probabilities", {}).values()]

    def names(rows: list[dict[str, Any]]) -> list[Any]:
        return [
            row["label"] if "label" in row else [(span["start"], span["end"], span["label"]) for span in row["spans"]]
            for row in rows
        ]

    assert names(found) == names(expected)
    np.testing.assert_allclose(numbers(found), numbers(expected), atol=1e-4)


@pytest.fixture(scope="module")
def runs(
    backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    wanted: list[tuple[str, PreparedTask, str, str | None, dict[str, Any]]] = [
        ("mean", classification, "lora", f"{backbone}:1", {}),
        ("tagger", tagging, "full", f"{backbone}:1", {**LEARNT, "epochs": 15}),
        ("lora", classification, "lora", str(backbone), {"targets": "all"}),
        ("dora", tagging, "dora", str(backbone), {}),
        ("ia3", classification, "ia3", str(backbone), {}),
        ("bitfit", tagging, "bitfit", str(backbone), {}),
        ("layernorm", classification, "layernorm", str(backbone), {}),
        ("prefix", classification, "prefix", str(backbone), {"epochs": 1}),
        ("words", tagging, "dictionary", None, {}),
    ]
    for name, task, method, on, more in wanted:
        overrides = None if method == "dictionary" else {**FAST, **more}
        posology.train(task.folder, on, method, folder / name, overrides=overrides)
    return {name: folder / name for name, *_ in wanted}


@pytest.fixture(scope="module")
def shipped(
    runs: dict[str, Path], classification: PreparedTask, tagging: PreparedTask, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Exports of a classifier that reads the mean and of a tagger, measured."""
    folder = tmp_path_factory.mktemp("exports")
    for name, task in {"mean": classification, "tagger": tagging}.items():
        export(runs[name], out=folder / name, data=task.folder)
    return {name: folder / name for name in ("mean", "tagger")}


@pytest.mark.parametrize("name", ["mean", "tagger"])
def test_it_runs_without_torch_and_answers_as_predict_does(
    name: str, runs: dict[str, Path], shipped: dict[str, Path], tmp_path: Path
) -> None:
    given = "".join(json.dumps({"id": str(n), "text": note}) + "\n" for n, note in enumerate(NOTES))
    out = _alone(shipped[name] / exports.RUNTIME, shipped[name], given=given)
    found, expected = [json.loads(line) for line in out.splitlines()], _predicted(runs[name], tmp_path)
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    _assert_same(found, expected)
    if name == "tagger":
        assert sum(len(row["spans"]) for row in found) > 20


def test_the_blocker_blocks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("try:\n    import torch\nexcept ImportError as error:\n    print(error)")
    assert "not installed here" in _alone(script)


@pytest.mark.parametrize("name", ["mean", "tagger"])
def test_the_example_in_the_card_runs(
    name: str, runs: dict[str, Path], shipped: dict[str, Path], tmp_path: Path
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (shipped[name] / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 30
    script = tmp_path / "example.py"
    script.write_text(code)
    (answer,) = Runtime(shipped[name], threads=1).predict([NOTES[1]])
    rows = [line.split("\t") for line in _alone(script, shipped[name], NOTES[1]).splitlines()]
    if name == "mean":
        assert {label: float(score) for label, score in rows} == pytest.approx(answer["probabilities"], abs=1e-3)
    else:
        begun = [(int(start), tag) for start, _, tag in rows if tag.startswith("B-")]
        assert begun == [(span["start"], f"B-{span['label']}") for span in answer["spans"]]


def test_what_the_folder_says(shipped: dict[str, Path], tagging: PreparedTask) -> None:
    import onnx

    record = json.loads((shipped["tagger"] / "posology.json").read_text())
    assert record["gate"]["documents"] == 24 and record["gate"]["changed"] == 0 and record["gate"]["logits"] < 1e-4
    assert record["gate"]["data"]["fingerprint"] == tagging.fingerprint
    assert set(record["sha256"]) == {"model.onnx", "tokenizer.json", exports.RUNTIME}
    model = onnx.load(str(shipped["tagger"] / "model.onnx"))
    assert model.opset_import[0].version == onnx_graph.OPSET
    assert [axis.dim_param for axis in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", "length"]
    assert {entry.key: entry.value for entry in model.metadata_props}["labels"] == "Finding"
    for path in shipped["tagger"].iterdir():  # nothing of the place where it was made
        assert str(Path(posology.__file__).parent).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "bitfit", "layernorm", "tagger"])
def test_a_merged_folder_is_one_of_transformers(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    found = export(runs[name], out=tmp_path / "out", format="safetensors")
    assert found["largest_logit_difference"] < 1e-5
    model: Any = load(runs[name])
    auto = AutoModelForTokenClassification if model.kind == KINDS[1] else AutoModelForSequenceClassification
    tokenizer, plain = AutoTokenizer.from_pretrained(tmp_path / "out"), auto.from_pretrained(tmp_path / "out").eval()
    inputs = tokenizer(["no fever, abc pain"], return_tensors="pt")
    adapted: Adapted = model.adapted  # not merged
    with torch.inference_mode():
        ours, theirs = (
            adapted.logits({key: inputs[key] for key in ("input_ids", "attention_mask")}),
            plain(**inputs).logits,
        )
    assert float((ours - theirs).abs().max()) < 1e-5
    assert plain.config.id2label[1] == ("B-Finding" if model.kind == KINDS[1] else "pain")
    with pytest.raises(UserError, match="is an export, no artifact"):
        load(tmp_path / "out")


def test_what_is_refused(
    runs: dict[str, Path], shipped: dict[str, Path], classification: PreparedTask, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def refused(match: str, name: str, **options: Any) -> None:
        with pytest.raises(UserError, match=match):
            export(runs[name], **{"out": out, **options})
        assert not any(tmp_path.iterdir())

    refused("baseline", "words")
    refused("nobody knows", "lora", precision="int8")
    refused("part of no weight", "prefix", format="safetensors")
    refused("mean of all positions", "mean", format="safetensors")
    refused("not int8", "lora", format="safetensors", precision="int8")
    refused("nothing is left to measure", "lora", format="safetensors", data=classification.folder)
    refused("is for token-classification", "tagger", data=classification.folder)
    refused("is an artifact", "lora", out=runs["ia3"], overwrite=True)
    refused("not empty", "lora", out=shipped["mean"])
    with pytest.raises(UserError, match="is an export, no artifact"):
        export(shipped["mean"], out=out)


def _hostile(artifact: Path, channels: slice, factor: float = 1000) -> None:
    """Makes some channels of what every attention hands on so much larger than the others that 256 steps cannot hold them:
    the values are multiplied, the weights that read them are divided, so that in float32 nothing changes."""
    weights = load_file(artifact / "model.safetensors")
    for name in [name for name in weights if ".attention.self.value." in name]:
        weights[name][channels] *= factor
    for name in [name for name in weights if name.endswith("attention.output.dense.weight")]:
        weights[name][:, channels] /= factor
    save_file(weights, artifact / "model.safetensors", metadata={"format": "pt"})
    forget_digests(artifact)


@pytest.fixture(scope="module")
def learnt(classification: PreparedTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learnt")
    body = save_backbone(folder / "body", num_hidden_layers=2)
    recipe = {**LEARNT, "epochs": 30, "pooling": "first"}
    posology.train(classification.folder, str(body), "full", folder / "run", overrides=recipe)
    return folder / "run"


@pytest.fixture(scope="module")
def hostile(learnt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the first channel of each head, more than `tame` takes for outliers."""
    run = Path(shutil.copytree(learnt, tmp_path_factory.mktemp("hostile") / "run"))
    _hostile(run, slice(None, None, 8))
    return run


def test_a_channel_that_reaches_far_costs_nothing(
    learnt: Path, classification: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(learnt, tmp_path / "run"))
    _hostile(run, slice(0, 1))
    data = classification.folder
    assert export(run, out=tmp_path / "tamed", precision="int8", data=data)["kept_in_fp32"] == []
    monkeypatch.setattr(onnx_int8, "tame", lambda *_: None)
    assert export(run, out=tmp_path / "wild", precision="int8", data=data)["kept_in_fp32"]


def test_a_model_that_8_bits_break_keeps_the_layers_that_hurt(
    hostile: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    assert json.loads((hostile / "posology.json").read_text())["validation"]["accuracy"] > 0.9
    found = export(hostile, out=tmp_path / "out", precision="int8", data=classification.folder)
    kept = found["kept_in_fp32"]
    assert kept[0].endswith("attention.output.dense") and len(kept) < 4
    assert found["gate"]["loss"] <= 0.5 and found["gate"]["changed"] <= 2
    model = (tmp_path / "out" / "model.onnx").read_bytes()
    assert b"MatMulInteger" in model or b"DynamicQuantizeMatMul" in model
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["README.md", "model.onnx", "posology.json", exports.RUNTIME, "tokenizer.json"]
    )


def test_where_these_are_too_many_it_is_refused(
    hostile: Path, classification: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "MOST_KEPT", 0.05)  # one of them is a sixteenth of all products
    with pytest.raises(UserError, match="loses too much: macro_f1 goes from"):
        export(hostile, out=tmp_path / "out", precision="int8", data=classification.folder)
    assert not any(tmp_path.iterdir())


def test_worst_first() -> None:
    moved, work = {"a": 0.1, "b": 3.0, "c": 2.0, "d": 1.0}, {"a": 1, "b": 1, "c": 1, "d": 1}
    assert onnx_int8.worst_first(moved, work, 0.75) == [["b"], ["b", "c"], ["b", "c", "d"]]
    assert onnx_int8.worst_first(moved, {**work, "b": 100}, 0.02) == [["c"], ["c", "d"]]
    assert onnx_int8.worst_first(moved, work, 0.1) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_every_architecture(architecture: str, kind: str, method: str, tmp_path: Path) -> None:
    """The ONNX file, for batches of other sizes than it was traced with, beside the forward pass training uses."""
    base = task_model(architecture, kind)
    adapted = adapt(base, method, make_recipe(method), kind, mean=method == "prompt" and kind == KINDS[0])
    torch.manual_seed(0)
    for weight in adapted.trainable().values():
        torch.nn.init.normal_(weight, std=0.2)
    adapted.module.eval()
    padding = base.config.pad_token_id or 0
    batches = [ragged(lengths, padding) for lengths in ((12, 7, 3), (1,), (40, 33), (9, 9, 9, 2))]
    with torch.inference_mode():
        expected = [adapted.logits(dict(batch)).numpy() for batch in batches]
    onnx_graph.write(onnx_graph.Graph(adapted, False), tmp_path / "model.onnx", {})
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for batch, ours in zip(batches, expected, strict=True):
        theirs = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0]
        seen = batch["attention_mask"].bool().numpy() if kind == KINDS[1] else slice(None)
        np.testing.assert_allclose(theirs[seen], ours[seen], atol=1e-4 * max(1, np.abs(ours).max()))


@pytest.mark.slow
def test_pairs(backbone: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = []
    for split, count in {"train": 40, "validation": 12, "test": 12}.items():
        for _ in range(count):
            first, second = draw.choice(["fever", "pain"]), draw.choice(["fever", "pain"])
            rows.append((split, f"patient had {first}", f"no {second} " * 30, "same" if first == second else "other"))
    table = pl.DataFrame(rows, schema=["split", "text", "other", "label"], orient="row")
    for split, part in table.group_by("split"):
        part.drop("split").write_csv(tmp_path / f"{split[0]}.csv")
    posology.prepare("classification", tmp_path, tmp_path / "task", name="pairs", text_pair="other", leaks="allow")
    posology.train(tmp_path / "task", str(backbone), "lora", tmp_path / "run", overrides=FAST)
    found = export(tmp_path / "run", out=tmp_path / "out", data=tmp_path / "task")
    assert found["gate"]["logits"] < 1e-4
    assert Runtime(tmp_path / "out").predict(["patient"], ["no pain"])[0]["label"] in ("same", "other")
