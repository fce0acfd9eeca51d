"""What is damaged is called damaged: every field that loading reads, every file of weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import posology
from posology.engine import artifact
from posology.errors import UserError
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import forget_digests, save_backbone

FAST = {"epochs": 1, "max_length": 90, "overlap": 8, "precision": "fp32"}
WEIGHTS = {
    "lora": {"adapter_model.safetensors"},
    "head": {"tuned.safetensors"},
    "full": {"model.safetensors"},
    "tf-idf": {"baseline.safetensors", "vocabulary.json"},
}


@pytest.fixture(scope="module")
def trained(backbone: Path, classification: PreparedTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artifact of each way to keep weights, by the method's name."""
    folder = tmp_path_factory.mktemp("trained")
    for method in WEIGHTS:
        overrides = {} if method == "tf-idf" else FAST
        posology.train(classification.folder, str(backbone), method, folder / method, overrides=overrides)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The artifact of the method that is the test's parameter, to be damaged."""
    return Path(shutil.copytree(trained / request.param, tmp_path / "run"))


def set_record(folder: Path, **values: Any) -> None:
    path = folder / "posology.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGE: dict[str, list[Any]] = {
    "kind": ["x", None],
    "labels": ["abc", [], [1], None],
    "task": [None, [], {"unit": "sentence"}],
    "method": [1, None],
    "recipe": [None, [1], {"unheard_of": 1}],
    "backbone": [None, "tiny", {}, {"name": 1}, {"name": "x", "layers": "2"}, {"name": "x", "layers": 0}],
    "head": ["classifier", [1], None],
    "virtual_tokens": ["2", -1, None],
    "test": [[], 1],
    "text_pair": ["no"],
    "temperature": ["hot", 0, -1, float("nan"), float("inf")],
    "threshold": [{"positive": "pain"}, {"positive": "cough", "probability": 0.5}, {"positive": "pain", "probability": -1}],
    "sha256": [None, [], {"model.safetensors": 1}],
}  # fmt: skip


@pytest.mark.parametrize("copy", ["lora", "tf-idf"], indirect=True)
@pytest.mark.parametrize("field", DAMAGE)
def test_a_field_that_loading_cannot_use_is_named(copy: Path, field: str) -> None:
    whole = (copy / "posology.json").read_bytes()
    for value in DAMAGE[field]:
        set_record(copy, **{field: value})
        with pytest.raises(UserError, match=rf"posology\.json: is damaged \({field}\b.*\)\. Copy the artifact again"):
            posology.load(copy)
        (copy / "posology.json").write_bytes(whole)
    record = json.loads(whole)
    del record[field]
    (copy / "posology.json").write_text(json.dumps(record))
    if field in ("text_pair", "temperature", "threshold", "sha256"):  # earlier versions did not write them
        posology.load(copy)
    else:
        with pytest.raises(UserError, match=rf"is damaged \({field}: field required\)"):
            posology.load(copy)


@pytest.mark.parametrize("copy", ["lora"], indirect=True)
@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"kind": "sequence-'])
def test_a_record_that_is_none_is_damaged(copy: Path, content: str) -> None:
    (copy / "posology.json").write_text(content)
    with pytest.raises(UserError, match=r"posology\.json: is damaged"):
        posology.load(copy)


@pytest.mark.parametrize("copy", ["lora", "head", "tf-idf"], indirect=True)
def test_artifacts_of_the_first_version_can_be_loaded(copy: Path, classification: PreparedTask) -> None:
    path = copy / "posology.json"
    record = json.loads(path.read_text())
    for name in ("sha256", "text_pair", "temperature", "threshold", "calibration", "scoring", "machine", "pooling"):
        record.pop(name, None)
    del record["task"]["unit"]
    record["backbone"] = {name: record["backbone"][name] for name in ("name", "folder", "layers", "sha256")}
    path.write_text(json.dumps(record))
    assert posology.load(copy).temperature == 1.0
    assert posology.evaluate(copy, classification.folder)["documents"] == 24


@pytest.mark.parametrize("copy", WEIGHTS, indirect=True)
def test_a_byte_that_changed_in_the_weights_is_noticed(copy: Path, classification: PreparedTask) -> None:
    record = artifact.read_record(copy)
    names = WEIGHTS[record["method"]]
    assert set(record["sha256"]) == names
    posology.calibrate(copy, classification.folder)  # writes the record again, and nothing else
    assert artifact.read_record(copy)["sha256"] == record["sha256"]
    posology.load(copy)
    for name in names:
        whole = (copy / name).read_bytes()
        flipped = bytearray(whole)
        flipped[-20] ^= 1
        (copy / name).write_bytes(flipped)
        with pytest.raises(UserError, match=rf"run/{name}: is damaged: its SHA-256"):
            posology.load(copy)
        (copy / name).write_bytes(whole)
    posology.load(copy)


@pytest.mark.parametrize("copy", ["lora"], indirect=True)
def test_without_a_sum_a_changed_weight_is_as_good_as_another(copy: Path) -> None:
    """So that the sums, and nothing else, are what notices it."""
    path = copy / "adapter_model.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-20] ^= 1
    path.write_bytes(flipped)
    forget_digests(copy)
    assert posology.load(copy).labels


@pytest.mark.parametrize("copy", ["lora"], indirect=True)
@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"peft_type": "LORA", "r": "many"}'])
def test_a_damaged_configuration_of_peft_is_one_sentence(
    copy: Path, classification: PreparedTask, content: str
) -> None:
    (copy / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match="its adapter cannot be loaded"):
        posology.load(copy)


@pytest.mark.parametrize("copy", ["lora"], indirect=True)
@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"peft_type": [1]}',
        '{"peft_type": "LORA", "num_virtual_tokens": "2"}',
        '{"peft_type": "LORA", "modules_to_save": [1]}',
        '{"peft_type": "LORA", "base_model_name_or_path": 5}',
    ],
)
def test_a_damaged_adapter_of_peft_alone_is_one_sentence(
    copy: Path, classification: PreparedTask, content: str
) -> None:
    (copy / "posology.json").unlink()
    (copy / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=r"adapter_config\.json: is damaged.*Save the adapter again with PEFT"):
        posology.evaluate(copy, classification.folder)


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(
    classification: PreparedTask, tmp_path: Path, trained: Path
) -> None:
    small = save_backbone(tmp_path / "small", vocab_size=60)
    with pytest.raises(UserError, match="gives ids up to 109, and it has embeddings for those below 60"):
        posology.train(classification.folder, str(small), "lora", tmp_path / "run", overrides=FAST)
    shutil.copytree(trained / "full", tmp_path / "full")
    path = tmp_path / "full" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["more"] = 120
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="full: its tokenizer gives ids up to 120"):
        posology.load(tmp_path / "full")


def test_a_token_for_padding_needs_no_embedding(classification: PreparedTask, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = save_backbone(tmp_path / "exact", vocab_size=110)  # as many rows as the tokenizer has pieces
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == 110
    tokenizer.save_pretrained(folder)
    posology.train(classification.folder, str(folder), "lora", tmp_path / "run", overrides=FAST)
    tokenizer.add_tokens(["oedema"])  # which a text may hold
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="gives ids up to 111"):
        posology.train(classification.folder, str(folder), "lora", tmp_path / "other", overrides=FAST)


def test_dropping_nearly_all_still_keeps_some(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    from posology.engine.dropout import draw_bytes, in_bytes

    assert [in_bytes(probability) for probability in (0, 0.001, 0.1, 0.998, 0.999, 0.99999)] == [
        0,
        0,
        26,
        255,
        255,
        255,
    ]
    dropout = torch.nn.Dropout(0.999)
    draw_bytes(dropout, lambda: True)
    torch.manual_seed(0)
    hidden = torch.ones(256, 1000, requires_grad=True)
    dropped = dropout(hidden)
    assert set(dropped.unique().tolist()) == {0.0, 256.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.15)
    dropped.sum().backward()
    assert torch.equal(hidden.grad, dropped.detach())
    for method in ("lora", "head"):
        nearly = {"dropout": 0.999, "attention_dropout": 0.999, "adapter_dropout": 0.999}
        posology.train(classification.folder, str(backbone), method, tmp_path / method, overrides={**FAST, **nearly})
