"""The same weights with another configuration or tokenizer are another backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posology
from posology.engine.backbone import resolve
from posology.engine.many import _asked, company_key
from posology.engine.teaching import Teaching
from posology.errors import Interrupted, UserError
from posology.study.cell import Cell
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import save_backbone

OPTIONS: dict[str, Any] = {"overrides": {"epochs": 2, "precision": "fp32", "max_length": 40, "overlap": 8}}


@pytest.fixture
def own(backbone: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(backbone, tmp_path / "own"))


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1))


def other_activation(folder: Path) -> None:
    rewrite(folder / "config.json", lambda config: config.update(hidden_act="relu"))


def shifted_vocabulary(folder: Path) -> None:
    def shift(content: Any) -> None:
        vocabulary = content["model"]["vocab"]
        words = [word for word in vocabulary if not word.startswith("[")]
        ids = [vocabulary[word] for word in words]
        vocabulary.update(zip(words, ids[7:] + ids[:7], strict=True))

    rewrite(folder / "tokenizer.json", shift)


def without_folding(folder: Path) -> None:
    rewrite(folder / "tokenizer.json", lambda content: content.update(normalizer=None))


CHANGES = (other_activation, shifted_vocabulary, without_folding)


def test_what_changes_nothing_is_not_seen(own: Path) -> None:
    before = resolve(str(own)).reading
    rewrite(own / "config.json", lambda config: config.update(transformers_version="9.9", hidden_dropout_prob=0.3))
    rewrite(own / "tokenizer.json", lambda content: content.update(truncation=None))  # written anew, and indented
    assert resolve(str(own)).reading == before


@pytest.mark.parametrize("change", CHANGES)
def test_an_artifact_is_not_loaded_on_it(
    change: Callable[[Path], None], own: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    posology.train(classification.folder, str(own), "lora", tmp_path / "run", **OPTIONS)
    posology.load(tmp_path / "run")
    cell = Cell(task="t", data=classification.folder, backbone=str(own))
    key, before, weights = cell.key(), resolve(str(own)).reading, resolve(str(own)).fingerprint
    asked = _asked(0, {"data": classification.folder, "out": tmp_path / "x", "backbone": str(own)})
    group = company_key(asked)
    change(own)
    assert resolve(str(own)).fingerprint == weights and resolve(str(own)).reading != before
    with pytest.raises(UserError, match=r"another configuration or tokenizer than those in .*own"):
        posology.load(tmp_path / "run")
    assert company_key(asked) != group
    assert cell.key() != key
    record = json.loads((tmp_path / "run" / "posology.json").read_text())
    del record["backbone"]["reading"]  # an artifact of before
    (tmp_path / "run" / "posology.json").write_text(json.dumps(record))
    posology.load(tmp_path / "run")


def test_a_checkpoint_does_not_go_on_with_it(own: Path, classification: PreparedTask, tmp_path: Path) -> None:
    def stop(evaluation: dict[str, float]) -> bool:
        raise KeyboardInterrupt

    options = OPTIONS | {"checkpoint_seconds": 0}
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        posology.train(classification.folder, str(own), "lora", tmp_path / "run", watch=stop, **options)
    other_activation(own)
    with pytest.raises(UserError, match="made with other settings: reading"):
        posology.train(classification.folder, str(own), "lora", tmp_path / "run", **options)


def test_kept_activations_are_of_one_configuration(
    own: Path, classification: PreparedTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def head(name: str) -> list[dict[str, float]]:
        keep = None if name == "without" else tmp_path / "keep"
        found = posology.train(
            classification.folder, str(own), "head", tmp_path / name, keep_activations=keep, **OPTIONS
        )
        evaluations: list[dict[str, float]] = found["training"]["evaluations"]
        return [{key: each[key] for key in ("loss", "score")} for each in evaluations]

    head("first")
    other_activation(own)
    assert head("again") == head("without")


def test_another_column_of_unlabelled_text_is_another_teaching(
    backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    posology.train(classification.folder, str(backbone), "head", tmp_path / "run", **OPTIONS)
    (tmp_path / "u.csv").write_text("a,b\none,two\n")
    found = [Teaching(tmp_path / "run", tmp_path / "u.csv", column).settings() for column in ("a", "b")]
    assert found[0] != found[1]


# --- company ----------------------------------------------------------------------------------------------------------


def test_company_is_of_runs_that_hold_the_backbone_alike(
    backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    def key(**overrides: Any) -> Any:
        run = {"data": classification.folder, "out": tmp_path / "x", "backbone": str(backbone), "overrides": overrides}
        return company_key(_asked(0, run))

    assert key() is not None and key() == key(rank=3)
    assert key(backbone_dtype="bfloat16") not in (None, key()) and key(quantise="8bit") is None


def test_a_backbone_of_few_positions_has_a_carrier(classification: PreparedTask, tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "short", max_position_embeddings=48)
    runs = [
        {"data": classification.folder, "out": tmp_path / str(seed), "backbone": str(folder), "seed": seed,
         "overrides": {"epochs": 1, "overlap": 8}}
        for seed in (1, 2)
    ]  # fmt: skip
    assert all(result["metrics"] for result in posology.train_many(runs))


def test_weights_that_are_no_numbers_end_their_run_only(
    backbone: Path, classification: PreparedTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step for each epoch: the loss before it is fine, and what it leaves is met by the evaluation."""

    def run(name: str, **overrides: Any) -> dict[str, Any]:
        settings = {**OPTIONS["overrides"], "epochs": 3, "batch_size": 64, "dropout": 0.0, "attention_dropout": 0.0}
        return {"data": classification.folder, "out": tmp_path / name, "backbone": str(backbone), "method": "lora",
                "overrides": settings | overrides}  # fmt: skip

    wild = {"alpha": 1e21, "learning_rate": 9.9}
    with pytest.raises(UserError, match="training diverged: the weights are no longer finite"):
        posology.train(**run("alone", **wild), checkpoint_seconds=0)
    assert not (tmp_path / ".alone.checkpoint").exists()  # it would only diverge again
    kept = posology.train(**run("kept", **wild | {"alpha": 1e19}))  # it diverges once there is a state to keep
    assert kept["training"]["stopped"] == "diverged" and kept["metrics"]
    found = posology.train_many([run("a"), run("b", **wild), run("c")])
    assert all(found[number]["metrics"] for number in (0, 2))
    assert "training diverged: the weights are no longer finite" in found[1]["failed"]


def test_gradients_without_a_norm_end_a_run(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    overrides = {**OPTIONS["overrides"], "alpha": 1e38, "learning_rate": 9.9}
    with pytest.raises(UserError, match="training diverged: the norm of the gradients is"):
        posology.train(classification.folder, str(backbone), "lora", tmp_path / "run", overrides=overrides)
