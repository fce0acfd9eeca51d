"""Tasks scored by piece, as the paper's code does it: transformers labels and predicts, seqeval scores."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from transformers import AutoModelForTokenClassification

import posology
from posology.corpus.document import Document
from posology.corpus.tags import loose_spans, words_of
from posology.engine import artifact
from posology.engine.decode import tags_of
from posology.engine.dictionary import DictionaryTagger
from posology.engine.encode import Encoder
from posology.engine.loop import backward, make_training
from posology.engine.methods import adapt
from posology.engine.precision import decide
from posology.engine.recipe import make_recipe
from posology.engine.run import targets
from posology.errors import UserError
from posology.evaluation.metrics import entity_metrics
from posology.tasks.prepared import PreparedTask, write_prepared
from tests.engine.tiny import CONFIGS, KINDS, task_model, tokenizer

LABELS = ("P", "T-X")  # a label may hold the mark that separates letter and label
TAGS = tags_of(LABELS)
CUT: dict[str, Any] = {"max_length": 20, "long_text": "truncate", "precision": "fp32"}


def sentence(id: str, words: list[str], tags: list[str]) -> Document:
    text = " ".join(words)
    document = Document(id, text, words=words_of(text), tags=tags)
    document.spans = loose_spans(document.words, tags)
    return document


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> PreparedTask:
    """ "fever" begins, "pain" continues even where nothing began, "abc" (three pieces) begins, "d1" is now one, now none."""
    draw = random.Random(1)
    tag_of = {"fever": "B-P", "pain": "I-P", "abc": "B-T-X", "xyz": "I-T-X"}
    splits = {}
    for split, size in (("train", 60), ("validation", 20), ("test", 40)):
        splits[split] = []
        for number in range(size):
            words = draw.choices(["fever", "pain", "abc", "xyz", "d", "the", "patient", "no"], k=draw.randint(2, 16))
            tags = [tag_of.get(word, draw.choice(["O", "B-P"]) if word == "d" else "O") for word in words]
            splits[split].append(sentence(f"{split}{number}", words, tags))
    folder = tmp_path_factory.mktemp("tasks") / "published"
    return write_prepared(
        folder, name="published", kind=KINDS[1], labels=LABELS, splits=splits, protocol="paper", unit="piece"
    )


@pytest.fixture(scope="module")
def trained(
    task: PreparedTask, backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("artifacts") / "run"
    more = {"epochs": 12, "learning_rate": 3e-3, "patience": 12}
    return out, posology.train(task.folder, str(backbone), "full", out, overrides=CUT | more)


def reference(document: Document, max_length: int) -> tuple[Any, list[str]]:
    """A document as transformers' own tokenizer cuts it, and the tag of each piece that is no special token."""
    words = [document.text[start:end] for start, end in document.words]
    encoding = tokenizer()(words, is_split_into_words=True, truncation=True, max_length=max_length, return_tensors="pt")
    owners = [word for word in encoding.word_ids() if word is not None]
    assert document.tags is not None
    return encoding, [document.tags[word] for word in owners]


def test_pieces_have_the_tag_of_their_word() -> None:
    document = sentence("x", ["the", "abc", "pain", "de"], ["O", "B-T-X", "I-P", "I-P"])
    encoder = Encoder(tokenizer(), CONFIGS["bert"](), make_recipe("full", overrides=CUT), KINDS[1])
    (piecewise,), encoded = encoder.read([document], "piece")
    assert piecewise.tags == ["O", *["B-T-X"] * 3, "I-P", *["I-P"] * 2]  # the a ##b ##c pain d ##e
    assert piecewise.words == [(0, 3), *[(4, 7)] * 3, (8, 12), *[(13, 15)] * 2]
    ((window,),) = encoded.windows
    assert window.columns.tolist() == [1, 2, 3, 4, 5, 6, 7] and window.words.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert encoded.coverage == 1.0


@pytest.mark.parametrize("budget", [40, 4096])
def test_the_loss_is_that_of_transformers_with_every_piece_labelled(budget: int, task: PreparedTask) -> None:
    recipe = make_recipe("full", overrides=CUT | {"dropout": 0.0, "attention_dropout": 0.0})
    base = task_model("bert", KINDS[1], len(TAGS))
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    documents = task.documents("train")[:8]
    piecewise, encoded = Encoder(tokenizer(), CONFIGS["bert"](), recipe, KINDS[1]).read(documents, "piece")
    goals = targets(piecewise, KINDS[1], LABELS)
    adapted, precision = adapt(base, "full", recipe, KINDS[1]), decide("fp32")
    training = make_training(adapted, encoded, goals, recipe, precision, seed=0)
    loss, _ = backward(training, adapted, np.arange(8), precision, budget)

    losses, count = 0.0, 0
    for document in documents:
        encoding, tags = reference(document, CUT["max_length"])
        labels = torch.full(encoding["input_ids"].shape, -100)
        labels[0, 1:-1] = torch.tensor([TAGS.index(tag) for tag in tags])
        with torch.no_grad():
            mean = task_model("bert", KINDS[1], len(TAGS))(**encoding, labels=labels).loss.item()
        losses, count = losses + mean * len(tags), count + len(tags)
    assert loss == pytest.approx(losses / count, rel=1e-5)


def test_the_score_is_that_of_transformers_and_seqeval(
    task: PreparedTask, trained: tuple[Path, dict[str, Any]]
) -> None:
    out, run = trained
    model = AutoModelForTokenClassification.from_pretrained(out).eval()
    gold, found = [], []
    for document in task.documents("test"):
        encoding, tags = reference(document, CUT["max_length"])
        with torch.no_grad():
            best = model(**encoding).logits[0, 1:-1].argmax(dim=-1)
        gold.append(tags)
        found.append([TAGS[index] for index in best.tolist()])
    assert any(len(tags) == 18 for tags in gold)  # some documents are cut
    value = {name: entry["value"] for name, entry in run["metrics"].items()}
    assert 0.5 < value["entity_f1"] < 1
    assert value["entity_f1"] == pytest.approx(f1_score(gold, found))
    assert value["entity_precision"] == pytest.approx(precision_score(gold, found))
    assert value["entity_recall"] == pytest.approx(recall_score(gold, found))
    assert value["entity_macro_f1"] == pytest.approx(f1_score(gold, found, average="macro"))
    assert run["coverage"]["test"] < 1
    assert posology.evaluate(out, task.folder)["metrics"] == run["metrics"]
    record = artifact.read_record(out)
    assert record["scoring"] == {"unit": "piece", "rule": "conlleval"} and record["task"]["unit"] == "piece"
    assert "over pieces of words" in (out / "README.md").read_text()


TAG = st.sampled_from(TAGS)


@given(st.lists(st.lists(st.tuples(TAG, TAG), min_size=1, max_size=12), min_size=1, max_size=4))
@settings(max_examples=500, deadline=None)
def test_published_tags_are_counted_as_seqeval_does_by_default(drawn: list[list[tuple[str, str]]]) -> None:
    gold = [[first for first, _ in pairs] for pairs in drawn]
    found = [[second for _, second in pairs] for pairs in drawn]
    model = DictionaryTagger.fit([], LABELS)  # for its scoring, which all models share
    documents = [sentence(str(n), ["w"] * len(tags), tags) for n, tags in enumerate(gold)]
    logits = [np.eye(len(TAGS))[[TAGS.index(tag) for tag in tags]] for tags in found]
    scores = entity_metrics(model.counts(documents, logits))
    assert scores["entity_f1"] == pytest.approx(f1_score(gold, found, zero_division=0))
    assert scores["entity_precision"] == pytest.approx(precision_score(gold, found, zero_division=0))
    assert scores["entity_recall"] == pytest.approx(recall_score(gold, found, zero_division=0))
    if any(tag != "O" for tags in gold + found for tag in tags):
        assert scores["entity_macro_f1"] == pytest.approx(f1_score(gold, found, average="macro", zero_division=0))


def test_long_documents_are_scored_whole_where_the_recipe_windows_them(
    task: PreparedTask, backbone: Path, tmp_path: Path
) -> None:
    overrides = CUT | {"epochs": 1, "long_text": "window", "overlap": 4}
    run = posology.train(task.folder, str(backbone), "head", tmp_path / "run", overrides=overrides)
    whole = sum(len(loose_spans(d.words, d.tags or [])) for d in map(_by_pieces, task.documents("test")))
    assert sum(entry["support"] for entry in run["per_label"].values()) == whole
    assert run["coverage"]["test"] == 1.0


def _by_pieces(document: Document) -> Document:
    _, tags = reference(document, 1000)
    return sentence(document.id, ["w"] * len(tags), tags)


def test_predictions_are_of_whole_words(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    text = "the abc no fever"
    pl.DataFrame({"text": [text]}).write_csv(tmp_path / "in.csv")
    posology.predict(trained[0], tmp_path / "in.csv", tmp_path / "out.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(text[s["start"] : s["end"]], s["label"]) for s in row["spans"]] == [("abc", "T-X"), ("fever", "P")]


def test_units_are_not_mixed_up(
    task: PreparedTask, tagging: PreparedTask, backbone: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    by_word = {
        split: [Document(d.id, d.text, words=d.words, spans=d.spans) for d in task.documents(split)]
        for split in ("train", "validation", "test")
    }
    same = write_prepared(tmp_path / "words", name="words", kind=KINDS[1], labels=LABELS, splits=by_word)
    assert posology.evaluate(trained[0], same.folder)["metrics"]["entity_f1"]["value"] > 0.5
    posology.train(same.folder, str(backbone), "head", tmp_path / "run", overrides=CUT | {"epochs": 1})
    assert artifact.read_record(tmp_path / "run")["scoring"] == {"unit": "word", "rule": "strict"}
    with pytest.raises(UserError, match="run: knows the first pieces of words only, and published is scored on every"):
        posology.evaluate(tmp_path / "run", task.folder)


def test_an_artifact_that_does_not_tell_its_unit_is_by_word(
    tagging: PreparedTask, backbone: Path, tmp_path: Path
) -> None:
    run = posology.train(tagging.folder, str(backbone), "head", tmp_path / "run", overrides=CUT | {"epochs": 1})
    record = json.loads((tmp_path / "run" / "posology.json").read_text())
    del record["task"]["unit"], record["scoring"]
    (tmp_path / "run" / "posology.json").write_text(json.dumps(record))
    assert posology.evaluate(tmp_path / "run", tagging.folder)["metrics"] == run["metrics"]


def test_a_dictionary_is_scored_by_word_and_says_so(task: PreparedTask, tmp_path: Path) -> None:
    run = posology.train(task.folder, None, "dictionary", tmp_path / "run")
    model = posology.load(tmp_path / "run")
    gold, found = [], []
    for document in task.documents("test"):
        assert document.tags is not None
        tags, _ = model.tag(document.text.split())
        gold.append(document.tags)
        found.append([TAGS[index] for index in tags])
    assert run["metrics"]["entity_f1"]["value"] == pytest.approx(f1_score(gold, found)) != 1
    assert artifact.read_record(tmp_path / "run")["scoring"] == {"unit": "word", "rule": "conlleval"}
    assert "has no tokenizer" in (tmp_path / "run" / "README.md").read_text()
    assert posology.evaluate(tmp_path / "run", task.folder)["metrics"] == run["metrics"]
