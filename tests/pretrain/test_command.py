"""`posology pretrain` from a corpus to a backbone: what it writes, budgets, and going on after it was killed."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import posology
from posology.console import say
from posology.corpus.document import Document
from posology.engine.batch import Batch
from posology.engine.checkpoint import folder_of as checkpoint_of
from posology.errors import Interrupted, UserError
from posology.pretrain import command, loop
from posology.pretrain.command import pretrain
from posology.pretrain.folder import RECORD
from posology.pretrain.mlm import MaskedModel
from posology.pretrain.store import folder_of as store_of
from posology.tasks.prepared import PreparedTask, write_prepared
from tests.engine.processes import STATE
from tests.pretrain.killing import killed

FAST: dict[str, Any] = {"precision": "fp32", "held_out": 0.2, "batch_size": 16, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notes in which each word says what the next one is."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("corpus") / "notes.jsonl"
    phrases = ["no fever today", "the patient has pain", "abc for the fever", "no pain in the patient"]
    rows = [{"text": ". ".join(draw.choices(phrases, k=draw.randint(1, 8))), "id": number} for number in range(240)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("README.md", RECORD)}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_perplexity_falls_and_the_result_is_a_backbone(
    method: Any, corpus: Path, backbone: Path, tmp_path: Path, classification: PreparedTask
) -> None:
    out = tmp_path / "own"
    result = pretrain(corpus, backbone=str(backbone), out=out, method=method, steps=30, **FAST)
    perplexity = result["perplexity"]
    assert perplexity["after"] < 0.9 * perplexity["with_new_head"] < 0.9 * perplexity["before"]
    assert result["held_out"]["ratio"]["high"] < 0.9
    for state, value in perplexity.items():
        summary = result["held_out"][state]["token_weighted"]
        assert summary["low"] < value < summary["high"] and summary["value"] == pytest.approx(value)
    assert result["steps"] == 30 and result["tokens"] > 0 and result["seconds"] > 0 and result["cost"]["value"] > 0
    assert result["training"]["head_steps"] == 3 and result["new_head"]
    assert result["excluded"] == {"exact": 0, "near": 0} and result["evaluation"] is None
    record = json.loads((out / RECORD).read_text())
    assert {key: result[key] for key in record} == record
    assert set(record) >= {"pretraining", "domain", "parent", "corpus", "excluded"}
    card = (out / "README.md").read_text()
    assert "is not known" in card and record["corpus"] in card
    assert not any(word in card + json.dumps(record) for word in ("fever", "abc for"))
    assert not store_of(out).exists() and not checkpoint_of(out).exists()
    old, new = AutoModel.from_pretrained(backbone).state_dict(), AutoModel.from_pretrained(out).state_dict()
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert any("layer.2" in name for name in changed) and not any("pooler" in name for name in changed)
    assert ("embeddings.word_embeddings.weight" in changed) is (method == "full")
    masked = AutoModelForMaskedLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    given = tokenizer("the patient has [MASK]", return_tensors="pt")
    place = (given["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
    assert masked.eval()(**given).logits.shape[2] == 120 and place
    if method == "full":  # it is what `train` takes
        artifact = posology.train(classification.folder, str(out), "lora", tmp_path / "run", overrides={"epochs": 1})
        assert artifact["trainable_parameters"] > 0 and artifact["metrics"]
        again = pretrain(corpus, backbone=str(out), out=tmp_path / "again", steps=1, **FAST)
        assert not again["new_head"] and set(again["perplexity"]) == {"before", "after"}
        assert again["perplexity"]["before"] == pytest.approx(perplexity["after"], rel=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_and_continued_is_never_killed_bit_for_bit(
    method: Any, corpus: Path, backbone: Path, tmp_path: Path
) -> None:
    def arguments(name: str) -> dict[str, Any]:
        return {
            "corpus": corpus,
            "backbone": str(backbone),
            "out": tmp_path / name,
            "method": method,
            "steps": 12,
            **FAST,
        }

    whole = pretrain(**arguments("whole"))
    killed(1, **arguments("cut"), checkpoint_seconds=0)  # while only the new head is trained
    killed(7, **arguments("cut"), checkpoint_seconds=0)
    assert not (tmp_path / "cut").exists() and store_of(tmp_path / "cut").is_dir()
    continued = pretrain(**arguments("cut"))
    assert continued["training"]["resumed"] == 2 and continued["tokens"] == whole["tokens"]
    assert continued["perplexity"] == whole["perplexity"] and continued["held_out"] == whole["held_out"]
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_dropout_is_on_and_seeds_matter(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pretrain(corpus, backbone=str(backbone), out=tmp_path / name, steps=3, seed=seed, **FAST)
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in "abc"}
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(weights["a"][name], weights["b"][name])
    assert not torch.equal(weights["a"][name], weights["c"][name])


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth step of each pre-training is followed by SIGTERM."""
    plain = loop.Pretraining.step

    def step(self: loop.Pretraining) -> None:
        plain(self)
        if self.progress.steps == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Pretraining, "step", step)


@pytest.mark.usefixtures("interrupted")
def test_interrupted_keeps_a_checkpoint(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    options = {"backbone": str(backbone), "out": tmp_path / "own", "steps": 8, **FAST}
    with pytest.raises(Interrupted, match="same command continues"):
        pretrain(corpus, **options)
    with pytest.raises(UserError, match=r"mask_rate 0\.15, now 0\.3"):
        pretrain(corpus, **options, mask_rate=0.3)
    assert pretrain(corpus, **options)["training"]["resumed"] == 1


@pytest.mark.usefixtures("interrupted")
def test_it_goes_on_with_the_very_same_documents_only(
    backbone: Path, tmp_path: Path, classification: PreparedTask
) -> None:
    """Other documents left out, other patients held out, or a text that reads otherwise: no continued run's card may lie."""
    notes = [document.text for split in ("train", "test") for document in classification.documents(split)]

    def write(texts: list[str]) -> None:
        rows = [{"text": text, "who": f"p{number // 3}"} for number, text in enumerate(texts)]
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    options = {"backbone": str(backbone), "out": tmp_path / "own", "steps": 8, **FAST}
    write(notes)
    with pytest.raises(Interrupted):
        pretrain(tmp_path / "c.jsonl", **options)
    for other in ({"exclude": [classification.folder]}, {"group": "who"}):
        with pytest.raises(UserError, match="made with other settings: data"):
            pretrain(tmp_path / "c.jsonl", **options, **other)
    write([notes[0] + " !", *notes[1:]])  # the same words
    with pytest.raises(UserError, match="made with other settings: data"):
        pretrain(tmp_path / "c.jsonl", **options)
    write(notes)
    splits = {split: [Document(id=f"{split}-{index}", text=f"{split} of a kind {index}", label=label)
                      for index, label in enumerate("ab")] for split in ("train", "validation", "test")}  # fmt: skip
    other = write_prepared(tmp_path / "other", name="other", kind="sequence-classification", labels=["a", "b"],
                           metric="macro_f1", splits=splits)  # fmt: skip
    again = pretrain(tmp_path / "c.jsonl", **options, exclude=[other.folder])  # of which the corpus has nothing
    assert again["training"]["resumed"] == 1 and again["excluded"] == {"exact": 0, "near": 0}
    assert again["evaluation"]["tasks"] == [{"name": "other", "fingerprint": other.fingerprint}]


def test_what_an_ancestor_read_is_on_the_card(
    corpus: Path, tmp_path: Path, backbone: Path, classification: PreparedTask, tagging: PreparedTask
) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    one = pretrain(corpus, backbone=str(backbone), out=first, steps=1, exclude=[tagging.folder], **FAST)
    assert one["ancestors"] == [] and "further text" not in (first / "README.md").read_text()
    two = pretrain(corpus, backbone=str(first), out=second, steps=1, exclude=[tagging.folder], **FAST)
    assert two["pretraining"] == "masked words (full); masked words (full)"
    assert [each["name"] for each in two["ancestors"]] == ["first"]
    assert "further text" not in (second / "README.md").read_text()  # the same was left out of it
    three = pretrain(corpus, backbone=str(second), out=third, steps=1, exclude=[classification.folder], **FAST)
    assert [each["name"] for each in three["ancestors"]] == ["second", "first"]
    card = (third / "README.md").read_text()
    assert card.count("which it was made from, had read further text") == 2
    assert f"documents of `{classification.name}` were not looked for in that" in card and one["corpus"] in card
    fourth = pretrain(corpus, backbone=str(third), out=tmp_path / "fourth", steps=1, **FAST)
    assert fourth["ancestors"][0]["evaluation"]["tasks"][0]["name"] == classification.name
    fifth = pretrain(corpus, backbone=str(tmp_path / "fourth"), out=tmp_path / "fifth", steps=1, **FAST)
    assert fifth["evaluation"] is None
    assert (tmp_path / "fifth" / "README.md").read_text().count("no evaluation documents were looked for in that") == 1


def test_the_rate_rises_once_more_behind_a_new_heads_time(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    rates, plain = [], loop.Pretraining._schedule

    class Watched(loop.Pretraining):
        def _schedule(self) -> float:
            rates.append(plain(self))
            return rates[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "Pretraining", Watched)
        pretrain(corpus, backbone=str(backbone), out=tmp_path / "own", steps=100, **FAST)
        with_head = list(rates)
        rates.clear()
        pretrain(corpus, backbone=str(tmp_path / "own"), out=tmp_path / "again", steps=100, **FAST)
    assert rates[:7] == pytest.approx([step / 6 for step in range(7)]) and rates[20] == pytest.approx(80 / 94)
    assert with_head[:10] == rates[:10]  # the head alone
    assert with_head[10:16] == pytest.approx([rate * step / 6 for step, rate in enumerate(rates[10:16])])
    assert with_head[16:] == rates[16:]


def test_seconds_and_money_end_it(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    options = {"backbone": str(backbone), "steps": 10_000, **FAST}
    timed = pretrain(corpus, out=tmp_path / "timed", max_seconds=0.7, **options)
    assert timed["stopped"] == "seconds" and 0 < timed["seconds"] < 1.5 and timed["steps"] > 1
    paid = pretrain(corpus, out=tmp_path / "paid", max_cost=timed["cost"]["value"], **options)
    assert paid["stopped"] == "seconds" and paid["cost"]["value"] < 2 * timed["cost"]["value"]
    assert paid["cost"]["currency"] == timed["cost"]["currency"]


def test_evaluation_documents_are_excluded_and_counted(
    backbone: Path, tmp_path: Path, classification: PreparedTask
) -> None:
    notes = [document.text for split in ("train", "test") for document in classification.documents(split)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in notes))
    options = {"backbone": str(backbone), "out": tmp_path / "own", "steps": 1, **FAST}
    result = pretrain(tmp_path / "c.jsonl", exclude=[classification.folder], **options)
    tests = {document.text for document in classification.documents("test")}
    assert result["excluded"]["exact"] == 24 == len(tests)
    assert result["evaluation"]["documents"] == 48 and result["evaluation"]["found"] == 24
    assert result["documents"]["all"] == 88
    assert result["documents"]["training"] + result["documents"]["held_out"] == 64 - result["excluded"]["near"]
    card = (tmp_path / "own" / "README.md").read_text()
    assert "24 of 48 texts" in card and classification.name in card


def test_new_words_go_into_tokenizer_and_model(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    options = {"backbone": str(backbone), "steps": 2, **FAST}
    result = pretrain(corpus, out=tmp_path / "own", extend_vocabulary=2, with_text=True, **options)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "own")
    assert tokenizer.tokenize("no fever, today") == ["no", "fever", ",", "today"]
    assert (
        result["new_words"] == 2 and "vocabulary has 2 words of the notes" in (tmp_path / "own/README.md").read_text()
    )
    model = AutoModel.from_pretrained(tmp_path / "own")
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)
    assert {entry["term"] for entry in result["coverage"]["worst"]} < {"has", "in", "abc", "for"}
    assert "worst" not in json.loads((tmp_path / "own" / RECORD).read_text())["coverage"]  # it may be handed on


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"epochs": 1, "steps": 2}, "both --epochs and --steps"),
        ({"steps": 0}, "0 is no number above 0"),
        ({"max_seconds": -1}, "no number above 0"),
        ({"held_out": 0.0}, "no share of the documents"),
        ({"mask_rate": 1.5}, "no share of the words"),
        ({"method": "lora", "extend_vocabulary": 2}, "embeddings of new words"),
        ({"price": "nothing"}, "there is no price"),
        ({"exclude": [Path("nowhere")]}, "nowhere"),
        ({"max_length": 2}, "leave no room"),
        ({"learning_rate": 20.0}, "far too much"),
        ({"text": "body"}, "no column 'body'"),
        ({"extend_vocabulary": -1}, "no number from 0"),
        ({"epochs": float("inf")}, "no number above 0"),
    ],
)
def test_mistakes_are_said_and_nothing_is_written(
    options: dict[str, Any], problem: str, corpus: Path, backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=problem):
        pretrain(corpus, backbone=str(backbone), out=tmp_path / "own", **FAST | options)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_ends_it(
    corpus: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = MaskedModel.loss

    def loss(self: MaskedModel, batch: Batch) -> torch.Tensor:
        return plain(self, batch) * (float("nan") if checkpoint_of(tmp_path / "own").joinpath(STATE).exists() else 1)

    monkeypatch.setattr(MaskedModel, "loss", loss)
    with pytest.raises(UserError, match="diverged: the loss is nan at step 2"):
        pretrain(corpus, backbone=str(backbone), out=tmp_path / "own", steps=9, checkpoint_seconds=0, **FAST)
    assert not checkpoint_of(tmp_path / "own").exists()


def test_messages_hold_no_text_of_notes(
    corpus: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say("heard")
    pretrain(corpus, backbone=str(backbone), out=tmp_path / "own", steps=2, **FAST)
    err = capsys.readouterr().err
    assert "heard" in err and "held-out perplexity" in err and not any(word in err for word in ("fever", "pain"))


def test_the_command_is_there(
    corpus: Path,
    backbone: Path,
    classification: PreparedTask,
    tagging: PreparedTask,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from posology import cli

    run: Callable[..., int] = cli._run
    own = ["pretrain", str(corpus), "--backbone", str(backbone), "--out", str(tmp_path / "own"), "--steps", "2"]
    own += ["--held-out", "0.2", "--precision", "fp32", "--exclude", str(classification.folder), str(tagging.folder)]
    assert run([*own], as_json=True, debug=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["perplexity"]) == {"before", "with_new_head", "after"}
    assert [task["name"] for task in result["evaluation"]["tasks"]] == [classification.name, tagging.name]
    assert run([*own, "--overwrite"], as_json=False, debug=True) == 0
    shown = capsys.readouterr().out
    assert "perplexity" in shown and "left out" in shown
    assert command.pretrain.__doc__ and run(["pretrain", "--help"], as_json=False, debug=True) == 0
