"""Students of an artifact: what they are taught, and that everything else is as in any training."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import posology
from posology.corpus.document import Document
from posology.engine import loop
from posology.engine.artifact import load, read_record
from posology.engine.batch import pack
from posology.engine.encode import Encoded, Window
from posology.engine.recipe import Recipe
from posology.engine.run import training_documents
from posology.engine.teaching import Soft, Student, Teaching, ask, fingerprint, read_unlabelled
from posology.engine.training import UNLABELLED
from posology.errors import Interrupted, UserError
from posology.pretrain.distil import distil_task
from posology.study.cell import Cell
from posology.study.ledger import Ledger
from posology.study.spec import cells, check, expand, read_study
from posology.tasks.prepared import PreparedTask, write_prepared
from tests.engine.tiny import save_backbone

RECIPE: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "precision": "fp32",
    "max_length": 64,
    "overlap": 8,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teachers(
    backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """An artifact for each kind of task."""
    folder = tmp_path_factory.mktemp("teachers")
    for task in (classification, tagging):
        posology.train(task.folder, str(backbone), "full", folder / task.kind, overrides=RECIPE | {"epochs": 8})
    return {task.kind: folder / task.kind for task in (classification, tagging)}


@pytest.fixture(scope="module")
def other_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone whose tokenizer knows fewer words: "fever" and "patient" are cut into letters."""
    folder = save_backbone(tmp_path_factory.mktemp("students") / "student", num_hidden_layers=2)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    for word in ("fever", "patient"):
        vocabulary[f"{word}xyz"] = vocabulary.pop(word)
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(5)
    path = tmp_path_factory.mktemp("unlabelled") / "notes.csv"
    words = ["no", "patient", "abc", "fever", "pain", "the"]
    rows = [f"u{number},{number} note {' '.join(draw.choices(words, k=6))}" for number in range(40)]
    path.write_text("\n".join(["id,text", *rows, ""]), encoding="utf-8")
    return path


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_the_loss_is_that_of_hinton(class_weights: Any) -> None:
    """Labelled, unlabelled, and one that the teacher says nothing of, against torch's own cross entropies."""
    generator = torch.Generator().manual_seed(0)
    answers, teacher = (torch.randn(4, 3, generator=generator) for _ in range(2))
    teacher[3] = torch.nan
    targets = [np.array(label) for label in (2, UNLABELLED, 0, 0)]
    none = np.empty(0, np.int64)
    windows = [[Window(number, np.array([2, 5, 3]), 0, none, none)] for number in range(4)]
    encoded = Encoded(windows, np.full(4, 1), np.full(4, 1), [])
    training = Student(
        {"weight": torch.nn.Parameter(torch.zeros(1))}, encoded, targets,
        Recipe(learning_rate=1.0, class_weights=class_weights), kind="sequence-classification", outputs=3, seed=0,
        soft=Soft(list(teacher.numpy()), 2.0, 0.3, {}),
    )  # fmt: skip
    found = training.loss(answers, pack([own[0] for own in windows])) / training.scale(np.arange(4))
    # Balanced: of three labelled documents one has class 2 and two class 0: 3 / (2 x 1) and 3 / (2 x 2).
    weight = [1.5, 1.0, 0.75, 0.75] if class_weights == "balanced" else [1.0] * 4
    total = sum(
        0.7 * weight[row] * functional.cross_entropy(answers[row], torch.tensor(int(targets[row]))) for row in (0, 2, 3)
    )
    for row in range(3):
        divergence = functional.kl_div(
            (answers[row] / 2).log_softmax(0), (teacher[row] / 2).softmax(0), reduction="sum"
        )
        entropy = torch.distributions.Categorical(logits=teacher[row] / 2).entropy()
        total = total + 0.3 * 4 * (divergence + entropy)
    torch.testing.assert_close(found, total / sum(weight))


def test_a_class_that_cannot_be_is_no_silence() -> None:
    answers = torch.tensor([[0.3, -0.2, 0.1], [0.5, 0.0, -0.5]])
    teacher = np.array([[0.0, 1.0, -np.inf], [np.nan, 0.0, -np.inf]], np.float32)
    none = np.empty(0, np.int64)
    windows = [[Window(number, np.array([2, 5, 3]), 0, none, none)] for number in range(2)]
    training = Student(
        {"weight": torch.nn.Parameter(torch.zeros(1))}, Encoded(windows, np.full(2, 1), np.full(2, 1), []),
        [np.array(UNLABELLED)] * 2, Recipe(learning_rate=1.0), kind="sequence-classification", outputs=3, seed=0,
        soft=Soft(list(teacher), 2.0, 1.0, {}),
    )  # fmt: skip
    goal = torch.tensor([0.0, 0.5]).softmax(0)
    wanted = -4 * (goal * (answers[0] / 2).log_softmax(0)[:2]).sum()
    torch.testing.assert_close(training.loss(answers, pack([own[0] for own in windows])), wanted)


@pytest.mark.parametrize("kind", ["sequence-classification", "token-classification"])
def test_without_weight_it_is_ordinary_training_bit_for_bit(
    kind: str,
    teachers: dict[str, Path],
    backbone: Path,
    classification: PreparedTask,
    tagging: PreparedTask,
    tmp_path: Path,
) -> None:
    task = next(task for task in (classification, tagging) if task.kind == kind)
    options: dict[str, Any] = {"overrides": RECIPE | {"epochs": 1}, "seed": 3}
    posology.train(task.folder, str(backbone), "full", tmp_path / "alone", **options)
    for weight in (0.0, 0.5):
        distil_task(
            teachers[kind], task.folder, student=str(backbone), out=tmp_path / str(weight), weight=weight, **options
        )
    assert same(tmp_path / "alone", tmp_path / "0.0") and not same(tmp_path / "alone", tmp_path / "0.5")


def test_a_student_answers_as_its_teacher_where_no_label_was(
    teachers: dict[str, Path], backbone: Path, classification: PreparedTask, unlabelled: Path, tmp_path: Path
) -> None:
    """Two labels are turned about for the student's training: what it knows of the right ones it has of its teacher."""
    turned = {"fever": "pain", "pain": "fever"}
    splits = {split: classification.documents(split) for split in ("train", "validation", "test")}
    splits["train"] = [replace(document, label=turned[str(document.label)]) for document in splits["train"][:4]]
    wrong = write_prepared(
        tmp_path / "wrong", name="wrong", kind=classification.kind, labels=classification.labels, metric="macro_f1",
        splits=splits,
    )  # fmt: skip
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": document.text} for document in classification.documents("train")[4:]]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = distil_task(
        teachers[classification.kind], wrong.folder, student=str(backbone), out=tmp_path / "run", unlabelled=texts,
        weight=1.0, overrides=RECIPE | {"epochs": 10, "patience": 10},
    )  # fmt: skip
    of_teacher = read_record(teachers[classification.kind])["test"]["metrics"]["macro_f1"]["value"]
    assert of_teacher > 0.9 and result["metrics"]["macro_f1"]["value"] > 0.8
    record = read_record(tmp_path / "run")
    assert record["distilled_from"]["unlabelled"]["documents"] == 60 and record["training"]["documents"] == 4
    assert record["training"]["per_label"] == {
        label: sum(document.label == label for document in splits["train"]) for label in classification.labels
    }


def test_a_forest_teaches_what_its_trees_agree_on(backbone: Path, classification: PreparedTask, tmp_path: Path) -> None:
    """Many of its answers have a class of probability 0, of which the logit is -inf."""
    forest = tmp_path / "forest"
    posology.train(classification.folder, "", "random-forest", forest, overrides={"trees": 3, "min_leaf": 1})
    documents, nothing = classification.documents("train"), Encoded([], np.zeros(0), np.zeros(0), [])
    own = np.stack(load(forest).answer(documents).logits)
    assert np.isneginf(own).any(axis=1).mean() > 0.2
    soft = np.stack(ask(Teaching(forest), classification, documents, nothing, None).logits)
    assert np.isfinite(soft).all()
    np.testing.assert_allclose(functional.softmax(torch.from_numpy(soft), 1), np.exp(own), atol=2e-6)
    possible = np.isfinite(own)
    np.testing.assert_array_equal(soft[possible], own[possible].astype(np.float32))
    result = distil_task(
        forest, classification.folder, student=str(backbone), out=tmp_path / "run", weight=1.0,
        overrides=RECIPE | {"epochs": 8, "patience": 10},
    )  # fmt: skip
    assert result["metrics"]["macro_f1"]["value"] > 0.8


def test_a_teacher_without_any_answer_is_refused(
    teachers: dict[str, Path], classification: PreparedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, documents = teachers[classification.kind], classification.documents("test")[:3]
    model = load(folder)
    answers = model.answer(documents)
    nothing = Encoded([], np.zeros(0), np.zeros(0), [])
    silent = [np.full_like(values, np.nan) for values in answers.logits]
    monkeypatch.setattr(type(model), "answer", lambda *_: answers._replace(logits=silent))
    with pytest.raises(UserError, match="has no answer to any of the documents"):
        ask(Teaching(folder), classification, documents, nothing, None)
    silent[1] = answers.logits[1]
    assert np.isnan(np.stack(ask(Teaching(folder), classification, documents, nothing, None).logits)).any(1).sum() == 2


# --- taggers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["word", "piece"])
def test_taggers_with_other_tokenizers_are_compared_by_words(
    unit: str, teachers: dict[str, Path], backbone: Path, other_words: Path, tagging: PreparedTask
) -> None:
    from posology.engine.backbone import load_config, load_tokenizer, resolve
    from posology.engine.encode import Encoder

    source = resolve(str(other_words))
    encoder = Encoder(load_tokenizer(source), load_config(source), Recipe(**RECIPE), tagging.kind)
    documents, _ = training_documents(tagging, None, 0)
    if unit == "piece":
        tagging = replace(tagging, unit="piece")
    read, encoded = encoder.read(documents, unit)
    soft = ask(Teaching(teachers[tagging.kind]), tagging, documents, encoded, None)
    own = load(teachers[tagging.kind]).answer(documents).logits
    assert sum(len(document.words) for document in read) > sum(map(len, own)) or unit == "word"
    for number, document in enumerate(documents):
        assert len(soft.logits[number]) == len(read[number].words)
        words = encoded.owners[number] if unit == "piece" else np.arange(len(document.words))
        np.testing.assert_array_equal(soft.logits[number], own[number][words])
        for row, word in zip(soft.logits[number], words, strict=True):
            start, end = document.words[word]
            assert (int(row.argmax()) == 1) == (document.text[start:end] in ("fever", "pain")), (
                "it teaches the right words"
            )


def test_a_tagger_with_another_tokenizer_learns(
    teachers: dict[str, Path], other_words: Path, tagging: PreparedTask, unlabelled: Path, tmp_path: Path
) -> None:
    result = distil_task(
        teachers[tagging.kind], tagging.folder, student=f"{other_words}", method="lora", out=tmp_path / "run",
        unlabelled=unlabelled, overrides=RECIPE | {"learning_rate": 1e-2, "epochs": 8, "patience": 10}, shots=10,
    )  # fmt: skip
    assert result["metrics"]["entity_f1"]["value"] > 0.2 and result["distilled_from"] == "full on tiny"
    record = read_record(tmp_path / "run")["distilled_from"]
    teacher = read_record(teachers[tagging.kind])
    assert record["key"] == fingerprint(teachers[tagging.kind]) and record["task"] == tagging.fingerprint
    assert record["backbone"]["sha256"] == teacher["backbone"]["sha256"] and record["method"] == "full"
    assert record["unlabelled"] == {
        "documents": 40, "left_out": {"test": 0, "validation": 0, "train": 0},
        "sha256": record["unlabelled"]["sha256"],
    }  # fmt: skip
    assert load(tmp_path / "run").answer(tagging.documents("test")[:1]).logits


def test_words_behind_the_last_one_that_a_teacher_reads_have_labels_only(
    teachers: dict[str, Path], tagging: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tagging.documents("train")[0]
    model = load(teachers[tagging.kind])
    answers = model.answer([document])
    full = answers.logits[0]
    short = answers._replace(logits=[full[:2]], coverage=0.5)
    monkeypatch.setattr(type(model), "answer", lambda *_: short)
    soft = ask(Teaching(teachers[tagging.kind]), tagging, [document], Encoded([], full, full, []), None)
    assert np.isfinite(soft.logits[0][:2]).all() and np.isnan(soft.logits[0][2:]).all()
    assert len(soft.logits[0]) == len(document.words)


# --- documents without labels, labels in another order ----------------------------------------------------------------


def test_texts_of_the_task_are_left_out_of_those_without_labels(
    teachers: dict[str, Path], backbone: Path, classification: PreparedTask, unlabelled: Path, tmp_path: Path
) -> None:
    path = tmp_path / "more.csv"
    known = [
        *(classification.documents(split)[0] for split in ("test", "validation")),
        *classification.documents("train")[:2],
    ]
    more = "".join(f"x{number},{document.text.upper()} !\n" for number, document in enumerate(known))
    path.write_text(unlabelled.read_text(encoding="utf-8") + more, encoding="utf-8")
    distil_task(
        teachers[classification.kind], classification.folder, student=str(backbone), method="head", out=tmp_path / "run",
        unlabelled=path, overrides=RECIPE | {"epochs": 1},
    )  # fmt: skip
    found = read_record(tmp_path / "run")["distilled_from"]["unlabelled"]
    assert found["left_out"] == {"test": 1, "validation": 1, "train": 2} and found["documents"] == 40
    # A training document whose label is not used is one without a label.
    few, _ = training_documents(classification, 1, 0)
    more, said = read_unlabelled(Teaching(teachers[classification.kind], path), classification, few)
    used = {document.id for document in few}
    again = sum(document.id not in used for document in known[2:])
    assert said is not None and len(more) == said["documents"] == 40 + again and len(few) == 2
    assert all(document.label is None for document in more)


def test_labels_are_matched_by_name(teachers: dict[str, Path], classification: PreparedTask, tmp_path: Path) -> None:
    splits = {split: classification.documents(split) for split in ("train", "validation", "test")}
    turned = write_prepared(
        tmp_path / "turned", name="turned", kind=classification.kind, labels=list(reversed(classification.labels)),
        metric="macro_f1", splits=splits,
    )  # fmt: skip
    documents, nothing = splits["train"][:5], Encoded([], np.zeros(0), np.zeros(0), [])
    teaching = Teaching(teachers[classification.kind])
    one, other = (ask(teaching, task, documents, nothing, None).logits for task in (classification, turned))
    np.testing.assert_array_equal(np.stack(one), np.stack(other)[:, ::-1])


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_stopped_and_resumed_it_is_the_same_bit_for_bit(
    teachers: dict[str, Path],
    other_words: Path,
    tagging: PreparedTask,
    unlabelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(out: Path) -> dict[str, Any]:
        return distil_task(
            teachers[tagging.kind], tagging.folder, student=str(other_words), out=out, unlabelled=unlabelled,
            overrides=RECIPE | {"epochs": 2}, checkpoint_seconds=1000,
        )  # fmt: skip

    run(tmp_path / "undisturbed")
    backward, done = loop.backward, []

    def stopping(*arguments: Any) -> Any:
        done.append(1)
        result = backward(*arguments)
        if len(done) in (4, 17):
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(loop, "backward", stopping)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(tmp_path / "run")
    with pytest.raises(UserError, match=r"other settings: .*teacher_weight"):
        distil_task(
            teachers[tagging.kind], tagging.folder, student=str(other_words), out=tmp_path / "run",
            unlabelled=unlabelled, weight=0.1, overrides=RECIPE | {"epochs": 2},
        )  # fmt: skip
    result = run(tmp_path / "run")
    assert result["training"]["resumed"] == 2 and same(tmp_path / "undisturbed", tmp_path / "run")


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0.0}, "--temperature: a temperature of 0 is none"),
        ({"weight": 1.5}, "--weight: a weight of 1.5 is no share"),
        ({"weight": 0.0, "unlabelled": Path("x.csv")}, "with a weight of 0 nothing is learnt"),
        ({"unlabelled": Path("missing.csv")}, "missing.csv: does not exist"),
        ({"method": "tf-idf"}, "tf-idf learns from labels alone"),
        ({"student": "minilm:9"}, "asks for 9 layers of 6"),
    ],
)
def test_what_is_wrong_is_said(
    teachers: dict[str, Path],
    backbone: Path,
    classification: PreparedTask,
    tmp_path: Path,
    changes: dict[str, Any],
    words: str,
) -> None:
    options = {"student": str(backbone), "out": tmp_path / "run", **changes}
    with pytest.raises(UserError) as error:
        distil_task(teachers[classification.kind], classification.folder, **options)
    assert words in str(error.value) and not (tmp_path / "run").exists()


def test_teachers_of_something_else_are_refused(
    teachers: dict[str, Path], backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path
) -> None:
    kinds = [classification.kind, tagging.kind]
    with pytest.raises(UserError, match=f"is for {kinds[1]}, and complaint is {kinds[0]}"):
        distil_task(teachers[kinds[1]], classification.folder, student=str(backbone), out=tmp_path / "run")
    splits = {split: classification.documents(split) for split in ("train", "validation", "test")}
    more = {"name": "more", "kind": kinds[0], "metric": "macro_f1"}
    labels = [*classification.labels, "cough"]
    splits["train"].append(Document(id="new", text="new cough", label="cough"))
    other = write_prepared(tmp_path / "more", labels=labels, splits=splits, **more)
    with pytest.raises(UserError, match="does not know the label cough of more"):
        distil_task(teachers[kinds[0]], other.folder, student=str(backbone), out=tmp_path / "run")
    with pytest.raises(UserError, match="is no artifact"):
        distil_task(str(backbone), classification.folder, student=str(backbone), out=tmp_path / "run")
    for split in splits.values():
        for document in split:
            document.text_pair = "and a second text"
    paired = write_prepared(
        tmp_path / "paired", labels=labels[:2], splits=splits | {"train": splits["train"][:-1]}, **more
    )
    with pytest.raises(UserError, match="was trained on single texts, and more has pairs"):
        distil_task(teachers[kinds[0]], paired.folder, student=str(backbone), out=tmp_path / "run")


# --- studies ----------------------------------------------------------------------------------------------------------


def study(folder: Path, task: PreparedTask, backbone: Path, sweep: str, methods: str = "full") -> Path:
    path = folder / "study.yaml"
    path.write_text(
        f"study: teaching\ntasks: {{complaint: {task.folder}}}\nbackbones: [{backbone}]\nmethods: [{methods}]\n"
        f"set: {{epochs: 1, precision: fp32}}\nsweep: {sweep}\n",
        encoding="utf-8",
    )
    return path


def test_a_teacher_is_a_dimension_of_a_study(
    teachers: dict[str, Path], backbone: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    shutil.copytree(teachers[classification.kind], tmp_path / "teacher")
    file = read_study(study(tmp_path, classification, backbone, "{distilled_from: [null, ./teacher]}", "full, tf-idf"))
    check(file)
    alone, taught, baseline = cells(file)
    assert (alone.distilled_from, taught.distilled_from) == (None, tmp_path / "teacher")
    assert baseline.method == "tf-idf" and baseline.distilled_from is None
    assert expand(file).left_out == ["1 run counted once: tf-idf has no distilled_from"]
    assert "distilled_from" not in alone.identity(), "what was run before has the key it had"
    elsewhere = taught.model_copy(update={"distilled_from": teachers[classification.kind]})
    assert elsewhere.key() == taught.key() != alone.key(), "a teacher is what it answers, wherever it lies"
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        keys = ledger.add("teaching", [alone, taught])
        for key, cell in zip(keys, (alone, taught), strict=True):
            result = posology.train(**cell.arguments(), out=tmp_path / key)
            ledger.finish(key, result)
        ledger.export(tmp_path / "runs.csv")
    table = pl.read_csv(tmp_path / "runs.csv")
    assert dict(table.select("key", "distilled_from").iter_rows()) == dict(
        zip(keys, (None, "full on tiny"), strict=True)
    )
    assert {"domain", "pretraining"} < set(table.columns)
    from posology.report.reading import read

    (task,) = read(tmp_path / "ledger.db").tasks
    assert sorted(each.name for each in task.configurations) == [
        f"full on {backbone.name}", f"full on {backbone.name}, distilled from teacher",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("{distilled_from: [missing]}", "missing: is no artifact"),
        ("{distilled_from: [3]}", "found 3: the folder of an artifact is needed, or null"),
    ],
)
def test_a_study_says_what_is_wrong_with_a_teacher(
    backbone: Path, classification: PreparedTask, tmp_path: Path, sweep: str, words: str
) -> None:
    with pytest.raises(UserError) as error:
        check(read_study(study(tmp_path, classification, backbone, sweep)))
    assert words in str(error.value) and "study.yaml:6" in str(error.value)


def test_a_study_refuses_the_teacher_of_another_task(
    teachers: dict[str, Path], backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path
) -> None:
    path = study(tmp_path, classification, backbone, f"{{distilled_from: [{teachers[tagging.kind]}]}}")
    with pytest.raises(UserError, match="was trained on other labels than those of complaint"):
        check(read_study(path))


def test_domain_and_pretraining_come_from_the_backbone(backbone: Path, tmp_path: Path) -> None:
    from posology.engine.backbone import resolve
    from posology.engine.lineage import BACKBONE_RECORD, lineage

    assert lineage(resolve("minilm:2"))[:3] == ("general", None, None)
    assert lineage(resolve("minilm:2")).family is None and lineage(resolve("minilm")).family == "bert"
    folder = shutil.copytree(backbone, tmp_path / "own")
    assert lineage(resolve(str(folder))) == (None, None, None, None)
    record = {"domain": "clinical", "pretraining": "masked words (full)", "parent_name": "minilm"}
    (folder / BACKBONE_RECORD).write_text(json.dumps(record), encoding="utf-8")
    assert lineage(resolve(str(folder))) == ("clinical", "masked words (full)", None, "bert")
    (folder / BACKBONE_RECORD).write_text(json.dumps({"parent_name": "own", "family": "bert"}))
    assert lineage(resolve(str(folder))).family == "bert"  # of a parent that is in no catalogue
    (folder / BACKBONE_RECORD).write_text("[1", encoding="utf-8")
    assert lineage(resolve(str(folder))) == (None, None, None, None)


def test_cells_of_ledgers_of_before(classification: PreparedTask) -> None:
    cell = Cell(task="a", data=classification.folder)
    dump = json.loads(cell.model_dump_json())
    del dump["distilled_from"]
    assert Cell.model_validate(dump) == cell
